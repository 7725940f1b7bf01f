"""`between` and TruncatedNormal against scipy and against formulas that hold in the tails."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import lognorm, truncnorm
from torch import Tensor

from ampost import TruncatedNormal, between
from ampost.errors import ModelError

INF = math.inf
CUTS = [
    (1.0, 0.5, 0.0, INF),
    (0.05, 0.05, 0.0, INF),
    (1.0, 2.0, -INF, 3.0),
    (0.0, 1.0, -1.0, 2.0),
    (2.0, 3.0, -INF, INF),
    (0.0, 1.0, 6.0, INF),
    (0.0, 1.0, -8.0, -6.0),
    (0.0, 1.0, 0.5, 0.51),
]
each_cut = pytest.mark.parametrize(("loc", "scale", "low", "high"), CUTS)


def double(x: object) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def cut(loc: float, scale: float, low: float, high: float) -> TruncatedNormal:
    return TruncatedNormal(double(loc), double(scale), low, high)


def by_scipy(loc: float, scale: float, low: float, high: float) -> object:
    return truncnorm((low - loc) / scale, (high - loc) / scale, loc=loc, scale=scale)


# --------------------------------------------------------------------------------------- between


@pytest.mark.parametrize(("low", "high", "mass"), [(0.05, 20.0, 0.95), (0.3, 0.31, 0.9), (1e-6, 1e6, 0.5)])
def test_between_puts_its_mass_between_and_half_of_the_rest_on_each_side(
    low: float, high: float, mass: float
) -> None:
    prior = between(double(low), double(high), mass)
    loc, scale = float(prior.loc), float(prior.scale)
    exact = lognorm(scale, scale=math.exp(loc))
    assert exact.cdf(low) == pytest.approx((1 - mass) / 2, rel=1e-8)
    assert exact.sf(high) == pytest.approx((1 - mass) / 2, rel=1e-8)
    assert math.exp(loc) == pytest.approx(math.sqrt(low * high))


def test_between_holds_95_percent_by_default_and_broadcasts() -> None:
    prior = between(double([0.1, 1.0]), 20.0)
    assert prior.batch_shape == (2,)
    mass = prior.cdf(double([20.0, 20.0])) - prior.cdf(double([0.1, 1.0]))
    assert mass.tolist() == pytest.approx([0.95, 0.95], abs=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "mass", "message"),
    [
        (0.0, 1.0, 0.95, r"low=0.0.*above 0.*TruncatedNormal"),
        (-1.0, 1.0, 0.95, r"low=-1.0.*above 0"),
        (2.0, 1.0, 0.95, r"low=2.0, high=1.0.*low must be below high"),
        (1.0, 1.0, 0.95, "low must be below high"),
        (1.0, INF, 0.95, "high=inf.*high must be finite"),
        (float("nan"), 1.0, 0.95, "low=nan.*above 0"),
        (1.0, 2.0, 1.0, r"mass=1.0.*strictly between 0 and 1"),
        (1.0, 2.0, 0.0, r"mass=0.0.*strictly between 0 and 1"),
    ],
)
def test_between_refuses_what_no_log_normal_can_be(low: float, high: float, mass: float, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        between(low, high, mass)


# ------------------------------------------------------------------------------- TruncatedNormal


@each_cut
def test_densities_and_probabilities_are_scipys(loc: float, scale: float, low: float, high: float) -> None:
    ours, theirs = cut(loc, scale, low, high), by_scipy(loc, scale, low, high)
    share = np.linspace(0.001, 0.999, 41)
    value = theirs.ppf(share)  # type: ignore[attr-defined]
    torch.testing.assert_close(ours.icdf(double(share)), double(value), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(
        ours.log_prob(double(value)),
        double(theirs.logpdf(value)),  # type: ignore[attr-defined]
        rtol=1e-9,
        atol=1e-9,
    )
    torch.testing.assert_close(ours.cdf(double(value)), double(share), rtol=1e-7, atol=1e-12)


@each_cut
def test_moments_are_scipys(loc: float, scale: float, low: float, high: float) -> None:
    ours, theirs = cut(loc, scale, low, high), by_scipy(loc, scale, low, high)
    assert float(ours.mean) == pytest.approx(theirs.mean(), rel=1e-8)  # type: ignore[attr-defined]
    # the closed form cancels where the cut is narrow; scipy's has the same trouble there
    spread = float(ours.variance)
    assert spread == pytest.approx(theirs.var(), rel=1e-5, abs=1e-9)  # type: ignore[attr-defined]


@each_cut
def test_draws_have_the_moments_and_stay_inside(loc: float, scale: float, low: float, high: float) -> None:
    theirs = by_scipy(loc, scale, low, high)
    torch.manual_seed(0)
    drawn = cut(loc, scale, low, high).sample((20_000,))
    sd = theirs.std()  # type: ignore[attr-defined]
    assert bool(((drawn >= low) & (drawn <= high)).all())
    assert float(drawn.mean()) == pytest.approx(theirs.mean(), abs=4 * sd / math.sqrt(20_000))  # type: ignore[attr-defined]
    assert float(drawn.std()) == pytest.approx(sd, rel=0.04)


@pytest.mark.parametrize("far", [40.0, 1_000.0, 1e5])
def test_far_out_it_is_the_exponential_of_rate_far(far: float) -> None:
    # X - far given X > far, for X ~ N(0, 1): the density is far exp(-far x - x^2 / 2) (1 + O(far^-2))
    prior = cut(-far, 1.0, 0.0, INF)
    x = double([0.0, 0.1, 1.0, 5.0]) / far
    expected = math.log(far) - far * x - x.square() / 2 + math.log1p(far**-2)
    torch.testing.assert_close(prior.log_prob(x), expected, rtol=0, atol=3 * far**-4 + 1e-15 * far**2)
    share = double([1e-12, 0.01, 0.5, 0.99])
    held = 10 * far**-2 + 1e-13 * far**2
    torch.testing.assert_close(prior.icdf(share), -torch.log1p(-share) / far, rtol=held, atol=0)
    below, above = prior.tails(x[1:])
    torch.testing.assert_close(below.exp() + above.exp(), torch.ones_like(below), rtol=held, atol=0)


def test_the_far_tails_mirror_each_other() -> None:
    left, right = cut(0.0, 1.0, -INF, -50.0), cut(0.0, 1.0, 50.0, INF)
    share = double([1e-3, 0.3, 0.9])
    torch.testing.assert_close(left.icdf(share), -right.icdf(1 - share), rtol=1e-14, atol=0)
    x = double([50.001, 50.1, 51.0])
    torch.testing.assert_close(left.log_prob(-x), right.log_prob(x))


def test_outside_the_bounds_there_is_nothing() -> None:
    prior = TruncatedNormal(double(0.0), double(1.0), -1.0, 2.0, validate_args=False)
    assert prior.log_prob(double([-1.1, 2.1])).tolist() == [-INF, -INF]
    assert prior.cdf(double([-5.0, 5.0])).tolist() == [0.0, 1.0]
    assert bool(torch.isfinite(prior.log_prob(double([-1.0, 2.0]))).all())


def test_draws_are_differentiable_in_location_and_scale() -> None:
    loc, scale = double(0.3).requires_grad_(), double(0.8).requires_grad_()
    torch.manual_seed(0)
    TruncatedNormal(loc, scale, low=0.0).rsample((50_000,)).mean().backward()
    # d mean / d loc = variance / scale^2 for a Normal cut at fixed bounds
    exact = truncnorm(-0.3 / 0.8, INF, loc=0.3, scale=0.8).var() / 0.64
    assert loc.grad is not None
    assert scale.grad is not None
    assert float(loc.grad) == pytest.approx(exact, rel=0.02)
    step = 1e-5
    means = [truncnorm(-0.3 / s, INF, loc=0.3, scale=s).mean() for s in (0.8 + step, 0.8 - step)]
    assert float(scale.grad) == pytest.approx((means[0] - means[1]) / (2 * step), rel=0.03)


def test_arguments_broadcast_and_expand() -> None:
    prior = TruncatedNormal(torch.zeros(3, 1), torch.ones(2), low=0.0)
    assert prior.batch_shape == (3, 2)
    wide = prior.expand((4, 3, 2))
    assert wide.sample().shape == (4, 3, 2)
    value = torch.rand(4, 3, 2)
    torch.testing.assert_close(wide.log_prob(value), prior.log_prob(value))
    assert wide.support.check(torch.tensor(-1.0)).any().item() is False


@pytest.mark.parametrize(
    ("low", "high", "inside", "outside"),
    [(0.0, INF, 0.0, -0.1), (-INF, 3.0, 3.0, 3.1), (-1.0, 2.0, 2.0, 2.1), (-1.0, 2.0, -1.0, -1.1)],
)
def test_the_support_ends_at_the_bounds(low: float, high: float, inside: float, outside: float) -> None:
    support = cut(0.0, 1.0, low, high).support
    assert bool(support.check(double(inside)))
    assert not bool(support.check(double(outside)))


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"low=2.0, high=1.0\): low must be below high"):
        TruncatedNormal(0.0, 1.0, low=2.0, high=1.0, validate_args=True)
    with pytest.raises(
        ModelError, match=r"TruncatedNormal\(high=.*some .* are finite and some are not.*two sites"
    ):
        TruncatedNormal(0.0, 1.0, high=torch.tensor([1.0, INF]))
    with pytest.raises(ValueError, match="scale"):
        TruncatedNormal(0.0, -1.0, low=0.0, validate_args=True)
