"""Which data set and which experiment each row is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ampost.errors import TableError
from ampost.reading.cells import is_missing, is_numeric, text
from ampost.reading.entries import Key
from ampost.reading.headings import Column, Table, plain
from ampost.spelling import nearest

Names = str | Sequence[str]

LIKE_EXPERIMENT = ("well", "run", "subject", "sample", "id", "patient", "animal", "flask", "vial", "batch")
ONLY = "1"  # the name of what is not named


@dataclass(frozen=True)
class Keyed:
    """A table without the columns that name data sets and experiments, and what they say of each row.

    `said` has the words for the account; `named` whether any column names experiments.
    """

    table: Table
    keys: tuple[Key, ...]
    said: tuple[str, ...]
    named: bool

    def order(self) -> tuple[Key, ...]:
        """The experiments in the order of their first rows."""
        return tuple(dict.fromkeys(self.keys))


def listed(names: Names | None) -> list[str]:
    """One name or several, as a list."""
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def keyed(table: Table, by: Names | None, experiments: Names | None) -> Keyed:
    """The keys of the rows of measurements.

    Raises:
        TableError: a column that is named and is not there, or a row without a name.
    """
    data_sets = _columns(table, listed(by), "by=") or [c for c in table.columns if c.name == "dataset"]
    told = [c for c in table.columns if c.name == "experiment"]
    idle: list[Column] = []
    said: list[str] = []
    if experiments is not None:
        told = _columns(table, listed(experiments), "experiments=")
    elif not told:
        told, idle = _alike(table, data_sets)
        said = _alike_in_words(told, idle)
    return _joined(table.without(*(c.name for c in idle)), data_sets, told, said)


def keyed_like(table: Table, by: Names | None, experiments: Names | None, single: bool) -> Keyed:
    """The keys of a further table, by the columns that name the measurements'. A data set of "" is all of them.

    A table without a column of experiments is of the one that there is, if `single`.

    Raises:
        TableError: no column names the experiments, though there are several.
    """
    names = listed(by)
    data_sets = [_column(table, name) for name in names if _has(table, name)]
    if len(data_sets) < len(names) or not names:
        data_sets = [c for c in table.columns if c.name == "dataset"]
    named = listed(experiments)
    told = [_column(table, name) for name in named] if named and all(_has(table, n) for n in named) else []
    told = told or [c for c in table.columns if c.name == "experiment"]
    if not told:
        used = {id(c) for c in data_sets}
        told = [c for c in table.columns if plain(c.name) in LIKE_EXPERIMENT and id(c) not in used][:1]
    if not told and not single:
        table.need("experiment", ("experiment",))
    found = _joined(table, data_sets, told, [])
    return found if data_sets else replace(found, keys=tuple(("", key[1]) for key in found.keys))


def _joined(table: Table, data_sets: list[Column], told: list[Column], said: list[str]) -> Keyed:
    """The keys from these columns. Numbers that are no mere labels stay as what they are."""
    keys = tuple(zip(_words(table, data_sets), _words(table, told), strict=True))
    used = [*data_sets, *told]
    labels = {id(c) for c in used if plain(c.name) in {*LIKE_EXPERIMENT, "experiment", "dataset"}}
    labels |= {id(c) for c in used if not is_numeric(c.cells)}
    left = replace(table, columns=tuple(c for c in table.columns if id(c) not in labels))
    return Keyed(left, keys, tuple(said), bool(told))


def _words(table: Table, columns: list[Column]) -> list[str]:
    if not columns:
        return [ONLY] * len(table.rows)
    return [", ".join(words) for words in zip(*(table.words(c) for c in columns), strict=True)]


def _alike(table: Table, data_sets: list[Column]) -> tuple[list[Column], list[Column]]:
    """Columns such as `Well` that name experiments and are not called so, and those that number rows."""
    used = {id(c) for c in data_sets}
    found = [c for c in table.columns if plain(c.name) in LIKE_EXPERIMENT and id(c) not in used]
    labels = {c.name: [text(cell) for cell in c.cells if not is_missing(cell)] for c in found}
    idle = [c for c in found if len(labels[c.name]) > 1 and len(set(labels[c.name])) == len(table.rows)]
    return [c for c in found if c not in idle and labels[c.name]], idle


def _alike_in_words(taken: list[Column], idle: list[Column]) -> list[str]:
    said = [
        f"{c.header!r} differs in every row and is left aside; if each row is an experiment, say "
        f"experiments={c.name!r}"
        for c in idle
    ]
    if taken:
        said.append(f"experiments are told apart by {' and '.join(repr(c.header) for c in taken)}")
    return said


def _has(table: Table, name: str) -> bool:
    return any(name in (c.name, c.header) or plain(name) == plain(c.name) for c in table.columns)


def _column(table: Table, name: str) -> Column:
    exact = [c for c in table.columns if name in (c.name, c.header)]
    return exact[0] if exact else next(c for c in table.columns if plain(c.name) == plain(name))


def _columns(table: Table, names: list[str], argument: str) -> list[Column]:
    for name in names:
        if not _has(table, name):
            near = nearest(name, table.names)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise TableError(
                f"{table.where} has no column {name!r} for {argument}; it has {', '.join(table.names)}{guess}"
            )
    return [_column(table, name) for name in names]
