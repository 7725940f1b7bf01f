"""A design: the distribution over experiments that an estimator is trained for.

Two halves that never mix: what the ODE sees (conditions, doses, inputs, horizon, number of experiments:
`draw_protocols`) and what the observer does (times, missing channels, replicates, limits of detection,
standard deviations, covariates: `draw_looks`, afresh for every batch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ampost import outside, plans
from ampost.errors import DesignError
from ampost.experiments import Channel, Experiments, Signals, no_doses
from ampost.plans import DosePlan, InputPlan, Looks, Range
from ampost.seeds import derive, seeded

REMEDY = "train for Design.like of these data, or widen the design"
UNLIMITED = 0.2  # the share of experiments without the limits of detection that a design has


@dataclass(frozen=True)
class Design:
    """What experiments may look like; `together` means all channels share their times.

    `after_dose` is the share of looks that come after a dose at the same time; `units` are those of the
    numbers, by the names that `Experiments.units` has.
    """

    channels: Mapping[str, Looks]
    conditions: Mapping[str, Range]
    experiments: tuple[int, int]
    horizon: float
    doses: tuple[DosePlan, ...] = ()
    inputs: Mapping[str, InputPlan] = field(default_factory=dict)
    together: bool = True
    cut: float = 0.2
    after_dose: float = 0.0
    start: float = 0.0
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.start <= self.horizon < float("inf"):
            raise DesignError(
                f"Design(start={self.start:g}, horizon={self.horizon:g}): expected a horizon that is finite "
                f"and not before the start; set it to the end of the longest experiment"
            )
        low, high = self.experiments
        if not 1 <= low <= high:
            raise DesignError(
                f"Design(experiments={self.experiments}): expected the least and the largest number of "
                f"experiments in a data set, at least 1, as in (1, 3)"
            )
        for name, look in self.channels.items():
            first, last = look.times[0], look.times[-1]
            if first < self.start or last > self.horizon:
                wrong, end = (first, "start") if first < self.start else (last, "horizon")
                raise DesignError(
                    f"channel {name!r} is looked at at time {wrong:g}, outside the design from start="
                    f"{self.start:g} to horizon={self.horizon:g}, where no trajectory is; move the {end}, or "
                    f"leave that time out"
                )

    @classmethod
    def like(cls, data: Experiments, widen: float = 0.5) -> Design:
        """The design around `data`: its rows by 50 to 150 %, times moved by half a gap, ranges widened.

        Conditions, amounts, limits, standard deviations and covariates span their range widened by `widen`;
        constants stay constant. Data lie inside their own design by construction.
        """
        records = data.split()
        channels = {name: plans.looks_of(name, records, widen) for name in data.channels}
        lives = [int(r.live.sum()) for r in records]
        looked = torch.stack([c.mask for c in data.channels.values()]).any(0)
        return cls(
            channels=channels,
            conditions={k: plans.widened(v[data.live], widen) for k, v in data.conditions.items()},
            experiments=(min(lives), max(lives)),
            horizon=max(plans.after_last(look.times) for look in channels.values()),
            doses=plans.doses_of(data, widen),
            inputs=plans.inputs_of(data, widen),
            together=len({look.times for look in channels.values()}) == 1,
            after_dose=float(data.after_dose[looked].double().mean()),
            start=data.start,
            units=dict(data.units),
        )

    def draw_protocols(self, count: int, seed: int) -> Experiments:
        """The ODE's half: `count` protocols (draw, experiment, ...) with conditions, doses and inputs."""
        with seeded(seed):
            width = self.experiments[1]
            number = torch.randint(self.experiments[0], width + 1, (count, 1))
            live = torch.arange(width) < number
            conditions = {k: plans.uniform((count, width, 1), *r) for k, r in self.conditions.items()}
            nothing = torch.zeros(count, width, 0, dtype=torch.float64)
            return Experiments(
                times=nothing,
                channels={},
                conditions=conditions,
                doses=plans.draw_doses(self.doses, count, width) if self.doses else no_doses(width, (count,)),
                inputs=Signals({name: plan.draw((count, width)) for name, plan in self.inputs.items()}),
                live=live,
                after_dose=nothing.bool(),
                names=(tuple(str(k + 1) for k in range(width)),),
                datasets=("1",),
                start=self.start,
                units=self.units,
            )

    def draw_looks(self, protocols: Experiments, seed: int) -> Experiments:
        """The observer's half: fresh times, masks and what stands beside them, without values."""
        with seeded(seed):
            shape = tuple(protocols.live.shape)
            cut = torch.where(
                torch.rand(shape) < self.cut,
                outside.SHORTEST + (1 - outside.SHORTEST) * torch.rand(shape),
                torch.inf,
            )
            cut = (self.start + (self.horizon - self.start) * cut)[..., None]
            groups = [list(self.channels)] if self.together else [[n] for n in self.channels]
            grids = [plans.draw_times(self.channels[g[0]], shape) for g in groups]
            times = torch.cat([t for t, _ in grids], -1).clamp(max=self.horizon)
            masks: dict[str, Tensor] = {}
            for index, group in enumerate(groups):
                for name in group:
                    parts = [m if k == index else torch.zeros_like(m) for k, (_, m) in enumerate(grids)]
                    seen = torch.cat(parts, -1) & (times <= cut) & protocols.live[..., None]
                    masks[name] = seen & plans.kept(self.channels[name], tuple(seen.shape))
            masks = _never_empty(masks, protocols.live)
            anything = torch.stack(list(masks.values())).any(0)
            last = torch.where(anything, times, -torch.inf).amax(-1, keepdim=True)
            times = torch.where(anything, times, torch.where(torch.isfinite(last), last, self.start))
            after = plans.share_of(self.after_dose, tuple(times.shape))
            order = torch.sort(after, dim=-1, stable=True).indices  # at equal times, those after a dose last
            moment = torch.where(anything, times, torch.inf).gather(-1, order)
            order = order.gather(-1, torch.sort(moment, dim=-1, stable=True).indices)
            return replace(
                protocols,
                times=times.gather(-1, order),
                channels={n: _beside(self.channels[n], m.gather(-1, order)) for n, m in masks.items()},
                after_dose=after.gather(-1, order),
            )

    def draw(self, count: int, seed: int) -> Experiments:
        """Both halves: `count` sets of experiments to look at, (draw, experiment, time)."""
        return self.draw_looks(self.draw_protocols(count, derive(seed, "protocols")), derive(seed, "looks"))

    def outside(self, data: Experiments) -> list[str]:
        """Why `data` lie outside this design, one sentence each; empty if they lie inside."""
        found = [
            f"channel {name!r} is not in the design ({', '.join(self.channels)})"
            for name in data.channels
            if name not in self.channels
        ]
        for record in data.split():
            columns = {column for look in self.channels.values() for column in look.columns}
            here = outside.in_number(self.experiments, record)
            here += outside.in_conditions(self.conditions, record, columns)
            for name, look in self.channels.items():
                here += outside.in_looks(name, look, record, self.horizon)
            if bool(record.after_dose.any()) and not self.after_dose:
                here.append("some looks come after a dose at the same time, in the design none does")
            if float(record.times.min()) < self.start:
                here.append(f"times begin at {float(record.times.min()):.4g}, the design at {self.start:.4g}")
            here += outside.in_doses(self.doses, record) + outside.in_inputs(self.inputs, record)
            said = [f"data set {record.datasets[0]!r}: {sentence}; {REMEDY}" for sentence in here]
            found += dict.fromkeys(s for s in said if s not in found)
        return found

    def words(self) -> str:
        """The design in words."""
        low, high = self.experiments

        def span(ends: Range, name: str) -> str:
            said = f"{ends[0]:.4g}" if ends[0] == ends[1] else f"{ends[0]:.4g} to {ends[1]:.4g}"
            return f"{said} {self.units[name]}" if name in self.units else said

        end = span((self.horizon, self.horizon), "time")
        lines = [f"Design: {low if low == high else f'{low} to {high}'} experiment(s) up to t = {end}."]
        for name, look in self.channels.items():
            said = [f"{look.rows[0]} to {look.rows[1]} times, moved by half a gap"]
            said += [f"up to {look.replicates[1]} replicates"] if look.replicates[1] > 1 else []
            further = {"sd": look.sd, "lower limit of detection": look.lowest}
            further |= {"upper limit of detection": look.highest, "in intervals of": look.width}
            said += [f"{key} {span(ends, name)}" for key, ends in further.items() if ends is not None]
            said += [f"{key} {span(ends, key)}" for key, ends in look.columns.items()]
            lines.append(f"  {name}: {', '.join(said)}")
        lines += [f"  {name}: {span(ends, name)}" for name, ends in self.conditions.items()]
        for plan in self.doses:
            often = plan.presence[1] - plan.presence[0]
            lines.append(
                f"  dose into {plan.target} at {span(plan.time, 'time')}: "
                f"{span(plan.amount, f'dose {plan.target}')}" + (f", in {often:.0%}" if often < 1 else "")
            )
        for name, signal in self.inputs.items():
            known, kind = len(signal.times), "linear" if signal.linear else "held"
            where = "one signal" if known == 1 else f"mixtures of {known} signals"
            lines.append(f"  input {name} ({kind}): {where}")
        return "\n".join(lines)

    def converted(self, change: Callable[[str, float], float], spread: Callable[[str, float], float]) -> Design:
        """The design in other units: `change(name, value)` for values, `spread` for widths and deviations.

        The names are those of `Experiments.units`: "time", a channel, condition, column or input, or
        "dose <target>".
        """

        def both(name: str, ends: Range) -> Range:
            return change(name, ends[0]), change(name, ends[1])

        def wide(name: str, ends: Range | None) -> Range | None:
            return None if ends is None else (spread(name, ends[0]), spread(name, ends[1]))

        def maybe(name: str, ends: Range | None) -> Range | None:
            return None if ends is None else both(name, ends)

        def all_of(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(change(name, v) for v in values)

        return replace(
            self,
            channels={
                name: replace(
                    look,
                    times=all_of("time", look.times),
                    sd=wide(name, look.sd),
                    columns={column: both(column, ends) for column, ends in look.columns.items()},
                    lowest=maybe(name, look.lowest),
                    highest=maybe(name, look.highest),
                    width=wide(name, look.width),
                )
                for name, look in self.channels.items()
            },
            conditions={name: both(name, ends) for name, ends in self.conditions.items()},
            horizon=change("time", self.horizon),
            doses=tuple(
                replace(
                    plan,
                    time=both("time", plan.time),
                    amount=both(f"dose {plan.target}", plan.amount),
                    duration=(spread("time", plan.duration[0]), spread("time", plan.duration[1])),
                )
                for plan in self.doses
            ),
            inputs={
                name: replace(
                    plan,
                    times=tuple(all_of("time", times) for times in plan.times),
                    values=tuple(all_of(name, values) for values in plan.values),
                )
                for name, plan in self.inputs.items()
            },
            start=change("time", self.start),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and names, for saving."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Design:
        """What `to_json` gave, also after a passage through JSON."""
        plain = tuples(stored)
        return cls(
            **{
                **plain,
                "channels": {name: Looks(**look) for name, look in plain["channels"].items()},
                "doses": tuple(DosePlan(**plan) for plan in plain["doses"]),
                "inputs": {name: InputPlan(**plan) for name, plan in plain["inputs"].items()},
            }
        )


def tuples(stored: Any) -> Any:  # noqa: ANN401 - what JSON holds
    """Lists, as JSON gives them, as the tuples that they were."""
    if isinstance(stored, Mapping):
        return {key: tuples(value) for key, value in stored.items()}
    if isinstance(stored, list | tuple):
        return tuple(tuples(value) for value in stored)
    return stored


def _beside(look: Looks, mask: Tensor) -> Channel:
    """A channel's looks with what stands beside each: sd, covariates, limits of detection, interval."""
    shape = tuple(mask.shape)

    def limit(ends: Range | None, none: float) -> Tensor | None:
        if ends is None:
            return None
        level = plans.uniform((*shape[:-1], 1), *ends)
        return torch.where(torch.rand(*shape[:-1], 1) < UNLIMITED, none, level).expand(shape)

    width = None
    if look.width is not None:
        known = plans.share_of(look.intervals, shape)
        width = torch.where(known, plans.spread(shape, *look.width), 0.0)
    return Channel(
        mask,
        sd=None if look.sd is None else plans.spread(shape, *look.sd),
        columns={name: plans.spread(shape, *ends) for name, ends in look.columns.items()},
        lowest=limit(look.lowest, -torch.inf),
        highest=limit(look.highest, torch.inf),
        width=width,
    )


def _never_empty(masks: dict[str, Tensor], live: Tensor) -> dict[str, Tensor]:
    """Where a draw would show nothing at all, its first slot shows the first channel."""
    anything = torch.stack(list(masks.values())).any(0).any(-1)
    first = next(iter(masks))
    changed = masks[first].clone()
    changed[..., 0] |= live & ~anything
    return {**masks, first: changed}
