"""The flow map: from the state at the begin of a stretch without edges to the state after some time in it.

Coordinates are states in units of their spread, or logarithms of those that are seen by their logarithm. The
change of a coordinate after the time t is

    x a + g b + sum_k (r_k c_k + g u_k d_k),    x = t / longest,  g = log(1 + 1000 x) / log 1001,
                                                r_k = asinh(t du_k / dt),

where the u are the coordinates at the begin, their pace comes from the right-hand side itself, and a, b, c, d
are the network's: so the map is exact at t = 0 and smooth everywhere. One part of the network sees the begin,
once per stretch; a smaller one sees what that made of it and the time, once per look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ampost.ode.problem import OdeProblem, Rows
from ampost.stretches import Stretches, crossed, events_of, place, stretches_of

TIMES = 5  # scales of time, each ten times finer than the one before
FAR = 100.0  # in logarithms and in spreads: no solution comes so far
FINE = 1e-3  # of its spread, below which a state counts as near to zero


@dataclass(frozen=True)
class Layout:
    """What one network stands for: the names of an ODE, and the longest stretch that it goes at once.

    `logarithmic` tells which states are seen by their logarithm, `positive` which parameters are; `timed`
    whether the right-hand side depends on time itself.
    """

    name: str
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    events: tuple[str, ...]
    logarithmic: tuple[bool, ...]
    positive: tuple[bool, ...]
    longest: float
    timed: bool

    @property
    def features(self) -> int:
        """How many numbers describe the begin of a stretch."""
        return 5 * len(self.states) + len(self.parameters) + 2 * len(self.inputs) + 1


@dataclass(frozen=True)
class Begin:
    """The begin of a stretch: features; coordinates, their pace, and the pace of states in their own units."""

    features: Tensor
    coordinate: Tensor
    pace: Tensor
    relative: Tensor

    def at(self, index: tuple[object, ...]) -> Begin:
        """The begins at `index`."""
        return Begin(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class Residual(nn.Module):
    """x plus a perceptron of x with one hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y: Tensor = self.outer(nn.functional.silu(self.inner(x)))
        return x + y


