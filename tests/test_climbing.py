"""Climbs from many starts: the optima that exact Gauss-Newton steps find, with fewer solves."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import Design, Experiments, Looks, Model, between, observe
from ampost.climbing import climb
from ampost.laplace import laplace
from ampost.modes import search
from ampost.program import odeint
from ampost.zoo import lotka_volterra, michaelis_menten


@pytest.mark.parametrize("zoo", [michaelis_menten, lotka_volterra])
def test_climbs_end_where_exact_steps_end(zoo: object) -> None:
    model = zoo.model()  # type: ignore[attr-defined]
    data = model.simulate(1, 3).experiments.at(0)
    start = model.simulate(20, 5, data.without_values()).z
    rows = data.unsqueezed(1).at(torch.zeros(20, dtype=torch.long))
    exact = laplace(model, rows, start, 30)
    found = climb(model, data, start, 60)
    assert found.solves < 0.9 * exact.solves
    assert int((found.decrement < 0.1).sum()) >= int((exact.decrement < 0.1).sum()) - 1
    assert float(found.height.max()) == pytest.approx(float(exact.height.max()), abs=0.1)
    again = climb(model, data, start, 60)
    assert torch.equal(again.z, found.z)


def test_the_log_joint_is_that_of_the_ode() -> None:
    model = michaelis_menten.model()
    data = model.simulate(1, 3).experiments.at(0)
    found = climb(model, data, model.simulate(10, 5, data.without_values()).z, 60)
    with torch.no_grad():
        joint = model.log_joint(found.z[:, None], data)[:, 0]
    assert torch.allclose(joint, found.height, atol=1e-6)


def poles(experiments: Experiments) -> None:
    """Growth that explodes for half of the prior."""
    k = pyro.sample("k", dist.Normal(0.0, 1.0))
    y = odeint(lambda t, y, p: {"x": p.k * y.x * y.x}, {"x": 1.0}, {"k": k}, experiments)
    observe("x", dist.Normal(y.x, pyro.sample("sigma", between(0.05, 0.2))), experiments)


def test_starts_at_which_the_ode_fails_do_not_end() -> None:
    model = Model(poles, Design({"x": Looks((0.5, 1.0, 2.0, 4.0), (4, 4))}, {}, (1, 1), horizon=5.0))
    looks = Experiments.on([[0.5, 1.0, 2.0, 4.0]], ["x"])
    data = looks.with_values({"x": torch.tensor([[0.8, 0.66, 0.5, 0.33]]).double()})
    start = torch.tensor([[3.0, 0.0], [-0.3, 0.0]]).double()
    found = climb(model, data, start, 60)
    assert not bool(torch.isfinite(found.height[0]))
    assert float(found.decrement[1]) < 0.1
    modes = search(model, data, 1)
    assert 0 < modes.ended < 60
    assert float(modes.place[0, 0]) == pytest.approx(-0.5, abs=0.1)
