"""Tables beside the measurements -> entries: conditions, doses and inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ampost.errors import TableError
from ampost.reading.clock import Clock
from ampost.reading.entries import Breakpoint, Dose, Key, same_units
from ampost.reading.headings import Column, Table, refuse_doubles, shown
from ampost.reading.keys import Keyed, Names, keyed_like
from ampost.reading.measurements import units_by
from ampost.reading.times import Begin, Times, times_of
from ampost.spelling import nearest

DOSES = ("time", "amount", "target")
INPUTS = ("input", "time", "value")
MAY_DOSES = ("unit", "dataset", "duration")
MAY_INPUTS = ("unit", "dataset", "linear")
KNOWN = {name: name for name in (*DOSES, *INPUTS, *MAY_DOSES, *MAY_INPUTS, "experiment", "date")} | {
    "data_set": "dataset"
}


@dataclass(frozen=True)
class Frame:
    """What the measurements settle for further tables; `start` is the least time that they may have."""

    order: Sequence[Key]
    by: Names | None
    experiments: Names | None
    time_unit: str | None
    clock: Clock | None
    start: Begin | None


def conditions_of(table: Table, frame: Frame) -> tuple[dict[Key, dict[str, float]], dict[str, str]]:
    """The conditions of each experiment by name, and their units.

    Raises:
        TableError: an experiment without its row, with two, or not measured; a cell that is no number.
    """
    keyed = _keyed(table, frame, "conditions", ())
    columns = [c for c in keyed.table.columns if c.name != "date"]
    numbers = {c.name: keyed.table.numbers(c, required=True) for c in columns}
    found: dict[Key, dict[str, float]] = {}
    for key in frame.order:
        rows = [i for i, own in enumerate(keyed.keys) if own[1] == key[1] and own[0] in ("", key[0])]
        if len(rows) != 1:
            fix = "add its row" if not rows else "keep one row of conditions per experiment"
            raise TableError(
                f"the conditions have {len(rows)} rows for experiment {key[1]!r} of data set {key[0]!r}, "
                f"expected one; {fix}"
            )
        found[key] = {name: values[rows[0]] for name, values in numbers.items()}
    return found, {c.name: c.unit for c in columns if c.unit}


def doses_of(table: Table, frame: Frame) -> tuple[list[Dose], dict[str, str]]:
    """The doses, and the units of amounts ("dose <target>") and of time.

    Raises:
        TableError: an unknown or missing column, an experiment that is not measured, a bad cell.
    """
    keyed = _keyed(table, frame, "doses", DOSES)
    own = keyed.table
    _refuse_other_columns(own, DOSES, MAY_DOSES)
    targets = own.words(own["target"])
    times, time_unit = _times(own, keyed, frame, targets)
    amounts = own.numbers(own["amount"], required=True)
    durations = own.numbers(own["duration"], required=True) if "duration" in own else [0.0] * len(targets)
    for i, value in enumerate(durations):
        if value < 0:
            raise TableError(
                f"{own.at(i)}: {shown(own['duration'])} is {value:g}, expected 0 or later; give the time "
                f"that the infusion takes"
            )
    units = _units(own, targets, own["amount"].unit, "dose ")
    if "duration" in own:
        _refuse_duration_unit(own, own["duration"], frame.time_unit or time_unit)
    found = [
        Dose(*values) for values in zip(keyed.keys, times.values, amounts, durations, targets, strict=True)
    ]
    return found, units | ({"time": time_unit} if time_unit else {})


def inputs_of(table: Table, frame: Frame) -> tuple[list[Breakpoint], dict[str, str]]:
    """The breakpoints of logged signals, and the units of the signals and of time.

    Raises:
        TableError: an unknown or missing column, an experiment that is not measured, a bad cell.
    """
    keyed = _keyed(table, frame, "inputs", INPUTS)
    own = keyed.table
    _refuse_other_columns(own, INPUTS, MAY_INPUTS)
    names = own.words(own["input"])
    times, time_unit = _times(own, keyed, frame, names)
    values = own.numbers(own["value"], required=True)
    linear = own.flags(own["linear"]) if "linear" in own else [False] * len(names)
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if linear[i] != linear[first.setdefault(name, i)]:
            raise TableError(
                f"{own.at(i)}: linear is {linear[i]}, in row {own.rows[first[name]]} of {name!r} it is the "
                f"opposite; a signal is linear or held throughout"
            )
    units = _units(own, names, own["value"].unit, "")
    found = [Breakpoint(*row) for row in zip(keyed.keys, names, times.values, values, linear, strict=True)]
    return found, units | ({"time": time_unit} if time_unit else {})


def _keyed(table: Table, frame: Frame, what: str, needed: Sequence[str]) -> Keyed:
    refuse_doubles(table, ())
    for name in needed:
        table.need(name, ("experiment", *needed))
    single = len({key[1] for key in frame.order}) == 1
    keyed = keyed_like(table, frame.by, frame.experiments, single)
    if single and not keyed.named:
        keyed = Keyed(keyed.table, tuple((key[0], frame.order[0][1]) for key in keyed.keys), (), False)
    _refuse_unknown(keyed.keys, frame.order, what)
    return keyed


def _refuse_unknown(keys: Collection[Key], order: Sequence[Key], what: str) -> None:
    """Refuse conditions, doses or inputs of an experiment without measurements, most likely misspelt."""
    have = list(dict.fromkeys(key[1] for key in order))
    for key in keys:
        if key[0] and key[0] not in {own[0] for own in order}:
            raise TableError(
                f"the {what} name data set {key[0]!r}, which has no measurements; the table has data sets "
                f"{', '.join(dict.fromkeys(own[0] for own in order))}: correct the name or leave the row out"
            )
        if not any(own[1] == key[1] and key[0] in ("", own[0]) for own in order):
            near = nearest(key[1], have)
            guess = f" (did you mean {near[0]!r}?)" if near else ""
            raise TableError(
                f"the {what} name experiment {key[1]!r}, which has no measurements{guess}; the table has "
                f"experiments {', '.join(have)}: correct the name or leave the row out"
            )


def _refuse_other_columns(table: Table, needed: Sequence[str], may: Sequence[str]) -> None:
    expected = ("experiment", *needed)
    for column in table.columns:
        if column.name in (*needed, *may, "date"):
            continue
        near = nearest(column.name, may)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise TableError(
            f"{table.where} has the unknown column {column.header!r}; {guess}expected {', '.join(expected)} "
            f"and perhaps {', '.join(may)}: rename it or leave it out"
        )


def _times(table: Table, keyed: Keyed, frame: Frame, names: Sequence[str]) -> tuple[Times, str | None]:
    """The times of a further table, by the clock of the measurements where there is one, and their unit."""
    clock = None
    if frame.clock is not None:
        zeros = {key: zero for own, zero in frame.clock.zeros.items() for key in (own, ("", own[1]))}
        clock = Clock(zeros, frame.clock.told)
    sequences = list(zip(keyed.keys, names, strict=True))
    start = frame.start if frame.clock is None else None
    column = table["time"]
    times = times_of(table, keyed.keys, sequences, start, clock)
    for i, value in enumerate(times.values):
        if math.isnan(value):
            table.number(column, i, required=True)
    if times.clock is not None and clock is None:
        raise TableError(
            f"{table.where} has times by the clock, the measurements have numbers; give both alike"
        )
    _same_time_unit(table, frame.time_unit, times.unit)
    return times, times.unit


def _same_time_unit(table: Table, expected: str | None, unit: str | None) -> None:
    if expected and unit and unit != expected:
        raise TableError(
            f"{table.where} gives times in {unit!r}, the measurements in {expected!r}; give them alike"
        )


def _refuse_duration_unit(table: Table, column: Column, time_unit: str | None) -> None:
    if column.unit and not time_unit:
        raise TableError(
            f"{table.where}: {shown(column)} is in {column.unit!r}, but no table gives the unit of time; write "
            f"it into the header of the times, as in 'time [{column.unit}]'"
        )
    _same_time_unit(table, time_unit, column.unit)


def _units(table: Table, names: Sequence[str], unit: str | None, prefix: str) -> dict[str, str]:
    by_header = dict.fromkeys(names, unit) if unit else {}
    by_row = units_by(table, names, table["unit"]) if "unit" in table else {}
    found: Mapping[str, str] = same_units(by_header, by_row)
    return {prefix + name: told for name, told in found.items()}
