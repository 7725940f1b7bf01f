"""The likelihood of censored values against closed forms, in programs and under NUTS."""

import math
import re
from typing import Any

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
from noises import CONTINUOUS, INF, case, double, each, each_count
from pyro.infer import MCMC, NUTS
from torch import Tensor
from torch.autograd import gradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from ampost import TruncatedNormal
from ampost.censored import Censored
from ampost.errors import ExperimentError, UnsupportedError
from ampost.experiments import INTERVAL, LEFT, RIGHT


def codes(*x: int) -> Tensor:
    return torch.tensor(x)


def test_noise_with_events_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=re.escape("events of shape (3,)")):
        Censored(dist.Normal(torch.zeros(3), 1.0).to_event(1), codes(LEFT))


@pytest.mark.parametrize(
    "name", ["Normal", "LogNormal", "TruncatedNormal", "Weibull", "StudentT", "Gamma", "Poisson", "Binomial"]
)
def test_a_record_of_the_operations_gives_the_same_numbers(name: str) -> None:
    make, parameters, _, points = case(name)
    code = (torch.arange(len(points)) + 1) % 4

    def both(*given: Tensor) -> tuple[Tensor, ...]:
        asked = [p.detach().requires_grad_() for p in given]
        score = Censored(make(*asked), code, points + 1.0).log_prob(points)
        score = torch.where(torch.isfinite(score), score, 0.0).sum()
        return score.detach(), *torch.autograd.grad(score, asked)

    with pyro.validation_enabled(False):
        recorded = make_fx(both)(*[0.9 * p + 0.05 for p in parameters])
        ours, theirs = recorded(*parameters), both(*parameters)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert all(bool(torch.isfinite(x)) for x in ours)


# ------------------------------------------------------------------------------ censored values


def test_each_entry_is_scored_by_what_is_known_of_it() -> None:
    normal = st.norm(1.0, 0.5)
    noise = dist.Normal(double(1.0), double(0.5))
    value, upper = double([0.7, 0.7, 0.7, 0.7]), double([math.nan, math.nan, math.nan, 1.2])
    scored = Censored(noise, codes(0, LEFT, RIGHT, INTERVAL), upper).log_prob(value)
    mass = normal.cdf(1.2) - normal.cdf(0.7)
    exact = [normal.logpdf(0.7), normal.logcdf(0.7), normal.logsf(0.7), math.log(mass)]
    assert scored.tolist() == pytest.approx(exact, rel=1e-12)


@each_count
def test_an_interval_of_counts_includes_both_ends(name: str) -> None:
    make, parameters, reference, _ = case(name)
    noise = make(*parameters)
    for low, high in ((0.0, 0.0), (3.0, 7.0), (5.0, 5.0), (20.0, 22.0), (2.5, 4.5)):
        exact = sum(reference.pmf(k) for k in range(math.ceil(low), math.floor(high) + 1))
        scored = Censored(noise, codes(INTERVAL), double([high])).log_prob(double([low]))
        assert float(scored.exp()) == pytest.approx(exact, rel=1e-9)


def test_an_interval_keeps_its_digits_in_either_tail_and_when_narrow() -> None:
    noise = dist.Normal(double(0.0), double(1.0))
    for low, width in ((-30.0, 0.5), (29.5, 0.5), (-0.1, 1e-4), (0.3, 1e-9), (20.0, 1e-13), (-1.0, 40.0)):
        start, end = double(low), double(low) + width
        with mpmath.workdps(300):
            mass = mpmath.erfc(-mpmath.mpf(float(end)) / mpmath.sqrt(2)) - mpmath.erfc(
                -start.item() / mpmath.sqrt(2)
            )
            exact = float(mpmath.log(mass / 2))
        scored = Censored(noise, codes(INTERVAL), end[None]).log_prob(start[None])
        assert float(scored) == pytest.approx(exact, rel=2e-12, abs=1e-12)


def test_an_interval_without_anything_in_it_is_impossible() -> None:
    noise = dist.LogNormal(double(0.0), double(1.0))
    for low, high in ((0.5, 0.5), (0.5, 0.4), (-2.0, -1.0), (-1.0, 0.0)):
        assert float(Censored(noise, codes(INTERVAL), double([high])).log_prob(double([low]))) == -INF
    from_zero = Censored(noise, codes(INTERVAL), double([0.5])).log_prob(double([0.0]))
    assert float(from_zero) == pytest.approx(st.lognorm(1.0).logcdf(0.5))


