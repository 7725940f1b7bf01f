"""A proxy for one data set: about its posterior it is the program, and beyond it does not answer."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost import Design, Experiments, Looks, Model, between, importance, nearby, observe
from ampost.chains import Local
from ampost.climbing import climb
from ampost.importance import student
from ampost.laplace import highest
from ampost.nearby import Answers, Nearby
from ampost.program import odeint
from ampost.ridges import ridge
from ampost.zoo import lotka_volterra


def asked(model: Model, data: Experiments, draws: int) -> tuple[Answers, Local]:
    """Answers to draws of the normal approximation, and coordinates about it."""
    starts = model.simulate(40, 1, data.without_values()).z[:, None]
    about = ridge(model, data, highest(model, data, starts))
    size = starts.shape[-1]
    zero, one = torch.zeros(1, size).double(), torch.eye(size).double()[None]
    u = student(zero, one, 10.0, torch.ones(1).double()).sample(draws, 2)
    told = nearby.answers(model, data, about.back(u))
    return told, Local.of(told.z[:, None], torch.zeros(draws, 1).double(), about, 10.0)


def test_it_is_the_program_about_the_posterior() -> None:
    model = lotka_volterra.model()
    data = model.simulate(1, 3).experiments.at(0)
    told, local = asked(model, data, 2_000)
    half = [
        Answers(told.z[part], told.log_joint[part], {n: v[part] for n, v in told.states.items()})
        for part in (slice(0, 1_500), slice(1_500, None))
    ]
    weight = (half[0].log_joint > half[0].log_joint.max() - 30).double()
    found = nearby.nearby(model, data, local, half[0], weight)
    assert isinstance(found, Nearby)
    assert max(len(term) for term in found.powers) >= 3
    near = (half[1].log_joint > told.log_joint.max() - 8) & torch.isfinite(half[1].log_joint)
    assert int(near.sum()) > 50
    off = found(half[1].z[near][:, None])[:, 0] - half[1].log_joint[near]
    assert float(off.abs().median()) < 0.1
    beyond = local.back(torch.full((1, told.z.shape[1]), 2 * found.radius).double())
    assert float(found(beyond[:, None])) == -torch.inf


def test_few_answers_make_no_proxy() -> None:
    model = lotka_volterra.model()
    data = model.simulate(1, 3).experiments.at(0)
    told, local = asked(model, data, 60)
    assert nearby.nearby(model, data, local, told, torch.ones(60).double()) is None


def level(experiments: Experiments) -> None:
    a = pyro.sample("a", between(0.5, 2.0))
    observe("C", dist.Normal(a + 0 * experiments.times, 0.1), experiments)


def test_a_program_without_an_ode_has_none() -> None:
    model = Model(level, Design({"C": Looks((0.0, 1.0), (2, 2))}, {}, (1, 1), horizon=2.0))
    data = model.simulate(1, 3).experiments.at(0)
    z = torch.randn(50, 1, 1, dtype=torch.float64)
    told = nearby.answers(model, data, z)
    local = Local.of(z, torch.zeros(50, 1).double(), None, 5.0)
    assert told.values == 0
    assert nearby.nearby(model, data, local, told, torch.ones(50).double()) is None


def decay(t: object, y: Any, p: Any) -> dict[str, Any]:
    return {"x": -p.k * y.x}


def scaled(experiments: Experiments) -> None:
    """An ODE that depends on no parameter beside one that does."""
    a, k = pyro.sample("a", between(0.1, 2.0)), pyro.sample("k", between(0.1, 2.0))
    fixed = odeint(decay, {"x": 1.0}, {"k": 0.5}, experiments, name="fixed")
    free = odeint(decay, {"x": 1.0}, {"k": k}, experiments, name="free")
    observe("x", dist.Normal(a * fixed.x + free.x, 0.05), experiments)


def test_states_that_depend_on_no_parameter() -> None:
    model = Model(scaled, Design({"x": Looks((0.5, 1.0, 2.0, 4.0), (3, 4))}, {}, (1, 1), horizon=5.0))
    data = model.simulate(1, 3).experiments.at(0)
    z = 0.3 * torch.randn(400, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    told = nearby.answers(model, data, z)
    assert {name: len(value) for name, value in told.states.items()} == {"fixed": 400, "free": 400}
    local = Local.of(z, torch.zeros(400, 1).double(), None, 5.0)
    found = nearby.nearby(model, data, local, told, torch.ones(400).double())
    assert isinstance(found, Nearby)
    said = found(z)[:, 0]
    inside = torch.isfinite(said)
    assert int(inside.sum()) > 350
    assert float((said - told.log_joint)[inside].abs().median()) < 0.05
    ends = climb(model, data, z[:20, 0], 60)
    assert int((ends.decrement < 0.1).sum()) == 20


def test_the_likeliest_shares_of_a_mixture() -> None:
    """Draws of which a quarter are of the second component; the sum of the shares stays."""
    one = torch.eye(1).double()[None]
    share = torch.tensor([0.4]).double()
    parts = [student(torch.tensor([[at]]).double(), one, 5.0, share) for at in (0.0, 8.0)]
    z = torch.cat([parts[0].sample(3_000, 1), parts[1].sample(1_000, 2)])
    found = importance.likeliest(parts, z)
    assert abs(float(found[1].share) - 0.2) < 0.01
    assert abs(float(found[0].share + found[1].share) - 0.8) < 1e-6
