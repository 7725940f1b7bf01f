"""Bent densities: they are densities, follow a banana, and do not bend where few draws tell of it."""

import torch
from torch import Tensor

from ampost import importance, triangular
from ampost.importance import Component


def banana(z: Tensor) -> Tensor:
    """Log density of z (draw, 1, 3): the second bends along the first, whose size widens the third."""
    x, y, w = z[..., 0], z[..., 1], z[..., 2]
    return -0.5 * (x.square() + ((y - x.square()) / 0.2).square() + (w * (-0.7 * x).exp()).square() + 1.4 * x)


def drawn(count: int) -> Tensor:
    e = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([e[:, 0], e[:, 0].square() + 0.2 * e[:, 1], (0.7 * e[:, 0]).exp() * e[:, 2]], 1)[:, None]


def fitted(z: Tensor, effective: float = torch.inf) -> Component:
    none = torch.zeros(len(z), 1, dtype=torch.float64)
    return triangular.fitted(z, none, 5.0, 1, effective=effective)


def rate(component: Component) -> float:
    z = component.sample(4_000, 2)
    return float(importance.kish(banana(z) - component.log_density(z))) / len(z)


def test_a_bent_density_follows_a_banana() -> None:
    z = drawn(4_000)
    axes = torch.eye(3, dtype=torch.float64)
    none = torch.zeros(4_000, 1, dtype=torch.float64)
    bent = triangular.fitted(z, none, 5.0, 1, axes)
    mean, factor = importance.weighted_moments(z, none)
    straight = importance.student(mean, factor, 5.0, torch.ones(1).double())
    assert rate(bent) > 0.7
    assert rate(straight) < 0.3


def test_it_is_a_density_along_any_axes() -> None:
    """The mean of p / q over draws of q is 1 for a normalised p that is narrower than q."""
    component = fitted(drawn(4_000))
    z = component.sample(20_000, 3)
    p = importance.student(
        torch.tensor([[0.0, 0.5, 0.0]]).double(),
        0.3 * torch.eye(3).double()[None],
        20.0,
        torch.ones(1).double(),
    )
    ratio = (p.log_density(z) - component.log_density(z)).exp()
    error = float(ratio.std()) / len(z) ** 0.5
    assert error < 0.1
    assert abs(float(ratio.mean()) - 1.0) < 4 * error
    assert torch.equal(component.sample(5, 7), component.sample(5, 7))


def test_it_does_not_bend_where_few_draws_tell_of_it() -> None:
    """Its centres are linear then: the mean of the second given the first has no curve."""
    few = fitted(drawn(200), effective=9.0)
    grid = torch.linspace(-3, 3, 61, dtype=torch.float64)
    axis = torch.linspace(-8, 12, 401, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(grid, axis, torch.zeros(1).double(), indexing="ij"), -1)
    density = few.log_density(places.reshape(-1, 1, 3)).reshape(61, 401).exp()
    ridge = axis[density.argmax(1)]
    curve = ridge[2:] - 2 * ridge[1:-1] + ridge[:-2]
    assert float(curve.abs().mean()) < 0.06
