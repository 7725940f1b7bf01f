"""Pulses, withdrawn samples and inputs, for every solver."""

from collections.abc import Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine import Make, double, every_solver, given, on, real, signal_of

from ampost import (
    answering,
    odeint,
)
from ampost.experiments import Input

__all__ = ["double"]


# ----------------------------------------------------------------------- pulses, samples, inputs

FEED_S = 300.0


def tank(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """Volume and two concentrations without reaction; what was taken out is counted."""
    dilution = p.F / y.V
    return {
        "V": p.F,
        "S": dilution * (FEED_S - y.S),
        "X": -dilution * y.X,
        "S_out": 0.0,
        "X_out": 0.0,
        "V_out": 0.0,
    }


def fill(y: Any, p: Any, amount: Any) -> Mapping[str, Any]:
    volume = y.V + amount
    return {"V": volume, "S": (y.S * y.V + FEED_S * amount) / volume, "X": y.X * y.V / volume}


def take(y: Any, p: Any, amount: Any) -> Mapping[str, Any]:
    return {
        "V": y.V - amount,
        "S_out": y.S_out + y.S * amount,
        "X_out": y.X_out + y.X * amount,
        "V_out": y.V_out + amount,
    }


TANK = {"V": 2.0, "S": 5.0, "X": 0.2, "S_out": 0.0, "X_out": 0.0, "V_out": 0.0}
TANK_EVENTS = {"pulse": fill, "sample": take}


def integral(signal: Input, row: int, until: float) -> float:
    """Of one row of an input from 0 to `until`, piece by piece."""
    mask = signal.mask[row]
    time, value = signal.time[row][mask].numpy(), signal.value[row][mask].numpy()
    inner = time[(time > 0) & (time < until)]
    grid, total = np.unique([0.0, *inner, until]), 0.0
    for one, two in pairwise(grid):
        middle = 0.5 * (one + two)
        here = np.interp(middle, time, value)
        if not signal.linear:
            here = value[max(int(np.searchsorted(time, middle, side="right")) - 1, 0)]
        total += (two - one) * float(here)
    return total


FEEDS = {
    "none": signal_of([[0.0], [0.0], [0.0]], [[0.0], [0.0], [0.0]], False),
    "held": signal_of(
        [[1.0, 4.0, 7.0], [0.0, 2.5, 6.1], [0.5, 3.3, 9.0]],
        [[0.1, 0.0, 0.2], [0.02, 0.3, 0.0], [0, 0.1, 0.2]],
        False,
    ),
    "linear": signal_of(
        [[1.0, 4.0, 7.0], [0.0, 2.5, 6.1], [0.5, 3.3, 9.0]],
        [[0.0, 0.1, 0.2], [0.02, 0.3, 0.0], [0, 0.1, 0.2]],
        True,
    ),
}


@every_solver
@pytest.mark.parametrize("kind", FEEDS)
def test_what_goes_into_a_tank_is_there_or_was_taken_out(make: Make, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    when = 10 * torch.rand(3, 9, generator=generator)  # other times in every row
    amount = 0.01 + 0.05 * torch.rand(3, 9, generator=generator)
    doses = given(when, amount, torch.arange(9) % 2, ("pulse", "sample"))
    times = torch.linspace(0.0, 10.0, 21).expand(3, 21)
    with answering(make(rtol=1e-12, atol=1e-14)):
        y = odeint(tank, TANK, {"F": FEEDS[kind]}, on(times), doses=doses, events=TANK_EVENTS)
    assert y.status.tolist() == [0] * 3
    pulsed = (amount * (doses.target == 0))[:, None] * (when[:, None] < times[..., None])
    fed = real([[integral(FEEDS[kind], r, float(t)) for t in times[r]] for r in range(3)]) + pulsed.sum(-1)
    torch.testing.assert_close(y.V + y.V_out, 2.0 + fed, rtol=1e-12, atol=0)
    torch.testing.assert_close(y.S * y.V + y.S_out, 10.0 + FEED_S * fed, rtol=1e-10, atol=0)
    torch.testing.assert_close(y.X * y.V + y.X_out, torch.full_like(fed, 0.4), rtol=1e-10, atol=0)


@every_solver
def test_an_event_happens_between_the_looks_before_and_after_it(make: Make) -> None:
    when, amount = real([0.7, 1.3, 2.0, 2.9]), real([0.05, 0.4, 0.1, 0.02])
    doses = given(when[None], amount[None], torch.arange(4)[None] % 2, ("pulse", "sample"))
    twice = on(when.repeat_interleave(2), after=[False, True] * 4)
    feed = signal_of([0.2, 2.0], [0.1, 0.3], linear=True)  # a breakpoint at a pulse
    with answering(make()):
        y = odeint(tank, TANK, {"F": feed}, twice, doses=doses, events=TANK_EVENTS)
    before, after = (SimpleNamespace(**{n: getattr(y, n)[0, k::2] for n in y.names}) for k in (0, 1))
    for k in range(4):
        one = SimpleNamespace(**{n: v[k] for n, v in vars(before).items()})
        changed = (fill, take)[k % 2](one, None, amount[k])
        for name in y.names:
            expected = changed.get(name, getattr(one, name))
            torch.testing.assert_close(getattr(after, name)[k], expected, rtol=1e-14, atol=0)


@every_solver
def test_doses_at_the_start_and_at_one_time_come_in_their_order(make: Make) -> None:
    doses = given([[0.0, 0.0, 1.0, 1.0]], [[1.0, 3.0, 2.0, 1.0]], [[0, 1, 0, 1]], ("A", "times"))
    looks = on([0.0, 0.0, 1.0, 1.0], after=[False, True, False, True])
    with answering(make()):
        y = odeint(
            lambda t, y, p: {"A": 0.0 * y.A},
            {"A": 1.0},
            {},
            looks,
            doses=doses,
            events={"times": lambda y, p, amount: {"A": y.A * amount}},
        )
    assert y.A.tolist() == [[1.0, 6.0, 6.0, 8.0]]


@every_solver
@pytest.mark.parametrize("linear", [False, True], ids=["held", "linear"])
def test_inputs_of_each_experiment_follow_their_closed_form(make: Make, linear: bool) -> None:
    signal = signal_of(
        [[1.0, 2.0, 4.5], [0.0, 3.0, 0.0], [2.5, 3.1, 7.0]],
        [[2.0, -1.0, 3.0], [0.5, 4.0, 0.0], [-1.0, 0.0, 1.0]],
        linear,
        [[True, True, True], [True, True, False], [True, True, True]],
    )
    times = torch.linspace(0.0, 6.0, 25).expand(3, 25)
    with answering(make()):
        y = odeint(lambda t, y, p: {"A": p.F}, {"A": 1.0}, {"F": signal}, on(times))
    exact = real([[1.0 + integral(signal, r, float(t)) for t in times[r]] for r in range(3)])
    torch.testing.assert_close(y.A, exact, rtol=1e-12, atol=1e-12)


@every_solver
@pytest.mark.parametrize("linear", [False, True], ids=["held", "linear"])
def test_an_input_may_begin_before_the_start(make: Make, linear: bool) -> None:
    signal = signal_of([-3.0, -1.0, 1.0], [9.0, 0.0, 2.0], linear)
    times = on(torch.linspace(0.0, 3.0, 7))
    with answering(make()):
        y = odeint(lambda t, y, p: {"A": p.F}, {"A": 0.0}, {"F": signal}, times)
    exact = real([[integral(signal, 0, float(t)) for t in times.times[0]]])
    torch.testing.assert_close(y.A, exact, rtol=1e-12, atol=1e-12)


@every_solver
def test_a_repeated_breakpoint_is_a_jump_of_a_linear_input(make: Make) -> None:
    signal = signal_of([0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 3.0, 3.0], linear=True)
    with answering(make()):
        y = odeint(lambda t, y, p: {"A": p.F}, {"A": 0.0}, {"F": signal}, on([1.0, 2.0, 4.0]))
    torch.testing.assert_close(y.A, real([[0.5, 3.5, 9.5]]), rtol=1e-12, atol=0)


@every_solver
def test_a_start_before_zero_and_a_slope_that_is_a_number(make: Make) -> None:
    with answering(make(rtol=1e-9, atol=1e-12)):
        y = odeint(
            lambda t, y, p: {"A": -y.A, "B": 2.0},
            {"A": 1.0, "B": 0.0},
            {},
            on([-5.0, -4.0, 0.0], start=-5.0),
        )
    torch.testing.assert_close(y.A, torch.exp(-(y.times + 5)), rtol=1e-7, atol=0)
    torch.testing.assert_close(y.B, 2 * (y.times + 5), rtol=1e-12, atol=0)


@every_solver
def test_an_event_may_set_a_state_to_a_number(make: Make) -> None:
    doses = given([[1.0]], [[0.0]], targets=("reset",))
    with answering(make(rtol=1e-9, atol=1e-12)):
        y = odeint(
            lambda t, y, p: {"A": -y.A},
            {"A": 1.0},
            {},
            on([1.0, 2.0]),
            doses=doses,
            events={"reset": lambda y, p, amount: {"A": 0.5}},
        )
    torch.testing.assert_close(y.A, torch.exp(-real([[1.0, 1.0]])) * real([[1.0, 0.5]]), rtol=1e-7, atol=0)
