"""The normal approximation about the mode: against closed forms, and where there is nothing to find."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import Design, Experiments, Looks, Model, observe, odeint
from ampost.laplace import highest, laplace
from ampost.ode.problem import OdeProblem, Trajectory
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


def test_its_coordinates_are_there_and_back(model: Model) -> None:
    found = laplace(model, model.simulate(4, 1).experiments, torch.zeros(4, 2))
    z = torch.randn(7, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(found.back(found.standard(z)), z)
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


def test_the_noise_alone_needs_no_solve(kinetics: Model) -> None:
    rows = []

    def counting(problem: OdeProblem) -> Trajectory:
        answer = default()(problem)
        rows.append(answer.status.shape[0])
        return answer

    counted = Model(kinetics.program, kinetics.design, kinetics.units, solver=counting)
    data = kinetics.simulate(1, 3).experiments
    rows.clear()
    laplace(counted, data, torch.zeros(1, 3), most=0)
    assert rows == [5]  # the place itself, and two parameters of three moved up and down


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
