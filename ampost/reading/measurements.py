"""A table of measurements -> entries: values with their censoring, and what stands beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ampost.errors import TableError
from ampost.experiments import CENSORING, INTERVAL, LEFT, RIGHT
from ampost.reading.cells import Measured, is_missing, measured, text
from ampost.reading.entries import Key, Measurement, same_units
from ampost.reading.headings import Column, Table, shown
from ampost.reading.layouts import Layout, Source
from ampost.spelling import nearest

Limits = Mapping[str, float | tuple[float | None, float | None]]
Range = tuple[float | None, float | None]

WORDS = {LEFT: ("below", "lowest"), RIGHT: ("above", "highest")}


@dataclass(frozen=True)
class Measurements:
    """Measurements in the order of the rows, with all that is told of them; `said` is for the account."""

    entries: tuple[Measurement, ...]
    channels: tuple[str, ...]
    conditions: Mapping[Key, Mapping[str, float]]
    units: Mapping[str, str]
    said: tuple[str, ...]


@dataclass(frozen=True)
class Beside:
    """What stands beside the values of one source, row by row; NaN and None are nothing."""

    source: Source
    numbers: Mapping[str, list[float]]
    codes: Sequence[int | None]

    def number(self, name: str, i: int) -> float | None:
        """The number of this name in row `i`, None where nothing is told."""
        value = self.numbers[name][i] if name in self.numbers else math.nan
        return None if math.isnan(value) else value


def measurements(
    table: Table, keys: Sequence[Key], plan: Layout, times: Sequence[float], limits: Limits | None
) -> Measurements:
    """The measurements of a table without its columns of keys.

    Raises:
        TableError: a value, limit, sd, time or flag that cannot be read, by row and column.
    """
    names = [source.observable for source in plan.sources]
    observables = table.words(table["observable"]) if not plan.wide else []
    channels = tuple(dict.fromkeys(observables or [name for name in names if name is not None]))
    stated = _stated(limits, channels)
    beside = [_beside(table, source) for source in plan.sources]
    replicates = table.numbers(table["replicate"]) if "replicate" in table else None
    flags = table.flags(table["after_dose"]) if "after_dose" in table else None
    covariates = {c.name: table.numbers(c) for c in plan.covariates}
    counts: Counter[str] = Counter()
    found = []
    missing: list[int] = []
    for i, key in enumerate(keys):
        for part in beside:
            observable = part.source.observable or observables[i]
            seen = _seen(table, i, part, stated.get(observable, (None, None)), observable, counts)
            if seen is None:
                missing.append(i)
                continue
            if math.isnan(times[i]):
                table.number(table["time"], i, required=True)
            entry = replace(
                seen,
                key=key,
                time=times[i],
                replicate=_whole(table, i, replicates[i]) if replicates else None,
                after_dose=bool(flags and flags[i]),
                columns={name: values[i] for name, values in covariates.items()},
            )
            found.append(entry)
    units = _units(table, plan, observables)
    _refuse_other_units(table, plan, observables, units)
    entries, aside = whole_columns(_own_limits(found))
    present = {m.observable for m in entries}
    said = [
        *missing_in_words(table, missing),
        *_clipped_in_words(counts),
        *_beyond_in_words(entries, channels),
        *aside,
    ]
    return Measurements(
        entries,
        tuple(c for c in channels if c in present),
        conditions_by(table, keys, plan.conditions),
        units,
        tuple(said),
    )


def _stated(limits: Limits | None, channels: Sequence[str]) -> dict[str, Range]:
    """The argument `limits` as (lowest, highest) of each observable."""
    found: dict[str, Range] = {}
    for name, limit in (limits or {}).items():
        if name not in channels:
            near = nearest(name, channels)
            guess = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(channels)}"
            raise TableError(f"limits= names {name!r}, which the table does not measure; {guess}")
        low, high = limit if isinstance(limit, tuple) else (limit, None)
        finite = all(math.isfinite(v) for v in (low, high) if v is not None)
        if not finite or (low is not None and high is not None and low >= high):
            raise TableError(
                f"limits= of {name!r} is {limit!r}, expected a number, or (lowest, highest) that rise; None in "
                f"place of one that there is not"
            )
        found[name] = (low, high)
    return found


def _beside(table: Table, source: Source) -> Beside:
    numbers = {
        name: table.numbers(column, infinite=name in ("lowest", "highest"))
        for name, column in source.beside.items()
        if name != "censoring"
    }
    for i, value in enumerate(numbers.get("sd", [])):
        if value <= 0:
            raise TableError(
                f"{table.at(i)}: {shown(source.beside['sd'])} is {value:g}, expected above 0; correct it, or "
                f"leave the column out if it is unknown"
            )
    codes: list[int | None] = [None] * len(table.rows)
    if "censoring" in source.beside:
        column = source.beside["censoring"]
        codes = [_code(table, column, i) for i in range(len(table.rows))]
    return Beside(source, numbers, codes)


def _code(table: Table, column: Column, i: int) -> int | None:
    word = text(column.cells[i]).lower()
    if word in CENSORING:
        return CENSORING.index(word)
    if is_missing(column.cells[i]):
        return None
    near = nearest(word, CENSORING)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    raise TableError(
        f"{table.at(i)}: {shown(column)} is {text(column.cells[i])!r}, expected one of "
        f"{', '.join(CENSORING)}{guess}"
    )


# ------------------------------------------------------------------------------------------- values


def _seen(
    table: Table, i: int, part: Beside, stated: Range, observable: str, counts: Counter[str]
) -> Measurement | None:
    """What row `i` says of an observable, still without its time and experiment; None if nothing is there."""
    column = part.source.value
    value = measured(column.cells[i], table.comma)
    if value is None or math.isinf(value.number):
        raise table.no_number(column, i)
    value = _with_word(table, i, column, value, part.codes[i])
    if value.censoring in (0, INTERVAL) and math.isnan(value.number):
        return None
    own = (part.number("lowest", i), part.number("highest", i))
    low, high = (a if a is not None else b for a, b in zip(own, stated, strict=True))
    told = (
        value if not math.isnan(value.number) else _at_limit(table, i, column, value, (low, high), observable)
    )
    told = _clipped(told, low, high, observable, counts)
    upper = part.number("upper", i)
    if told.censoring == INTERVAL:
        _refuse_interval(table, i, told.number, upper)
    return Measurement(
        key=("", ""),
        observable=observable,
        time=math.nan,
        value=told.number,
        place=table.at(i),
        censoring=told.censoring,
        upper=upper,
        sd=part.number("sd", i),
        lowest=_limit_of(own[0], stated[0], told, LEFT),
        highest=_limit_of(own[1], stated[1], told, RIGHT),
        width=part.number("interval_width", i),
    )


def _with_word(table: Table, i: int, column: Column, value: Measured, code: int | None) -> Measured:
    """The value with what the column `censoring` says of it."""
    if code is None or code == value.censoring:
        return value
    if value.censoring:
        raise TableError(
            f"{table.at(i)}: {shown(column)} is {text(column.cells[i])!r}, but censoring is "
            f"{CENSORING[code]!r}; correct one of them"
        )
    return Measured(value.number, code)


def _at_limit(
    table: Table, i: int, column: Column, value: Measured, limits: Range, observable: str
) -> Measured:
    """A value that is only said to be beyond its limit, at that limit."""
    side, name = WORDS[value.censoring]
    limit = limits[value.censoring - 1]
    if limit is None or math.isinf(limit):
        pair = "0.05" if value.censoring == LEFT else "(None, 100.0)"
        raise TableError(
            f"{table.at(i)}: {shown(column)} is {text(column.cells[i])!r}, {side} a limit that is not told; "
            f"say limits={{{observable!r}: {pair}}} with the limit of the method, give a column {name!r}, or "
            f"leave the cell empty if nothing was measured"
        )
    return Measured(limit, value.censoring)


def _clipped(
    told: Measured, low: float | None, high: float | None, observable: str, counts: Counter[str]
) -> Measured:
    """A number beyond a limit that is stated is known to lie beyond it, and no more."""
    if told.censoring:
        return told
    if low is not None and told.number < low:
        counts[f"below the limit {low:g} of {observable!r}"] += 1
        return Measured(low, LEFT)
    if high is not None and told.number > high:
        counts[f"above the limit {high:g} of {observable!r}"] += 1
        return Measured(high, RIGHT)
    return told


def _limit_of(own: float | None, stated: float | None, told: Measured, kind: int) -> float | None:
    """A row's limit: its own, that of its censored value, or the one for all rows."""
    if own is not None or stated is None:
        return own
    return told.number if told.censoring == kind else stated


