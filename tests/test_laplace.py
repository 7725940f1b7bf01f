"""The normal approximation about the mode: against closed forms, and where there is nothing to find."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import Compiled, Design, Experiments, Looks, Model, answering, observe, odeint
from ampost.laplace import highest, laplace
from ampost.ode.problem import Trajectory
from ampost.ode.solvers import default

TIMES = (0.0, 0.5, 1.0, 2.0, 3.0)


def line(experiments: Experiments) -> None:
    """A straight line with known noise: the posterior is normal."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(1.0, 3.0))
    observe("y", dist.Normal(a + b * experiments.times, 0.3), experiments)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(line, Design({"y": Looks(TIMES, (3, 5))}, {}, (1, 1), 3.5))


def test_it_is_the_posterior_of_a_linear_model(model: Model) -> None:
    data = model.simulate(6, 0).experiments
    found = laplace(model, data, torch.full((6, 2), 3.0))
    for k in range(6):
        mask = data.channels["y"].mask[k, 0]
        t, y = data.times[k, 0][mask], data.channels["y"].values[k, 0][mask]
        x = torch.stack([torch.full_like(t, 2.0), 3.0 * t], -1) / 0.3
        information = x.T @ x + torch.eye(2)
        mode = torch.linalg.solve(information, x.T @ ((y - t) / 0.3))
        torch.testing.assert_close(found.mode[k], mode, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.factor[k] @ found.factor[k].T, information, atol=1e-4, rtol=1e-4)


def test_its_coordinates_grow_by_its_determinant(model: Model) -> None:
    found = laplace(model, model.simulate(4, 1).experiments, torch.zeros(4, 2))
    sign, size = torch.linalg.slogdet(found.factor)
    assert bool((sign > 0).all())
    torch.testing.assert_close(found.log_scale, size)


def test_data_sets_do_not_touch_each_other(model: Model) -> None:
    data = model.simulate(5, 2).experiments
    together = laplace(model, data, torch.zeros(5, 2))
    for k in range(5):
        alone = laplace(model, data.at(k), torch.zeros(1, 2))
        torch.testing.assert_close(alone.mode[0], together.mode[k])
        torch.testing.assert_close(alone.factor[0], together.factor[k])


def test_most_modes_of_kinetics_are_found(kinetics: Model) -> None:
    drawn = kinetics.simulate(50, 3)
    noise = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0))
    found = highest(kinetics, drawn.experiments, drawn.z + 0.3 * noise)
    assert float((found.decrement < 1e-2).double().mean()) > 0.9
    truth = kinetics.log_joint(drawn.z[None], drawn.experiments)[0]
    assert float((found.height > truth).double().mean()) > 0.9


def test_sensitivities_and_differences_agree(kinetics: Model) -> None:
    drawn = kinetics.simulate(20, 3)
    plain = replace(kinetics, solver=lambda problem: Compiled(rtol=1e-10, atol=1e-12)(problem))
    found = laplace(kinetics, drawn.experiments, drawn.z, most=0)
    slow = laplace(plain, drawn.experiments, drawn.z, most=0)
    assert found.solves == 20 * 4  # sensitivities count as a solve for each parameter
    assert slow.solves == 20 * 7  # the place itself, and three parameters moved up and down
    torch.testing.assert_close(found.height, slow.height, atol=1e-3, rtol=1e-6)
    torch.testing.assert_close(found.decrement, slow.decrement, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found.factor, slow.factor, atol=1e-2, rtol=1e-3)


def test_a_program_that_names_its_own_solver_is_moved_further(kinetics: Model) -> None:
    single = answering(lambda problem: rounded(default()(problem)))(kinetics.program)
    named = Model(single, kinetics.design, kinetics.units)
    drawn = kinetics.simulate(20, 3)
    found = laplace(named, drawn.experiments, drawn.z, most=0)
    exact = laplace(kinetics, drawn.experiments, drawn.z, most=0)
    assert found.solves == 20 * 7
    torch.testing.assert_close(found.factor, exact.factor, atol=0.1, rtol=0.02)


def rounded(trajectory: Trajectory) -> Trajectory:
    """As a network in single precision would answer."""
    return replace(trajectory, states=trajectory.states.float().double())


def test_many_starts_find_modes_that_one_misses() -> None:
    """A wave whose phase has wrong modes: the start at the most promising of many draws finds the right one."""

    def program(experiments: Experiments) -> None:
        phase = pyro.sample("phase", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(torch.sin(8 * phase * experiments.times), 0.1), experiments)

    model = Model(program, Design({"y": Looks(TIMES, (5, 5))}, {}, (1, 1), 3.5))
    drawn = model.simulate(40, 0)
    truth = model.log_joint(drawn.z[None], drawn.experiments)[0]
    starts = torch.randn(200, 40, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = laplace(model, drawn.experiments, starts[0])
    many = highest(model, drawn.experiments, starts)
    assert float((one.height > truth - 1).double().mean()) < 0.5
    assert float((many.height > truth - 1).double().mean()) > 0.9
    assert many.solves >= 200 * 40


def test_what_data_cannot_tell_apart_is_no_failure() -> None:
    def program(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1e6))
        b = pyro.sample("b", dist.Normal(0.0, 1e6))
        observe("y", dist.Normal(a + b + 0 * experiments.times, 1e-6), experiments)

    model = Model(program, Design({"y": Looks(TIMES, (5, 5))}, {}, (1, 1), 3.5))
    found = laplace(model, model.simulate(2, 0).experiments, torch.ones(2, 2))
    for value in (found.mode, found.factor, found.height):
        assert bool(torch.isfinite(value).all())


def test_where_nothing_is_possible_the_start_stays() -> None:
    def growth(experiments: Experiments) -> None:
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        y = odeint(lambda t, y, p: {"x": p.rate * y.x**2}, {"x": 10.0}, {"rate": rate}, experiments)
        observe("x", dist.Normal(y.x, 0.1), experiments)

    model = Model(growth, Design({"x": Looks((0.001, 0.01, 1.0), (3, 3))}, {}, (1, 1), 1.0))
    data = Experiments.on([[0.001, 0.01, 1.0]], ["x"]).with_values({"x": torch.tensor([[1.0, 2.0, 3.0]])})
    start = torch.full((1, 1), 2.0, dtype=torch.float64)
    found = laplace(model, data, start)
    assert torch.equal(found.mode, start)
    assert float(found.decrement) == torch.inf
    assert torch.equal(found.factor, torch.eye(1, dtype=torch.float64)[None])
