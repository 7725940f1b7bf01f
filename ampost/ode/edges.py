"""Where the integration of a row stops and begins again: doses, ends of infusions, breakpoints of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ampost.experiments import Input
from ampost.ode.problem import Rows
from ampost.ode.recorded import truth


@dataclass(frozen=True)
class Edges:
    """Sorted times per row (row, edge) where the integration stops and begins again.

    `target` is a state (which jumps by `jump` while its inflow changes by `rate`), then an event (of
    amount `jump`), then an input (which becomes `jump` and changes at `rate` from then on).
    """

    time: Tensor
    target: Tensor
    jump: Tensor
    rate: Tensor


def edges_of(rows: Rows, events: int) -> Edges:
    """Doses, ends of infusions and breakpoints of inputs, in order; doses first where they coincide."""
    if not rows.dose_time.shape[1] and not rows.inputs:
        return Edges(rows.dose_time, rows.dose_target, rows.dose_amount, rows.dose_duration)
    infused = rows.dose_duration > 0
    amount = torch.where(rows.dose_mask, rows.dose_amount, 0.0)
    jump = torch.where(infused, 0.0, amount)
    rate = torch.where(infused, amount / torch.where(infused, rows.dose_duration, 1.0), 0.0)
    time = torch.where(rows.dose_mask, rows.dose_time, torch.inf)
    target = rows.dose_target
    if truth(infused.any()):
        end = torch.where(infused & rows.dose_mask, rows.dose_time + rows.dose_duration, torch.inf)
        time, target = torch.cat([time, end], 1), torch.cat([target, target], 1)
        jump, rate = torch.cat([jump, torch.zeros_like(jump)], 1), torch.cat([rate, -rate], 1)
    for k, signal in enumerate(rows.inputs.values()):
        moments, value, slope = _segments(signal)
        code = torch.full_like(moments, rows.start.shape[1] + events + k, dtype=torch.long)
        time, target = torch.cat([time, moments], 1), torch.cat([target, code], 1)
        jump, rate = torch.cat([jump, value], 1), torch.cat([rate, slope], 1)
    time, order = torch.sort(time, dim=1, stable=True)
    return Edges(time, *(value.gather(1, order) for value in (target, jump, rate)))


def _segments(signal: Input) -> tuple[Tensor, Tensor, Tensor]:
    """When an input changes, to what value and slope; before its first breakpoint it has that value."""
    first = torch.full_like(signal.time[:, :1], -torch.inf)
    slope = torch.zeros_like(signal.value)
    if signal.linear:
        both = signal.mask[:, 1:] & signal.mask[:, :-1]
        run = torch.where(both, signal.time.diff(dim=1), 1.0)
        # a repeated time is a jump: the later value holds
        rise = torch.where(both & (run > 0), signal.value.diff(dim=1) / torch.where(run > 0, run, 1.0), 0.0)
        slope[:, :-1] = rise
    time = torch.cat([first, signal.time], 1)
    value = torch.cat([signal.value[:, :1], torch.where(signal.mask, signal.value, 0.0)], 1)
    return time, value, torch.cat([torch.zeros_like(first), slope], 1)


def signal_at(signal: Input, times: Tensor, late: Tensor) -> Tensor:
    """An input of rows at `times` (row, time): at a breakpoint what holds before it or, where `late`, after."""
    starts, value, slope = (part.contiguous() for part in _segments(signal))
    before, after = (torch.searchsorted(starts, times.contiguous(), right=side) for side in (False, True))
    place = (torch.where(late, after, before) - 1).clamp(min=0)
    since = torch.where(place > 0, times - starts.gather(1, place), 0.0)
    return value.gather(1, place) + slope.gather(1, place) * since
