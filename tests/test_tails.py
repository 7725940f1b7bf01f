"""Tails of distributions against scipy and mpmath, in value and gradient."""

import math
import re
from collections.abc import Callable
from typing import Any

import mpmath
import pyro.distributions as dist
import pytest
import torch
from noises import CONTINUOUS, INF, case, double, each, each_count, pair
from torch import Tensor
from torch.autograd import gradcheck

from ampost import TruncatedNormal
from ampost.errors import UnsupportedError
from ampost.tails import before, counts, log_cumulative, log_incomplete_beta, log_incomplete_gamma, tails

# --------------------------------------------------------------------------- against scipy, mpmath


@each
def test_both_tails_agree_with_scipy(name: str) -> None:
    make, parameters, reference, points = case(name)
    below, above = log_cumulative(make(*parameters), points)
    assert below.dtype == torch.float64
    for k, x in enumerate(points.tolist()):
        p, q = float(reference.logcdf(x)), float(reference.logsf(x))
        assert float(below[k]) == pytest.approx(p, rel=1e-9 if p < -1e-3 else 1e-7, abs=1e-15)
        assert float(above[k]) == pytest.approx(q, rel=1e-9 if q < -1e-3 else 1e-7, abs=1e-15)


@pytest.mark.parametrize("z", [3.0, 30.0])
@pytest.mark.parametrize(
    ("noise", "loc", "scale"),
    [
        (dist.StudentT(double(1e4)), 0.0, 1.0),
        (dist.Gamma(double(4e3), double(2.0)), 2e3, math.sqrt(1e3)),
        (dist.Poisson(double(1e5)), 1e5, math.sqrt(1e5)),
        (dist.Binomial(100_000, double(0.3)), 3e4, math.sqrt(2.1e4)),
        (dist.NegativeBinomial(double(50.0), logits=double(5.0)), 50 * math.exp(5), 3e3),
    ],
)
def test_tails_far_from_the_mean_agree_with_mpmath(noise: Any, loc: float, scale: float, z: float) -> None:
    low, high = math.floor(loc - min(z * scale, 0.9 * loc) if loc else -z), math.ceil(loc + z * scale)
    with mpmath.workdps(30):
        for point, side in ((low, 0), (high, 1)):
            exact = float(mpmath.log(_by_mpmath(noise, point)[side]))
            assert float(log_cumulative(noise, double(point))[side]) == pytest.approx(exact, rel=2e-12)


def _by_mpmath(noise: Any, x: float) -> tuple[Any, Any]:
    """P(X <= x) and P(X > x)."""
    if isinstance(noise, dist.StudentT):
        df = float(noise.df)
        tail = mpmath.betainc(df / 2, 0.5, 0, df / (df + mpmath.mpf(x) ** 2), regularized=True) / 2
        return tail, tail
    if isinstance(noise, dist.Gamma):
        return _gammas(float(noise.concentration), float(noise.rate) * x)
    if isinstance(noise, dist.Poisson):
        return _gammas(x + 1, float(noise.rate))[::-1]
    if isinstance(noise, dist.Binomial):
        p, b = mpmath.mpf(float(noise.probs)), int(noise.total_count) - x
    else:
        p, b = 1 / (1 + mpmath.exp(-float(noise.logits))), float(noise.total_count)
    a = x + 1
    return _beta_series(b, a, 1 - p), _beta_series(a, b, p)


def _gammas(a: Any, x: float) -> tuple[Any, Any]:
    """P(a, x) by its series (DLMF 8.7.1), and the rest, with digits enough for e^-600."""
    with mpmath.workdps(300):
        a, total, term, k = mpmath.mpf(a), mpmath.mpf(1), mpmath.mpf(1), 0
        while term > mpmath.mpf(10) ** -300:
            k += 1
            term *= x / (a + k)
            total += term
        p = total * mpmath.exp(a * mpmath.log(x) - x - mpmath.loggamma(a + 1))
        return p, 1 - p


def _betas(a: float, b: float, x: float) -> tuple[Any, Any]:
    with mpmath.workdps(300):
        if x > 0.5:
            return _betas(b, a, 1.0 - x)[::-1]
        p = _beta_series(a, b, mpmath.mpf(x))
        return p, 1 - p


