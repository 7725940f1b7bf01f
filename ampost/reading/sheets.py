"""Files and frames -> cells with the row in which each stands: the door to pandas when reading."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from ampost.errors import TableError
from ampost.reading.cells import has_decimal_commas, is_missing, like_thousands, number, text
from ampost.spelling import nearest

Source = str | Path | pd.DataFrame

SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas"}
EXTRAS = {"xlsx": "openpyxl", "parquet": "pyarrow"}
COMMENT = "#"


@dataclass(frozen=True)
class Sheet:
    """Cells as they stand, row by row. `rows` are their rows in the file, where the header is row 1.

    `comma` says that decimals are written with commas; `format` says in words how the file is laid out.
    """

    headers: tuple[str, ...]
    cells: tuple[Sequence[object], ...]
    rows: tuple[int, ...]
    where: str
    comma: bool = False
    format: str = ""
    notes: tuple[str, ...] = ()

    def column(self, k: int) -> list[object]:
        """The cells of column `k`."""
        return [row[k] for row in self.cells]


def sheet(source: Source, what: str) -> Sheet:
    """Read a path (CSV and its like, .xlsx, .parquet) or a DataFrame; `what` names the latter in messages.

    Raises:
        TableError: no such file, no table, an empty one, or an extra that is not installed.
    """
    if isinstance(source, pd.DataFrame):
        return _of_frame(source, what)
    if not isinstance(source, (str, Path)):
        raise TableError(
            f"{what} is of type {type(source).__name__}, expected a DataFrame or the path of a CSV, .xlsx or "
            f".parquet file"
        )
    path = Path(source)
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise TableError(f"{str(path)!r} is a folder, expected a table; it holds {inside}")
    if not path.is_file():
        raise TableError(f"there is no file {str(path)!r}; {_near_files(path)}")
    suffix = path.suffix.lower().lstrip(".")
    if suffix in {"xls", "xlsb", "ods"}:
        raise TableError(f"{path.name} is an .{suffix} file, which is not read; save it as .xlsx or CSV")
    if suffix in EXTRAS:
        _need(suffix, path.name)
        return _of_workbook(path) if suffix == "xlsx" else _of_frame(_parquet(path), path.name)
    return _of_text(path)


def _near_files(path: Path) -> str:
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    return f"did you mean {near[0]!r}?" if near else "give the path of a CSV, .xlsx or .parquet file"


def _need(extra: str, name: str) -> None:
    if find_spec(EXTRAS[extra]) is None:
        raise TableError(
            f"{name} needs the package {EXTRAS[extra]}, which is not installed; install it by "
            f"pip install 'ampost[{extra}]', or save the table as CSV"
        )


# ------------------------------------------------------------------------------------------ frames


def _of_frame(frame: pd.DataFrame, where: str) -> Sheet:
    """A frame, with an index that has a name as columns; its first row is row 2, as in a file."""
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    cells = list(zip(*(_objects(frame.iloc[:, k]) for k in range(frame.shape[1])), strict=True))
    headers = tuple(str(c) for c in frame.columns)
    return _sheet(headers, cells, range(2, len(cells) + 2), where, "", "")


def _objects(column: pd.Series) -> list[object]:
    gone = column.isna().tolist()
    return [None if none else cell for cell, none in zip(column.tolist(), gone, strict=True)]


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise TableError(f"{path.name} cannot be read as parquet ({error}); write it again") from error


def _of_workbook(path: Path) -> Sheet:
    """The first sheet of a workbook that is not empty."""
    try:
        book = pd.read_excel(path, sheet_name=None, header=None, dtype=object, engine="openpyxl")
    except Exception as error:  # openpyxl and zipfile raise whatever a damaged workbook makes them stumble over
        raise TableError(f"{path.name} cannot be read as .xlsx ({error}); save it again") from error
    filled = {str(name): frame for name, frame in book.items() if len(frame)}
    if not filled:
        raise TableError(f"{path.name} is empty; expected a header and one row per measurement")
    name, frame = next(iter(filled.items()))
    others = [other for other in filled if other != name]
    note = f"the sheet {name!r} is read; left aside: {', '.join(others)}" if others else ""
    cells = list(zip(*(_objects(frame.iloc[:, k]) for k in range(frame.shape[1])), strict=True))
    kept = [(k + 1, row) for k, row in enumerate(cells) if not _skipped(row)]
    if not kept:
        raise TableError(f"{path.name} is empty; expected a header and one row per measurement")
    headers = tuple(text(cell) for cell in kept[0][1])
    body = kept[1:]
    return _sheet(headers, [row for _, row in body], [k for k, _ in body], path.name, "", note)


def _skipped(row: Sequence[object]) -> bool:
    """Whether a row of a workbook is blank or a comment."""
    words = [text(cell) for cell in row]
    first = next((word for word in words if word), COMMENT)
    return first.startswith(COMMENT)


# -------------------------------------------------------------------------------------------- text


def _of_text(path: Path) -> Sheet:
    lines = _decoded(path).splitlines()
    separator = None
    if lines and lines[0].lower().startswith("sep="):  # written by spreadsheet programs
        separator, lines[0] = lines[0][4:5], ""
    kept = [(k + 1, line) for k, line in enumerate(lines) if _told(line)]
    if not kept:
        raise TableError(f"{path.name} is empty; expected a header and one row per measurement")
    separator = separator or _separator([line for _, line in kept])
    table = list(_rows(kept, separator))
    headers = tuple(cell.strip() for cell in table[0][1])
    if len(headers) == 1 and len(headers[0].split()) > 1 and len(table) > 1:
        raise TableError(
            f"{path.name} has one column, {headers[0]!r}; separate columns by commas, semicolons or tabs"
        )
    cells = [_fitted(row, len(headers), path.name, k, separator) for k, row in table[1:]]
    return _sheet(headers, cells, [k for k, _ in table[1:]], path.name, separator, "")


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")  # Latin-1 as spreadsheet programs write it


def _told(line: str) -> bool:
    """Whether a line holds something: neither blank, nor separators alone, nor a comment."""
    bare = line.strip(" \t;,\"'")
    return bool(bare) and not line.lstrip(" \t\"'").startswith(COMMENT)


def _separator(lines: list[str]) -> str:
    """The one that gives all rows the width of the header; else the first that the header has."""
    found = [s for s in SEPARATORS if s in lines[0]]
    for separator in found:
        widths = {len(row) for row in csv.reader(lines, delimiter=separator)}
        if len(widths) == 1:
            return separator
    return found[0] if found else ","


def _rows(lines: list[tuple[int, str]], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows with the line that each begins on; a quoted cell may go over several lines."""
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=separator, skipinitialspace=True)
    begin = 0
    for row in reader:
        yield lines[begin][0], row
        begin = reader.line_num


