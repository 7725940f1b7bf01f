"""The parts of a design: how a channel is looked at, a dose of a schedule, a logged signal.

Each part can be derived from data (`*_of`) and drawn. Random numbers are torch's; the caller seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ampost.errors import DesignError
from ampost.experiments import Doses, Experiments, Input

Range = tuple[float, float]


@dataclass(frozen=True)
class Looks:
    """How one channel is looked at: typical `times`, number of distinct times, replicates of each.

    `missing` is the share of an experiment's looks that show nothing; `presence` the share of
    experiments in which the channel is measured at all. `sd` and `columns` are the ranges of what stands
    beside each measurement; `lowest` and `highest` those of the limits of detection; `width` is that of
    the interval to which a share `intervals` of the values is known.
    """

    times: tuple[float, ...]
    rows: tuple[int, int]
    replicates: tuple[int, int] = (1, 1)
    missing: float = 0.0
    presence: float = 1.0
    sd: Range | None = None
    columns: Mapping[str, Range] = field(default_factory=dict)
    lowest: Range | None = None
    highest: Range | None = None
    width: Range | None = None
    intervals: float = 0.0

    def __post_init__(self) -> None:
        if not self.times or list(self.times) != sorted(self.times):
            raise DesignError(f"Looks(times={self.times}): expected at least one time, in rising order")
        ranges = {"sd": self.sd, "lowest": self.lowest, "highest": self.highest, "width": self.width}
        for name, ends in {"rows": self.rows, "replicates": self.replicates, **ranges, **self.columns}.items():
            if ends is not None:
                _refuse_no_range(f"Looks({name}=...)", ends)


@dataclass(frozen=True)
class DosePlan:
    """One dose of a schedule: ranges of its time, amount and duration, and where it goes.

    Each experiment has a random number between 0 and 1, the same for all of its doses, and gets those in
    whose range `presence` it lies: so later doses can be for some only, or one target stand for another.
    """

    target: str
    time: Range
    amount: Range
    duration: Range = (0.0, 0.0)
    presence: Range = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("time", "amount", "duration", "presence"):
            _refuse_no_range(f"DosePlan({self.target!r}, {name}=...)", getattr(self, name))


@dataclass(frozen=True)
class InputPlan:
    """A logged signal: those that are typical. A draw lies between two of them, or beyond by `widen` / 2."""

    times: tuple[tuple[float, ...], ...]
    values: tuple[tuple[float, ...], ...]
    linear: bool = False
    widen: float = 0.5

    def draw(self, shape: tuple[int, ...]) -> Input:
        """One signal for each of `shape`, all on the union of the breakpoints."""
        grid, typical = self._typical()
        if len(typical) == 1:
            value = typical[0].expand(*shape, len(grid))
        else:
            one, other = torch.randint(len(typical), (2, *shape))
            part = uniform((*shape, 1), -self.widen / 2, 1 + self.widen / 2)
            value = typical[one] + part * (typical[other] - typical[one])
            value = value.clamp(min=0.0) if bool((typical >= 0).all()) else value
        return Input(grid.expand(value.shape), value, torch.ones(value.shape).bool(), self.linear)

    def envelope(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest value at `times` (breakpoint,) among all draws."""
        typical = torch.stack([_held(t, v, times, self.linear) for t, v in self._signals()])
        low, high = typical.min(0).values, typical.max(0).values
        extra = self.widen / 2 * (high - low)
        floor = 0.0 if all(v >= 0 for values in self.values for v in values) else -torch.inf
        return (low - extra).clamp(min=floor), high + extra

    def _signals(self) -> list[tuple[Tensor, Tensor]]:
        as_tensor = [torch.tensor(part, dtype=torch.float64) for part in (*self.times, *self.values)]
        return list(zip(as_tensor[: len(self.times)], as_tensor[len(self.times) :], strict=True))

    def _typical(self) -> tuple[Tensor, Tensor]:
        """The union of the breakpoints (twice where a linear signal jumps), and every signal there."""
        signals = self._signals()
        grid = torch.cat([t for t, _ in signals]).unique()
        if not self.linear:
            return grid, torch.stack([_held(t, v, grid, False) for t, v in signals])
        jumps = [t[1:][t.diff() == 0] for t, _ in signals]
        grid, order = torch.cat([grid, torch.cat(jumps).unique()]).sort(stable=True)
        second = order >= len(grid) - len(torch.cat(jumps).unique())
        before = torch.cat([grid[1:] == grid[:-1], torch.zeros(1).bool()]) & ~second
        return grid, torch.stack([_held(t, v, grid, True, before) for t, v in signals])