def _beta_series(a: Any, b: Any, x: Any) -> Any:
    """I_x(a, b) by x^a (1-x)^b / (a B(a, b)) times the hypergeometric series (DLMF 8.17.8)."""
    a, b, total, term, k = mpmath.mpf(a), mpmath.mpf(b), mpmath.mpf(1), mpmath.mpf(1), 0
    while term > total * mpmath.mpf(10) ** -mpmath.mp.dps:
        term *= (a + b + k) * x / (a + 1 + k)
        total += term
        k += 1
    log_front = a * mpmath.log(x) + b * mpmath.log(1 - x) - mpmath.log(a)
    return mpmath.exp(log_front - _log_beta(a, b)) * total


def _log_beta(a: Any, b: Any) -> Any:
    return mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)


def test_incomplete_functions_hold_for_small_and_unequal_shapes() -> None:
    with mpmath.workdps(30):
        for a in (0.02, 0.1, 0.5, 1.0, 3.0, 400.0):
            for x in (1e-6 * a, 0.3 * a, a, 1.01 * a, 2.0 * a, a + 9.0):
                ours = pair(log_incomplete_gamma(double(a), double(x)))
                exact = [float(mpmath.log(p)) for p in _gammas(a, x)]
                assert ours == pytest.approx(exact, rel=1e-10, abs=1e-14)
            for b in (0.02, 0.5, 7.0, 400.0):
                for x in (1e-7, 0.02, 0.3, 0.71, 0.99):
                    ours = pair(log_incomplete_beta(double(a), double(b), double(x), double(1.0 - x)))
                    exact = [float(mpmath.log(p)) for p in _betas(a, b, x)]
                    assert ours == pytest.approx(exact, rel=1e-10, abs=1e-13), (a, b, x)


def test_a_tail_close_to_1_keeps_its_digits() -> None:
    for noise, x in (
        (dist.Normal(double(0.0), double(1.0)), 12.0),
        (dist.StudentT(double(1e3)), 12.0),
        (dist.Gamma(double(3.0), double(1.0)), 90.0),
        (dist.Poisson(double(2.0)), 60.0),
        (dist.Cauchy(double(0.0), double(1.0)), 1e25),
        (dist.Geometric(double(0.5)), 100.0),
    ):
        below, above = pair(log_cumulative(noise, double(x)))
        assert below == pytest.approx(-math.exp(above), rel=1e-10)
        assert below < 0.0


# ------------------------------------------------------------------------------------ gradients


