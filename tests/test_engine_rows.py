"""Rows do not depend on their neighbours; the choice of method; failures are rows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from engine import (
    Make,
    by_scipy,
    decay,
    double,
    every_compiled,
    every_solver,
    given,
    leaves,
    on,
    real,
    van_der_pol,
)
from torch import Tensor

from ampost import (
    Compiled,
    answering,
    odeint,
    rodas,
    tsitouras,
)
from ampost.ode.problem import Status, Trajectory
from ampost.zoo.lotka_volterra import predation

__all__ = ["double"]


# ------------------------------------------------------------------------------------- rows


def hunted(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """Predation, with a third state that makes a row stiff where `fast` is large."""
    return {**predation(t, y, p), "shadow": p.fast * (y.hare - y.shadow)}


def mixed(index: Tensor) -> Trajectory:
    """Rows `index` of forty, ten of which are stiff."""
    generator = torch.Generator().manual_seed(4)
    draws = torch.rand(40, 4, generator=generator)[index]
    rates = {n: (0.3 + draws[:, k]) * c for k, (n, c) in enumerate((("birth", 1.0), ("hunt", 0.1)))}
    rates |= {n: (0.3 + draws[:, 2 + k]) * c for k, (n, c) in enumerate((("death", 1.0), ("gain", 0.1)))}
    rates["fast"] = torch.where(index % 4 == 3, 1e4, 1.0)
    wide = {n: v[:, None, None] for n, v in rates.items()}
    looks = on(torch.linspace(0.0, 20.0, 11))
    return odeint(hunted, {"hare": 30.0, "lynx": 4.0, "shadow": 0.0}, wide, looks)


@every_compiled
def test_rows_together_are_exactly_rows_alone(make: Make) -> None:
    with answering(make()):
        together = mixed(torch.arange(40))
        alone = torch.cat([mixed(torch.tensor([k])).states for k in range(40)])
    assert together.status.flatten().tolist() == [0] * 40
    assert torch.equal(together.states, alone)


@every_compiled
def test_permuted_rows_give_permuted_answers(make: Make) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    with answering(make()):
        assert torch.equal(mixed(torch.arange(40)).states[order], mixed(order).states)


@every_compiled
def test_two_threads_give_what_one_gives(make: Make) -> None:
    many = torch.arange(40).repeat(8)
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with answering(make()):
                answers.append(mixed(many).states)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(*answers)


def test_gradients_of_rows_together_are_those_alone() -> None:
    (fast,) = leaves([1.0, 1e4, 3.0])
    looks = on([1.0, 5.0])

    def slope(rate: Tensor) -> Tensor:
        y = odeint(
            lambda t, y, p: {"A": -p.k * (y.A - torch.cos(t))}, {"A": 0.0}, {"k": rate[:, None, None]}, looks
        )
        return torch.autograd.grad(y.A.sum(), fast)[0]

    alone = sum(slope(fast[k : k + 1]) for k in range(3))
    assert torch.equal(slope(fast), alone)


# ------------------------------------------------------------------------------ choice of method


def test_a_stiff_row_is_solved_within_a_budget_that_the_explicit_method_exceeds() -> None:
    looks = on([1.0, 500.0, 1500.0])
    ends = []
    for methods in ((tsitouras,), (tsitouras, rodas)):
        with answering(Compiled(max_steps=2000, methods=methods)):
            y = odeint(van_der_pol, {"x": 2.0, "v": 0.0}, {"mu": real([1.0, 1000.0])[:, None, None]}, looks)
        ends.append(y.status.flatten().tolist())
        if methods[-1] is rodas:
            exact = by_scipy(van_der_pol, {"x": 2.0, "v": 0.0}, {"mu": 1000.0}, looks.times[0])
            torch.testing.assert_close(y.x[1, 0], real(exact[:, 0]), rtol=1e-4, atol=0)
    assert ends[0][1] == Status.TOO_MANY_STEPS
    assert ends[1][1] == Status.OK


# ---------------------------------------------------------------------------------- failures


@dataclass(frozen=True)
class Failing:
    """Three rows by their start, of which the middle one ends as `status` about the time `when`."""

    status: Status
    rhs: Callable[[Any, Any, Any], Mapping[str, Any]]
    starts: tuple[float, float, float]
    when: float
    max_steps: int = 10_000


FAILING = (
    Failing(Status.EXPLODED, lambda t, y, p: {"A": y.A**2}, (0.1, 1.0, 0.2), 1.0),
    Failing(Status.NOT_FINITE, lambda t, y, p: {"A": -0.6 * torch.sqrt(y.A) - 0.1}, (9.0, 1.0, 4.0), 2.2523),
    Failing(Status.TOO_MANY_STEPS, lambda t, y, p: {"A": -(y.A**2)}, (1e-3, 1e3, 2e-3), 1.0, 5),
    Failing(Status.NOT_FINITE, lambda t, y, p: {"A": -y.A}, (1.0, math.nan, 2.0), 0.0),
)


@every_solver
@pytest.mark.parametrize("failing", FAILING, ids=["explodes", "root", "budget", "nan"])
def test_a_failed_row_says_where_and_leaves_the_others_alone(make: Make, failing: Failing) -> None:
    looks, start = on([0.0, 1e-3, 3.0]), real(failing.starts)[:, None, None]
    with answering(make(max_steps=failing.max_steps)):
        y = odeint(failing.rhs, {"A": start}, {}, looks)
        others = odeint(failing.rhs, {"A": start[[0, 2]]}, {}, looks)
    assert y.status.flatten().tolist() == [Status.OK, failing.status, Status.OK]
    assert torch.equal(y.states[[0, 2]], others.states)
    assert torch.isnan(y.A[1, 0, 2])
    assert y.reached is not None
    assert y.ended is not None
    assert y.reached[[0, 2], 0].tolist() == [3.0, 3.0]
    if math.isnan(failing.starts[1]):
        assert y.reached[1, 0] == 0.0
        return
    assert y.A[1, 0, 0] == failing.starts[1]
    assert torch.isfinite(y.ended).all()
    reached = float(y.reached[1, 0])
    if failing.status == Status.TOO_MANY_STEPS:
        assert 0 < reached < 3
    else:
        assert reached == pytest.approx(failing.when, rel=0.01)


@every_solver
def test_a_singular_point_stalls_and_an_event_may_fail(make: Make) -> None:
    looks, start = on([0.4, 2.0]), real([1.0, 9.0])[:, None, None]
    doses = given([[1.0]], [[5.0]], targets=("root",))
    with answering(make()):
        stalled = odeint(lambda t, y, p: {"A": -1 / y.A}, {"A": start}, {}, looks)  # sqrt(A(0)^2 - 2 t)
        rooted = odeint(
            decay,
            {"A": start},
            {"k": 0.1},
            looks,
            doses=doses,
            events={"root": lambda y, p, amount: {"A": torch.sqrt(y.A - amount)}},
        )
    for y, status, when in ((stalled, Status.STALLED, 0.5), (rooted, Status.NOT_FINITE, 1.0)):
        assert y.status.flatten().tolist() == [status, Status.OK]
        assert y.reached is not None
        assert float(y.reached[0, 0]) == pytest.approx(when, rel=1e-5)
        assert torch.isfinite(y.A[0, 0, 0])
        assert torch.isnan(y.A[0, 0, 1])
    exact = torch.sqrt(9.0 * torch.exp(real(-0.1)) - 5) * torch.exp(real(-0.1))
    torch.testing.assert_close(rooted.A[1, 0, 1], exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(stalled.A[1, 0], torch.sqrt(81 - 2 * looks.times[0]), rtol=1e-6, atol=0)


@every_solver
def test_a_failed_row_spoils_no_gradient(make: Make) -> None:
    (start,) = leaves([0.1, 1.0, 0.2])
    with answering(make()):
        y = odeint(lambda t, y, p: {"A": y.A**2}, {"A": start[:, None, None]}, {}, on([0.5, 3.0]))
    (ours,) = torch.autograd.grad(y.A[[0, 2]].sum(), start)
    exact = sum(1 / (1 - start.detach() * t) ** 2 for t in (0.5, 3.0))
    torch.testing.assert_close(ours[[0, 2]], exact[[0, 2]], rtol=1e-4, atol=0)
    assert ours[1] == 0


def test_every_status_has_a_remedy() -> None:
    for status in Status:
        assert status.remedy.endswith(".")
        assert status == Status.OK or len(status.remedy) > 60
    assert len({status.remedy for status in Status}) == len(Status)
