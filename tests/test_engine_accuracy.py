"""Known solutions, and every shipped model beside scipy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from engine import (
    COURSE,
    INFUSED,
    SCARCE,
    SOLVERS,
    Array,
    Make,
    by_scipy,
    compartment,
    compartment_solution,
    double,
    every_solver,
    on,
    real,
    robertson,
    van_der_pol,
)
from scipy.special import lambertw
from torch import Tensor

from ampost import (
    Compiled,
    Doses,
    answering,
    odeint,
)
from ampost.zoo import ecoli_fed_batch as ecoli
from ampost.zoo.lotka_volterra import predation
from ampost.zoo.michaelis_menten import kinetics

__all__ = ["double"]


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