class FlowMap(nn.Module):
    """The network of one ODE, and as buffers the scales of what it sees.

    `scale` (2, feature) is the features' centre and one over their spread, which is 0 where nothing varies;
    `spread` (state,) the unit of each coordinate, `floor` what is added before a logarithm is taken; `moves` is
    0 for states that only edges change; `weight` is how many sd of the noise a unit of the coordinate is.
    """

    scale: Tensor
    spread: Tensor
    floor: Tensor
    moves: Tensor
    weight: Tensor
    logarithmic: Tensor

    def __init__(self, layout: Layout, width: int, depth: int, trunk: int) -> None:
        super().__init__()
        self.layout = layout
        size = len(layout.states)
        self.branch = nn.Sequential(
            nn.Linear(layout.features, width), nn.SiLU(), *(Residual(width) for _ in range(depth)), nn.SiLU()
        )
        self.join = nn.Linear(width, trunk)
        self.time = nn.Linear(TIMES + 1 + 3 * size, trunk, bias=False)
        self.trunk = nn.Sequential(nn.SiLU(), nn.Linear(trunk, trunk), nn.SiLU(), Residual(trunk), nn.SiLU())
        self.out = nn.Linear(trunk, size * (2 + 2 * size))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        for name in ("spread", "floor", "moves", "weight"):
            self.register_buffer(name, torch.ones(size, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(2, layout.features, dtype=torch.float64))
        self.scale[0] = 0.0
        self.register_buffer("logarithmic", torch.tensor(layout.logarithmic))

    def coordinates(self, state: Tensor) -> Tensor:
        """Coordinates (..., state) of states."""
        return torch.where(self.logarithmic, self._above(state).log(), state) / self.spread

    def states(self, coordinate: Tensor) -> Tensor:
        """The inverse of `coordinates`, which are kept from overflowing."""
        value = coordinate.clamp(-FAR, FAR) * self.spread
        power = torch.where(self.logarithmic, value.clamp(max=FAR), 0.0).exp() - self.floor
        return torch.where(self.logarithmic, power, value)

    def _above(self, state: Tensor) -> Tensor:
        """What the logarithm is of; 1 where there is none."""
        return torch.where(self.logarithmic, torch.maximum(state, -0.9 * self.floor) + self.floor, 1.0)

    def begin(
        self, state: Tensor, slopes: Tensor, parameters: Mapping[str, Tensor], forcing: Tensor, moment: Tensor
    ) -> Begin:
        """What is known at the begin of rows, of states and slopes (row, state), at `moment` (row,).

        `forcing` (row, state + 2 input) is the infusion into each state, then inputs, then their slopes.
        """
        layout, log = self.layout, self.logarithmic
        pace = slopes / self._above(state) / self.spread
        relative = slopes / (state.abs() + FINE * self.spread)
        coordinate = self.coordinates(state)
        near = torch.where(log, coordinate, torch.asinh(state / (FINE * self.spread)))
        known = [
            (parameters[n].clamp(min=1e-300).log() if positive else parameters[n])[:, None]
            for n, positive in zip(layout.parameters, layout.positive, strict=True)
        ]
        swift = torch.asinh(pace * layout.longest), torch.asinh(30 * relative * layout.longest)
        features = torch.cat([coordinate, near, *swift, *known, forcing, moment[:, None]], -1)
        scaled = (features - self.scale[0]) * self.scale[1]
        return Begin(scaled.float(), coordinate, pace, relative)

    def seen(self, begin: Begin) -> Tensor:
        """What the network makes of the begin (..., trunk)."""
        seen: Tensor = self.join(self.branch(begin.features))
        return seen

    def ahead(self, seen: Tensor, begin: Begin, elapsed: Tensor) -> Tensor:
        """Coordinates (..., state) after `elapsed` (...)."""
        share = (elapsed / self.layout.longest)[..., None]
        run, own = begin.pace * elapsed[..., None], begin.relative * elapsed[..., None]
        scales = [torch.log1p(share * 10.0**m) / math.log1p(10.0**m) for m in range(1, TIMES + 1)]
        gate, run = scales[2], torch.asinh(run)
        times = torch.cat([share, *scales, run, torch.asinh(own), torch.asinh(30 * own)], -1)
        out = self.out(self.trunk(seen + self.time(times.float()))).to(share.dtype)
        ways = torch.cat([share, gate, run, gate * begin.coordinate], -1)
        change: Tensor = (out.unflatten(-1, (run.shape[-1], -1)) * ways[..., None, :]).sum(-1)
        return begin.coordinate + change * self.moves

    def forward(self, begin: Begin, elapsed: Tensor) -> Tensor:
        """Coordinates (row, time, state) after `elapsed` (row, time) from the begin of each row."""
        return self.ahead(self.seen(begin)[:, None], begin.at((slice(None), None)), elapsed)


def begun(flow: FlowMap, rows: Rows, state: Tensor, moment: Tensor, forcing: Tensor) -> Begin:
    """A begin of each row in `state` (row, state) at `moment` (row,) under `forcing` (row, state + 2 input)."""
    size, inputs = state.shape[1], len(rows.inputs)
    held = dict(zip(rows.inputs, forcing[:, size : size + inputs].unbind(-1), strict=True))
    slopes = rows.rhs(moment, state, {**rows.parameters, **held}) + forcing[:, :size]
    return flow.begin(state, slopes, rows.parameters, forcing, moment)


def solve(flow: FlowMap, problem: OdeProblem, rows: Rows) -> Tensor:
    """States (row, time, state) at the looks of `rows`: one stretch after the other, then all looks at once."""
    stretches = stretches_of(problem, rows, flow.layout.longest)
    events, first = events_of(problem), len(rows.inputs)  # the first edges are where inputs begin
    state, begins, seen = rows.start, list[Begin](), list[Tensor]()
    for k in range(first, stretches.begin.shape[1]):
        begins.append(begun(flow, rows, state, stretches.begin[:, k], _forcing(stretches, k)))
        seen.append(flow.seen(begins[-1]))
        if k < stretches.due.shape[1]:
            state = flow.states(flow.ahead(seen[-1], begins[-1], stretches.length[:, k]))
            state = crossed(events, rows, stretches, k, state)
    index = place(stretches, rows.times, rows.after_dose)
    since = (rows.times - stretches.begin.gather(1, index)).clamp(min=0.0)
    where = torch.arange(len(index), device=index.device)[:, None], index - first
    together = Begin(*(torch.stack([getattr(b, n) for b in begins], 1) for n in Begin.__dataclass_fields__))
    return flow.states(flow.ahead(torch.stack(seen, 1)[where], together.at(where), since))


def _forcing(stretches: Stretches, k: int) -> Tensor:
    return torch.cat([stretches.infusion[:, k], stretches.value[:, k], stretches.slope[:, k]], -1)