def _refuse_interval(table: Table, i: int, lower: float, upper: float | None) -> None:
    if upper is None:
        raise TableError(
            f"{table.at(i)}: censoring is 'interval', but upper is empty; value and upper are the ends of the "
            f"interval"
        )
    if not upper > lower:
        raise TableError(f"{table.at(i)}: upper is {upper:g}, expected above the value {lower:g}; correct it")


def _whole(table: Table, i: int, value: float) -> int | None:
    if math.isnan(value):
        return None
    if not value.is_integer():
        raise TableError(f"{table.at(i)}: replicate is {value:g}, expected a whole number; correct it")
    return int(value)


def _own_limits(found: Sequence[Measurement]) -> list[Measurement]:
    """Where some rows of an observable state a limit, a censored one without has that of its value."""
    having = {
        (kind, m.observable)
        for m in found
        for kind, name in ((LEFT, "lowest"), (RIGHT, "highest"))
        if getattr(m, name) is not None
    }
    out = []
    for m in found:
        name = WORDS[m.censoring][1] if m.censoring in WORDS else ""
        if name and (m.censoring, m.observable) in having and getattr(m, name) is None:
            m = replace(m, lowest=m.value) if name == "lowest" else replace(m, highest=m.value)
        out.append(m)
    return out


# ----------------------------------------------------------------------------------- beside values


