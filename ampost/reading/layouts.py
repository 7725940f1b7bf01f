"""Tidy or wide: which columns hold measurements, which stand beside them, and which tell conditions."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from ampost.errors import TableError
from ampost.reading.cells import is_missing, is_numeric, number, text
from ampost.reading.entries import Key
from ampost.reading.headings import Column, Table, plain, refuse_misspelt
from ampost.spelling import nearest

NEEDED = ("observable", "time", "value")
BESIDE = ("sd", "censoring", "upper", "lowest", "highest", "interval_width")
OTHERS = ("replicate", "after_dose", "unit", "ode_start", "date")
ALIASES = {
    "data_set": "dataset",
    **dict.fromkeys(("std", "stdev", "standard_deviation"), "sd"),
    **dict.fromkeys(("limit", "lod", "loq", "lloq", "limit_of_detection"), "lowest"),
    "uloq": "highest",
    **dict.fromkeys(("timestamp", "datetime", "date_time"), "time"),
}
SPELT = (*NEEDED, *BESIDE, "experiment", "dataset", "replicate", "after_dose", "unit")
KNOWN = {name: name for name in ("dataset", "experiment", *NEEDED, *BESIDE, *OTHERS)} | ALIASES
PAIR = re.compile(r"(?P<name>.+?)[\s_.]+(?P<word>\w+)")
PER_ROW = "row:"  # before the name of a column that is a covariate though it never changes
TOGETHER = 2  # how many times two groups of rows must share to be experiments of their own


@dataclass(frozen=True)
class Source:
    """A column of measurements, of one observable if the table is wide, and the columns beside it."""

    value: Column
    observable: str | None = None
    beside: dict[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How a table is understood: its measurements, conditions and covariates, and words for the account."""

    sources: tuple[Source, ...]
    conditions: tuple[Column, ...]
    covariates: tuple[Column, ...]
    said: tuple[str, ...]
    wide: bool


def is_wide(table: Table) -> bool:
    """Whether a table has one column per observable."""
    return "observable" not in table and "value" not in table


def with_time(table: Table) -> Table:
    """The table with a column `time`; one that is called `t` is taken for it."""
    if "time" not in table and "t" in table:
        columns = (replace(c, name="time") if c.name == "t" else c for c in table.columns)
        return replace(table, columns=tuple(columns))
    return table


def layout(table: Table, keys: Sequence[Key], observables: Sequence[str] | None) -> Layout:
    """The layout of a table without its columns of keys.

    Raises:
        TableError: a column that is almost spelt like a known one, no observable, or one that is not there.
    """
    if is_wide(table):
        return _wide(table, keys, observables)
    if observables is not None:
        raise TableError(
            f"{table.where} has the column 'observable' or 'value', so it is tidy; leave observables= out"
        )
    further = [c for c in table.columns if c.name not in KNOWN.values()]
    refuse_misspelt(table, further, SPELT)
    held, said = numeric(further)
    said += _hints(further, held)
    conditions, covariates = parted(table, keys, held)
    beside = {name: table[name] for name in BESIDE if name in table}
    return Layout((Source(table["value"], None, beside),), conditions, covariates, tuple(said), wide=False)


def _wide(table: Table, keys: Sequence[Key], observables: Sequence[str] | None) -> Layout:
    further = [c for c in table.columns if c.name not in KNOWN.values()]
    refuse_misspelt(table, further, ("time", "experiment", "dataset", "replicate", "after_dose"))
    if "unit" in table:
        raise TableError(
            f"{table.where} has the column 'unit' and one column per observable; write units into the headers, "
            f"as in 'P [mM]'"
        )
    pairs = _pairs(further)
    single = [c for c in further if id(c) not in {id(p) for p, _, _ in pairs}]
    said: list[str] = []
    if observables is None:
        held, said = numeric(single)
        said += _hints(single, held)
        told_apart = len(set(keys)) < len(keys)
        steady = [c for c in held if told_apart and _is_steady(table, c, keys)]
        measured_columns = [c for c in held if c not in steady]
        conditions, covariates = tuple(steady), tuple[Column, ...]()
        said += _in_words(measured_columns, steady, told_apart)
    else:
        measured_columns = [c for name in observables for c in _observable(table, single, name)]
        others = [c for c in single if c not in measured_columns]
        held, said = numeric(others)
        said += _hints(others, held)
        conditions, covariates = parted(table, keys, held)
    if not measured_columns:
        raise TableError(
            f"{table.where} has no column that changes within an experiment, so none is read as measured; name "
            f"them by observables=[...], or give one row per measurement with the columns {', '.join(NEEDED)}"
        )
    sources = tuple(Source(c, c.name, _beside(table, c, pairs, measured_columns)) for c in measured_columns)
    return Layout(sources, conditions, covariates, tuple(said), wide=True)


def _observable(table: Table, columns: Sequence[Column], name: str) -> list[Column]:
    found = [c for c in columns if name in (c.name, c.header)]
    if not found:
        names = [c.name for c in columns]
        near = nearest(name, names)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise TableError(
            f"{table.where} has no column {name!r} for observables=; {guess}it has {', '.join(names)}"
        )
    return found


def _in_words(measured_columns: Sequence[Column], steady: Sequence[Column], told_apart: bool) -> list[str]:
    """What is a condition and what is measured; `told_apart` says that an experiment has two rows."""
    several = dict.fromkeys(c.name for c in measured_columns)
    names = ", ".join(several) or "nothing"
    if not told_apart and len(several) > 1:
        return [
            f"each experiment has one row, so nothing tells conditions from what is measured; all are taken as "
            f"measured: {names} (observables=[...] says otherwise)"
        ]
    if not steady:
        return []
    constant = ", ".join(c.name for c in steady)
    return [
        f"never changes within an experiment, so it is a condition: {constant}; measured: {names} "
        f"(observables=[...] says otherwise)"
    ]