@each_count
def test_probabilities_of_all_reports_of_counts_sum_to_1(name: str) -> None:
    make, parameters, _, _ = case(name)
    noise = make(*parameters)
    inner = torch.arange(4.0, 10.0, dtype=torch.float64)
    value = torch.cat([double([4.0, 11.0]), inner, double([10.0])])
    code = torch.tensor([LEFT, RIGHT, *[0] * len(inner), INTERVAL])
    scored = Censored(noise.expand(value.shape), code, torch.full_like(value, 11.0)).log_prob(value)
    assert float(scored.exp().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", ["Normal", "LogNormal", "StudentT", "Gamma", "TruncatedNormal", "Weibull"])
def test_the_mass_of_all_reports_between_limits_of_detection_is_1(name: str) -> None:
    make, parameters, _, _ = case(name)
    low, high, middle = 0.4, 2.0, 1.1
    nodes, weights = _legendre(low, middle)
    value = torch.cat([nodes, double([low, high, middle])])
    code = torch.tensor([*[0] * len(nodes), LEFT, RIGHT, INTERVAL])
    noise = Censored(make(*parameters), code, torch.full_like(value, high))
    mass = noise.log_prob(value).exp()
    assert float((mass[:-3] * weights).sum() + mass[-3:].sum()) == pytest.approx(1.0, abs=1e-10)


def _legendre(low: float, high: float) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(40)
    return double(0.5 * (high - low) * nodes + 0.5 * (high + low)), double(0.5 * (high - low) * weights)


@each
def test_gradients_of_censored_entries_agree_with_differences_and_are_finite(name: str) -> None:
    make, parameters, _, points = case(name)
    value = points[[0, 1, 1, 0]]
    value, upper = value, value + double([0.0, 0.0, 0.0, 0.05 if name in CONTINUOUS else 3.0])
    asked = [p.clone().requires_grad_() for p in parameters]

    def scored(*given: Tensor) -> Tensor:
        return Censored(make(*given).expand([4]), codes(0, LEFT, RIGHT, INTERVAL), upper).log_prob(value)

    assert gradcheck(scored, asked, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_limits_at_the_edge_of_the_support_leave_gradients_alone() -> None:
    for noise, parameter in _edge_cases():
        code = codes(RIGHT, LEFT, 0)
        scored = Censored(noise.expand([3]), code).log_prob(double([0.0, 0.05, 0.2]))
        assert scored[0].item() == 0.0
        (slope,) = torch.autograd.grad(scored.sum(), parameter)
        assert bool(torch.isfinite(scored).all())
        assert bool(torch.isfinite(slope))


def _edge_cases() -> list[tuple[Any, Tensor]]:
    p = [double(1.3).requires_grad_() for _ in range(6)]
    return [
        (dist.LogNormal(p[0], double(0.5)), p[0]),
        (dist.Gamma(p[1], double(1.0)), p[1]),
        (dist.Weibull(double(1.0), p[2]), p[2]),
        (dist.Beta(p[3], double(2.0)), p[3]),
        (dist.HalfNormal(p[4]), p[4]),
        (TruncatedNormal(p[5], double(0.5), 0.0), p[5]),
    ]


def test_values_outside_the_support_are_refused_only_where_they_are_exact() -> None:
    noise = dist.LogNormal(double([0.0, 0.0]), 1.0, validate_args=True)
    Censored(noise, codes(0, RIGHT)).log_prob(double([1.0, 0.0]))
    with pytest.raises(ValueError, match="to be within the support"):
        Censored(noise, codes(RIGHT, 0)).log_prob(double([1.0, 0.0]))
    with pytest.raises(ValueError, match="to be within the support"):
        Censored(noise, codes(LEFT, LEFT), validate_args=True).log_prob(double([1.0, math.nan]))


def test_an_interval_needs_its_upper_end() -> None:
    with pytest.raises(ExperimentError, match="no upper end; give `upper`"):
        Censored(dist.Normal(0.0, 1.0), codes(0, INTERVAL), validate_args=True)
    scored = Censored(dist.Normal(0.0, 1.0), codes(0, INTERVAL), validate_args=False).log_prob(double(0.0))
    assert torch.isnan(scored).tolist() == [False, True]


def test_it_behaves_as_the_noise_that_it_wraps() -> None:
    noise = dist.Normal(double([[0.0], [5.0]]), 1e-6)
    censored = Censored(noise, codes(0, LEFT, RIGHT))
    assert censored.batch_shape == (2, 3)
    assert censored.has_rsample
    assert censored.base_dist.batch_shape == (2, 3)
    wide = censored.expand([4, 2, 3])
    assert wide.sample().shape == (4, 2, 3)
    assert wide.rsample((6,)).shape == (6, 4, 2, 3)
    assert wide.sample()[..., 1, :].mean() == pytest.approx(5.0, abs=1e-4)
    value = double([1e-7, 1e-7, 1e-7])
    assert torch.equal(wide.log_prob(value), censored.log_prob(value).expand(4, 2, 3))
    assert not censored.support.is_discrete
    count = Censored(dist.Poisson(double(3.0)), codes(LEFT))
    assert count.support.is_discrete
    assert not count.has_rsample


def test_a_mask_inside_counts_once() -> None:
    mask = torch.tensor([True, False, True])
    inner = Censored(dist.Normal(double(0.0), 1.0).expand([3]).mask(mask), codes(LEFT, LEFT, 0))
    outer = Censored(dist.Normal(double(0.0), 1.0), codes(LEFT, LEFT, 0)).mask(mask)
    value = double([0.3, 0.4, 0.5])
    assert torch.equal(inner.log_prob(value), outer.log_prob(value))
    assert float(inner.log_prob(value)[1]) == 0.0
    assert float(inner.log_prob(value)[0]) == pytest.approx(st.norm.logcdf(0.3))


# ------------------------------------------------------------------------------- in Pyro programs

X = double([0.0, 1.0, 2.0, 3.0, 4.0])
Y = double([0.5, 0.5, 0.9, 1.6, 1.8])  # y = a x + noise, not seen below 0.5 nor above 1.8
KNOWN = codes(LEFT, LEFT, 0, 0, RIGHT)


def tobit() -> None:
    slope = pyro.sample("slope", dist.Normal(double(0.0), double(1.0)))
    with pyro.plate("rows", 5):
        pyro.sample("y", Censored(dist.Normal(slope * X, 0.3), KNOWN).mask(torch.ones(5).bool()), obs=Y)


def log_likelihood(slope: float) -> float:
    at = [st.norm(slope * float(x), 0.3) for x in X]
    y = Y.tolist()
    seen = sum(at[k].logpdf(y[k]) for k in (2, 3))
    return float(at[0].logcdf(y[0]) + at[1].logcdf(y[1]) + seen + at[4].logsf(y[4]))


@pytest.mark.parametrize("validated", [True, False])
def test_a_tobit_program_has_the_likelihood_of_its_closed_form(validated: bool) -> None:
    with pyro.validation_enabled(validated):
        conditioned = pyro.condition(tobit, {"slope": double(0.45)})
        trace = pyro.poutine.trace(conditioned).get_trace()
        prior = st.norm.logpdf(0.45)
        assert float(trace.log_prob_sum()) == pytest.approx(log_likelihood(0.45) + prior, rel=1e-12)


def test_nuts_samples_a_tobit_posterior() -> None:
    pyro.set_rng_seed(3)
    sampler = MCMC(NUTS(tobit), num_samples=300, warmup_steps=100, disable_progbar=True)
    sampler.run()
    draws = sampler.get_samples()["slope"]
    grid = torch.linspace(-0.5, 1.5, 401, dtype=torch.float64)
    logs = double([log_likelihood(float(a)) + st.norm.logpdf(float(a)) for a in grid])
    weight = torch.softmax(logs, 0)
    mean = float((weight * grid).sum())
    sd = float((weight * (grid - mean).square()).sum().sqrt())
    assert float(draws.mean()) == pytest.approx(mean, abs=0.4 * sd)
    assert float(draws.std()) == pytest.approx(sd, rel=0.3)