def whole_columns(found: Sequence[Measurement]) -> tuple[tuple[Measurement, ...], list[str]]:
    """The measurements with those covariates that every row of their observable has, and words about others."""
    gaps: dict[tuple[str, str], list[Measurement]] = {}
    told: set[tuple[str, str]] = set()
    for m in found:
        for name, value in m.columns.items():
            if math.isnan(value):
                gaps.setdefault((m.observable, name), []).append(m)
            else:
                told.add((m.observable, name))
    said = [
        f"left aside for {observable!r}, as it is empty in some of its rows ({rows[0].place}): {name!r}"
        for (observable, name), rows in gaps.items()
        if (observable, name) in told
    ]
    kept = (
        replace(m, columns={k: v for k, v in m.columns.items() if (m.observable, k) not in gaps}) for m in found
    )
    return tuple(kept), said


def conditions_by(table: Table, keys: Sequence[Key], columns: Sequence[Column]) -> dict[Key, dict[str, float]]:
    """The first number of each of `columns` in the rows of each experiment, by name."""
    found: dict[Key, dict[str, float]] = {key: {} for key in keys}
    for column in columns:
        for key, value in zip(keys, table.numbers(column), strict=True):
            if not math.isnan(value):
                found[key].setdefault(column.name, value)
    return found


def _units(table: Table, plan: Layout, observables: Sequence[str]) -> dict[str, str]:
    """Units of observables, conditions and covariates, from headers and the column `unit`."""
    given = [{c.name: c.unit} for c in (*plan.conditions, *plan.covariates) if c.unit]
    for source in plan.sources:
        unit = source.value.unit
        names = [source.observable] if source.observable else list(dict.fromkeys(observables))
        given += [{name: unit} for name in names if unit]
    return same_units(*given, _unit_column(table, observables) if "unit" in table else {})