def _fitted(row: list[str], width: int, where: str, line: int, separator: str) -> list[str]:
    """The row at the width of the header; what is missing at its end is blank."""
    while len(row) > width and not row[-1].strip():
        row = row[:-1]
    if len(row) > width:
        fix = "put cells with commas in quotes, or separate by semicolons" if separator == "," else "correct it"
        raise TableError(f"{where}, row {line}: it has {len(row)} cells, the header {width}; {fix}")
    return row + [""] * (width - len(row))


# -------------------------------------------------------------------------------------------- both


def _sheet(
    headers: tuple[str, ...],
    cells: Sequence[Sequence[object]],
    rows: Sequence[int],
    where: str,
    separator: str,
    note: str,
) -> Sheet:
    """The sheet without columns that have no header."""
    if headers and all(number(h) is not None and not is_missing(h) for h in headers):
        raise TableError(
            f"the first row of {where} holds numbers ({', '.join(headers[:4])}); expected the names of the "
            f"columns there"
        )
    named = [k for k, header in enumerate(headers) if header]
    bare = [
        str(k + 1)
        for k, header in enumerate(headers)
        if not header and any(not is_missing(r[k]) for r in cells)
    ]
    notes = [note] if note else []
    if bare:
        notes.append(f"column {', '.join(bare)} has no header and is left aside")
    kept = tuple([row[k] for k in named] for row in cells)
    comma = has_decimal_commas((cell for row in kept for cell in row), separator or ",")
    unclear = like_thousands(cell for row in kept for cell in row) if separator in {";", "\t"} else None
    if unclear and not comma:
        notes.append(
            f"points are read as decimal points, {unclear} as {float(unclear):g}; if they separate thousands, "
            f"write the numbers without them"
        )
    words = SEPARATORS.get(separator, "") + (", decimal commas" if comma else "")
    return Sheet(
        tuple(headers[k] for k in named), kept, tuple(rows), where, comma, words.strip(", "), tuple(notes)
    )