# ------------------------------------------------------------------------------- what stands beside


def _pairs(columns: Sequence[Column]) -> list[tuple[Column, str, str]]:
    """Columns such as `P sd` beside `P`: the column, the name it stands beside, and what it tells."""
    names = {c.name for c in columns}
    found = []
    for column in columns:
        match = PAIR.fullmatch(column.name)
        told = KNOWN.get(plain(match["word"])) if match else None
        if match and told in BESIDE and match["name"] in names:
            found.append((column, match["name"], told))
    return found


def _beside(
    table: Table, column: Column, pairs: Sequence[tuple[Column, str, str]], all_measured: Sequence[Column]
) -> dict[str, Column]:
    found = {told: other for other, name, told in pairs if name == column.name}
    bare = [name for name in BESIDE if name in table]
    if bare and len({c.name for c in all_measured}) > 1:
        raise TableError(
            f"{table.where} has the column {table[bare[0]].header!r} and several observables; name it after "
            f"the one that it stands beside, as in '{column.name} {bare[0]}'"
        )
    return {name: table[name] for name in bare} | found


# ------------------------------------------------------------------------------------------ columns


def numeric(columns: Sequence[Column]) -> tuple[list[Column], list[str]]:
    """The columns that hold numbers, and words about those left aside."""
    found, said = [], []
    for column in columns:
        if all(is_missing(cell) for cell in column.cells):
            said.append(f"left aside, as it is empty: {column.header!r}")
        elif is_numeric(column.cells):
            found.append(column)
        else:
            said.append(f"left aside, as it holds text: {column.header!r}")
    return found, said


def _hints(columns: Sequence[Column], held: Sequence[Column]) -> list[str]:
    """What columns of text may be good for that have several values, each in several rows."""
    said = []
    for column in columns:
        labels = [text(cell) for cell in column.cells if not is_missing(cell)]
        if column not in held and 1 < len(set(labels)) <= len(labels) / 2:
            said.append(
                f"if {column.header!r} tells experiments or data sets apart, say experiments={column.name!r} "
                f"or by="
            )
    return said


def parted(
    table: Table, keys: Sequence[Key], columns: Sequence[Column]
) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    """Numeric columns as conditions, which have one value in each experiment, and covariates."""
    conditions: list[Column] = []
    covariates: list[Column] = []
    for column in columns:
        if column.name.startswith(PER_ROW):
            covariates.append(replace(column, name=column.name.removeprefix(PER_ROW).strip()))
            continue
        values: dict[Key, set[float]] = {key: set() for key in keys}
        for key, value in zip(keys, table.numbers(column), strict=True):
            if not math.isnan(value):
                values[key].add(value)
        constant = all(len(told) == 1 for told in values.values())
        (conditions if constant else covariates).append(column)
    return tuple(conditions), tuple(covariates)


def _is_steady(table: Table, column: Column, keys: Sequence[Key]) -> bool:
    """Whether a column of a wide table has one value in all rows of each experiment, of a single one too."""
    values: dict[Key, list[float]] = {}
    for key, cell in zip(keys, column.cells, strict=True):
        value = number(cell, table.comma)
        values.setdefault(key, []).append(math.nan if value is None else value)
    return all(len(set(told)) == 1 and not math.isnan(told[0]) for told in values.values())


def refuse_mixed(table: Table, groups: Sequence[Hashable], times: Sequence[float]) -> None:
    """Raise where no column names experiments, but one takes several values at the same times of a group.

    `groups` has the rows of one data set and one observable together.

    Raises:
        TableError: with the argument that tells the experiments apart.
    """
    further = [c for c in table.columns if c.name not in KNOWN.values()]
    apart = _leading([c for c in further if _tells_apart(c, groups, times)])
    if apart:
        column = apart[0]
        labels = list(dict.fromkeys(text(cell) for cell in column.cells if not is_missing(cell)))
        some = ", ".join(labels[:4]) + (", …" if len(labels) > 4 else "")
        names = repr(column.name) if len(apart) == 1 else repr([c.name for c in apart])
        raise TableError(
            f"{table.where} has no column that names the experiments, but {column.header!r} takes the values "
            f"{some} at the same times; add a column 'experiment', or say experiments={names} if each value is "
            f"an experiment of its own (experiments=[] if all rows are of one)"
        )


def _leading(columns: Sequence[Column]) -> list[Column]:
    """The columns without those that another one settles; of two that settle each other the first stays."""
    return [
        column
        for k, column in enumerate(columns)
        if not any(
            _settles(other, column) and (j < k or not _settles(column, other))
            for j, other in enumerate(columns)
            if j != k
        )
    ]


def _settles(one: Column, other: Column) -> bool:
    """Whether each value of one column stands beside one value of the other."""
    labels = [text(cell) for cell in one.cells]
    return len(set(zip(labels, map(text, other.cells), strict=True))) == len(set(labels))


def _tells_apart(column: Column, groups: Sequence[Hashable], times: Sequence[float]) -> bool:
    """Whether each value has rows at half of the times or more, and two of one group share times."""
    held: dict[Hashable, dict[str, set[float]]] = {}
    for group, cell, time in zip(groups, column.cells, times, strict=True):
        if not is_missing(cell) and not math.isnan(time):
            held.setdefault(group, {}).setdefault(text(cell), set()).add(time)
    shared = False
    for labels in held.values():
        least = max(TOGETHER, len(set().union(*labels.values())) / 2)
        if any(len(at) < least for at in labels.values()):
            return False
        shared = shared or any(len(a & b) >= TOGETHER for a, b in combinations(labels.values(), 2))
    return shared
