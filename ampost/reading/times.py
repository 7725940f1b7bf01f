"""The times of a table: numbers, durations, or stamps by the clock."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from ampost.errors import TableError
from ampost.reading import clock
from ampost.reading.clock import Clock, Start
from ampost.reading.entries import Key
from ampost.reading.headings import Table, shown

Begin = float | Start | Mapping[str, Start]


@dataclass(frozen=True)
class Times:
    """The time of each row, NaN where none is told, and the clock if they are by one."""

    values: tuple[float, ...]
    unit: str | None
    clock: Clock | None
    said: tuple[str, ...] = ()


def times_of(
    table: Table,
    keys: Sequence[Key],
    sequences: Sequence[Hashable],
    start: Begin | None,
    told: Clock | None = None,
) -> Times:
    """The column `time` as numbers, or as hours where it is by the clock; `told` is the clock of another table.

    Raises:
        TableError: a time that cannot be read, or one before the start.
    """
    column = table["time"]
    numeric = isinstance(start, (int, float))
    if clock.is_clock(column):
        if numeric:
            raise TableError(
                f"start= is {start!r}, but {table.where} has times by the clock; give start='2026-03-31 09:30'"
            )
        found = clock.hours(table, column, keys, sequences, start, told)  # type: ignore[arg-type]
        return Times(found.times, "h", found.clock, _clock_in_words(table, found))
    if start is not None and not numeric:
        raise TableError(
            f"start= is {start!r}, but the times of {table.where} are numbers; give a number or none"
        )
    elapsed = clock.elapsed(column)
    values = clock.durations(column) if elapsed else table.numbers(column)
    begin = float(start) if isinstance(start, (int, float)) else 0.0
    for i, value in enumerate(values):
        if value < begin:
            raise TableError(
                f"{table.at(i)}: {shown(column)} is {value:g}, expected {begin:g} or later; count time from "
                f"the start of the experiment, or say start="
            )
    said = ("durations are read in hours",) if elapsed else ()
    return Times(tuple(values), "h" if elapsed else column.unit, None, said)


def _clock_in_words(table: Table, found: clock.Hours) -> tuple[str, ...]:
    zeros = list(dict.fromkeys(clock.spelt(zero) for zero in found.clock.zeros.values()))
    some = ", ".join(zeros[:3]) + (", …" if len(zeros) > 3 else "")
    since = "start=" if found.clock.told else "the first row of each experiment"
    said = [f"times by the clock are read in hours since {since} ({some})"]
    if found.midnights:
        said.append(f"over midnight at row {clock.first_of(found.midnights, table)}")
    return tuple(said)
