"""Tokens: data as the network reads them. A token is a measurement, a dose or a segment of an input.

Its features: which kind and channel; time (plain, logarithmic, squared); value (plain and compressed) and
the end of its interval; how it is censored; its standard deviation; a length (of an infusion or segment);
whether it comes after a dose; covariates; how many measurements it stands for. Tokens beyond `MOST` per
channel and experiment are averaged within bins of neighbours, for the network only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ampost.design import Design
from ampost.errors import EstimatorError
from ampost.experiments import CENSORING, Channel, Doses, Experiments, Input

MOST = 64
LARGEST = 1_000_000  # numbers that quantiles are taken of
FURTHER = 5 + 2 + len(CENSORING) + 2 + 1 + 1 + 1  # features beside kinds and covariates


@dataclass(frozen=True)
class Scaling:
    """How numbers become features: per channel whether logarithmic, shift, scale; the rest (shift, scale)."""

    channels: tuple[str, ...]
    logarithmic: tuple[bool, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    sd: tuple[tuple[float, float], ...]
    conditions: Mapping[str, tuple[float, float]]
    columns: Mapping[str, tuple[float, float]]
    amounts: Mapping[str, float]
    inputs: Mapping[str, tuple[float, float]]
    start: float
    horizon: float

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """What a token may be: (channel | dose | input, name)."""
        return (
            *(("channel", name) for name in self.channels),
            *(("dose", name) for name in self.amounts),
            *(("input", name) for name in self.inputs),
        )

    @property
    def token(self) -> int:
        """The number of features of a token."""
        return len(self.kinds) + FURTHER + len(self.columns)


def scaling_of(channels: tuple[str, ...], design: Design, data: Experiments) -> Scaling:
    """Shift and scale from simulated data and the design; logarithmic where all values are positive."""
    channels = tuple(name for name in channels if name in data.channels)
    logarithmic, shift, scale = [], [], []
    for name in channels:
        channel = data.channels[name]
        assert channel.values is not None
        exact = channel.mask if channel.censoring is None else channel.mask & (channel.censoring == 0)
        values = channel.values[exact if bool(exact.any()) else channel.mask]
        values = values[torch.isfinite(values)]
        if not len(values):
            raise EstimatorError(
                f"channel {name!r} has no finite value in {data.times.shape[0]} data sets drawn from the model "
                f"and its design: look at its noise and trajectories (ampost simulate), or narrow the prior"
            )
        values = values[:: 1 + len(values) // LARGEST]
        log = bool((values > 0).all())
        values = values.log() if log else values
        low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype)).tolist()
        logarithmic.append(log)
        shift.append(middle)
        scale.append(max((high - low) / 2.5, 1e-12))

    def centred(ends: tuple[float, ...]) -> tuple[float, float]:
        """Middle and half width of a range; of a constant its size, so that no other value is a huge number."""
        low, high = min(ends), max(ends)
        size = max(abs(low), abs(high))
        return (low + high) / 2, (high - low) / 2 if high - low > 1e-9 * size else size or 1.0

    looks = [design.channels.get(name) for name in channels]
    deviations = [(0.0, 1.0) if look is None or look.sd is None else look.sd for look in looks]
    columns: dict[str, tuple[float, ...]] = {}
    for look in looks:
        for name, ends in look.columns.items() if look else ():
            columns[name] = (*columns.get(name, ()), *ends)
    amounts: dict[str, float] = {}
    for plan in design.doses:
        amounts[plan.target] = max(amounts.get(plan.target, 0.0), *(abs(a) for a in plan.amount))
    return Scaling(
        channels=channels,
        logarithmic=tuple(logarithmic),
        shift=tuple(shift),
        scale=tuple(scale),
        sd=tuple(
            centred(tuple(math.log(s) for s in ends)) if min(ends) > 0 else (0.0, 1.0) for ends in deviations
        ),
        conditions={name: centred(ends) for name, ends in design.conditions.items()},
        columns={name: centred(ends) for name, ends in columns.items()},
        amounts={target: amount or 1.0 for target, amount in amounts.items()},
        inputs={
            name: centred(tuple(v for values in plan.values for v in values))
            for name, plan in design.inputs.items()
        },
        start=design.start,
        horizon=design.horizon,
    )


def tokens(data: Experiments, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens (dataset, experiment, token, feature), their mask, conditions and live experiments."""
    data = data if data.batch else data.unsqueezed(1)
    if not data.batch[0]:
        raise EstimatorError(
            "the record holds no data sets: expected one or more; was everything filtered out?"
        )
    for name in data.conditions:
        if name not in scaling.conditions and name not in scaling.columns:
            known = ", ".join(scaling.conditions) or "none"
            raise EstimatorError(
                f"condition {name!r} is not one the estimator knows: {known}; leave that column out of the "
                f"table, or train for Design.like of these data"
            )
    parts = []
    for k, (what, name) in enumerate(scaling.kinds):
        if what == "channel":
            channel = data.channels.get(name)
            if channel is not None and channel.values is not None:
                parts.append(_measurements(channel, data, scaling, k))
        elif what == "dose" and name in data.doses.targets:
            parts.append(_doses(data.doses, scaling, k, name))
        elif what == "input" and name in data.inputs:
            parts.append(_segments(data.inputs[name], scaling, k, name))
    conditions = [((data[n] - m) / half).clamp(-30, 30) for n, (m, half) in scaling.conditions.items()]
    shape = data.live.shape
    joined = torch.cat(conditions, -1) if conditions else torch.zeros(*shape, 0)
    seen = torch.cat([p[0] for p in parts], -2), torch.cat([p[1] for p in parts], -1)
    return *seen, joined.float(), data.live