def _refuse_no_range(where: str, ends: object) -> None:
    """A range is a pair of numbers in order; one number alone is the usual mistake."""
    pair = isinstance(ends, tuple | list) and len(ends) == 2 and all(isinstance(e, int | float) for e in ends)
    if not pair or ends[0] > ends[1]:  # type: ignore[index]
        raise DesignError(f"{where} is {ends!r}, expected a range (low, high), or (x, x) for one value x")


def _held(times: Tensor, values: Tensor, at: Tensor, linear: bool, before: Tensor | None = None) -> Tensor:
    """A signal at `at`: its first value before its first breakpoint, held after its last; at a jump the
    later value, or where `before` the earlier one."""
    times, order = times.sort(stable=True)
    values = values[order]
    after = torch.searchsorted(times, at, right=True)
    upper = after if before is None else torch.where(before, torch.searchsorted(times, at), after)
    left = (upper - 1).clamp(min=0)
    if not linear:
        return values[left]
    right = upper.clamp(max=len(times) - 1)
    run = (times[right] - times[left]).clamp(min=1e-300)
    part = ((at - times[left]) / run).clamp(0.0, 1.0)
    return values[left] + torch.where(right > left, part, 0.0) * (values[right] - values[left])


def looks_of(name: str, records: list[Experiments], widen: float) -> Looks:
    """How `name` is looked at in `records` (no batch axis): rows by 50 to 150 %, ranges widened."""
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
    channels = [record.channels[name] for record in records]
    looked = [channel.unseen() for channel in channels]

    def range_of(values: Iterable[tuple[Tensor | None, Tensor]]) -> Range | None:
        """The widened range of the finite values under their masks; None where there is none."""
        parts = [value[mask] for value, mask in values if value is not None]
        known = torch.cat([part[torch.isfinite(part)] for part in parts]) if parts else torch.zeros(0)
        return widened(known, widen) if len(known) else None

    columns = {
        column: range_of((c.columns.get(column), c.mask) for c in channels)
        for column in dict.fromkeys(column for c in channels for column in c.columns)
    }
    wide = [(c.width, c.mask & (c.width > 0)) for c in looked if c.width is not None]
    measured = sum(int(c.mask.sum()) for c in channels)
    return Looks(
        times=tuple(sorted(times)),
        rows=(max(1, (min(counts) + 1) // 2), max(1, -(-3 * max(counts) // 2))),
        replicates=(1, max(replicates)),
        missing=max(missing),
        presence=1.0 - absent / total,
        sd=range_of((c.sd, c.mask) for c in channels),
        columns={column: found for column, found in columns.items() if found is not None},
        lowest=range_of((c.lowest, c.mask) for c in looked),
        highest=range_of((c.highest, c.mask) for c in looked),
        width=range_of(wide),
        intervals=sum(int(mask.sum()) for _, mask in wide) / measured,
    )


def doses_of(data: Experiments, widen: float) -> tuple[DosePlan, ...]:
    """The n-th doses of the experiments as plans, by target, for the shares of experiments that get them."""
    doses = data.doses
    if not doses.any:
        return ()
    live = data.live.reshape(-1)
    parts = (doses.time, doses.amount, doses.duration, doses.target, doses.mask)
    time, amount, duration, target, mask = (t.reshape(-1, t.shape[-1])[live] for t in parts)
    targets = torch.where(mask, target, -1)
    order = sorted(range(len(targets)), key=lambda e: targets[e].tolist())  # alike schedules side by side
    plans = []
    for n in range(targets.shape[-1]):
        column = [int(targets[e, n]) for e in order]
        for k, name in enumerate(doses.targets):
            mine = targets[:, n] == k
            for low, high in _runs([code == k for code in column]):
                when, much, long = (widened(part[:, n][mine], widen) for part in (time, amount, duration))
                plans.append(DosePlan(name, when, much, long, (low / len(order), high / len(order))))
    return tuple(plans)


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Where runs of true begin and end."""
    edges = [k for k, pair in enumerate(pairwise([False, *flags, False])) if pair[0] != pair[1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def dose_numbers(plans: tuple[DosePlan, ...]) -> tuple[int, int]:
    """The least and the largest number of doses that an experiment gets."""
    ends = sorted({0.0, 1.0, *(end for plan in plans for end in plan.presence)})
    numbers = [
        sum(plan.presence[0] <= (low + high) / 2 < plan.presence[1] for plan in plans)
        for low, high in pairwise(ends)
    ]
    return min(numbers), max(numbers)


def inputs_of(data: Experiments, widen: float, most: int = 50) -> dict[str, InputPlan]:
    """The logged signals of every experiment; of more than `most` different ones, evenly chosen ones."""
    plans = {}
    for name, signal in data.inputs.items():
        found: dict[tuple[tuple[float, ...], tuple[float, ...]], None] = {}
        for time, value, mask in zip(
            *(t.reshape(-1, t.shape[-1]) for t in (signal.time, signal.value, signal.mask)), strict=True
        ):
            if bool(mask.any()):
                found[tuple(time[mask].tolist()), tuple(value[mask].tolist())] = None
        chosen = list(found)[:: -(-len(found) // most)] if found else []
        plans[name] = InputPlan(tuple(t for t, _ in chosen), tuple(v for _, v in chosen), signal.linear, widen)
    return plans


def draw_doses(plans: tuple[DosePlan, ...], count: int, width: int) -> Doses:
    """Doses for (count, width) experiments."""
    targets = tuple(dict.fromkeys(plan.target for plan in plans))
    shape = (count, width, 1)
    columns = [(uniform(shape, *p.time), uniform(shape, *p.amount), uniform(shape, *p.duration)) for p in plans]
    time, amount, duration = (torch.cat(parts, -1) for parts in zip(*columns, strict=True))
    target = torch.tensor([targets.index(p.target) for p in plans]).expand(time.shape)
    number, ends = torch.rand(shape), torch.tensor([plan.presence for plan in plans])
    mask = (number >= ends[:, 0]) & (number < ends[:, 1])
    return Doses(time, amount, duration, target, mask.expand(time.shape), targets)


def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Uniform numbers in float64."""
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def spread(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Numbers (..., experiment, time) between `low` and `high`, from equal within an experiment to independent.

    Uniform, or uniform in the logarithm where both ends are positive.
    """
    level, each, part = (
        torch.rand(s, dtype=torch.float64) for s in ((*shape[:-1], 1), shape, (*shape[:-1], 1))
    )
    place = level + part * (each - level)
    if low > 0:
        return low * (high / low) ** place
    return low + (high - low) * place


def widened(values: Tensor, widen: float) -> Range:
    """The range of values, each side further by half of `widen` of it; what is not negative stays so."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, high
    extra = widen * (high - low) / 2
    if low > 0:
        return max(low - extra, low / (1 + widen)), high + extra
    return (max(low - extra, 0.0) if low >= 0 else low - extra), high + extra


def after_last(times: tuple[float, ...]) -> float:
    """Half a gap after the last time."""
    return times[-1] + (0.5 * (times[-1] - times[-2]) if len(times) > 1 else 0.0)


def draw_times(look: Looks, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
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
    base = torch.tensor([*look.times, 2 * after_last(look.times) - look.times[-1]], dtype=torch.float64)
    place = place.clamp(0.0, len(look.times) - 0.5 if len(look.times) > 1 else 0.0)
    left = place.floor().long()
    times = base[left] + (place - left) * (base[left + 1] - base[left])
    used = slot < number
    times = times[..., None].expand(*times.shape, repeats)
    mask = used[..., None] & (torch.arange(repeats) < copies)
    return times.flatten(-2), mask.flatten(-2)


def kept(look: Looks, shape: tuple[int, ...]) -> Tensor:
    """Which looks (*shape) show something, by the shares of missing looks and missing channels."""
    share = torch.rand(*shape[:-1], 1) * min(1.0, 1.5 * look.missing)
    there = torch.rand(*shape[:-1], 1) < (look.presence if look.presence < 1 else 2.0)
    return (torch.rand(shape) >= share) & there


def share_of(share: float, shape: tuple[int, ...]) -> Tensor:
    """True for a share of (..., time) that differs between experiments, around `share`; 0 and 1 are exact."""
    if share >= 1.0:
        return torch.ones(shape, dtype=torch.bool)
    return torch.rand(shape) < torch.rand(*shape[:-1], 1) * min(1.0, 2.0 * share)
