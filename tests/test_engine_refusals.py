"""What the engine refuses, by name and line; the potential of a model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from engine import (
    Make,
    decay,
    double,
    every_compiled,
    every_solver,
    given,
    on,
    real,
    signal_of,
)
from torch import Tensor

from ampost import (
    Compiled,
    Design,
    Experiments,
    Looks,
    Model,
    Potential,
    answering,
    observe,
    odeint,
)
from ampost.errors import OdeError
from ampost.zoo import michaelis_menten

__all__ = ["double"]


# --------------------------------------------------------------------------------- bad input


def asked(**changes: Any) -> None:
    """A sound problem, but for what `changes` says."""
    sound: dict[str, Any] = {
        "rhs": decay,
        "initial": {"A": real([1.0, 2.0])[:, None, None]},
        "parameters": {"k": 0.5},
        "experiments": on([0.0, 1.0, 2.0]),
    }
    odeint(**(sound | changes))


def add(y: Any, p: Any, amount: Any) -> Mapping[str, Any]:
    return {"A": y.A + amount}


def driven(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"A": p.F - p.k * y.A}


WANTED = signal_of([0.0, 1.0], [1.0, 2.0], linear=True)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "times that go back": ({"experiments": on([0.0, 2.0, 1.0])}, "go back from 2 to 1; sort them"),
    "times before the start": (
        {"experiments": on([0.0, 1.0], start=0.5)},
        "at time 0, before the start at 0.5",
    ),
    "a time that is infinite": ({"experiments": on([0.0, math.inf])}, "not finite"),
    "a time that is nan": ({"experiments": on([0.0, math.nan])}, "not finite"),
    "a dose before the start": ({"doses": given([[-1.0]], [[1.0]])}, "given at -1, before the start at 0"),
    "a negative duration": ({"doses": given([[1.0]], [[1.0]], duration=[[-2.0]])}, "duration -2, expected 0"),
    "an infinite duration": ({"doses": given([[1.0]], [[1.0]], duration=[[math.inf]])}, "duration inf"),
    "an infusion into an event": (
        {"doses": given([[1.0]], [[1.0]], targets=("add",), duration=[[2.0]]), "events": {"add": add}},
        "into the event 'add'.*has a duration",
    ),
    "a dose into nowhere": ({"doses": given([[1.0]], [[1.0]], targets=("Q",))}, "into 'Q', which is no state"),
    "an event named like a state": ({"events": {"A": add}}, "'A' is a state and an event"),
    "an event that is a number": ({"events": {"add": 1.0}}, "expected a function jump"),
    "a parameter that is a function": ({"parameters": {"k": abs}}, "expected a number, a tensor or"),
    "an input with a gradient": (
        {
            "rhs": driven,
            "parameters": {"k": 0.5, "F": replace(WANTED, value=WANTED.value.clone().requires_grad_())},
        },
        "input 'F'.*gradient, which inputs do not have",
    ),
    "an input without breakpoints": (
        {"rhs": driven, "parameters": {"k": 0.5, "F": replace(WANTED, mask=~WANTED.mask)}},
        "input 'F'.*no breakpoint",
    ),
    "a state named reached": (
        {"rhs": lambda t, y, p: {"reached": -y.reached}, "initial": {"reached": 1.0}},
        "cannot be named 'reached'",
    ),
    "no state": ({"initial": {}}, "no initial state"),
    "a parameter that is not there": ({"parameters": {"q": 1.0}}, "reads parameter 'k'; .*the parameters q"),
    "a dose before the start in one of two experiments": (
        {
            "experiments": on([[0.0, 1.0], [0.0, 1.0]]),
            "doses": given([[-1.0], [0.5]], [[1.0], [1.0]]),
        },
        "given at -1, before the start at 0",
    ),
    "a dose at no time": ({"doses": given([[math.nan]], [[1.0]])}, "nan|finite"),
    "an input that breaks at no time": (
        {"rhs": driven, "parameters": {"k": 0.5, "F": signal_of([0.0, math.nan], [1.0, 2.0], True)}},
        "nan|finite",
    ),
    "an event into no state": (
        {
            "doses": given([[1.0]], [[1.0]], targets=("add",)),
            "events": {"add": lambda y, p, amount: {"B": y.A + amount}},
        },
        "'B'",
    ),
    "an event that branches": (
        {
            "doses": given([[1.0]], [[1.0]], targets=("add",)),
            "events": {"add": lambda y, p, amount: {"A": y.A if y.A > 0 else amount}},
        },
        "branch",
    ),
    "an event that reads what is not there": (
        {
            "doses": given([[1.0]], [[1.0]], targets=("add",)),
            "events": {"add": lambda y, p, amount: {"A": y.A * p.missing}},
        },
        "missing",
    ),
}


@every_solver
@pytest.mark.parametrize("what", BAD)
@pytest.mark.filterwarnings("ignore:.*is not compiled:UserWarning")
def test_bad_problems_are_refused(make: Make, what: str) -> None:
    changes, words = BAD[what]
    with answering(make()):
        asked()
        with pytest.raises(OdeError, match=words):
            asked(**changes)


MISTAKES: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "math": (lambda t, y, p: {"A": -math.exp(y.A)}, r"Python number.*math\.exp\(y\.A\)"),
    "item": (lambda t, y, p: {"A": -y.A.item()}, r"Python number.*y\.A\.item\(\)"),
    "float": (lambda t, y, p: {"A": -float(y.A)}, r"Python number.*float\(y\.A\)"),
    "if": (lambda t, y, p: {"A": -y.A if y.A > 0 else 0.0}, r"branches on a value.*if y\.A > 0"),
    "max": (lambda t, y, p: {"A": -max(y.A, 0.5)}, r"branches on a value.*max\(y\.A, 0\.5\)"),
    "and": (lambda t, y, p: {"A": -(y.A and p.k)}, r"branches on a value.*y\.A and p\.k"),
    "numpy": (lambda t, y, p: {"A": -np.exp(y.A)}, r"numpy.*np\.exp\(y\.A\)"),
}


@every_solver
@pytest.mark.parametrize("what", MISTAKES)
@pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning")
def test_mistakes_in_a_right_hand_side_are_named_with_their_line(make: Make, what: str) -> None:
    rhs, words = MISTAKES[what]
    start = real([1.0, 2.0])[:, None, None].requires_grad_()
    with answering(make()), pytest.raises(OdeError, match=words) as caught:
        odeint(rhs, {"A": start}, {"k": 0.5}, on([1.0]))
    line = rhs.__code__.co_firstlineno
    assert f"line {line} of test_engine_refusals.py" in str(caught.value)


@every_solver
@pytest.mark.parametrize("name", ["rtol", "atol", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_tolerances_and_budgets_are_positive(make: Make, name: str, value: float) -> None:
    with pytest.raises(OdeError, match=f"{name} is {value}, expected a positive number"):
        make(**{name: value})


def test_there_must_be_a_method() -> None:
    with pytest.raises(OdeError, match="methods is empty"):
        Compiled(methods=())


FACTOR, TABLE = 0.5, {"k": 0.5}


def by_helper(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    def rate(value: Any) -> Any:
        return FACTOR * value

    return {"A": -rate(y.A)}


def by_table(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"A": -TABLE["k"] * y.A}


class Decay:
    def __init__(self) -> None:
        self.k = 0.5

    def rhs(self, t: Any, y: Any, p: Any) -> Mapping[str, Any]:
        return {"A": -self.k * y.A}


@every_compiled
@pytest.mark.parametrize("what", ["helper", "table", "method"])
@pytest.mark.filterwarnings("ignore:.*is not compiled:UserWarning")
def test_a_number_that_changed_is_noticed(make: Make, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Decay()
    rhs = {"helper": by_helper, "table": by_table, "method": owner.rhs}[what]
    with answering(make()):
        odeint(rhs, {"A": 1.0}, {}, on([1.0]))
        monkeypatch.setitem(globals(), "FACTOR", 2.0)
        monkeypatch.setitem(TABLE, "k", 2.0)
        owner.k = 2.0
        y = odeint(rhs, {"A": 1.0}, {}, on([1.0]))
    assert float(y.A) == pytest.approx(math.exp(-2.0), rel=1e-5)


# --------------------------------------------------------------------------------- potential


def scored(model: Model, data: Experiments, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    value = -model.log_joint(z[None, None], data)[0, 0]
    return value.detach(), torch.autograd.grad(value, z)[0]


def agree(potential: Potential, model: Model, data: Experiments, count: int) -> None:
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(count, model.z_size(data.count), generator=generator)
    points[count // 2] *= 100.0  # far away; the next call must know nothing of it
    for k, point in enumerate(points):
        z = point.clone().requires_grad_()
        value = potential(z)
        (slope,) = torch.autograd.grad(value, z)
        if k == count // 2:
            continue
        expected = scored(model, data, point)
        torch.testing.assert_close((value.detach(), slope), expected, rtol=1e-9, atol=1e-9)


def test_the_potential_is_the_negative_log_joint() -> None:
    model = michaelis_menten.model()
    data = model.simulate(1, seed=3).experiments.at(0)
    potential = Potential(model, data)
    assert potential.recorded
    agree(potential, model, data, 8)


def branching(experiments: Experiments) -> None:
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    y = odeint(decay, {"A": 1.0}, {"k": rate}, experiments)
    wide = 0.1 if bool((rate > 1.0).all()) else 0.3
    observe("A", dist.Normal(y.A, wide), experiments)


def test_a_program_that_branches_is_run_in_each_call() -> None:
    looks = Looks(times=(0.0, 1.0, 2.0), rows=(3, 3))
    model = Model(branching, Design({"A": looks}, {}, (1, 1), 2.0), {})
    data = model.simulate(1, seed=3).experiments.at(0)
    with pytest.warns(UserWarning, match="'branching' cannot be recorded.*slower"):
        potential = Potential(model, data)
    assert not potential.recorded
    agree(potential, model, data, 8)
