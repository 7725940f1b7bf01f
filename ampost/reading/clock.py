"""Times by the clock -> hours since the first row of an experiment, or since a start that is given."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta

from ampost.errors import TableError
from ampost.reading.cells import is_missing, text
from ampost.reading.entries import Key
from ampost.reading.headings import Column, Table, shown
from ampost.spelling import nearest

Start = str | date | datetime | time

DATE = r"(?P<first>\d{1,4})(?P<mark>[-/.])(?P<second>\d{1,2})(?P=mark)(?P<third>\d{1,4})"
TIME = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second_of>\d{2}(?:[.,]\d+)?))?\s*(?P<half>[AaPp]\.?[Mm]\.?)?"
    r"\s*(?P<zone>Z|[+-]\d{2}:?\d{2})?"
)
STAMP = re.compile(rf"(?:{DATE})?(?:(?:\s*[T,]\s*|\s+)?(?:{TIME}))?")
ISO = "write it as 2026-03-31 09:30"
DAY = 86400.0
LONGEST = DAY / 2  # over midnight; a longer step is more likely back in time


@dataclass(frozen=True)
class Moment:
    """A time by the clock: seconds, and the day, which is None where only the time of day is told."""

    seconds: float
    day: int | None = None

    @property
    def absolute(self) -> float:
        """Seconds since a fixed day."""
        return self.seconds + DAY * (self.day or 0)


@dataclass(frozen=True)
class Clock:
    """Where the hours of each experiment begin. `told` says that it was given, not taken from the first row."""

    zeros: Mapping[Key, Moment]
    told: bool


@dataclass(frozen=True)
class Hours:
    """Times in hours, one for each row (NaN where none is told), and the rows after midnight."""

    times: tuple[float, ...]
    clock: Clock
    midnights: tuple[int, ...] = field(default=())


def is_clock(column: Column) -> bool:
    """Whether a column holds times by the clock, in at least one of its cells."""
    return any(_looks_like_one(cell) for cell in column.cells)


def elapsed(column: Column) -> bool:
    """Whether a column holds durations, as a data frame may."""
    told = [cell for cell in column.cells if not is_missing(cell)]
    return bool(told) and all(isinstance(cell, timedelta) for cell in told)


def durations(column: Column) -> list[float]:
    """Durations in hours, NaN where nothing is told."""
    return [cell.total_seconds() / 3600 if isinstance(cell, timedelta) else math.nan for cell in column.cells]


def hours(
    table: Table,
    column: Column,
    keys: Sequence[Key],
    sequences: Sequence[Hashable],
    start: Start | Mapping[str, Start] | None = None,
    clock: Clock | None = None,
) -> Hours:
    """The column in hours since the first row of each experiment, since `start`, or by another table's `clock`.

    Times of day rise within each of `sequences`, so a smaller one is of the next day.

    Raises:
        TableError: a cell that is no time, a day and month that may be confused, a time before the start, a
            step over midnight that is nearly a day.
    """
    _refuse_unit(table, column)
    moments = _moments(table, column)
    if clock is None:
        clock = _clock(table, keys, moments, start)
    last: dict[Hashable, Moment] = {}
    times: list[float] = []
    midnights: list[int] = []
    for i, (key, sequence, moment) in enumerate(zip(keys, sequences, moments, strict=True)):
        zero = clock.zeros.get(key)
        if moment is None or zero is None:
            times.append(math.nan)
            continue
        if (moment.day is None) != (zero.day is None):
            raise TableError(
                f"{table.at(i)}: {shown(column)} is {text(column.cells[i])!r}; some times have a date and "
                f"others, or the start, have none; {ISO}, all with dates"
            )
        if moment.day is None:
            before = last.get(sequence)
            moment, rolled = _on_its_day(moment, before, zero, clock.told)
            if rolled:
                _refuse_long_step(table, column, i, before or zero, moment)
                midnights.append(i)
            last[sequence] = moment
        since = round((moment.absolute - zero.absolute) / 3600, 9)
        if since < 0:
            raise TableError(_early(table, column, i, zero))
        times.append(since)
    return Hours(tuple(times), clock, tuple(midnights))


def spelt(moment: Moment) -> str:
    """A moment as it is written."""
    clock = str(timedelta(seconds=round(moment.seconds % DAY)))
    clock = clock.rjust(8, "0")
    clock = clock.removesuffix(":00")
    return clock if moment.day is None else f"{date.fromordinal(moment.day)} {clock}"


def _on_its_day(moment: Moment, before: Moment | None, zero: Moment, told: bool) -> tuple[Moment, bool]:
    """A time of day with the days since the start in its seconds, and whether a midnight came before it."""
    if before is None and not told:
        return moment, False
    previous = before or zero
    days = math.ceil((previous.seconds - moment.seconds) / DAY)
    days = max(days, 0)
    passed = math.floor(previous.seconds / DAY)
    return Moment(moment.seconds + DAY * days), days > passed


def _refuse_long_step(table: Table, column: Column, i: int, before: Moment, moment: Moment) -> None:
    """Raise where a step over midnight is so long that the rows may not be in the order of time."""
    step = moment.seconds - before.seconds
    if step > LONGEST:
        raise TableError(
            f"{table.at(i)}: {shown(column)} is {text(column.cells[i])!r} after {spelt(before)}, which may be "
            f"{step / 3600:.3g} h later, over midnight, or rows out of order; sort the rows by time and tell "
            f"experiments and replicates apart by columns, or give dates: {ISO}"
        )


def _early(table: Table, column: Column, i: int, zero: Moment) -> str:
    fix = f"say start={text(column.cells[i])!r} (or earlier) in read_table"
    fix += "" if zero.day is not None else f"; if it is of another day, {ISO}"
    return (
        f"{table.at(i)}: {shown(column)} is {text(column.cells[i])!r}, before the start of the experiment "
        f"({spelt(zero)}), expected at or after it; {fix}"
    )


def _refuse_unit(table: Table, column: Column) -> None:
    unit = (column.unit or "h").lower()
    if not (unit.startswith("h") or ":" in unit or unit in {"clock", "local", "utc"}):
        raise TableError(
            f"{table.where}: {shown(column)} holds times by the clock, which are read in hours, but its "
            f"header says {column.unit!r}; leave the unit out of the header, or give numbers"
        )


def _clock(
    table: Table,
    keys: Sequence[Key],
    moments: Sequence[Moment | None],
    start: Start | Mapping[str, Start] | None,
) -> Clock:
    if start is not None:
        return Clock(_starts(start, keys), told=True)
    zeros: dict[Key, Moment] = {}
    for key, moment in zip(keys, moments, strict=True):
        if moment is None:
            continue
        held = zeros.setdefault(key, moment)
        if None not in (held.day, moment.day) and moment.absolute < held.absolute:
            zeros[key] = moment
    return Clock(zeros, told=False)


def _starts(start: Start | Mapping[str, Start], keys: Sequence[Key]) -> dict[Key, Moment]:
    if not isinstance(start, Mapping):
        moment = _start(start)
        return dict.fromkeys(keys, moment)
    known = list(dict.fromkeys(name for key in keys for name in reversed(key)))
    for name in start:
        if str(name) not in known:
            near = nearest(str(name), known)
            raise TableError(
                f"start= names experiment {name!r}, which the table lacks; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}")
            )
    given = {str(name): _start(moment) for name, moment in start.items()}
    zeros = {}
    for key in dict.fromkeys(keys):
        found = given.get(key[1], given.get(key[0]))
        if found is None:
            raise TableError(f"start= has no time for experiment {key[1]!r}; add it")
        zeros[key] = found
    return zeros


def _start(start: Start) -> Moment:
    moment = _moment(start, day_first=None)
    if moment is None:
        raise TableError(f"start= is {text(start)!r}, which is no time by the clock; {ISO}")
    return moment


# ------------------------------------------------------------------------------------------- cells


def _looks_like_one(cell: object) -> bool:
    if isinstance(cell, (date, time)):
        return True
    if not isinstance(cell, str) or is_missing(cell):
        return False
    found = STAMP.fullmatch(cell.strip())
    return found is not None and bool(found["hour"] or found["mark"])


def _moments(table: Table, column: Column) -> list[Moment | None]:
    day_first = _day_first(table, column)
    days = _days(table)
    found: list[Moment | None] = []
    for i, cell in enumerate(column.cells):
        moment = None if is_missing(cell) else _moment(cell, day_first)
        if moment is None and not is_missing(cell):
            raise TableError(f"{table.at(i)}: {shown(column)} is {text(cell)!r}, which is no time; {ISO}")
        if moment is not None and moment.day is None and days is not None:
            moment = Moment(moment.seconds, days[i])
        found.append(moment)
    return found


def _days(table: Table) -> list[int] | None:
    """The days of a column `date` beside the times, if there is one."""
    if "date" not in table:
        return None
    column = table["date"]
    day_first = _day_first(table, column)
    days = []
    for i, cell in enumerate(column.cells):
        moment = _moment(cell, day_first)
        if moment is None or moment.day is None:
            raise TableError(f"{table.at(i)}: {shown(column)} is {text(cell)!r}, which is no date; {ISO[:22]}")
        days.append(moment.day)
    return days


def _moment(cell: object, day_first: bool | None) -> Moment | None:
    """A cell as a moment; None where it is none, or where `day_first` leaves open what is the month."""
    if isinstance(cell, datetime):
        return _dated(cell)
    if isinstance(cell, date):
        return Moment(0.0, cell.toordinal())
    if isinstance(cell, time):
        return Moment(cell.hour * 3600 + cell.minute * 60 + cell.second + cell.microsecond / 1e6)
    found = STAMP.fullmatch(text(cell))
    if found is None or not (found["hour"] or found["mark"]):
        return None
    seconds = _seconds(found) if found["hour"] else 0.0
    day = _day(found, day_first) if found["mark"] else None
    if seconds is None or (found["mark"] and day is None):
        return None
    if found["zone"] and day is not None:
        seconds -= _offset(found["zone"])
    return Moment(seconds, day)


def _dated(stamp: datetime) -> Moment:
    offset = stamp.utcoffset()
    plain = stamp.replace(tzinfo=None) - (offset or timedelta())
    seconds = plain.hour * 3600 + plain.minute * 60 + plain.second + plain.microsecond / 1e6
    return Moment(seconds, plain.toordinal())


def _seconds(found: re.Match[str]) -> float | None:
    hour, minute = int(found["hour"]), int(found["minute"])
    second = float((found["second_of"] or "0").replace(",", "."))
    if found["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if found["half"][0] in "pP" else 0)
    return hour * 3600 + minute * 60 + second if hour < 24 and minute < 60 and second < 60 else None


def _offset(zone: str) -> float:
    if zone == "Z":
        return 0.0
    size = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
    return size if zone[0] == "+" else -size


def _day(found: re.Match[str], day_first: bool | None) -> int | None:
    first, second, third = found["first"], found["second"], found["third"]
    if len(first) == 4:
        year, month, day = int(first), int(second), int(third)
    elif len(third) != 4:
        return None  # a year of two digits may be a day
    elif found["mark"] == "." or day_first or (day_first is None and int(first) > 12):
        year, month, day = int(third), int(second), int(first)
    elif day_first is None and int(second) <= 12 and first != second:
        return None
    else:
        year, month, day = int(third), int(first), int(second)
    try:
        return date(year, month, day).toordinal()
    except ValueError:
        return None


def _day_first(table: Table, column: Column) -> bool | None:
    """Whether 03/04/2026 is of April in this column; None where no row has such a date.

    Raises:
        TableError: no row tells it, or two rows tell the opposite.
    """
    pairs = [(i, *pair) for i, cell in enumerate(column.cells) if (pair := _pair(cell))]
    days = [i for i, first, _ in pairs if first > 12]
    months = [i for i, _, second in pairs if second > 12]
    unclear = [i for i, first, second in pairs if first != second]
    if (days and months) or (unclear and not days and not months):
        i = unclear[0] if not days else months[0]
        raise TableError(
            f"{table.at(i)}: {shown(column)} is {text(column.cells[i])!r}, whose day and month may be "
            f"confused; {ISO}"
        )
    return bool(days) if pairs else None


def _pair(cell: object) -> tuple[int, int] | None:
    """The two numbers before the year in 03/04/2026."""
    found = STAMP.fullmatch(cell.strip()) if isinstance(cell, str) else None
    if found is None or found["mark"] not in ("/", "-") or len(found["first"]) == 4 or len(found["third"]) != 4:
        return None
    return int(found["first"]), int(found["second"])


def first_of(rows: Iterable[int], table: Table) -> str:
    """The first rows among these places, as they are numbered in the file."""
    numbers = [str(table.rows[i]) for i in rows]
    return ", ".join(numbers[:5]) + (", …" if len(numbers) > 5 else "")