def _measurements(channel: Channel, data: Experiments, scaling: Scaling, k: int) -> tuple[Tensor, Tensor]:
    assert channel.values is not None
    front = _Front(channel.mask)

    def scaled(number: Tensor) -> Tensor:
        number = torch.where(front.mask, front(number), 1.0)
        number = number.clamp(min=1e-30).log() if scaling.logarithmic[k] else number
        return ((number - scaling.shift[k]) / scaling.scale[k]).clamp(-30, 30)

    items: dict[str, Tensor] = {"value": scaled(channel.values)}
    code = None if channel.censoring is None else front(channel.censoring)
    if channel.upper is not None and code is not None:
        interval = (code == CENSORING.index("interval")) & front.mask
        items["upper"] = torch.where(interval, scaled(channel.upper), 0.0)
    if channel.sd is not None:
        middle, half = scaling.sd[k]
        items["sd"] = (front(channel.sd).clamp(min=1e-30).log() - middle) / half
        items["known"] = torch.ones_like(items["sd"])
    given = {name: data[name].expand(data.times.shape) for name in data.conditions} | dict(channel.columns)
    columns = {n: (front(given[n]) - m) / h for n, (m, h) in scaling.columns.items() if n in given}
    items["after"] = front(data.after_dose)
    return _features(scaling, k, front.mask, front(data.times), items, code, columns)


def _doses(doses: Doses, scaling: Scaling, k: int, target: str) -> tuple[Tensor, Tensor]:
    front = _Front(doses.mask & (doses.target == doses.targets.index(target)))
    amount = front(doses.amount) / scaling.amounts[target]
    length = front(doses.duration) / (scaling.horizon - scaling.start)
    return _features(scaling, k, front.mask, front(doses.time), {"value": amount, "length": length})


def _segments(signal: Input, scaling: Scaling, k: int, name: str) -> tuple[Tensor, Tensor]:
    """A segment runs from a breakpoint to the next one or to the end."""
    middle, half = scaling.inputs[name]
    time = torch.where(signal.mask, signal.time, torch.inf)
    time, order = torch.sort(time, dim=-1, stable=True)
    end = torch.cat([time[..., 1:], torch.full_like(time[..., :1], torch.inf)], -1).clamp(max=scaling.horizon)
    front = _Front(signal.mask.gather(-1, order))
    time = torch.where(front.mask, front(time), scaling.start)
    length = torch.where(front.mask, (front(end) - time).clamp(min=0.0), 0.0) / (
        scaling.horizon - scaling.start
    )
    value = ((front(signal.value.gather(-1, order)) - middle) / half).clamp(-30, 30)
    return _features(scaling, k, front.mask, time, {"value": value, "length": length})


class _Front:
    """Moves the items (..., item) behind a mask to the front, and what is further back away."""

    def __init__(self, mask: Tensor) -> None:
        width = max(1, int(mask.sum(-1).max()) if mask.numel() else 0)
        self.order = torch.argsort((~mask).to(torch.uint8), dim=-1, stable=True)[..., :width]
        self.mask = mask.gather(-1, self.order)

    def __call__(self, items: Tensor) -> Tensor:
        lead = self.order.shape[:-1]
        return items.expand(*lead, items.shape[-1]).gather(-1, self.order)


def _features(
    scaling: Scaling,
    kind: int,
    mask: Tensor,
    time: Tensor,
    items: Mapping[str, Tensor],
    code: Tensor | None = None,
    columns: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (dataset, experiment, item, feature) in the order of the module's docstring, and their mask."""
    t = (time - scaling.start) / (scaling.horizon - scaling.start)
    fields = {"time": t, **items, **{f"column {n}": v for n, v in (columns or {}).items()}}
    if code is not None:
        fields |= {f"code {c}": code == c for c in range(len(CENSORING))}
    names = list(fields)
    averaged, mask, number = _binned(torch.stack([fields[n].float() for n in names], -1), mask)
    of = {name: averaged[..., k] for k, name in enumerate(names)}
    zero = torch.zeros_like(of["time"])
    time, value, upper = of["time"], of["value"], of.get("upper", zero)
    codes = [of.get(f"code {c}", zero + float(c == 0)) for c in range(len(CENSORING))]
    further = [
        *(zero + float(k == kind) for k in range(len(scaling.kinds))),
        *codes,
        2 * time - 1,
        torch.log1p(50 * time.clamp(min=0.0)) / 2 - 1,
        torch.sin(torch.pi * time),
        value,
        torch.asinh(3 * value),
        upper,
        torch.asinh(3 * upper),
        of.get("sd", zero),
        of.get("known", zero),
        of.get("length", zero),
        of.get("after", zero),
        *(of.get(f"column {name}", zero) for name in scaling.columns),
        number.log(),
    ]
    return torch.stack(further, -1).clamp(-30, 30), mask


def _binned(items: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Items (..., item, field) at the front, averaged in bins of neighbours beyond `MOST`.

    With them their mask, and how many items stand behind each.
    """
    count, width = mask.sum(-1, keepdim=True), mask.shape[-1]
    if width <= MOST:
        return items, mask, torch.ones_like(items[..., 0])
    rank = torch.arange(width).expand(mask.shape)
    place = torch.where(count > MOST, rank * MOST // count.clamp(min=1), rank).clamp(max=MOST - 1)
    blank = items.new_zeros(*items.shape[:-2], MOST, items.shape[-1])
    weight = mask[..., None].to(items)
    total = blank.scatter_add(-2, place[..., None].expand(items.shape), items * weight)
    number = blank[..., :1].scatter_add(-2, place[..., None], weight)
    return total / number.clamp(min=1.0), number[..., 0] > 0, number[..., 0].clamp(min=1.0)
