"""The record of experiments: what was done, when it was looked at and what was seen.

Everything stands on `(..., experiment, time)`. The time grid of an experiment is the union of its
channels' times (a replicate repeats a time); each channel has its own mask on that grid; padding
repeats the last time. The leading axes, if any, are data sets or draws of a design.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor

from ampost.axes import (
    PerDose,
    PerDoseCode,
    PerDoseMask,
    PerExperiment,
    Series,
    SeriesCode,
    SeriesMask,
)
from ampost.errors import ExperimentError

Record = TypeVar("Record")

CENSORING = ("none", "left", "right", "interval")
LEFT, RIGHT, INTERVAL = 1, 2, 3


@dataclass(frozen=True)
class Channel:
    """What was measured of one observable: values where `mask` is true, on the common time grid.

    `values` is None in a design: the places to look at, without what was seen there. `sd`,
    `censoring` (an index into `CENSORING`), `upper` and further `columns` are per measurement. Of a
    censored measurement the value is the limit (left: it is below, right: above), or the lower end
    of the interval that `upper` ends. What lies below `lowest` or above `highest`, the limits of
    detection, is reported as censored; `width` is that of the interval a value is known to (0: exactly).
    """

    mask: SeriesMask
    values: Series | None = None
    sd: Series | None = None
    censoring: SeriesCode | None = None
    upper: Series | None = None
    replicate: SeriesCode | None = None
    columns: Mapping[str, Series] = field(default_factory=dict)
    lowest: Series | None = None
    highest: Series | None = None
    width: Series | None = None

    def unseen(self) -> Channel:
        """The same looks without what was seen; limits that only censored values told are kept."""
        lowest, highest, width = self.lowest, self.highest, self.width
        if self.censoring is not None and self.values is not None:
            lowest = _limit(self, LEFT, lowest, -torch.inf)
            highest = _limit(self, RIGHT, highest, torch.inf)
            if self.upper is not None and bool(self._is(INTERVAL).any()):
                width = torch.where(self._is(INTERVAL), self.upper - self.values, 0.0)
        return replace(
            self, values=None, censoring=None, upper=None, lowest=lowest, highest=highest, width=width
        )

    def seen(self, values: Tensor, counts: bool = False) -> Channel:
        """What is reported of true `values`: beyond the limits of detection a limit, or an interval.

        An interval lies at random around its value, so that its likelihood is the probability of it; it ends
        at the limits, and that of `counts` has whole ends. The random numbers are torch's.
        """
        zero = torch.zeros_like(self.mask, dtype=torch.long).expand(values.shape)
        if self.lowest is None and self.highest is None and self.width is None:
            return replace(self, values=values, censoring=None, upper=None)
        told, code, upper = values, zero, None
        if self.width is not None:
            width = self.width.floor() if counts else self.width
            wide = (width > 0).expand(values.shape)
            place = torch.rand_like(values)
            back = (place * (width + 1)).floor() if counts else place * width
            told = torch.where(wide, values - back, told)
            upper = torch.where(wide, told + width, 0.0)
            if self.lowest is not None:
                told = torch.where(wide, torch.maximum(told, self.lowest), told)
            if self.highest is not None:
                upper = torch.where(wide, torch.minimum(upper, self.highest), upper)
            code = torch.where(wide, INTERVAL, code)
        for limit, sign, kind in ((self.lowest, 1, LEFT), (self.highest, -1, RIGHT)):
            if limit is not None:
                beyond = sign * values < sign * limit
                told = torch.where(beyond, limit, told)
                code = torch.where(beyond, kind, code)
        return replace(self, values=told, censoring=code, upper=upper)

    def _is(self, kind: int) -> Tensor:
        assert self.censoring is not None
        return self.mask & (self.censoring == kind)


def _limit(channel: Channel, kind: int, known: Tensor | None, none: float) -> Tensor | None:
    """The limit of detection of each measurement: its own, else the widest that its value does not break."""
    told = channel._is(kind)
    if known is not None or not bool(told.any()):
        return known
    assert channel.values is not None
    limits = torch.where(told, channel.values, none)
    widest = limits.amax((-2, -1), keepdim=True) if kind == LEFT else limits.amin((-2, -1), keepdim=True)
    kept = channel.values >= widest if kind == LEFT else channel.values <= widest
    return torch.where(told, limits, torch.where(kept, widest, none))


class Signals(dict[str, "Input"]):
    """Inputs by name; one that is not there is named, with the fix."""

    def __missing__(self, name: str) -> Input:
        raise ExperimentError(
            f"the program reads input {name!r}, but the experiments have the inputs: "
            f"{', '.join(sorted(self)) or 'none'}; add its rows (experiment, input, time, value) to the table "
            f"of inputs, or read it by experiments.inputs.get({name!r}, 0.0) where it may be absent"
        )


@dataclass(frozen=True)
class Doses:
    """Doses: `amount` into `targets[target]`, a state or an event, at `time`, over `duration` if that is > 0.

    Shapes (..., experiment, dose); `target` is a whole number, `mask` is false for padding.

    >>> Doses.at([0.0, 12.0], amounts=[5.0, 2.5], target="depot").time.shape
    torch.Size([1, 2])
    """

    time: PerDose
    amount: PerDose
    duration: PerDose
    target: PerDoseCode
    mask: PerDoseMask
    targets: tuple[str, ...] = ()

    @classmethod
    def at(cls, times: Any, amounts: Any, target: str, durations: Any = 0.0) -> Doses:  # noqa: ANN401
        """Doses into one target at `times` (dose,) or (experiment, dose); the rest broadcasts to them."""
        time = torch.atleast_2d(_numbers("dose times", times))
        amount, duration = _like(time, {"amounts": amounts, "durations": durations}, "times")
        return cls(
            time, amount, duration, torch.zeros_like(time).long(), torch.ones_like(time).bool(), (target,)
        )

    def delayed(self, lag: Tensor) -> Doses:
        """The same doses, each later by `lag` (an estimated lag stays differentiable)."""
        return replace(self, time=self.time + torch.as_tensor(lag))

    def scaled(self, factor: Tensor) -> Doses:
        """The same doses with amounts times `factor` (a bioavailability, say)."""
        return replace(self, amount=self.amount * torch.as_tensor(factor))

    @property
    def any(self) -> bool:
        """Whether there is any dose at all."""
        return bool(self.mask.any())


@dataclass(frozen=True)
class Input:
    """A logged signal: breakpoints in time and values, held between them or linear.

    Shapes (..., experiment, breakpoint); `mask` is false for padding.

    >>> Input.at([0.0, 2.0], [0.1, 0.3], linear=True).value
    tensor([[0.1000, 0.3000]], dtype=torch.float64)
    """

    time: PerDose
    value: PerDose
    mask: PerDoseMask
    linear: bool = False

    @classmethod
    def at(cls, times: Any, values: Any, linear: bool = False) -> Input:  # noqa: ANN401
        """A signal with breakpoints at `times` (breakpoint,) or (experiment, breakpoint)."""
        time, value = (torch.atleast_2d(_numbers(n, v)) for n, v in (("times", times), ("values", values)))
        time = time.expand_as(value) if time.shape[-1] == value.shape[-1] and len(time) == 1 else time
        (value,) = _like(time, {"values": value}, "times")
        return cls(time, value, torch.ones_like(time).bool(), linear)


class ExperimentPlate(IndepMessenger):
    """Independence over experiments; entered any number of times, unlike a `pyro.plate`."""

    def _process_message(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        super()._process_message(msg)
        if msg["type"] == "sample":
            BroadcastMessenger._pyro_sample(msg)


@dataclass(frozen=True)
class Experiments:
    """One data set of one or more experiments, or a batch of them.

    Shapes: `times` (..., experiment, time); `conditions` (..., experiment, 1); doses and inputs
    (..., experiment, dose). `live` (..., experiment) is false for padding experiments. `units` are those of
    "time", channels, conditions, columns and inputs by name, and of amounts by "dose <target>".

    >>> experiments = Experiments.on([[0.0, 1.0, 2.0]], channels=["P"], conditions={"S0": [2.0]})
    >>> experiments["S0"].shape
    torch.Size([1, 1])
    """

    times: Series
    channels: Mapping[str, Channel]
    conditions: Mapping[str, PerExperiment]
    doses: Doses
    inputs: Mapping[str, Input]
    live: SeriesMask
    after_dose: SeriesMask
    names: tuple[tuple[str, ...], ...] = (("1",),)
    datasets: tuple[str, ...] = ("1",)
    start: float = 0.0
    units: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def on(
        cls,
        times: Any,  # noqa: ANN401 - whatever torch.as_tensor takes
        channels: Iterable[str],
        conditions: Mapping[str, Any] | None = None,
        doses: Doses | None = None,
        inputs: Mapping[str, Input] | None = None,
        names: Iterable[str] | None = None,
    ) -> Experiments:
        """Experiments to be looked at in every channel at `times` (experiment, time), without values.

        They are named "1", "2", ... where `names` does not name them.
        """
        if isinstance(channels, str):
            raise ExperimentError(f"channels are the text {channels!r}, expected a list: [{channels!r}]")
        grid = _numbers("times", times)
        if grid.dim() != 2:
            raise ExperimentError(f"times have shape {tuple(grid.shape)}, expected (experiment, time)")
        count = grid.shape[0]
        mask = torch.ones_like(grid, dtype=torch.bool)
        return cls(
            times=grid,
            channels={name: Channel(mask) for name in channels},
            conditions={
                name: _per_experiment(name, value, count) for name, value in (conditions or {}).items()
            },
            doses=no_doses(count) if doses is None else doses,
            inputs=Signals(inputs or {}),
            live=torch.ones(count, dtype=torch.bool),
            after_dose=torch.zeros_like(mask),
            names=(tuple(str(k + 1) for k in range(count)) if names is None else _named(names, count),),
        )

    def __getitem__(self, name: str) -> Tensor:
        """The condition `name`, shape (..., experiment, 1)."""
        if name not in self.conditions:
            have = ", ".join(sorted(self.conditions)) or "none"
            fix = f"add the column {name!r} to the table (one value per experiment)"
            if any(name in channel.columns for channel in self.channels.values()):
                fix = f"the column {name!r} changes or is empty within an experiment; give it one value there"
            raise ExperimentError(
                f"the program reads condition {name!r}, but the experiments have the conditions: {have}; {fix}"
            )
        return self.conditions[name]

    def column(self, name: str, channel: str) -> Tensor:
        """The covariate `name` of each measurement of `channel`, shape (..., experiment, time).

        It is 1 where nothing was measured: noise of no width has no gradient even there.
        """
        if name in self.conditions:
            return self.conditions[name].expand(self.times.shape)
        held = self.channels.get(channel)
        if held is None:
            return torch.ones_like(self.times)
        value = held.sd if name == "sd" else held.columns.get(name)
        if value is None:
            have = ", ".join([*held.columns, *self.conditions]) or "none"
            raise ExperimentError(
                f"the program reads column {name!r} of channel {channel!r}; the table's columns for it are: "
                f"{have}; add the column {name!r}, with a number in every row of {channel!r}"
            )
        return torch.where(held.mask, value, 1.0)

    def plate(self) -> ExperimentPlate:
        """Sites inside have one value per experiment; outside they are shared."""
        return ExperimentPlate(name="experiments", size=self.times.shape[-2], dim=-2)

    @property
    def batch(self) -> torch.Size:
        """The leading axes: () for one data set."""
        return self.times.shape[:-2]

    @property
    def count(self) -> int:
        """Number of experiments, padding included."""
        return self.times.shape[-2]

    def without_values(self) -> Experiments:
        """The same looks without what was seen: a program run on it draws the observations."""
        return replace(self, channels={k: c.unseen() for k, c in self.channels.items()})

    def with_values(self, values: Mapping[str, Tensor], counts: Collection[str] = ()) -> Experiments:
        """The same looks at true `values`, censored where limits say so; the batch grows to their leading axes.

        Channels in `counts` hold whole numbers.
        """
        for name, channel in self.channels.items():
            given = values.get(name)
            if given is None or given.shape[-2:] != channel.mask.shape[-2:]:
                shape = "none" if given is None else f"of shape {tuple(given.shape)}"
                grid = (self.count, self.times.shape[-1])
                raise ExperimentError(
                    f"the values of channel {name!r} are {shape}, expected a shape that ends in {grid}, "
                    f"those of experiments and times"
                )
        batch = next(iter(values.values())).shape[:-2] if values else self.batch
        grown = self.expand(batch)
        return replace(grown, channels={k: c.seen(values[k], k in counts) for k, c in grown.channels.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> Experiments:
        """Every tensor of the record passed through `function` (moving, expanding, indexing)."""
        return mapped(self, function)

    def expand(self, batch: torch.Size | tuple[int, ...]) -> Experiments:
        """The record repeated over leading axes `batch`."""
        own = len(self.batch)
        return mapped(self, lambda t: t.expand(*batch, *t.shape[own:]))

    def unsqueezed(self, dims: int) -> Experiments:
        """The record with `dims` further axes of size 1 in front."""
        return mapped(self, lambda t: t.reshape((1,) * dims + t.shape))

    def at(self, index: Any) -> Experiments:  # noqa: ANN401 - any index of the leading axes
        """The record at `index` of its leading axis; one data set is without padding."""
        picked = mapped(self, lambda t: t[index])
        if not isinstance(index, int):
            return picked
        named = len(self.datasets) == self.times.shape[0]
        one = self.names[index] if len(self.names) == self.times.shape[0] else self.names[0]
        whole = replace(picked, names=(one,), datasets=(self.datasets[index],) if named else self.datasets)
        return _without_padding(whole)

    def split(self) -> list[Experiments]:
        """One record per data set, without a batch axis."""
        if not self.batch:
            return [self]
        return [self.at(k) for k in range(self.batch[0])]


def _numbers(what: str, values: Any) -> Tensor:  # noqa: ANN401 - whatever numpy or torch take
    """Numbers as float64."""
    try:
        plain = values if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
        return torch.as_tensor(plain, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"the {what} are {values!r}, expected numbers in rows of one length") from error


def _like(time: Tensor, values: Mapping[str, Any], what: str) -> list[Tensor]:
    """Values that broadcast to `time`."""
    out = []
    for name, value in values.items():
        numbers = _numbers(name, value)
        try:
            out.append(numbers.expand(time.shape))
        except RuntimeError as error:
            raise ExperimentError(
                f"{name} have shape {tuple(numbers.shape)} and {what} {tuple(time.shape)}; give one of {name} "
                f"for each of {what}, or one for all"
            ) from error
    return out


def _per_experiment(name: str, value: Any, count: int) -> Tensor:  # noqa: ANN401
    numbers = _numbers(f"values of condition {name!r}", value).reshape(-1, 1)
    if len(numbers) not in (1, count):
        raise ExperimentError(
            f"condition {name!r} has {len(numbers)} values for {count} experiment(s); give one, or one for each"
        )
    return numbers.expand(count, 1)


def _named(names: Iterable[str], count: int) -> tuple[str, ...]:
    given = tuple(names)
    if len(given) != count or len(set(given)) != count:
        raise ExperimentError(f"names are {given}, expected {count} different ones, one per row of times")
    return given


def _without_padding(record: Experiments) -> Experiments:
    """One data set without experiments, times, doses and breakpoints that only fill up."""
    live = record.live
    if not bool(live.any()):
        return record
    kept = [name for name, there in zip(record.names[0], live.tolist(), strict=False) if there]
    if not bool(live.all()):
        record = replace(mapped(record, lambda t: t[live]), names=(tuple(kept),))

    def last(masks: Iterable[Tensor], least: int) -> int:
        """The width that holds everything that is there."""
        there = [mask.any(0).nonzero() for mask in masks]
        return max([least, *(int(index.max()) + 1 for index in there if len(index))])

    def cut(part: Record, width: int) -> Record:
        return mapped(part, lambda t: t[:, :width])

    times = last((c.mask for c in record.channels.values()), 1)
    return replace(
        record,
        times=record.times[:, :times],
        after_dose=record.after_dose[:, :times],
        channels={name: cut(channel, times) for name, channel in record.channels.items()},
        doses=cut(record.doses, last([record.doses.mask], 0)),
        inputs=Signals({name: cut(s, last([s.mask], 1)) for name, s in record.inputs.items()}),
    )


def no_doses(experiments: int, batch: tuple[int, ...] = ()) -> Doses:
    """No dose in any of `experiments`."""
    empty = torch.zeros(*batch, experiments, 0, dtype=torch.float64)
    return Doses(empty, empty, empty, empty.long(), empty.bool())


def mapped(value: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """A frozen dataclass with every tensor in it passed through `function`."""
    return cast("Record", _each(value, function))


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: _each(item, function) for key, item in value.items()}
        return Signals(mapped) if isinstance(value, Signals) else mapped
    if isinstance(value, (Experiments, Channel, Doses, Input)):
        held = {f.name: _each(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **held)
    return value
