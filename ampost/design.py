"""A design: the distribution over experiments that an estimator is trained for.

Two halves that never mix: what the ODE sees (conditions, doses, horizon, number of experiments:
`draw_protocols`) and what the observer does (times, missing channels, replicates: `draw_looks`,
afresh for every batch).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ampost.errors import DesignError, UnsupportedError
from ampost.experiments import Channel, Doses, Experiments, no_doses
from ampost.seeds import derive, seeded

Range = tuple[float, float]


@dataclass(frozen=True)
class Looks:
    """How one channel is looked at: typical `times`, number of distinct times, replicates of each.

    `missing` is the share of an experiment's looks that show nothing; `presence` the share of
    experiments in which the channel is measured at all.
    """

    times: tuple[float, ...]
    rows: tuple[int, int]
    replicates: tuple[int, int] = (1, 1)
    missing: float = 0.0
    presence: float = 1.0


@dataclass(frozen=True)
class DosePlan:
    """One dose of a schedule: ranges of its time, amount and duration, and where it goes."""

    target: str
    time: Range
    amount: Range
    duration: Range = (0.0, 0.0)


@dataclass(frozen=True)
class Design:
    """What experiments may look like; `together` means all channels share their times."""

    channels: Mapping[str, Looks]
    conditions: Mapping[str, Range]
    experiments: tuple[int, int]
    horizon: float
    doses: tuple[DosePlan, ...] = ()
    together: bool = True
    cut: float = 0.2
    start: float = 0.0

    @classmethod
    def like(cls, data: Experiments, widen: float = 0.5) -> Design:
        """The design around `data`: its rows by 50 to 150 %, times moved by half a gap, ranges widened.

        Conditions and amounts span their range widened by `widen`; constants stay constant. Data
        lie inside their own design by construction.
        """
        if data.inputs:
            raise UnsupportedError(f"inputs ({', '.join(data.inputs)}) are not supported yet")
        if any(c.sd is not None for c in data.channels.values()):
            raise UnsupportedError("a standard deviation per row is not supported in designs yet")
        records = data.split()
        channels = {name: _looks(name, records) for name in data.channels}
        lives = [int(r.live.sum()) for r in records]
        top = max(_after_last(look.times) for look in channels.values())
        return cls(
            channels=channels,
            conditions={k: _widened(v[data.live], widen) for k, v in data.conditions.items()},
            experiments=(min(lives), max(lives)),
            horizon=top,
            doses=_dose_plans(data, widen),
            together=len({look.times for look in channels.values()}) == 1,
            start=data.start,
        )

    def draw_protocols(self, count: int, seed: int) -> Experiments:
        """The ODE's half: `count` protocols (draw, experiment, ...) with conditions and doses, no looks."""
        with seeded(seed):
            width = self.experiments[1]
            number = torch.randint(self.experiments[0], width + 1, (count, 1))
            live = torch.arange(width) < number
            conditions = {k: _uniform((count, width, 1), *r) for k, r in self.conditions.items()}
            nothing = torch.zeros(count, width, 0, dtype=torch.float64)
            return Experiments(
                times=nothing,
                channels={},
                conditions=conditions,
                doses=self._draw_doses(count, width),
                inputs={},
                live=live,
                after_dose=nothing.bool(),
                names=(tuple(str(k + 1) for k in range(width)),),
                datasets=("1",),
                start=self.start,
            )

    def _draw_doses(self, count: int, width: int) -> Doses:
        if not self.doses:
            return no_doses(width, (count,))
        targets = tuple(dict.fromkeys(plan.target for plan in self.doses))
        shape = (count, width, 1)
        columns = [
            (_uniform(shape, *p.time), _uniform(shape, *p.amount), _uniform(shape, *p.duration))
            for p in self.doses
        ]
        time, amount, duration = (torch.cat(parts, -1) for parts in zip(*columns, strict=True))
        target = torch.tensor([targets.index(p.target) for p in self.doses]).expand(time.shape)
        return Doses(time, amount, duration, target, torch.ones_like(target).bool(), targets)

    def draw_looks(self, protocols: Experiments, seed: int) -> Experiments:
        """The observer's half: fresh times and masks for every protocol, without values."""
        with seeded(seed):
            shape = tuple(protocols.live.shape)
            cut = torch.where(torch.rand(shape) < self.cut, 0.3 + 0.7 * torch.rand(shape), torch.inf)
            cut = (self.start + (self.horizon - self.start) * cut)[..., None]
            groups = [list(self.channels)] if self.together else [[n] for n in self.channels]
            grids = [_draw_times(self.channels[g[0]], shape) for g in groups]
            times = torch.cat([t for t, _ in grids], -1)
            masks: dict[str, Tensor] = {}
            for index, group in enumerate(groups):
                for name in group:
                    parts = [m if k == index else torch.zeros_like(m) for k, (_, m) in enumerate(grids)]
                    seen = torch.cat(parts, -1) & (times <= cut) & protocols.live[..., None]
                    masks[name] = seen & _kept(self.channels[name], tuple(seen.shape))
            masks = _never_empty(masks, protocols.live)
            anything = torch.stack(list(masks.values())).any(0)
            last = torch.where(anything, times, -torch.inf).amax(-1, keepdim=True)
            times = torch.where(anything, times, torch.where(torch.isfinite(last), last, self.start))
            order = torch.sort(torch.where(anything, times, torch.inf), dim=-1, stable=True).indices
            return replace(
                protocols,
                times=times.gather(-1, order),
                channels={n: Channel(m.gather(-1, order)) for n, m in masks.items()},
                after_dose=torch.zeros_like(order).bool(),
            )

    def draw(self, count: int, seed: int) -> Experiments:
        """Both halves: `count` sets of experiments to look at, (draw, experiment, time)."""
        return self.draw_looks(self.draw_protocols(count, derive(seed, "protocols")), derive(seed, "looks"))

    def outside(self, data: Experiments) -> list[str]:
        """Why `data` lie outside this design, one sentence each; empty if they lie inside."""
        found: list[str] = []
        for name in data.channels:
            if name not in self.channels:
                found.append(f"channel {name!r} is not in the design ({', '.join(self.channels)})")
        for record in data.split():
            found += [s for s in self._outside_one(record) if s not in found]
        return found

    def _outside_one(self, record: Experiments) -> list[str]:
        where = f"data set {record.datasets[0]!r}: "
        remedy = "train for Design.like of these data, or widen the design"
        found = []
        number = int(record.live.sum())
        if not self.experiments[0] <= number <= self.experiments[1]:
            found.append(f"{where}{number} experiments, the design has {self.experiments}; {remedy}")
        for name, (low, high) in self.conditions.items():
            values = record[name][record.live]
            slack = 1e-9 * max(abs(low), abs(high))
            if bool(((values < low - slack) | (values > high + slack)).any()):
                found.append(
                    f"{where}condition {name!r} is {values.min():.4g} to {values.max():.4g}, the "
                    f"design spans {low:.4g} to {high:.4g}; {remedy}"
                )
        for name, look in self.channels.items():
            if name not in record.channels:
                continue
            mask = record.channels[name].mask
            for e in range(record.count):
                times = record.times[e][mask[e]]
                if not times.numel():
                    continue
                distinct = len(times.unique())
                if distinct > look.rows[1]:
                    found.append(
                        f"{where}channel {name!r} has {distinct} times, the design has at most "
                        f"{look.rows[1]}; {remedy}"
                    )
                if float(times.max()) > self.horizon * (1 + 1e-9):
                    found.append(
                        f"{where}channel {name!r} is measured at {float(times.max()):.4g}, the "
                        f"design ends at {self.horizon:.4g}; {remedy}"
                    )
                if len(times) / distinct > look.replicates[1]:
                    found.append(f"{where}channel {name!r} has more replicates than the design; {remedy}")
        if int(record.doses.mask.sum(-1).max() if record.doses.any else 0) > len(self.doses):
            found.append(f"{where}more doses than the design's {len(self.doses)}; {remedy}")
        return found

    def words(self) -> str:
        """The design in words."""
        low, high = self.experiments
        lines = [
            f"Design: {low if low == high else f'{low} to {high}'} experiment(s) up to t = {self.horizon:.4g}."
        ]
        for name, look in self.channels.items():
            lines.append(f"  {name}: {look.rows[0]} to {look.rows[1]} times, moved by half a gap")
        for name, (a, b) in self.conditions.items():
            lines.append(f"  {name}: {a:.4g}" if a == b else f"  {name}: {a:.4g} to {b:.4g}")
        for plan in self.doses:
            lines.append(f"  dose into {plan.target}: {plan.amount[0]:.4g} to {plan.amount[1]:.4g}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and names, for saving."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Design:
        """What `to_json` gave, also after a passage through JSON."""
        looks = {name: Looks(**tuples(look)) for name, look in stored["channels"].items()}
        plans = tuple(DosePlan(**tuples(plan)) for plan in stored["doses"])
        rest = {k: v for k, v in stored.items() if k not in {"channels", "doses", "conditions", "experiments"}}
        return cls(
            channels=looks,
            doses=plans,
            conditions={k: (v[0], v[1]) for k, v in stored["conditions"].items()},
            experiments=(stored["experiments"][0], stored["experiments"][1]),
            **rest,
        )


def tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, as JSON gives them, as the tuples that they were."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}


def _uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def _widened(values: Tensor, widen: float) -> Range:
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, high
    extra = widen * (high - low) / 2
    return (max(low - extra, 0.0) if low >= 0 else low - extra), high + extra


def _looks(name: str, records: list[Experiments]) -> Looks:
    times: set[float] = set()
    counts: list[int] = []
    replicates: list[int] = []
    missing: list[float] = []
    absent = total = 0
    for record in records:
        for e in range(record.count):
            if not bool(record.live[e]):
                continue
            total += 1
            seen = record.times[e][record.channels[name].mask[e]]
            if not seen.numel():
                absent += 1
                continue
            distinct, repeats = seen.unique(return_counts=True)
            times.update(distinct.tolist())
            counts.append(len(distinct))
            replicates.append(int(repeats.max()))
            grid = torch.stack([c.mask[e] for c in record.channels.values()]).any(0)
            missing.append(1.0 - len(distinct) / len(record.times[e][grid].unique()))
    if not counts:
        raise DesignError(f"channel {name!r} has no value in any data set; leave it out")
    low, high = max(1, (min(counts) + 1) // 2), max(1, -(-3 * max(counts) // 2))
    return Looks(
        times=tuple(sorted(times)),
        rows=(low, high),
        replicates=(1, max(replicates)),
        missing=max(missing),
        presence=1.0 - absent / total,
    )


def _after_last(times: tuple[float, ...]) -> float:
    return times[-1] + (0.5 * (times[-1] - times[-2]) if len(times) > 1 else 0.0)


def _dose_plans(data: Experiments, widen: float) -> tuple[DosePlan, ...]:
    doses = data.doses
    plans = []
    for n in range(doses.time.shape[-1]):
        here = doses.mask[..., n]
        for k, target in enumerate(doses.targets):
            mine = here & (doses.target[..., n] == k)
            if bool(mine.any()):
                pick = [t[..., n][mine] for t in (doses.time, doses.amount, doses.duration)]
                time, amount, duration = (_widened(p, widen) for p in pick)
                plans.append(DosePlan(target, time, amount, duration))
    return tuple(plans)


def _draw_times(look: Looks, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Times (*shape, slots) by jittered quantiles of the typical times, and which slots are used."""
    low, high = look.rows
    repeats = look.replicates[1]
    number = torch.randint(low, high + 1, (*shape, 1))
    copies = torch.randint(look.replicates[0], repeats + 1, (*shape, 1, 1))
    slot = torch.arange(high, dtype=torch.float64)
    jitter = torch.rand(*shape, 1, dtype=torch.float64) * (torch.rand(*shape, high, dtype=torch.float64) - 0.5)
    gaps = (len(look.times) - 1) / (number - 1).clamp(min=1)
    place = (slot + jitter) * gaps
    alone = torch.rand(*shape, 1, dtype=torch.float64) * (len(look.times) - 1)
    place = torch.where(number == 1, alone, place)
    base = torch.tensor([*look.times, 2 * _after_last(look.times) - look.times[-1]], dtype=torch.float64)
    place = place.clamp(0.0, len(look.times) - 0.5 if len(look.times) > 1 else 0.0)
    left = place.floor().long()
    times = base[left] + (place - left) * (base[left + 1] - base[left])
    used = slot < number
    times = times[..., None].expand(*times.shape, repeats)
    mask = used[..., None] & (torch.arange(repeats) < copies)
    return times.flatten(-2), mask.flatten(-2)


def _kept(look: Looks, shape: tuple[int, ...]) -> Tensor:
    share = torch.rand(*shape[:-1], 1) * min(1.0, 1.5 * look.missing)
    there = torch.rand(*shape[:-1], 1) < (look.presence if look.presence < 1 else 2.0)
    return (torch.rand(shape) >= share) & there


def _never_empty(masks: dict[str, Tensor], live: Tensor) -> dict[str, Tensor]:
    """Where a draw would show nothing at all, its first slot shows the first channel."""
    anything = torch.stack(list(masks.values())).any(0).any(-1)
    first = next(iter(masks))
    changed = masks[first].clone()
    changed[..., 0] |= live & ~anything
    return {**masks, first: changed}