def _refuse_other_units(
    table: Table, plan: Layout, observables: Sequence[str], units: Mapping[str, str]
) -> None:
    """Raise for a standard deviation, limit or end that has another unit than what it stands beside."""
    for source in plan.sources:
        names = observables or [source.observable or ""] * len(table.rows)
        for other in (column for column in source.beside.values() if column.unit):
            for name, cell in zip(names, other.cells, strict=True):
                if units.get(name) != other.unit and not is_missing(cell):
                    fix = f"give both in {units[name]!r}" if name in units else f"give the unit of {name!r} too"
                    raise TableError(
                        f"{table.where}: {other.header!r} is in {other.unit!r} and {name!r} in "
                        f"{units.get(name, 'no unit')!r}; {fix}"
                    )


def _unit_column(table: Table, observables: Sequence[str]) -> dict[str, str]:
    return units_by(table, observables, table["unit"])


def units_by(table: Table, names: Sequence[str], column: Column) -> dict[str, str]:
    """The unit of each of `names`, one of them in each row, by a column of units.

    Raises:
        TableError: two units for one name, by rows.
    """
    first: dict[str, int] = {}
    for i, (name, cell) in enumerate(zip(names, column.cells, strict=True)):
        if is_missing(cell) and text(cell) not in {"-", "–"}:
            continue
        held = first.setdefault(name, i)
        if text(column.cells[held]) != text(cell):
            raise TableError(
                f"{table.at(i)}: unit of {name!r} is {text(cell)!r}, in row {table.rows[held]} it is "
                f"{text(column.cells[held])!r}; convert the values to one unit"
            )
    return {name: text(column.cells[i]) for name, i in first.items()}


# -------------------------------------------------------------------------------------------- words


def missing_in_words(table: Table, missing: Sequence[int]) -> list[str]:
    """How many values are missing, one for each place in `missing`, and in which rows of the file."""
    if not missing:
        return []
    rows = list(dict.fromkeys(str(table.rows[i]) for i in missing))
    some = ", ".join(rows[:5]) + (", …" if len(rows) > 5 else "")
    return [f"missing: {len(missing)} (row{'s' if len(rows) > 1 else ''} {some})"]


def _clipped_in_words(counts: Counter[str]) -> list[str]:
    return [
        f"{count} number{'' if count == 1 else 's'} {what}, taken as censored there"
        for what, count in counts.items()
    ]


def _beyond_in_words(found: Sequence[Measurement], channels: Sequence[str]) -> list[str]:
    """Exact numbers beyond every limit that other rows of their observable tell."""
    said = []
    for observable in channels:
        mine = [m for m in found if m.observable == observable]
        for kind, (side, _) in WORDS.items():
            limits, values = _limits_of(mine, kind), _without_limit(mine, kind)
            outermost = (min if kind == LEFT else max)(limits, default=math.nan)
            count = sum(v < outermost if kind == LEFT else v > outermost for v in values)
            if count:
                takes = "1 number lies" if count == 1 else f"{count} numbers lie"
                pair = f"{outermost:g}" if kind == LEFT else f"(None, {outermost:g})"
                said.append(
                    f"{takes} {side} the limit that other rows of {observable!r} tell ({outermost:g}) and "
                    f"{'is' if count == 1 else 'are'} taken as exact; limits={{{observable!r}: {pair}}} says "
                    f"otherwise"
                )
    return said


def _limits_of(found: Sequence[Measurement], kind: int) -> list[float]:
    """The limits that censored values and columns of limits tell."""
    own = (getattr(m, WORDS[kind][1]) for m in found)
    return [
        *(m.value for m in found if m.censoring == kind),
        *(limit for limit in own if limit is not None and math.isfinite(limit)),
    ]


def _without_limit(found: Sequence[Measurement], kind: int) -> list[float]:
    """The exact values whose rows tell no limit."""
    return [m.value for m in found if not m.censoring and getattr(m, WORDS[kind][1]) is None]
