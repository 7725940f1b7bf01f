"""The stretches of a trajectory between edges: where each begins, what is held in it, how an edge is crossed.

Edges are doses, ends of infusions, breakpoints of inputs and, so that no stretch is longer than a given time,
the points of a regular grid. All rows have the same number of stretches; those beyond a row's last look have
no length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ampost.experiments import Input
from ampost.ode.edges import Edges, edges_of
from ampost.ode.problem import OdeProblem, Rows, jumped

Event = Callable[[Tensor, Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Stretches:
    """Begins, lengths (row, stretch), infusions (row, stretch, state), inputs, slopes (row, stretch, input).

    Stretch k ends at edge k; `due` (row, edge) tells which edges come no later than the last look.
    """

    edges: Edges
    due: Tensor
    begin: Tensor
    length: Tensor
    infusion: Tensor
    value: Tensor
    slope: Tensor


def stretches_of(problem: OdeProblem, rows: Rows, longest: float, last: Tensor | None = None) -> Stretches:
    """The stretches of `rows` up to `last` (row,), by default the last look, none longer than `longest`."""
    size, events = rows.start.shape[1], len(problem.events)
    last = rows.times.max(1).values if last is None else last
    edges = _with_grid(edges_of(rows, events), rows, last, longest, size + events + len(rows.inputs))
    due = edges.time <= last[:, None]
    moments = torch.minimum(edges.time.clamp(min=rows.start_time), last[:, None])
    first = torch.full_like(last, rows.start_time)[:, None]
    begin = torch.cat([first, moments], 1)
    length = torch.cat([moments, torch.maximum(last[:, None], first)], 1) - begin
    onto = torch.nn.functional.one_hot(edges.target.clamp(max=size), size + 1)[..., :size].to(first)
    change = torch.where(due[..., None], edges.rate[..., None] * onto, 0.0)
    infusion = torch.cat([torch.zeros_like(rows.start)[:, None], change], 1).cumsum(1)
    value, slope = _held(edges, begin, size + events, len(rows.inputs))
    return Stretches(edges, due, begin, length, infusion, value, slope)


def _with_grid(edges: Edges, rows: Rows, last: Tensor, longest: float, code: int) -> Edges:
    """Edges and a grid of points at which nothing changes, `code` in their target."""
    end = float(np.max(rows.times.detach().cpu().numpy(), initial=rows.start_time))
    end = max(end, float(np.max(last.detach().cpu().numpy(), initial=rows.start_time)))
    points = max(0, math.ceil((end - rows.start_time) / longest - 1e-9) - 1)
    if not points:
        return edges
    grid = rows.start_time + longest * torch.arange(1, points + 1, dtype=rows.times.dtype)
    grid = grid.to(rows.times.device).expand(len(rows.times), -1)
    nothing = torch.zeros_like(grid)
    time, order = torch.sort(torch.cat([edges.time, grid], 1), dim=1, stable=True)
    target = torch.full_like(grid, code, dtype=torch.long)
    parts = [(edges.target, target), (edges.jump, nothing), (edges.rate, nothing)]
    return Edges(time, *(torch.cat(both, 1).gather(1, order) for both in parts))


def _held(edges: Edges, begin: Tensor, code: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Values at the begin of each stretch, and slopes, of inputs whose edges have the targets `code` and on."""
    values, slopes = [], []
    for k in range(inputs):
        value = slope = since = torch.zeros_like(begin[:, 0])
        here, there = [value], [slope]
        for e in range(edges.time.shape[1]):
            mine = edges.target[:, e] == code + k
            value = torch.where(mine, edges.jump[:, e], value)
            slope = torch.where(mine, edges.rate[:, e], slope)
            since = torch.where(mine & torch.isfinite(edges.time[:, e]), edges.time[:, e], since)
            here.append(value + slope * (begin[:, e + 1] - since))
            there.append(slope)
        values.append(torch.stack(here, 1))
        slopes.append(torch.stack(there, 1))
    if not inputs:
        none = begin.new_zeros(*begin.shape, 0)
        return none, none
    return torch.stack(values, -1), torch.stack(slopes, -1)


def events_of(problem: OdeProblem) -> list[Event]:
    """The events of a problem, as functions of rows."""
    return [jumped(problem, name) for name in problem.events]


def crossed(events: list[Event], rows: Rows, stretches: Stretches, k: int, state: Tensor) -> Tensor:
    """States (row, state) after edge `k`: a dose adds its amount, an event does what it says."""
    edges, size = stretches.edges, state.shape[1]
    target, jump, due = edges.target[:, k], edges.jump[:, k], stretches.due[:, k]
    amount = torch.where(due & (target < size + len(events)), jump, 0.0)
    onto = torch.nn.functional.one_hot(target.clamp(max=size), size + 1)[:, :size].to(state)
    new = state + amount[:, None] * onto
    for e, event in enumerate(events):
        mine = due & (target == size + e)
        new = torch.where(mine[:, None], event(new, rows.parameters, torch.where(mine, jump, 0.0)), new)
    return new


def place(stretches: Stretches, times: Tensor, after: Tensor) -> Tensor:
    """The stretch (row, time) that a look lies in; at an edge the one before it unless `after`."""
    edges = stretches.edges.time.detach().contiguous()
    before, behind = (torch.searchsorted(edges, times.contiguous(), right=side) for side in (False, True))
    return torch.where(after, behind, before)


def some(rows: Rows, index: slice | Tensor) -> Rows:
    """Part of the rows."""
    parameters = {name: value[index] for name, value in rows.parameters.items()}
    inputs = {
        name: Input(signal.time[index], signal.value[index], signal.mask[index], signal.linear)
        for name, signal in rows.inputs.items()
    }
    times = rows.times[index]
    return replace(
        rows,
        start=rows.start[index],
        parameters=parameters,
        times=times,
        after_dose=rows.after_dose[index],
        dose_time=rows.dose_time[index],
        dose_amount=rows.dose_amount[index],
        dose_duration=rows.dose_duration[index],
        dose_target=rows.dose_target[index],
        dose_mask=rows.dose_mask[index],
        inputs=inputs,
        batch=(len(times),),
    )
