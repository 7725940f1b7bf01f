"""The record of experiments: what was done, when it was looked at and what was seen.

Everything stands on `(..., experiment, time)`. The time grid of an experiment is the union of its
channels' times (a replicate repeats a time); each channel has its own mask on that grid; padding
repeats the last time. The leading axes, if any, are data sets or draws of a design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, cast

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


@dataclass(frozen=True)
class Channel:
    """What was measured of one observable: values where `mask` is true, on the common time grid.

    `values` is None in a design: the places to look at, without what was seen there. `sd`,
    `censoring` (an index into `CENSORING`), `upper` and further `columns` are per measurement.
    """

    mask: SeriesMask
    values: Series | None = None
    sd: Series | None = None
    censoring: SeriesCode | None = None
    upper: Series | None = None
    replicate: SeriesCode | None = None
    columns: Mapping[str, Series] = field(default_factory=dict)
    unit: str | None = None


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
        time = torch.atleast_2d(torch.as_tensor(times, dtype=torch.float64))
        amount, duration = (
            torch.as_tensor(v, dtype=torch.float64).expand(time.shape) for v in (amounts, durations)
        )
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
        time = torch.atleast_2d(torch.as_tensor(times, dtype=torch.float64))
        value = torch.as_tensor(values, dtype=torch.float64).expand(time.shape)
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
    (..., experiment, dose). `live` (..., experiment) is false for padding experiments.

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

    @classmethod
    def on(
        cls,
        times: Any,  # noqa: ANN401 - whatever torch.as_tensor takes
        channels: Iterable[str],
        conditions: Mapping[str, Any] | None = None,
        doses: Doses | None = None,
        inputs: Mapping[str, Input] | None = None,
    ) -> Experiments:
        """Experiments to be looked at in every channel at `times` (experiment, time), without values."""
        grid = torch.as_tensor(times, dtype=torch.float64)
        if grid.dim() != 2:
            raise ExperimentError(f"times have shape {tuple(grid.shape)}, expected (experiment, time)")
        count = grid.shape[0]
        mask = torch.ones_like(grid, dtype=torch.bool)
        return cls(
            times=grid,
            channels={name: Channel(mask) for name in channels},
            conditions={
                name: torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1).expand(count, 1)
                for name, value in (conditions or {}).items()
            },
            doses=no_doses(count) if doses is None else doses,
            inputs=dict(inputs or {}),
            live=torch.ones(count, dtype=torch.bool),
            after_dose=torch.zeros_like(mask),
            names=(tuple(str(k + 1) for k in range(count)),),
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
        """The covariate `name` of each measurement of `channel`, shape (..., experiment, time)."""
        if name in self.conditions:
            return self.conditions[name].expand(self.times.shape)
        held = self.channels.get(channel)
        value = None if held is None else held.sd if name == "sd" else held.columns.get(name)
        if value is None:
            have = ", ".join([*(held.columns if held else ()), *self.conditions]) or "none"
            raise ExperimentError(
                f"the program reads column {name!r} of channel {channel!r}; the table's columns for it are: "
                f"{have}; add the column {name!r}, with a number in every row of {channel!r}"
            )
        return value

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
        return replace(self, channels={k: replace(c, values=None) for k, c in self.channels.items()})

    def with_values(self, values: Mapping[str, Tensor]) -> Experiments:
        """The same looks with these values; the batch grows to the values' leading axes."""
        batch = next(iter(values.values())).shape[:-2] if values else self.batch
        grown = self.expand(batch)
        return replace(grown, channels={k: replace(c, values=values[k]) for k, c in grown.channels.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> Experiments:
        """Every tensor of the record passed through `function` (moving, expanding, indexing)."""
        return _mapped(self, function)

    def expand(self, batch: torch.Size | tuple[int, ...]) -> Experiments:
        """The record repeated over leading axes `batch`."""
        own = len(self.batch)
        return _mapped(self, lambda t: t.expand(*batch, *t.shape[own:]))

    def unsqueezed(self, dims: int) -> Experiments:
        """The record with `dims` further axes of size 1 in front."""
        return _mapped(self, lambda t: t.reshape((1,) * dims + t.shape))

    def at(self, index: Any) -> Experiments:  # noqa: ANN401 - any index of the leading axes
        """The record at `index` of its leading axis."""
        picked = _mapped(self, lambda t: t[index])
        if isinstance(index, int) and len(self.datasets) == self.times.shape[0]:
            return replace(picked, names=(self.names[index],), datasets=(self.datasets[index],))
        return picked

    def split(self) -> list[Experiments]:
        """One record per data set, without a batch axis."""
        if not self.batch:
            return [self]
        return [self.at(k) for k in range(self.batch[0])]


def no_doses(experiments: int, batch: tuple[int, ...] = ()) -> Doses:
    """No dose in any of `experiments`."""
    empty = torch.zeros(*batch, experiments, 0, dtype=torch.float64)
    return Doses(empty, empty, empty, empty.long(), empty.bool())


def stack(records: list[Experiments]) -> Experiments:
    """Data sets padded to a common size and stacked on a leading axis."""
    if not records:
        raise ExperimentError("there are no data sets to stack")
    names = list(dict.fromkeys(name for r in records for name in r.channels))
    conditions = set(records[0].conditions)
    for record in records:
        if set(record.conditions) != conditions:
            raise ExperimentError(
                f"data set {record.datasets[0]!r} has conditions {sorted(record.conditions)}, the "
                f"first has {sorted(conditions)}; give every data set the same conditions"
            )
    sizes = (
        max(r.count for r in records),
        max(r.times.shape[-1] for r in records),
        max(r.doses.time.shape[-1] for r in records),
    )
    breaks = {
        name: max(r.inputs[name].time.shape[-1] for r in records if name in r.inputs)
        for name in dict.fromkeys(name for r in records for name in r.inputs)
    }
    targets = tuple(dict.fromkeys(t for r in records for t in r.doses.targets))
    padded = [_padded(r, names, sizes, breaks, targets) for r in records]
    joined: Experiments = _joined(padded)
    return replace(
        joined,
        names=tuple(n for r in records for n in r.names),
        datasets=tuple(d for r in records for d in r.datasets),
    )


def _pad(tensor: Tensor, shape: tuple[int, ...], repeat: bool = False) -> Tensor:
    """`tensor` grown to `shape` on its right axes, by zeros or by repeating the last entry."""
    for axis, size in enumerate(shape):
        dim = axis - len(shape)
        missing = size - tensor.shape[dim]
        if missing <= 0:
            continue
        last = tensor.narrow(dim, tensor.shape[dim] - 1, 1) if repeat else None
        block = list(tensor.shape)
        block[dim] = missing
        filler = tensor.new_zeros(block) if last is None else last.expand(block)
        tensor = torch.cat([tensor, filler], dim)
    return tensor


def _padded(
    record: Experiments,
    names: list[str],
    sizes: tuple[int, int, int],
    breaks: Mapping[str, int],
    targets: tuple[str, ...],
) -> Experiments:
    count, times, doses = sizes
    grid = (count, times)
    dtype = record.times.dtype
    blank = torch.zeros(grid, dtype=dtype)

    def channel(name: str) -> Channel:
        held = record.channels.get(name)
        if held is None:
            return Channel(blank.bool(), blank.clone())
        return _mapped(held, lambda t: _pad(t, grid))

    def signal(name: str, width: int) -> Input:
        held = record.inputs.get(name)
        if held is None:
            empty = torch.zeros(count, width, dtype=dtype)
            return Input(empty, empty, empty.bool())
        return _mapped(held, lambda t: _pad(t, (count, width)))

    old = record.doses
    recode = torch.tensor([targets.index(t) for t in old.targets], dtype=torch.long)
    target = recode[old.target] if old.targets else old.target
    return replace(
        record,
        times=_pad(record.times, grid, repeat=True),
        channels={name: channel(name) for name in names},
        conditions={k: _pad(v, (count, 1), repeat=True) for k, v in record.conditions.items()},
        doses=_padded_doses(old, target, targets, (count, doses)),
        inputs={name: signal(name, width) for name, width in breaks.items()},
        live=_pad(record.live, (count,)),
        after_dose=_pad(record.after_dose, grid, repeat=True),
    )


def _padded_doses(old: Doses, target: Tensor, targets: tuple[str, ...], shape: tuple[int, int]) -> Doses:
    return Doses(
        time=_pad(old.time, shape),
        amount=_pad(old.amount, shape),
        duration=_pad(old.duration, shape),
        target=_pad(target, shape),
        mask=_pad(old.mask, shape),
        targets=targets,
    )


def _joined(records: list[Any]) -> Any:  # noqa: ANN401 - frozen dataclasses of one type
    """Stack the tensors of equal dataclasses; optional tensors are filled where only some have them."""
    first = records[0]
    if isinstance(first, Tensor):
        return torch.stack(records)
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for r in records for key in r)
        return {key: _joined([r[key] if key in r else _like(records, key) for r in records]) for key in keys}
    changed = {}
    for item in fields(first):
        values = [getattr(r, item.name) for r in records]
        present = [v for v in values if v is not None]
        if present and isinstance(present[0], (Tensor, Mapping, Channel, Doses, Input)):
            filled = [_blank(present[0]) if v is None else v for v in values]
            changed[item.name] = _joined(filled)
        elif present:
            changed[item.name] = present[0]
    return replace(first, **changed)


def _blank(value: Any) -> Any:  # noqa: ANN401
    return torch.zeros_like(value) if isinstance(value, Tensor) else value


def _like(records: list[Any], key: str) -> Tensor:
    return torch.zeros_like(next(r[key] for r in records if key in r))


def _mapped(value: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """A frozen dataclass with every tensor in it passed through `function`."""
    return cast("Record", _each(value, function))


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _each(item, function) for key, item in value.items()}
    if isinstance(value, (Experiments, Channel, Doses, Input)):
        held = {f.name: _each(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **held)
    return value
