"""Coordinates that follow a ridge: against closed forms, and where there is none to follow."""

from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import Design, Experiments, Looks, Model, observe
from ampost.laplace import laplace
from ampost.ridges import LOOSEST, Ridge, _plan, ridge

TIMES = (0.0, 0.5, 1.0, 2.0, 3.0)


def measured(program: Callable[[Experiments], None], times: tuple[float, ...] = TIMES) -> Model:
    """A model of one channel that is seen at all times."""
    return Model(program, Design({"y": Looks(times, (len(times), len(times)))}, {}, (1, 1), 3.5))


def bowed(experiments: Experiments) -> None:
    """Only b + a^2 / 2 is seen, sharply: the posterior is a thin parabola."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    observe("y", dist.Normal(b + 0.5 * a.square() + 0 * experiments.times, 0.05), experiments)


def line(experiments: Experiments) -> None:
    """A straight line with known noise: the posterior is normal."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(1.0, 3.0))
    observe("y", dist.Normal(a + b * experiments.times, 0.3), experiments)


def found_in(model: Model, datasets: int, seed: int = 0) -> tuple[Ridge, Tensor, Experiments]:
    """Coordinates about the modes of simulated data, the true z, and the data."""
    drawn = model.simulate(datasets, seed)
    return (
        ridge(model, drawn.experiments, laplace(model, drawn.experiments, drawn.z)),
        drawn.z,
        drawn.experiments,
    )


def test_they_are_there_and_back_and_their_determinant_is_right(kinetics: Model) -> None:
    about, _, _ = found_in(kinetics, 4)
    u = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(about.standard(about.back(u)), u)
    assert bool((about.bend != 0).any())
    jacobian = torch.autograd.functional.jacobian(lambda z: about.standard(z), about.back(u[0]))
    for k in range(4):
        torch.testing.assert_close(torch.linalg.slogdet(jacobian[k, :, k])[1], about.log_scale[k])


def test_a_normal_posterior_stays_as_it_is() -> None:
    about, z, _ = found_in(measured(line), 6)
    torch.testing.assert_close(about.standard(z), about.laplace.standard(z), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(about.width, torch.ones_like(about.width), atol=1e-3, rtol=0.0)


def test_a_bent_ridge_is_followed() -> None:
    model = measured(bowed)
    about, _, data = found_in(model, 8)
    a = torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None].expand(21, 8)
    z = torch.stack([a, data.channels["y"].values.mean((1, 2)) - 0.5 * a.square()], -1)
    straight = about.laplace.standard(z).square().sum(-1)
    followed = about.standard(z).square().sum(-1)
    assert float(straight.median()) > 40
    assert float(followed.median()) < 10


def test_data_sets_do_not_touch_each_other() -> None:
    together, z, data = found_in(measured(bowed), 5)
    for k in range(5):
        found = replace(
            together.laplace,
            **{n: getattr(together.laplace, n)[k : k + 1] for n in ("mode", "factor", "decrement", "height")},
        )
        alone = ridge(measured(bowed), data.at(k), found)
        torch.testing.assert_close(alone.standard(z[k : k + 1])[0], together.standard(z)[k])


def test_where_the_model_fails_they_are_straight() -> None:
    """A logarithm that is not there for a fifth of the draws."""

    def program(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(torch.log(a) + b * experiments.times, 3.0), experiments)

    model = measured(program)
    z = torch.tensor([[0.3, 0.0]] * 6, dtype=torch.float64)
    data = model.simulate_at(z, model.design.draw(6, 0), 0).experiments
    about = ridge(model, data, laplace(model, data, z, most=0))
    assert bool((about.bend == 0).all())
    torch.testing.assert_close(about.width, torch.ones_like(about.width))
    torch.testing.assert_close(about.standard(z), about.laplace.standard(z))


def test_where_no_mode_was_found_they_are_straight() -> None:
    about, _, data = found_in(measured(bowed), 3)
    lost = replace(about.laplace, decrement=torch.tensor([0.0, torch.inf, 0.0], dtype=torch.float64))
    bend = ridge(measured(bowed), data, lost).bend
    assert [bool((row != 0).any()) for row in bend] == [True, False, True]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_number_of_parameters(size: int) -> None:
    def program(experiments: Experiments) -> None:
        total = torch.zeros((), dtype=torch.float64)
        for k in range(size):
            total = total + pyro.sample(f"p{k}", dist.Normal(0.0, 1.0)) * (k + experiments.times) ** k
        observe("y", dist.Normal(total, 0.5), experiments)

    about, z, _ = found_in(measured(program), 3)
    assert about.bend.shape[1] == -(-size // 4)
    torch.testing.assert_close(about.back(about.standard(z)), z)


def test_information_beyond_rounding_is_left_straight() -> None:
    about, z, data = found_in(measured(bowed), 2)
    factor = about.laplace.factor.clone()
    factor[0] = torch.tensor([[1e13, 0.0], [3e12, 1e-3]], dtype=torch.float64)
    stiff = ridge(measured(bowed), data, replace(about.laplace, factor=factor))
    assert bool((stiff.bend[0] == 0).all())
    assert bool((stiff.bend[1] != 0).any())
    torch.testing.assert_close(stiff.standard(z)[0], stiff.laplace.standard(z)[0])
    u = torch.tensor([[0.3, -0.7], [0.1, 1.2]], dtype=torch.float64)
    torch.testing.assert_close(stiff.back(u)[0], stiff.laplace.mode[0] + torch.linalg.solve(factor[0].T, u[0]))


def test_many_parameters_do_not_take_draws_without_end() -> None:
    draws, weigh, terms = _plan(100, 75)
    coefficients = 1 + LOOSEST + LOOSEST * (LOOSEST + 1) // 2
    assert len(draws) == len(terms) < 4 * coefficients
    assert weigh.shape == (coefficients, len(draws))
