"""What the tests of the engine share: solvers, doses, looks, and scipy as the truth."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ampost import (
    Compiled,
    Doses,
    Eager,
    Experiments,
    rodas,
    tsitouras,
)
from ampost.experiments import Input

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


def compartment(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"depot": -p.ka * y.depot, "central": p.ka * y.depot - p.ke * y.central}


COURSE = given(
    [[0.0, 6.0, 5.0]], [[2.0, 1.0, 3.0]], [[0, 0, 1]], ("depot", "central"), duration=[[0.0, 0.0, 2.0]]
)


ORAL, INFUSED = ((0.0, 2.0), (6.0, 1.0)), (5.0, 3.0, 2.0)  # (time, amount), and (time, amount, duration)


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


def robertson(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    one, two = p.a * y.A - p.b * y.B * y.C, p.c * y.B**2
    return {"A": -one, "B": one - two, "C": two}


def van_der_pol(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"x": y.v, "v": p.mu * (1 - y.x**2) * y.v - y.x}


SCARCE = {"A": 1.0, "B": 0.0, "C": 0.0}


def signal_of(time: Any, value: Any, linear: bool, mask: Any = None) -> Input:
    time = torch.atleast_2d(real(time))
    mask = torch.ones_like(time).bool() if mask is None else torch.as_tensor(mask)
    return Input(time, torch.atleast_2d(real(value)), mask, linear)


def decay(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"A": -p.k * y.A}


def leaves(*values: Any) -> list[Tensor]:
    return [real(v).clone().requires_grad_() for v in values]
