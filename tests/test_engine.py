"""The contract of every ODE solver, and what the engine does besides: events, inputs, gradients, failures."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import lambertw
from torch import Tensor

from ampost import (
    Compiled,
    Design,
    Doses,
    Eager,
    Experiments,
    Looks,
    Model,
    Potential,
    answering,
    observe,
    odeint,
    rodas,
    tsitouras,
)
from ampost.errors import OdeError
from ampost.experiments import Input
from ampost.ode import compiled
from ampost.ode.problem import Status, Trajectory
from ampost.zoo import ecoli, michaelis_menten
from ampost.zoo.lotka_volterra import predation
from ampost.zoo.michaelis_menten import kinetics

Array = np.ndarray[Any, Any]
Make = Callable[..., Any]

SOLVERS: dict[str, Make] = {
    "tsitouras": partial(Compiled, methods=(tsitouras,), max_steps=200_000),
    "rodas": partial(Compiled, methods=(rodas,), max_steps=200_000),
    "compiled": partial(Compiled, max_steps=200_000),
    "eager": partial(Eager, max_steps=200_000),
}
every_solver = pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
every_compiled = pytest.mark.parametrize("make", list(SOLVERS.values())[:3], ids=list(SOLVERS)[:3])


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def real(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def given(
    time: Any, amount: Any, target: Any = 0, targets: tuple[str, ...] = ("A",), duration: Any = 0.0
) -> Doses:
    """Doses from what broadcasts to (..., experiment, dose)."""
    time, amount, target, duration = torch.broadcast_tensors(
        real(time), real(amount), torch.as_tensor(target), real(duration)
    )
    return Doses(time, amount, duration, target.long(), torch.ones_like(time).bool(), targets)


def on(times: Any, start: float = 0.0, after: Any = None) -> Experiments:
    """Experiments looked at at `times` (experiment, time), or at one row of them."""
    looks = Experiments.on(torch.atleast_2d(real(times)), ["A"])
    mark = looks.after_dose if after is None else torch.atleast_2d(torch.as_tensor(after))
    return replace(looks, start=start, after_dose=mark)


class Scalar(float):
    """A number with the tensor method that right-hand sides of the zoo call."""

    def clamp(self, min: float) -> float:
        return max(self, min)


def by_scipy(
    rhs: Callable[[Any, Any, Any], Mapping[str, Any]],
    start: Mapping[str, float],
    parameters: Mapping[str, float],
    times: Any,
    doses: Doses | None = None,
    events: Mapping[str, Any] | None = None,
    atol: float = 1e-14,
) -> Array:
    """States (time, state) by LSODA, stopped and started again at every dose; looks are before it."""
    names, p = tuple(start), SimpleNamespace(**parameters)
    times = np.asarray(times, dtype=float)
    out = np.empty((len(times), len(names)))

    def named(y: Any) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(names, map(Scalar, y), strict=True)))

    def slopes(t: float, y: Any) -> list[float]:
        answer = rhs(t, named(y), p)
        return [float(answer[n]) for n in names]

    stops: list[tuple[float, str, float]] = []
    if doses is not None:
        rows = zip(doses.time[0], doses.target[0], doses.amount[0], strict=True)
        stops = sorted(((float(t), doses.targets[int(k)], float(a)) for t, k, a in rows), key=lambda s: s[0])
    y, t = np.array([float(v) for v in start.values()]), 0.0
    for when, target, amount in [*stops, (float(times[-1]), "", 0.0)]:
        here = np.flatnonzero((times >= t) & (times <= when))
        if when > t:
            grid = np.unique(np.append(times[here], when))
            found = solve_ivp(slopes, (t, when), y, method="LSODA", rtol=1e-12, atol=atol, t_eval=grid)
            assert found.success
            fresh = here if t == 0 else here[times[here] > t]
            out[fresh] = found.y.T[np.searchsorted(grid, times[fresh])]
            y, t = found.y[:, -1], when
        if target in names:
            y[names.index(target)] += amount
        elif target:
            changed = (events or {})[target](named(y), p, amount)
            y = np.array([float(changed.get(n, v)) for n, v in zip(names, y, strict=True)])
    return out


# ------------------------------------------------------------------------------- known solutions


@dataclass(frozen=True)
class Problem:
    """A right-hand side with a known solution; `exact` gives states (time, state).

    `bound` is on the error at rtol 1e-6, relative to the largest value of each state.
    """

    name: str
    rhs: Callable[[Any, Any, Any], Mapping[str, Any]]
    start: Mapping[str, float]
    parameters: Mapping[str, float]
    times: tuple[float, ...]
    exact: Callable[["Problem"], Array]
    stiff: bool
    bound: float = 5e-6
    doses: Doses | None = None


def chain(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"A": -p.a * y.A, "B": p.a * y.A - p.b * y.B, "C": p.b * y.B - p.c * y.C}


def chain_exact(problem: Problem) -> Array:
    t = np.array(problem.times)
    a, b, c = problem.parameters.values()
    ea, eb, ec = np.exp(-a * t), np.exp(-b * t), np.exp(-c * t)
    third = ea / ((b - a) * (c - a)) + eb / ((a - b) * (c - b)) + ec / ((a - c) * (b - c))
    return np.stack([ea, a / (b - a) * (ea - eb), a * b * third], 1)


def logistic(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"N": p.r * y.N * (1 - y.N / p.K)}


def logistic_exact(problem: Problem) -> Array:
    t, n, (r, k) = np.array(problem.times), problem.start["N"], problem.parameters.values()
    return (k / (1 + (k / n - 1) * np.exp(-r * t)))[:, None]


def kinetics_exact(problem: Problem) -> Array:
    t, s, (vmax, km) = np.array(problem.times), problem.start["S"], problem.parameters.values()
    left = km * lambertw(s / km * np.exp((s - vmax * t) / km)).real
    return np.stack([left, s - left], 1)


def compartment(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"depot": -p.ka * y.depot, "central": p.ka * y.depot - p.ke * y.central}


ORAL, INFUSED = ((0.0, 2.0), (6.0, 1.0)), (5.0, 3.0, 2.0)  # (time, amount), and (time, amount, duration)
COURSE = given(
    [[0.0, 6.0, 5.0]], [[2.0, 1.0, 3.0]], [[0, 0, 1]], ("depot", "central"), duration=[[0.0, 0.0, 2.0]]
)


def compartment_solution(
    times: Tensor, ka: Tensor, ke: Tensor, lag: Tensor, f: Tensor, dose: Tensor, duration: Tensor
) -> tuple[Tensor, Tensor]:
    """Depot and central after boluses and an infusion, of `f` times their amounts, all later by `lag`."""
    depot, central = torch.zeros_like(times), torch.zeros_like(times)
    for when, amount in ORAL:
        since = times - lag - when
        there, since = since > 0, since.clamp(min=0)
        depot = depot + torch.where(there, f * amount * torch.exp(-ka * since), 0.0)
        fall = torch.exp(-ke * since) - torch.exp(-ka * since)
        central = central + torch.where(there, f * amount * ka / (ka - ke) * fall, 0.0)
    since = times - lag - INFUSED[0]
    rise = 1 - torch.exp(-ke * torch.minimum(since.clamp(min=0), duration))
    left = torch.exp(-ke * (since - duration).clamp(min=0))
    return depot, central + f * dose / (duration * ke) * rise * left


def compartment_exact(problem: Problem) -> Array:
    ka, ke = (real(v) for v in problem.parameters.values())
    rest = (real(v) for v in (0.0, 1.0, INFUSED[1], INFUSED[2]))
    return torch.stack(compartment_solution(real(problem.times), ka, ke, *rest), 1).numpy()


def oscillator(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"x": y.v, "v": -p.k * y.x + torch.cos(p.w * t)}


def oscillator_exact(problem: Problem) -> Array:
    t, (k, w) = np.array(problem.times), problem.parameters.values()
    own, gain = math.sqrt(k), 1 / (k - w * w)
    a, b = problem.start["x"] - gain, problem.start["v"] / own
    x = a * np.cos(own * t) + b * np.sin(own * t) + gain * np.cos(w * t)
    v = -a * own * np.sin(own * t) + b * own * np.cos(own * t) - gain * w * np.sin(w * t)
    return np.stack([x, v], 1)


def robertson(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    one, two = p.a * y.A - p.b * y.B * y.C, p.c * y.B**2
    return {"A": -one, "B": one - two, "C": two}


def van_der_pol(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"x": y.v, "v": p.mu * (1 - y.x**2) * y.v - y.x}


def hires(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    bound = 280 * y.y6 * y.y8
    return {
        "y1": -1.71 * y.y1 + 0.43 * y.y2 + 8.32 * y.y3 + 0.0007,
        "y2": 1.71 * y.y1 - 8.75 * y.y2,
        "y3": -10.03 * y.y3 + 0.43 * y.y4 + 0.035 * y.y5,
        "y4": 8.32 * y.y2 + 1.71 * y.y3 - 1.12 * y.y4,
        "y5": -1.745 * y.y5 + 0.43 * y.y6 + 0.43 * y.y7,
        "y6": -bound + 0.69 * y.y4 + 1.71 * y.y5 - 0.43 * y.y6 + 0.69 * y.y7,
        "y7": bound - 1.81 * y.y7,
        "y8": -bound + 1.81 * y.y7,
    }


def orego(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {
        "a": p.s * (y.b + y.a * (1 - p.q * y.a - y.b)),
        "b": (y.c - (1 + y.a) * y.b) / p.s,
        "c": p.w * (y.a - y.c),
    }


def numerically(problem: Problem) -> Array:
    return by_scipy(problem.rhs, problem.start, problem.parameters, problem.times, atol=1e-16)


SCARCE = {"A": 1.0, "B": 0.0, "C": 0.0}
PROBLEMS = (
    Problem("chain", chain, SCARCE, {"a": 0.7, "b": 1.9, "c": 0.2}, (0.0, 0.5, 2.0, 9.0), chain_exact, False),
    Problem("logistic", logistic, {"N": 0.01}, {"r": 1.3, "K": 4.0}, (1.0, 4.0, 7.0), logistic_exact, False),
    Problem(
        "michaelis_menten",
        kinetics,
        {"S": 2.0, "P": 0.0},
        {"vmax": 0.8, "km": 0.3},
        (0.0, 1.0, 2.0, 2.5, 3.0, 6.0),
        kinetics_exact,
        False,
    ),
    Problem(
        "compartment",
        compartment,
        {"depot": 0.0, "central": 0.0},
        {"ka": 1.5, "ke": 0.1},
        (0.5, 1.0, 5.0, 5.5, 6.5, 7.0, 9.0, 24.0),
        compartment_exact,
        False,
        doses=COURSE,
    ),
    Problem(
        "oscillator",
        oscillator,
        {"x": 1.0, "v": -0.5},
        {"k": 9.0, "w": 1.3},
        (0.3, 1.1, 4.0, 12.0),
        oscillator_exact,
        False,
    ),
    Problem(
        "robertson",
        robertson,
        SCARCE,
        {"a": 0.04, "b": 1e4, "c": 3e7},
        (0.4, 4.0, 40.0, 400.0, 4000.0, 4e4),
        numerically,
        True,
    ),
    Problem(
        "van_der_pol",
        van_der_pol,
        {"x": 2.0, "v": 0.0},
        {"mu": 100.0},
        (1.0, 40.0, 75.0, 100.0, 150.0),
        numerically,
        True,
    ),
    Problem(
        "hires",
        hires,
        {"y1": 1.0, **{f"y{k}": 0.0 for k in range(2, 8)}, "y8": 0.0057},
        {},
        (1.0, 10.0, 100.0, 300.0, 330.0, 421.8122),
        numerically,
        True,
    ),
    Problem(
        "orego",
        orego,
        {"a": 1.0, "b": 2.0, "c": 3.0},
        {"s": 77.27, "q": 8.375e-6, "w": 0.161},
        (10.0, 30.0, 100.0, 200.0, 300.0, 360.0),
        numerically,
        True,
    ),
)
CASES = [
    pytest.param(problem, make, id=f"{problem.name}-{name}")
    for problem in PROBLEMS
    for name, make in SOLVERS.items()
    if not problem.stiff or name in ("rodas", "compiled")
]


@cache
def truth_of(name: str) -> Array:
    problem = next(p for p in PROBLEMS if p.name == name)
    return problem.exact(problem)


def wrong_by(problem: Problem, solver: Any) -> float:
    with answering(solver):
        y = odeint(problem.rhs, problem.start, problem.parameters, on(problem.times), doses=problem.doses)
    assert y.status.tolist() == [0]
    exact = truth_of(problem.name)
    return float((np.abs(y.states[0].numpy() - exact) / np.abs(exact).max(0)).max())


@pytest.mark.parametrize(("problem", "make"), CASES)
def test_known_solutions_are_met_and_met_better_at_tighter_tolerances(problem: Problem, make: Make) -> None:
    coarse = wrong_by(problem, make(rtol=1e-6, atol=1e-9))
    fine = wrong_by(problem, make(rtol=1e-9, atol=1e-12))
    assert coarse < problem.bound
    assert fine < problem.bound / 500
    assert fine < max(coarse / 20, 1e-11)


@every_solver
def test_the_relative_tolerance_is_kept_where_the_solution_is_small(make: Make) -> None:
    looks, errors = on([10.0, 40.0, 80.0]), []
    for rtol in (1e-4, 1e-6, 1e-8):
        with answering(make(rtol=rtol, atol=1e-50)):
            y = odeint(chain, {"A": 1e-6, "B": 0.0, "C": 0.0}, {"a": 0.7, "b": 1.9, "c": 0.2}, looks)
        assert y.status.tolist() == [0]
        errors.append(float((y.A / (1e-6 * torch.exp(-0.7 * looks.times)) - 1).abs().max()))
        assert errors[-1] < 100 * rtol
    assert errors[0] > 20 * errors[1] > 400 * errors[2]


# ------------------------------------------------------------------------------------- the zoo


def close_to(ours: Tensor, reference: Array) -> None:
    gap = np.abs(ours.detach().numpy() - reference) / (1e-3 + np.abs(reference))
    assert gap.max() < 1e-6


def test_michaelis_menten_equals_scipy() -> None:
    torch.manual_seed(1)
    vmax, km = (torch.exp(torch.randn(8)) for _ in range(2))
    looks = on(torch.linspace(0.0, 10.0, 12))
    rates = {"vmax": vmax[:, None, None], "km": km[:, None, None]}
    with answering(Compiled(rtol=1e-9, atol=1e-11)):
        y = odeint(kinetics, {"S": 3.0, "P": 0.0}, rates, looks)
    for k in range(8):
        p = {n: float(v[k]) for n, v in rates.items()}
        close_to(y.states[k, 0], by_scipy(kinetics, {"S": 3.0, "P": 0.0}, p, looks.times[0]))


def test_lotka_volterra_equals_scipy() -> None:
    torch.manual_seed(2)
    looks = on(torch.arange(21.0))
    rates = {
        name: (centre * (1 + 0.3 * torch.randn(8)).clamp(0.2, 2.0))[:, None, None]
        for name, centre in {"birth": 1.0, "hunt": 0.05, "death": 1.0, "gain": 0.05}.items()
    }
    hare, lynx = (torch.exp(2.3 + 0.7 * torch.randn(8, 1, 1)) for _ in range(2))
    with answering(Compiled(rtol=1e-9, atol=1e-11)):
        y = odeint(predation, {"hare": hare, "lynx": lynx}, rates, looks)
    for k in range(8):
        p = {n: float(v[k]) for n, v in rates.items()}
        close_to(
            y.states[k, 0],
            by_scipy(predation, {"hare": float(hare[k]), "lynx": float(lynx[k])}, p, looks.times[0]),
        )


def test_ecoli_with_its_pulses_and_samples_equals_scipy() -> None:
    torch.manual_seed(3)
    looks, doses = on(0.5 * torch.arange(25.0)), ecoli.protocol()
    rates = {n: v * torch.exp(0.1 * torch.randn(3, 1, 1)) for n, v in ecoli.FITTED.items()}
    with answering(Compiled(rtol=1e-9, atol=1e-11)):
        y = odeint(ecoli.fed_batch, ecoli.START, {**rates, "F": 0.0}, looks, doses=doses, events=ecoli.EVENTS)
    assert y.status.flatten().tolist() == [0] * 3
    for k in range(3):
        p = {n: float(v[k]) for n, v in rates.items()} | {"F": 0.0}
        reference = by_scipy(ecoli.fed_batch, ecoli.START, p, looks.times[0], doses, ecoli.EVENTS, 1e-12)
        close_to(y.states[k, 0], reference)


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


def signal_of(time: Any, value: Any, linear: bool, mask: Any = None) -> Input:
    time = torch.atleast_2d(real(time))
    mask = torch.ones_like(time).bool() if mask is None else torch.as_tensor(mask)
    return Input(time, torch.atleast_2d(real(value)), mask, linear)


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


# ---------------------------------------------------------------------------------- gradients


def decay(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"A": -p.k * y.A}


def leaves(*values: Any) -> list[Tensor]:
    return [real(v).clone().requires_grad_() for v in values]


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
    assert f"line {line} of test_engine.py" in str(caught.value)


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
