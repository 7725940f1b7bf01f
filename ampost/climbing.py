"""Climbs to the modes of one data set from many starts, with few solves.

Gauss-Newton steps need slopes of the trajectories, which take a solve for each parameter. Here they are taken
once from each start; after each step they are brought up to date by what the step itself has shown (Broyden,
Mathematics of Computation 19 (1965) 577), and taken anew where a step gains nothing. Prior and noise are the
program's own at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost.experiments import Experiments
from ampost.laplace import DAMPED, FURTHEST, GAINED, LENGTHS, NEAR, Slopes, at_once, evaluated, slopes, solved
from ampost.model import Model
from ampost.ode.problem import OdeProblem, Status, Trajectory
from ampost.program import recording

CLOSE = 0.1  # decrement of the log joint below which a climb has ended
FRESH = 6  # steps after which slopes are taken anew


@dataclass(frozen=True)
class Ends:
    """Where climbs ended: z (start, z), decrement and log joint (start,), and the solves in all."""

    z: Tensor
    decrement: Tensor
    height: Tensor
    solves: int


@dataclass(frozen=True)
class _Linear:
    """States (row, experiment, time, state) of each ODE, and their slopes (z, row, experiment, time, state)."""

    states: Mapping[str, Tensor]
    slopes: Mapping[str, Tensor]

    def __call__(self, problem: OdeProblem) -> Trajectory:
        """The trajectory of rows at z, and at a small step along each coordinate."""
        here = self.states[problem.name][None]
        states = torch.cat([here, here + NEAR * self.slopes[problem.name]])
        status = torch.full(states.shape[:-2], Status.OK)
        return Trajectory(problem.experiments.times, states, status, tuple(problem.initial))

    def at(self, rows: Tensor) -> _Linear:
        return _Linear(
            {name: value[rows] for name, value in self.states.items()},
            {name: value[:, rows] for name, value in self.slopes.items()},
        )

    def put(self, rows: Tensor, other: _Linear) -> None:
        """Rows replaced in place."""
        for name in self.states:
            self.states[name][rows] = other.states[name]
            self.slopes[name][:, rows] = other.slopes[name]

    def updated(self, step: Tensor, states: Mapping[str, Tensor]) -> _Linear:
        """After a step (row, z) to other states: slopes that agree with it."""
        share = step / step.square().sum(-1, keepdim=True).clamp(min=1e-300)
        out = {}
        for name, slope in self.slopes.items():
            missed = states[name] - self.states[name] - torch.einsum("zr...,rz->r...", slope, step)
            out[name] = slope + torch.einsum("rz,r...->zr...", share, missed)
        return _Linear(states, out)


def climb(model: Model, data: Experiments, start: Tensor, most: int) -> Ends:
    """At most so many steps from each of `start` (start, z), on the log joint of one data set."""
    data = data if data.batch else data.unsqueezed(1)
    slope = slopes(model, data, start.shape[-1])
    rows = at_once(data, 1 + len(slope.shifts))
    parts = [
        _climbed(slope, data.at(torch.zeros(len(part), dtype=torch.long)), part.double(), most)
        for part in start.split(rows)
    ]
    return Ends(
        torch.cat([p.z for p in parts]),
        torch.cat([p.decrement for p in parts]),
        torch.cat([p.height for p in parts]),
        sum(p.solves for p in parts),
    )


def _climbed(slope: Slopes, data: Experiments, start: Tensor, most: int) -> Ends:
    z, solves = start.clone(), slope.solves * len(start)
    line = _taken(slope, z, data)
    count, size = z.shape
    unit = NEAR * torch.eye(size, dtype=z.dtype)[:, None]
    height = torch.full((count,), -torch.inf, dtype=z.dtype)
    decrement = torch.full((count,), torch.inf, dtype=z.dtype)
    damping, age = torch.zeros(count, dtype=z.dtype), torch.zeros(count, dtype=torch.long)
    active = torch.arange(count)
    for k in range(most + 1):
        near = replace(slope, solver=line.at(active), shifts=unit)
        height[active], score, information = near(z[active], data.at(active))
        gain = 0.5 * (score * solved(information, score)).sum(-1)
        decrement[active] = torch.where(torch.isfinite(height[active]), gain, torch.inf)
        on = (decrement[active] > CLOSE) & torch.isfinite(height[active])
        active, score, information = active[on], score[on], information[on]
        if k == most or not len(active):
            break
        damped = information + torch.diag_embed(damping[active, None] * information.diagonal(dim1=-2, dim2=-1))
        step = solved(damped, score).clamp(-FURTHEST, FURTHEST)
        hoped = (step * score).sum(-1) - 0.5 * torch.einsum("na,nab,nb->n", step, damped, step)
        length, states, tries = _along(slope, data.at(active), z[active], height[active], step, hoped)
        solves += tries
        z[active] = z[active] + length[:, None] * step
        moved = length > 0
        line.put(
            active[moved],
            line.at(active[moved]).updated(
                (length[:, None] * step)[moved], {n: v[moved] for n, v in states.items()}
            ),
        )
        age[active] += 1
        stale = active[~moved | (age[active] >= FRESH)]
        if len(stale):
            line.put(stale, _taken(slope, z[stale], data.at(stale)))
            solves += slope.solves * len(stale)
        stuck = (10 * damping[active]).clamp(min=DAMPED)
        damping[active] = torch.where(moved, 0.1 * damping[active], stuck)
        age[stale] = 0
    return Ends(z, decrement, height, solves)


def _taken(slope: Slopes, z: Tensor, data: Experiments) -> _Linear:
    """States and slopes at z (row, z) by the ODE."""
    with recording() as record:
        evaluated(slope.model, slope.places(z), data, slope.solver)
    states = {problem.name: _whole(t.states, slope.places(z)) for problem, t in record.solved}
    return _Linear(
        {name: value[0].clone() for name, value in states.items()},
        {name: slope.slope(value) for name, value in states.items()},
    )


def _whole(states: Tensor, z: Tensor) -> Tensor:
    """States of every z (draw, row, z); those that depend on no parameter come once."""
    return states.expand(*z.shape[:2], *states.shape[2:])


def _along(
    slope: Slopes, data: Experiments, z: Tensor, height: Tensor, step: Tensor, hoped: Tensor
) -> tuple[Tensor, dict[str, Tensor], int]:
    """How much of each step is best, the states there, and the solves.

    The whole step is taken where it gains a fair share of what is hoped for; else shorter ones are tried too.
    """
    whole, states = _told(slope.model, (z + step)[None], data)
    length = torch.ones_like(height)
    poor = (~(whole[0] - height >= GAINED * hoped)).nonzero()[:, 0]
    found = {name: value[0] for name, value in states.items()}
    if len(poor):
        lengths = torch.tensor(LENGTHS, dtype=z.dtype)
        between = z[poor] + lengths[:, None, None] * step[poor]
        joint, shorter = _told(slope.model, between, data.at(poor))
        tried = torch.cat([height[None, poor], joint, whole[:, poor]])
        best = tried.argmax(0)
        length[poor] = torch.cat([lengths.new_zeros(1), lengths, lengths.new_ones(1)])[best]
        place = torch.arange(len(poor))
        for name, value in shorter.items():
            inner = value[(best - 1).clamp(0, len(lengths) - 1), place]
            last = (best == len(lengths) + 1).reshape(-1, *(1,) * (inner.dim() - 1))
            found[name][poor] = torch.where(last, found[name][poor], inner)
    return length, found, len(z) + len(LENGTHS) * len(poor)


def _told(model: Model, z: Tensor, data: Experiments) -> tuple[Tensor, dict[str, Tensor]]:
    """Log joint (draw, row) at z (draw, row, z), and the states of each ODE."""
    with recording() as record:
        joint = evaluated(model, z, data, model.solver).joint
    return joint, {problem.name: _whole(t.states, z).clone() for problem, t in record.solved}
