"""Gradients against closed forms and differences, for every solver."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine import (
    COURSE,
    SCARCE,
    Make,
    compartment,
    compartment_solution,
    decay,
    double,
    every_compiled,
    every_solver,
    given,
    leaves,
    on,
    real,
    robertson,
)
from torch import Tensor

from ampost import (
    Compiled,
    answering,
    odeint,
    rodas,
)
from ampost.errors import OdeError
from ampost.ode import compiled
from ampost.ode.problem import OdeProblem, Trajectory
from ampost.zoo import ecoli_fed_batch as ecoli

__all__ = ["double"]


# ---------------------------------------------------------------------------------- gradients


@every_solver
def test_gradients_of_decay_equal_the_closed_form(make: Make) -> None:
    start, rate = leaves([[[2.0]], [[0.5]]], [[[0.3]], [[1.7]]])
    looks = on(torch.linspace(0.0, 2.0, 9))
    with answering(make(rtol=1e-10, atol=1e-13)):
        y = odeint(decay, {"A": start}, {"k": rate}, looks)
    ours = torch.autograd.grad(y.A.square().sum(), (start, rate))
    exact = torch.autograd.grad((start * torch.exp(-rate * looks.times)).square().sum(), (start, rate))
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=0)


# a look at the very moment of a dose has one-sided derivatives; none is here
SEEN = (0.3, 1.0, 4.0, 5.9, 6.3, 7.0, 7.9, 12.0)


def dosed(lag: Tensor, f: Tensor, dose: Tensor, duration: Tensor) -> Trajectory:
    amount = torch.stack([real(2.0), real(1.0), dose])[None]
    lengths = torch.stack([real(0.0), real(0.0), duration])[None]
    doses = replace(COURSE, amount=amount, duration=lengths).delayed(lag).scaled(f)
    looks, rates = on(SEEN), {"ka": 1.5, "ke": 0.1}
    return odeint(compartment, {"depot": 0.0, "central": 0.0}, rates, looks, doses=doses)


WHICH = ("lag", "bioavailability", "amount", "duration")


@every_solver
@pytest.mark.parametrize("alone", ["all", *WHICH])
def test_gradients_by_doses_equal_the_closed_form(make: Make, alone: str) -> None:
    inputs = [real(v) for v in (0.2, 0.8, 3.0, 2.0)]
    asked = [v.requires_grad_() for n, v in zip(WHICH, inputs, strict=True) if alone in ("all", n)]
    with answering(make(rtol=1e-10, atol=1e-13)):
        y = dosed(*inputs)
    depot, central = compartment_solution(real([SEEN]), real(1.5), real(0.1), *inputs)
    torch.testing.assert_close(y.central, central, rtol=1e-8, atol=1e-10)
    ours = torch.autograd.grad((y.central + 0.3 * y.depot).square().sum(), asked)
    exact = torch.autograd.grad((central + 0.3 * depot).square().sum(), asked)
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=0)


def growing(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    growth = p.mu * y.S / (y.S + p.ks)
    return {"V": 0.0 * y.V, "S": -growth * y.X / p.yield_, "X": growth * y.X}


def richer(y: Any, p: Any, amount: Any) -> Mapping[str, Any]:
    """A pulse of a feed whose concentration is a parameter."""
    volume = y.V + amount
    return {"V": volume, "S": (y.S * y.V + p.feed * amount) / volume, "X": y.X * y.V / volume}


PULSED = given([[1.0, 2.0, 2.5, 4.0]], [[0.1, 0.05, 0.2, 0.1]], [[0, 1, 0, 0]], ("pulse", "sample"))
FED_AT = {"mu": 0.6, "ks": 0.4, "yield_": 0.5, "feed": 30.0, "lag": 0.13, "f": 0.9, "V": 1.0, "X": 0.5}


def fed(values: Tensor) -> Tensor:
    """One number of a pulse-fed culture."""
    p = dict(zip(FED_AT, values.unbind(-1), strict=True))
    y = odeint(
        growing,
        {"V": p["V"], "S": 2.0, "X": p["X"]},
        {n: p[n] for n in ("mu", "ks", "yield_", "feed")},
        on([0.5, 1.5, 2.2, 3.0, 5.0]),
        doses=PULSED.delayed(p["lag"]).scaled(p["f"]),
        events={"pulse": richer, "sample": ecoli.sample},
    )
    return (y.S.square() + y.X.square() + 2 * y.V * y.X).sum((-1, -2))


def differences(function: Callable[[Tensor], Tensor], at: Tensor, relative: float = 2e-3) -> Tensor:
    """Central differences, extrapolated once."""
    slopes = []
    for k in range(len(at)):
        h = relative * float(at[k].detach().abs())
        step = torch.zeros_like(at)
        step[k] = h
        wide, near = (function(at + n * step) - function(at - n * step) for n in (2, 1))
        slopes.append((8 * near - wide) / (12 * h))
    return torch.stack(slopes)


@every_solver
def test_gradients_of_a_pulse_fed_culture_equal_differences(make: Make) -> None:
    (at,) = leaves(list(FED_AT.values()))
    with answering(make(rtol=1e-10, atol=1e-12)):
        (ours,) = torch.autograd.grad(fed(at), at)
    with answering(Compiled(rtol=1e-12, atol=1e-14)):
        expected = differences(fed, at.detach())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_the_gradient_of_robertson_equals_differences() -> None:
    def seen(values: Tensor) -> Tensor:
        rates = dict(zip(("a", "b", "c"), values.unbind(-1), strict=True))
        y = odeint(robertson, SCARCE, rates, on([0.4, 40.0, 4000.0]))
        return (y.A * real([1.0, 2.0, 3.0])).sum() + 1e4 * y.B.sum()

    (at,) = leaves([0.04, 1e4, 3e7])
    with answering(Compiled(rtol=1e-10, atol=1e-14, methods=(rodas,))):
        (ours,) = torch.autograd.grad(seen(at), at)
        expected = differences(seen, at.detach(), 1e-2)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


@every_solver
def test_the_gradient_by_an_exponent_is_finite_where_the_state_is_zero(make: Make) -> None:
    def seen(values: Tensor) -> Tensor:
        looks = on([0.5, 1.0, 2.0])
        y = odeint(lambda t, y, p: {"A": 1.0 - y.A**p.k}, {"A": 0.0}, {"k": values[0]}, looks)
        return y.A.sum()

    (at,) = leaves([1.5])
    with answering(make(rtol=1e-10, atol=1e-13)):
        (ours,) = torch.autograd.grad(seen(at), at)
        expected = differences(seen, at.detach())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


@every_solver
def test_differences_of_the_gradient_are_the_hessian(make: Make) -> None:
    looks = on([0.5, 1.0, 2.0])

    def slope(point: Tensor) -> Tensor:
        (at,) = leaves(point)
        y = odeint(decay, {"A": at[0]}, {"k": at[1]}, looks)
        return torch.autograd.grad(y.A.square().sum(), at)[0]

    def exact(at: Tensor) -> Tensor:
        return (at[0] * torch.exp(-at[1] * looks.times)).square().sum()

    with answering(make(rtol=1e-10, atol=1e-13)):
        ours = differences(slope, real([1.5, 0.7]), 1e-3)
    expected = torch.autograd.functional.hessian(exact, real([1.5, 0.7]))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


@every_compiled
def test_a_second_backward_is_refused(make: Make) -> None:
    (rate,) = leaves(0.3)
    with answering(make()):
        y = odeint(decay, {"A": 1.0}, {"k": rate}, on([1.0]))
    with pytest.raises(OdeError, match=r"second derivative.*differences of the gradient"):
        torch.autograd.grad(y.A.sum(), rate, create_graph=True)


@every_compiled
def test_sensitivities_computed_again_equal_stored_ones(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    (at,) = leaves(list(FED_AT.values()))
    (dose,) = leaves([0.2, 0.8, 3.0, 2.0])
    answers = []
    for stored in (compiled.STORED, 0):
        monkeypatch.setattr(compiled, "STORED", stored)
        with answering(make()):
            answers.append(torch.autograd.grad(fed(at) + dosed(*dose).states.square().sum(), (at, dose)))
    torch.testing.assert_close(*answers, rtol=1e-12, atol=0)


@every_solver
def test_looks_after_doses_have_their_own_gradients(make: Make) -> None:
    start, rate, amount = leaves(2.0, 0.4, 3.0)
    # two looks before the dose, two after it, in an order that is not that of the dose
    looks = on([1.0, 1.0, 1.0, 1.0, 2.0], after=[True, False, True, False, False])
    doses = replace(given([[1.0]], [[1.0]]), amount=amount.reshape(1, 1))
    weights = real([1.0, 20.0, 300.0, 4000.0, 5.0])
    with answering(make(rtol=1e-10, atol=1e-13)):
        y = odeint(decay, {"A": start}, {"k": rate}, looks, doses=doses)
    before = start * torch.exp(-rate)
    after = before + amount
    exact = torch.stack([after, before, after, before, after * torch.exp(-rate)])
    torch.testing.assert_close(y.A[0], exact, rtol=1e-8, atol=0)
    ours = torch.autograd.grad((weights * y.A[0]).sum(), (start, rate, amount))
    expected = torch.autograd.grad((weights * exact).sum(), (start, rate, amount))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def near(size: int) -> Tensor:
    """No shift, and one along each of `size` numbers: (draw, size)."""
    return torch.cat([torch.zeros(1, size), 1e-6 * torch.eye(size)])


def shifted(function: Callable[..., Trajectory], at: Tensor, solver: Any) -> Tensor:
    """Slopes (number, time, state) of a trajectory by each number of `at`, from draws close together."""
    with answering(solver):
        y = function(*(at + near(len(at)))[..., None, None].unbind(1))
    assert y.states.shape[0] == len(at) + 1
    return (y.states[1:, 0] - y.states[0, 0]) / 1e-6


def each_dosed(lag: Tensor, f: Tensor, dose: Tensor, duration: Tensor, ka: Tensor) -> Trajectory:
    """`dosed` for draws: numbers are (draw, 1, 1)."""
    amount = torch.cat([torch.full_like(dose, 2.0), torch.ones_like(dose), dose], -1)
    lengths = torch.cat([0 * duration, 0 * duration, duration], -1)
    doses = replace(COURSE, amount=amount, duration=lengths).delayed(lag).scaled(f)
    rates = {"ka": ka, "ke": 0.1}
    return odeint(compartment, {"depot": 0.0, "central": 0.0}, rates, on(SEEN), doses=doses)


@every_compiled
def test_draws_close_together_are_answered_to_first_order(make: Make) -> None:
    solver = make(rtol=1e-10, atol=1e-13)
    asked: list[int] = []

    def tangent(problem: OdeProblem) -> Trajectory:
        found = solver.tangent(problem)
        assert found is not None
        asked.append(1)
        return found

    at = real([0.2, 0.8, 3.0, 2.0, 1.5])
    ours = shifted(each_dosed, at, tangent)
    assert asked == [1]

    def exact(values: Tensor) -> Tensor:
        lag, f, dose, duration, ka = values
        return torch.stack(compartment_solution(real([SEEN]), ka, real(0.1), lag, f, dose, duration), -1)[0]

    expected = torch.autograd.functional.jacobian(exact, at).movedim(-1, 0)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_tangent_of_a_failed_row_is_not_finite() -> None:
    problems: list[OdeProblem] = []

    def first(problem: OdeProblem) -> Trajectory:
        problems.append(problem)
        return Compiled()(problem)

    start = real([[[1.0], [1.0]]]) + near(1)[..., None]
    with answering(first):
        odeint(
            lambda t, y, p: {"A": p.k * y.A**2}, {"A": start}, {"k": real([[2.0], [0.1]])}, on([[0.1, 1.0]] * 2)
        )
    found = Compiled().tangent(problems[0])
    assert found is not None
    assert found.status[:, 0].ne(0).all()
    assert found.status[:, 1].eq(0).all()
    assert bool(torch.isnan(found.states[:, 0, 1]).all())
    assert bool(torch.isfinite(found.states[:, 1]).all())


def test_tangents_of_few_rows_at_a_time_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[OdeProblem] = []

    def first(problem: OdeProblem) -> Trajectory:
        problems.append(problem)
        return Compiled()(problem)

    start = real([[1.0], [2.0], [3.0]]) + near(1)[..., None]
    with answering(first):
        odeint(decay, {"A": start}, {"k": 0.3 + near(1).flip(0)[..., None]}, on([[0.1, 0.5, 1.0, 2.0]] * 3))
    whole = Compiled().tangent(problems[0])
    monkeypatch.setattr(compiled, "STORED", 8)  # two numbers at four looks: one row
    parts = Compiled().tangent(problems[0])
    assert whole is not None
    assert parts is not None
    assert torch.equal(whole.states, parts.states)
    monkeypatch.setattr(compiled, "STORED", 7)  # not even one
    assert Compiled().tangent(problems[0]) is None
