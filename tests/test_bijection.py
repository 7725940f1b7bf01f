"""Every prior's map: there and back, the density it implies, its slope; and the inexact families."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import Design, Experiments, Model, TruncatedNormal, observe
from ampost.bijection import bijection, standardise
from ampost.errors import ModelError
from ampost.plans import Looks

EPS = torch.finfo(torch.float64).eps
Z = torch.linspace(-8.0, 8.0, 65, dtype=torch.float64)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


SCALAR = {
    "normal": dist.Normal(number(3.0), number(0.2)),
    "log_normal": dist.LogNormal(number(-2.0), number(1.5)),
    "uniform": dist.Uniform(number(0.0), number(2.0)),
    "uniform_below_zero": dist.Uniform(number(-5.0), number(-1.0)),
    "half_normal": dist.HalfNormal(number(0.3)),
    "half_cauchy": dist.HalfCauchy(number(2.0)),
    "exponential": dist.Exponential(number(4.0)),
    "truncated_below": TruncatedNormal(number(0.05), number(0.05), low=0.0),
    "truncated_above": TruncatedNormal(number(1.0), number(2.0), high=3.0),
    "truncated_both": TruncatedNormal(number(0.0), number(1.0), low=-1.0, high=2.0),
    "truncated_neither": TruncatedNormal(number(1.0), number(2.0)),
    "truncated_wide": TruncatedNormal(number(0.0), number(1.0), low=-40.0, high=40.0),
    "truncated_narrow": TruncatedNormal(number(0.0), number(1.0), low=0.5, high=0.5001),
    "truncated_far_below": TruncatedNormal(number(-50.0), number(1.0), low=0.0),
    "truncated_far_above": TruncatedNormal(number(50.0), number(1.0), high=0.0),
    "truncated_far_both": TruncatedNormal(number(-30.0), number(1.0), low=0.0, high=1.0),
}
CORRELATED = dist.MultivariateNormal(
    torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64),
    torch.tensor([[2.0, 0.6, 0.1], [0.6, 1.0, -0.2], [0.1, -0.2, 0.5]], dtype=torch.float64),
)
INEXACT = {
    "gamma": dist.Gamma(number(2.0), number(3.0)),
    "beta": dist.Beta(number(2.0), number(5.0)),
    "student": dist.StudentT(number(5.0), number(1.0), number(2.0)),
    "dirichlet": dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)),
}
each_scalar = pytest.mark.parametrize("prior", SCALAR.values(), ids=SCALAR.keys())
each_inexact = pytest.mark.parametrize("prior", INEXACT.values(), ids=INEXACT.keys())


def with_slope(prior: Any) -> tuple[Tensor, Tensor]:
    z = Z.clone().requires_grad_()
    theta = bijection(prior).forward(z)
    (slope,) = torch.autograd.grad(theta.sum(), z)
    return theta.detach(), slope


def log_normal_density(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


@each_scalar
def test_z_comes_back_as_far_as_the_parameter_can_hold_it(prior: Any) -> None:
    theta, slope = with_slope(prior)
    back = bijection(prior).inverse(theta)
    # neighbours of theta in float64 are EPS |theta| apart, hence EPS |theta| / slope in z; a cut
    # Normal is moved to its location on the way
    away = getattr(prior, "loc", number(0.0)).abs() if isinstance(prior, TruncatedNormal) else 0.0
    held = EPS * (theta.abs() + away) / slope
    kept = held < 1e-3
    assert int(kept.sum()) >= 33
    assert bool(((back - Z).abs() <= 16 * held + 1e-12)[kept].all())


@pytest.mark.parametrize(
    "name", ["normal", "log_normal", "half_normal", "half_cauchy", "exponential", "truncated_below"]
)
def test_z_comes_back_to_nine_digits_where_no_bound_but_zero_is_near(name: str) -> None:
    map_ = bijection(SCALAR[name])
    torch.testing.assert_close(map_.inverse(map_.forward(Z)), Z, rtol=1e-9, atol=1e-9)


@each_scalar
def test_the_map_rises_and_stays_in_the_support(prior: Any) -> None:
    theta, slope = with_slope(prior)
    assert bool(prior.support.check(theta).all())
    assert bool((theta.diff() >= 0).all())
    assert bool((slope > 0).all())
    assert bool(torch.isfinite(slope).all())


@each_scalar
def test_the_prior_in_z_is_the_standard_normal(prior: Any) -> None:
    theta, slope = with_slope(prior)
    map_ = bijection(prior)
    assert map_.exact
    torch.testing.assert_close(prior.log_prob(theta) + slope.log(), log_normal_density(Z), rtol=0, atol=1e-9)
    torch.testing.assert_close(map_.log_prior(Z, theta), log_normal_density(Z))


@each_scalar
def test_slopes_are_those_of_finite_differences(prior: Any) -> None:
    # the midpoints avoid z = 0, where formulas change sides; a wide step outweighs rounding
    middle, step = (Z[1:] + Z[:-1]) / 2, 1e-4
    z = middle[middle.abs() < 5].requires_grad_()
    map_ = bijection(prior)
    (slope,) = torch.autograd.grad(map_.forward(z).sum(), z)
    with torch.no_grad():
        ends = map_.forward(z + step), map_.forward(z - step)
    rounding = EPS * ends[0].abs() / step
    assert bool(((ends[0] - ends[1]) / (2 * step) - slope).abs().le(1e-6 * slope + 4 * rounding).all())


@pytest.mark.parametrize("kind", [dist.Normal, dist.LogNormal, TruncatedNormal])
def test_slopes_reach_the_parameters_of_the_prior(kind: Any) -> None:
    # a hierarchical prior: its location is another site
    arguments = {"low": 0.0} if kind is TruncatedNormal else {}

    def theta(loc: Tensor) -> Tensor:
        return bijection(kind(loc, number(0.7), **arguments)).forward(Z[8:-8])

    loc = number(0.4).requires_grad_()
    (slope,) = torch.autograd.grad(theta(loc).sum(), loc)
    ends = theta(number(0.4 + 1e-6)).sum() - theta(number(0.4 - 1e-6)).sum()
    assert float(slope) == pytest.approx(float(ends) / 2e-6, rel=1e-6)


def test_a_correlated_prior_is_white_in_z() -> None:
    map_ = bijection(CORRELATED)
    z = torch.stack([Z, Z.flip(0), 0.5 * Z], -1)
    theta = map_.forward(z)
    torch.testing.assert_close(map_.inverse(theta), z, rtol=1e-9, atol=1e-9)
    slopes = torch.stack([torch.autograd.functional.jacobian(map_.forward, row) for row in z])
    density = CORRELATED.log_prob(theta) + slopes.det().abs().log()
    torch.testing.assert_close(density, log_normal_density(z).sum(-1))
    torch.testing.assert_close(map_.log_prior(z, theta), log_normal_density(z).sum(-1))
    moved = map_.forward(z[:1] + 1e-4 * torch.eye(3, dtype=torch.float64)) - theta[:1]
    torch.testing.assert_close(moved.T / 1e-4, slopes[0], rtol=1e-6, atol=1e-6)


def test_an_exact_prior_on_an_event_axis_sums_over_it() -> None:
    map_ = bijection(dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    z = torch.stack([Z, -Z, 0 * Z], -1)
    assert map_.exact
    assert map_.z_shape() == (3,)
    torch.testing.assert_close(map_.log_prior(z, map_.forward(z)), log_normal_density(z).sum(-1))


def standard_map(prior: Any) -> Any:
    torch.manual_seed(0)
    return bijection(prior, standardise(prior, prior.sample((4_000,))))


@each_inexact
def test_other_priors_are_standardised_and_come_back(prior: Any) -> None:
    map_ = standard_map(prior)
    assert not map_.exact
    torch.manual_seed(1)
    theta = prior.sample((4_000,))
    z = map_.inverse(theta)
    torch.testing.assert_close(map_.forward(z), theta)
    assert z.mean(0).flatten().tolist() == pytest.approx([0.0] * z[0].numel(), abs=0.15)
    assert z.std(0).flatten().tolist() == pytest.approx([1.0] * z[0].numel(), abs=0.15)


@each_inexact
def test_the_density_of_other_priors_counts_their_jacobian(prior: Any) -> None:
    map_ = standard_map(prior)
    torch.manual_seed(2)
    z = torch.randn(7, *map_.z_shape(), dtype=torch.float64)
    theta = map_.forward(z)

    def free(row: Tensor) -> Tensor:
        made: Tensor = map_.forward(row)
        return made[..., : map_.z_shape().numel()] if map_.z_shape() else made

    slopes = torch.stack([torch.autograd.functional.jacobian(free, row) for row in z])
    volume = slopes.det().abs().log() if map_.z_shape() else slopes.abs().log()
    torch.testing.assert_close(map_.log_prior(z, theta), prior.log_prob(theta) + volume)


def test_a_simplex_has_one_coordinate_less() -> None:
    map_ = standard_map(INEXACT["dirichlet"])
    assert map_.z_shape() == (2,)
    theta = map_.forward(torch.randn(5, 2, dtype=torch.float64))
    assert theta.shape == (5, 3)
    torch.testing.assert_close(theta.sum(-1), torch.ones(5, dtype=torch.float64))


def test_a_discrete_distribution_has_no_map() -> None:
    with pytest.raises(ModelError, match=r"Poisson is discrete .* make it continuous"):
        bijection(dist.Poisson(3.0))


def test_the_log_joint_in_z_is_the_one_worked_out_by_hand() -> None:
    shares = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)

    def mixture(experiments: Experiments) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
        share = pyro.sample("share", dist.Dirichlet(shares))
        width = pyro.sample("width", dist.HalfNormal(0.5))
        mean = rate * experiments.times + share[..., 0] - share[..., 2]
        observe("y", dist.Normal(mean, width), experiments)

    design = Design({"y": Looks((0.0, 1.0, 2.0), (3, 3))}, {}, (1, 1), 2.0)
    model = Model(mixture, design)
    looks = Experiments.on([[0.0, 1.0, 2.0]], ["y"])
    seen = torch.tensor([[0.1, 0.9, 1.3]], dtype=torch.float64)
    z = torch.tensor([0.3, -0.4, 0.8, -0.2], dtype=torch.float64)

    rate_site, share_site, width_site = model.sites()
    assert (rate_site.size, share_site.size, width_site.size) == (1, 2, 1)
    assert rate_site.standard is not None
    assert share_site.standard is not None
    rate_scale, share_scale = rate_site.standard.scale, share_site.standard.scale
    rate = torch.exp(rate_site.standard.shift + rate_scale * z[0])
    # stick-breaking with the offsets of torch: fractions sigmoid(x - log(number of pieces left))
    stick = share_site.standard.shift + share_scale * z[1:3]
    first = torch.sigmoid(stick[0] - math.log(2.0))
    second = torch.sigmoid(stick[1])
    share = torch.stack([first, (1 - first) * second, (1 - first) * (1 - second)])
    # Phi(z) = 2 Phi(width / 0.5) - 1
    half = (1 + torch.special.ndtr(z[3])) / 2
    width = 0.5 * torch.special.ndtri(half)

    gamma = 2 * math.log(3.0) + rate.log() - 3 * rate + rate.log() + rate_scale.log()
    dirichlet = math.lgamma(9) - math.lgamma(2) - math.lgamma(3) - math.lgamma(4)
    dirichlet = dirichlet + ((shares - 1) * share.log()).sum()
    stick_volume = (first * (1 - first)).log() + (second * (1 - second) * (1 - first)).log()
    mean = rate * looks.times + share[0] - share[2]
    residual = (seen - mean) / width
    likelihood = (-0.5 * residual.square() - width.log() - 0.5 * math.log(2 * math.pi)).sum()
    prior = gamma + dirichlet + stick_volume + share_scale.log().sum() + log_normal_density(z[3])

    ours = model.log_joint(z[None, None], looks.with_values({"y": seen}))
    torch.testing.assert_close(ours, (prior + likelihood).reshape(1, 1), rtol=1e-10, atol=1e-10)
