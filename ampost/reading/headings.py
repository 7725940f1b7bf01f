"""Headers -> our names and units: `time [h]`, `Glucose (g/L)`, `t / min`, whatever the case of known names."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ampost.errors import TableError
from ampost.reading.cells import flag, number, text, why_no_number
from ampost.reading.sheets import Sheet
from ampost.spelling import nearest

SQUARE = re.compile(r"(?P<name>.*?)\s*\[(?P<unit>[^\[\]]*)\]\s*(?P<rest>\w*)")
ROUND = re.compile(r"(?P<name>.*?\S)\s+\((?P<unit>(?:[^()]|\([^()]*\))*)\)\s*(?P<rest>\w*)")
SLASH = re.compile(r"(?P<name>.*?\S)\s+/\s+(?P<unit>\S+)(?P<rest>)")
ALIKE = 0.82  # how alike a further column and a known one must be spelt to be taken for a mistake


@dataclass(frozen=True)
class Column:
    """One column: our name, its unit if the header gives one, the header as written, and its cells."""

    name: str
    unit: str | None
    header: str
    cells: tuple[object, ...]


@dataclass(frozen=True)
class Table:
    """A sheet whose columns have our names; `rows` are those of the file."""

    columns: tuple[Column, ...]
    rows: tuple[int, ...]
    where: str
    comma: bool
    notes: tuple[str, ...] = ()
    format: str = ""

    def __contains__(self, name: str) -> bool:
        return any(column.name == name for column in self.columns)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> list[str]:
        """The names of the columns, in their order."""
        return [column.name for column in self.columns]

    def without(self, *names: str) -> Table:
        """The table without these columns."""
        return replace(self, columns=tuple(c for c in self.columns if c.name not in names))

    def kept(self, places: Collection[int]) -> Table:
        """The table with the rows at these places alone."""
        columns = (replace(c, cells=tuple(c.cells[i] for i in places)) for c in self.columns)
        return replace(self, columns=tuple(columns), rows=tuple(self.rows[i] for i in places))

    def at(self, i: int) -> str:
        """Where row `i` is, for a message."""
        return f"{self.where}, row {self.rows[i]}"

    def need(self, name: str, expected: Iterable[str]) -> Column:
        """The column `name`.

        Raises:
            TableError: there is none; the message has the nearest name that there is.
        """
        if name in self:
            return self[name]
        near = nearest(name, self.names)
        guess = (
            f"; did you mean {near[0]!r}? Rename it, or say columns={{{near[0]!r}: {name!r}}}" if near else ""
        )
        raise TableError(
            f"{self.where} has no column {name!r}; it has {', '.join(self.names)}; "
            f"expected {', '.join(expected)}{guess}"
        )

    def numbers(self, column: Column, required: bool = False, infinite: bool = False) -> list[float]:
        """The column as numbers, NaN where nothing is there.

        Raises:
            TableError: a cell that is no number, or an empty one where one is `required`.
        """
        return [self.number(column, i, required, infinite) for i in range(len(self.rows))]

    def number(self, column: Column, i: int, required: bool = False, infinite: bool = False) -> float:
        """One cell of a column as a number."""
        found = number(column.cells[i], self.comma)
        if found is None or (math.isnan(found) and required) or (math.isinf(found) and not infinite):
            raise self.no_number(column, i)
        return found

    def no_number(self, column: Column, i: int) -> TableError:
        """The error for a cell that should be a number."""
        cell = column.cells[i]
        hint = why_no_number(cell, self.comma)
        return TableError(
            f"{self.at(i)}: {shown(column)} is {text(cell)!r}, expected a number; correct it, or leave the "
            f"row out if nothing was measured{hint}"
        )

    def words(self, column: Column) -> list[str]:
        """The column as names.

        Raises:
            TableError: an empty cell.
        """
        for i, cell in enumerate(column.cells):
            if not text(cell):
                raise TableError(
                    f"{self.at(i)}: {shown(column)} is empty, expected a name; fill it in (merged cells of a "
                    f"workbook hold it in their first row alone)"
                )
        return [text(cell) for cell in column.cells]

    def flags(self, column: Column) -> list[bool]:
        """The column as true or false; empty is false."""
        found = []
        for i, cell in enumerate(column.cells):
            value = flag(cell)
            if value is None:
                raise TableError(
                    f"{self.at(i)}: {shown(column)} is {text(cell)!r}, expected true or false; correct it"
                )
            found.append(value)
        return found


def shown(column: Column) -> str:
    """A column as it is called in messages: by its header, in quotes unless it is one word."""
    header = column.header
    return header if header.isidentifier() else repr(header)


def parsed(header: str) -> tuple[str, str | None]:
    """A header as name and unit: `P [mM]`, `P (mM)` and `P / mM` are ("P", "mM"). What follows joins the name.

    >>> parsed("Glucose (total) [g/L]"), parsed("P [mM] sd"), parsed("log(OD)")
    (('Glucose (total)', 'g/L'), ('P sd', 'mM'), ('log(OD)', None))
    """
    header = header.strip()
    for pattern in (SQUARE, ROUND, SLASH):
        found = pattern.fullmatch(header)
        if found and found["name"]:
            name = f"{found['name']} {found['rest']}".strip()
            return name, found["unit"].strip() or None
    return header, None


def headed(name: str, unit: str | None) -> str:
    """The header that `parsed` reads as `name` and `unit`."""
    if unit:
        return f"{name} [{unit}]"
    return name if parsed(name) == (name, None) else f"{name} []"


def named(sheet: Sheet, columns: Mapping[str, str | None], known: Mapping[str, str]) -> Table:
    """A sheet's columns by our names: the map first, then `known` whatever the case, else as written.

    `known` goes from names in small letters with underscores to ours. A column that the map takes to None
    is left aside.
    """
    found = []
    left = []
    for k, header in enumerate(sheet.headers):
        name, unit = parsed(header)
        wanted: str | None = name
        key = _key_of(header, columns)
        if key is not None:
            wanted = columns[key]
        if wanted is None:
            left.append(header)
            continue
        if key is not None:
            wanted, own = parsed(wanted)
            unit = own or unit
        found.append(Column(_known(wanted, known), unit, header, tuple(sheet.column(k))))
    notes = [*sheet.notes, *([f"left aside by columns=: {', '.join(left)}"] if left else [])]
    return Table(tuple(found), sheet.rows, sheet.where, sheet.comma, tuple(notes), sheet.format)


def refuse_unknown_keys(columns: Mapping[str, str | None], sheets: Iterable[Sheet]) -> None:
    """Raise for a name in the column map that no table has."""
    headers = [header for sheet in sheets for header in sheet.headers]
    used = {_key_of(header, columns) for header in headers}
    for key in columns:
        if key not in used:
            near = nearest(key, [*headers, *(parsed(h)[0] for h in headers)])
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise TableError(
                f"columns= names {key!r}, which no table has; {guess}the tables have {', '.join(headers)}"
            )


def refuse_doubles(table: Table, may_repeat: Collection[str]) -> None:
    """Raise for two columns of one name, but for replicates of what is measured."""
    for column in table.columns:
        alike = [c for c in table.columns if c.name == column.name]
        headers = [repr(c.header) for c in alike]
        if len(headers) > 1 and (column.name not in may_repeat or len({c.unit for c in alike}) > 1):
            raise TableError(
                f"{table.where} has {len(headers)} columns for {column.name!r}: {', '.join(headers)}; rename "
                f"or drop all but one, as by columns={{{headers[-1]}: None}}"
            )


def refuse_misspelt(table: Table, further: Iterable[Column], known: Iterable[str]) -> None:
    """Raise for a further column that is spelt almost like a known one that the table lacks."""
    lacking = [name for name in known if name not in table]
    for column in further:
        near = get_close_matches(plain(column.name), lacking, 1, ALIKE)
        if near:
            raise TableError(
                f"{table.where} has the unknown column {column.header!r}; did you mean {near[0]!r}? Rename it, "
                f"or say columns={{{column.header!r}: {near[0]!r}}} (None in place of a name leaves it aside)"
            )


def _key_of(header: str, columns: Mapping[str, str | None]) -> str | None:
    """The key of the map that means this header: as written, else its name, else whatever the case."""
    name = parsed(header)[0]
    for spelt in (header.strip(), name):
        if spelt in columns:
            return spelt
    return next((k for k in columns if k.strip().lower() in {header.strip().lower(), name.lower()}), None)


def _known(name: str, known: Mapping[str, str]) -> str:
    return known.get(plain(name), name)


def plain(name: str) -> str:
    """A name in small letters, with underscores."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())
