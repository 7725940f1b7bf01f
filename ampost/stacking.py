"""Data sets of different sizes padded to a common one and stacked on a leading axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ampost.errors import ExperimentError
from ampost.experiments import Channel, Doses, Experiments, Input, Signals, mapped


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
    breaks = {name: _width(name, records) for name in dict.fromkeys(n for r in records for n in r.inputs)}
    targets = tuple(dict.fromkeys(t for r in records for t in r.doses.targets))
    padded = [_padded(r, names, sizes, breaks, targets) for r in records]
    joined: Experiments = _joined(padded)
    return replace(
        joined,
        names=tuple(n for r in records for n in r.names),
        datasets=tuple(d for r in records for d in r.datasets),
        units=_units(records),
    )


def _width(name: str, records: list[Experiments]) -> tuple[int, bool]:
    """The largest number of breakpoints of an input, and whether it is linear, which must agree."""
    held = [record.inputs[name] for record in records if name in record.inputs]
    if len({signal.linear for signal in held}) > 1:
        raise ExperimentError(
            f"input {name!r} is linear in some data sets and held in others; make it the same in all"
        )
    return max(signal.time.shape[-1] for signal in held), held[0].linear


def _units(records: list[Experiments]) -> dict[str, str]:
    """The units of all, which must agree."""
    found: dict[str, str] = {}
    for record in records:
        for name, unit in record.units.items():
            if found.setdefault(name, unit) != unit:
                raise ExperimentError(
                    f"{name!r} is in {unit!r} in data set {record.datasets[0]!r} and in {found[name]!r} in "
                    f"another; convert one of them"
                )
    return found


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
    breaks: Mapping[str, tuple[int, bool]],
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
        return mapped(held, lambda t: _pad(t, grid))

    def signal(name: str, width: int, linear: bool) -> Input:
        held = record.inputs.get(name)
        if held is None:
            empty = torch.zeros(count, width, dtype=dtype)
            return Input(empty, empty, empty.bool(), linear)
        return mapped(held, lambda t: _pad(t, (count, width)))

    old = record.doses
    recode = torch.tensor([targets.index(t) for t in old.targets], dtype=torch.long)
    target = recode[old.target] if old.targets else old.target
    return replace(
        record,
        times=_pad(record.times, grid, repeat=True),
        channels={name: channel(name) for name in names},
        conditions={k: _pad(v, (count, 1), repeat=True) for k, v in record.conditions.items()},
        doses=_padded_doses(old, target, targets, (count, doses)),
        inputs=Signals({name: signal(name, *shape) for name, shape in breaks.items()}),
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
    if isinstance(first, str):
        return first  # a unit, which `stack` compares
    if isinstance(first, Channel):
        records = _alike(records)
        first = records[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for r in records for key in r)
        together = {key: _joined([r[key] for r in records]) for key in keys}
        return Signals(together) if isinstance(first, Signals) else together
    changed = {}
    for item in fields(first):
        values = [getattr(r, item.name) for r in records]
        present = [v for v in values if v is not None]
        if present and isinstance(present[0], (Tensor, Mapping, Channel, Doses, Input)):
            changed[item.name] = _joined(values)
        elif present:
            changed[item.name] = present[0]
    return replace(first, **changed)


ZERO = ("width", "censoring", "upper", "replicate")
FILLED = {"lowest": -torch.inf, "highest": torch.inf, **dict.fromkeys(ZERO, 0)}


def _alike(channels: list[Channel]) -> list[Channel]:
    """One channel of several data sets with the same optional parts; what is needed cannot be made up."""
    columns = dict.fromkeys(name for c in channels for name in c.columns)
    out = []
    for channel in channels:
        changed: dict[str, Any] = {}
        for name in (*FILLED, "sd"):
            given = next((getattr(c, name) for c in channels if getattr(c, name) is not None), None)
            if given is not None and getattr(channel, name) is None:
                changed[name] = _filler(channel, name, given)
        mine = {name: channel.columns.get(name) for name in columns}
        given_of = {name: next(c.columns[name] for c in channels if name in c.columns) for name in columns}
        changed["columns"] = {
            name: _filler(channel, name, given_of[name]) if value is None else value
            for name, value in mine.items()
        }
        out.append(replace(channel, **changed))
    return out


def _filler(channel: Channel, name: str, like: Tensor) -> Tensor:
    if name not in FILLED and bool(channel.mask.any()):
        raise ExperimentError(
            f"some data sets have {name!r} for a channel and others do not; give it in every row or in none"
        )
    return torch.full(channel.mask.shape, FILLED.get(name, 1.0), dtype=like.dtype)