@each
def test_gradients_agree_with_differences(name: str) -> None:
    make, parameters, _, points = case(name)
    asked = [p.clone().requires_grad_() for p in parameters]

    def at(value: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *given: log_cumulative(make(*given), value)

    for x in points[:2]:
        assert gradcheck(at(x), asked, eps=1e-7, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(CONTINUOUS))
def test_the_slope_in_the_value_is_the_density_also_far_out(name: str) -> None:
    make, parameters, _, points = case(name)
    noise, value = make(*parameters), points.clone().requires_grad_()
    density = noise.log_prob(points)
    for side, sign in ((0, 1.0), (1, -1.0)):
        log = log_cumulative(noise, value)[side]
        (slope,) = torch.autograd.grad(log.sum(), value)
        assert slope.tolist() == pytest.approx((sign * torch.exp(density - log)).tolist(), rel=1e-9)


@each
def test_second_derivatives_agree_with_differences(name: str) -> None:
    make, parameters, _, points = case(name)

    def score(*given: Tensor) -> tuple[Tensor, ...]:
        below, above = log_cumulative(make(*given), points[1])
        gradients = torch.autograd.grad(below + 2.0 * above, given, create_graph=True)
        return tuple(gradients)

    assert gradcheck(score, [p.clone().requires_grad_() for p in parameters], eps=1e-6, atol=1e-4, rtol=1e-4)


@each
def test_gradients_are_finite_wherever_the_log_is(name: str) -> None:
    make, parameters, _, points = case(name)
    beyond = double([-3.0, -1.0, 0.0, 1.0, 2.0, 31.0, 1e4])
    for x in torch.cat([points, beyond]):
        for side in (0, 1):
            asked = [p.clone().requires_grad_() for p in (*parameters, x)]
            log = log_cumulative(make(*asked[:-1]), asked[-1])[side]
            assert not torch.isnan(log)
            if torch.isfinite(log):
                slopes = torch.autograd.grad(log + 0.0 * sum(asked), asked)
                assert all(bool(torch.isfinite(g)) for g in slopes), (float(x), side)


def test_a_rate_or_probability_of_0_is_no_accident() -> None:
    for noise in (
        dist.Poisson(double(0.0)),
        dist.Binomial(5, double(0.0)),
        dist.NegativeBinomial(5, double(0.0)),
    ):
        assert pair(log_cumulative(noise, double(2.0))) == [0.0, -INF]
    assert pair(log_cumulative(dist.Binomial(5, double(1.0)), double(2.0))) == [-INF, 0.0]
    rate = double(0.0).requires_grad_()
    (slope,) = torch.autograd.grad(log_cumulative(dist.Poisson(rate), double(2.0))[0], rate)
    assert float(slope) == 0.0


# ------------------------------------------------------------------------- limits and their sides


@each_count
def test_tails_of_counts_are_strict(name: str) -> None:
    make, parameters, reference, _ = case(name)
    noise = make(*parameters)
    for limit, under, over in ((5.0, 4, 5), (4.5, 4, 4), (0.0, -1, 0)):
        p, q = reference.cdf(under), reference.sf(over)
        assert [math.exp(x) for x in pair(tails(noise, double(limit)))] == pytest.approx([p, q], rel=1e-10)


@pytest.mark.parametrize("name", list(CONTINUOUS))
def test_tails_of_continuous_noise_are_its_cumulative_probabilities(name: str) -> None:
    make, parameters, _, points = case(name)
    noise = make(*parameters)
    assert not counts(noise)
    assert torch.equal(before(noise, points), points)
    assert all(
        torch.equal(a, b) for a, b in zip(tails(noise, points), log_cumulative(noise, points), strict=True)
    )


def test_beyond_the_support_everything_is_on_one_side() -> None:
    for noise, low, high in (
        (dist.LogNormal(double(0.0), double(1.0)), 0.0, None),
        (dist.HalfNormal(double(1.0)), -1.0, None),
        (dist.HalfCauchy(double(1.0)), 0.0, None),
        (dist.Exponential(double(1.0)), 0.0, None),
        (dist.Gamma(double(2.0), double(1.0)), 0.0, None),
        (dist.Weibull(double(2.0), double(1.0)), 0.0, None),
        (dist.Uniform(double(1.0), double(2.0)), 1.0, 2.0),
        (TruncatedNormal(double(1.0), double(2.0), 0.5, 3.0), 0.5, 3.0),
        (dist.Beta(double(1.0), double(2.0)), -0.5, 1.0),
        (dist.Poisson(double(2.0)), -1.0, None),
        (dist.Binomial(4, double(0.5)), -0.5, 4.0),
    ):
        assert pair(log_cumulative(noise, double(low))) == [-INF, 0.0]
        if high is not None:
            assert pair(log_cumulative(noise, double(high))) == [0.0, -INF]


def test_shapes_broadcast_and_wrappers_are_looked_through() -> None:
    loc, x = double([[0.0], [1.0]]), double([0.5, 1.0, 2.0])
    plain = log_cumulative(dist.Normal(loc, 1.0), x)
    assert plain[0].shape == (2, 3)
    for noise in (
        dist.Normal(loc, 1.0).expand([2, 3]),
        dist.Normal(loc, 1.0).mask(torch.tensor([[True], [False]])),
        dist.ExpandedDistribution(dist.Normal(loc, 1.0), torch.Size([2, 3])),
        torch.distributions.Independent(torch.distributions.Normal(loc, 1.0), 0),
    ):
        assert all(torch.equal(a, b) for a, b in zip(log_cumulative(noise, x), plain, strict=True))


def test_what_is_not_known_is_refused_by_name() -> None:
    zero_inflated = dist.ZeroInflatedPoisson(double(3.0), gate=double(0.5))
    for noise, name in (
        (zero_inflated, "ZeroInflatedPoisson"),
        (dist.VonMises(double(0.0), double(1.0)), "VonMises"),
        (zero_inflated.mask(torch.tensor(True)), "ZeroInflatedPoisson"),
    ):
        with pytest.raises(UnsupportedError, match=f"under {name}, but under .*Binomial.*StudentT.*leave the"):
            log_cumulative(noise, double(1.0))
    wide = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    with pytest.raises(UnsupportedError, match=re.escape("leave to_event(1) out")):
        log_cumulative(wide, torch.zeros(3))
