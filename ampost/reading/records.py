"""Entries -> the record of experiments: a grid of times, and tensors on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from ampost.errors import TableError
from ampost.experiments import Channel, Doses, Experiments, Input, Signals, no_doses
from ampost.reading.entries import Breakpoint, Dose, Entries, Key, Measurement
from ampost.stacking import stack

Moment = tuple[float, bool, int]  # time, after a dose, which of several at that time
Slot = tuple[int, int]  # experiment and time

TOLD = {"lowest": -inf, "highest": inf, "upper": 0.0, "width": 0.0}


def record(entries: Entries) -> Experiments:
    """The entries as one data set, or as several on a leading axis.

    Raises:
        TableError: an sd or a replicate in some rows of an observable alone.
    """
    _refuse_gaps(entries.measurements)
    records = [_data_set(name, entries) for name in dict.fromkeys(key[0] for key in entries.order)]
    return stack(records) if len(records) > 1 else records[0]


def _refuse_gaps(measurements: Sequence[Measurement]) -> None:
    """Raise where only some measurements of an observable have an sd or a replicate."""
    for name in ("sd", "replicate"):
        having = {m.observable for m in measurements if getattr(m, name) is not None}
        for m in measurements:
            if m.observable in having and getattr(m, name) is None:
                raise TableError(
                    f"{m.place}: {name} is empty, but other rows of {m.observable!r} have one; fill it in, or "
                    f"leave it out in all of them"
                )


def _data_set(name: str, entries: Entries) -> Experiments:
    keys = [key for key in entries.order if key[0] == name]
    mine = [m for m in entries.measurements if m.key[0] == name]
    grid, after, slots = _grid(mine, keys)
    present = {m.observable for m in mine}
    everywhere = {c: [m for m in entries.measurements if m.observable == c] for c in entries.channels}
    channels = {}
    for c in entries.channels:
        if c in present:
            here = [(slot, m) for slot, m in zip(slots, mine, strict=True) if m.observable == c]
            channels[c] = _channel(here, everywhere[c], grid.shape)
    conditions = dict.fromkeys(n for key in keys for n in entries.conditions.get(key, {}))
    return Experiments(
        times=grid,
        channels=channels,
        conditions={
            c: torch.tensor([[entries.conditions[key][c]] for key in keys], dtype=torch.float64)
            for c in conditions
        },
        doses=_doses(entries.doses, keys),
        inputs=_inputs(entries.inputs, keys),
        live=torch.ones(len(keys), dtype=torch.bool),
        after_dose=after,
        names=(tuple(key[1] for key in keys),),
        datasets=(name,),
        start=entries.start,
        units=dict(entries.units),
    )


def _grid(mine: Sequence[Measurement], keys: Sequence[Key]) -> tuple[Tensor, Tensor, list[Slot]]:
    """The union of the channels' times, the flags of what comes after a dose, and each measurement's slot."""
    row = {key: e for e, key in enumerate(keys)}
    seen: dict[tuple[Key, str, float, bool], int] = {}
    moments: list[tuple[int, Moment]] = []
    for m in mine:
        same = (m.key, m.observable, m.time, m.after_dose)
        repeat = seen[same] = seen.get(same, -1) + 1
        moments.append((row[m.key], (m.time, m.after_dose, repeat)))
    lines = [sorted({moment for e, moment in moments if e == place}) for place in row.values()]
    width = max(len(line) for line in lines)
    padded = [line + [line[-1]] * (width - len(line)) for line in lines]
    index = [{moment: t for t, moment in enumerate(line)} for line in lines]
    grid = torch.tensor([[moment[0] for moment in line] for line in padded], dtype=torch.float64)
    after = torch.tensor(
        [[moment[1] and t < len(lines[e]) for t, moment in enumerate(line)] for e, line in enumerate(padded)]
    )
    return grid, after, [(e, index[e][moment]) for e, moment in moments]


def _channel(
    here: Sequence[tuple[Slot, Measurement]], everywhere: Sequence[Measurement], shape: Sequence[int]
) -> Channel:
    """One observable of one data set; what is held is decided by its measurements `everywhere`."""

    def filled(told: Callable[[Measurement], float | None], other: float = 0.0) -> Tensor:
        out = torch.full(tuple(shape), other, dtype=torch.float64)
        for slot, m in here:
            value = told(m)
            out[slot] = other if value is None else value
        return out

    def held(name: str, other: float = 0.0) -> Tensor | None:
        if all(getattr(m, name) is None for m in everywhere):
            return None
        return filled(lambda m: getattr(m, name), other)

    replicate = held("replicate")
    columns = dict.fromkeys(name for m in everywhere for name in m.columns)
    return Channel(
        mask=filled(lambda _: 1.0).bool(),
        values=filled(lambda m: m.value),
        sd=held("sd"),
        censoring=filled(lambda m: m.censoring).long() if any(m.censoring for m in everywhere) else None,
        replicate=None if replicate is None else replicate.long(),
        columns={name: filled(lambda m, name=name: m.columns[name]) for name in columns},  # type: ignore[misc]
        **{name: held(name, other) for name, other in TOLD.items()},
    )


def _doses(doses: Sequence[Dose], keys: Sequence[Key]) -> Doses:
    if not doses:
        return no_doses(len(keys))
    targets = tuple(dict.fromkeys(d.target for d in doses))
    parts = [sorted((d for d in doses if _of(d.key, key)), key=lambda d: d.time) for key in keys]
    width = max(len(part) for part in parts)

    def filled(told: Callable[[Dose], float]) -> Tensor:
        rows = [[told(d) for d in part] + [0.0] * (width - len(part)) for part in parts]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(keys), width)

    return Doses(
        time=filled(lambda d: d.time),
        amount=filled(lambda d: d.amount),
        duration=filled(lambda d: d.duration),
        target=filled(lambda d: targets.index(d.target)).long(),
        mask=filled(lambda _: 1.0).bool(),
        targets=targets,
    )


def _inputs(points: Sequence[Breakpoint], keys: Sequence[Key]) -> Signals:
    out = Signals()
    for name in dict.fromkeys(point.input for point in points):
        mine = [point for point in points if point.input == name]
        parts = [sorted((p for p in mine if _of(p.key, key)), key=lambda p: p.time) for key in keys]
        width = max(len(part) for part in parts)

        def filled(
            told: Callable[[Breakpoint], float],
            parts: list[list[Breakpoint]] = parts,
            width: int = width,
        ) -> Tensor:
            rows = [[told(p) for p in part] + [0.0] * (width - len(part)) for part in parts]
            return torch.tensor(rows, dtype=torch.float64).reshape(len(keys), width)

        out[name] = Input(
            time=filled(lambda p: p.time),
            value=filled(lambda p: p.value),
            mask=filled(lambda _: 1.0).bool(),
            linear=mine[0].linear,
        )
    return out


def _of(key: Key, experiment: Key) -> bool:
    """Whether an entry of a further table, perhaps of all data sets (""), is of this experiment."""
    return key[1] == experiment[1] and key[0] in ("", experiment[0])
