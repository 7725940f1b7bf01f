"""What one cell of a table says: a number, nothing, or that a value lies beyond a limit of detection."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal

import numpy as np

from ampost.experiments import LEFT, RIGHT

# Compared in lower case, without blanks and full stops.
MISSING = {"", "na", "n/a", "#n/a", "nan", "nat", "<na>", "none", "null", "-", "--", "–", "—"}
BELOW = {"nd", "n/d", "bd", "bdl", "bld", "blod", "lod", "loq", "lloq", "blq", "bql", "bloq", "blloq"}
ABOVE = {"uloq", "aloq", "alq", "aql", "auloq", "overflow", "ovrflw"}
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}

NUMBERS = (int, float, np.number, Decimal)
EXPONENT = r"(?:[eE][-+]?\d+)?"
POINT = re.compile(rf"[-+]?(?:\d+\.?\d*|\.\d+){EXPONENT}")
COMMA = re.compile(rf"[-+]?(?:\d+,\d*|,\d+){EXPONENT}")
THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
BEYOND = re.compile(r"([<>≤≥])\s*=?\s*(.*)")
WITH_UNIT = re.compile(r"[-+]?[\d.,]+\s*[A-Za-zµμ%°].*")
GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}\.\d{3}")
FRACTION = re.compile(r"[-+]?(?:\d+\.\d+|\.\d+)" + EXPONENT)


@dataclass(frozen=True)
class Measured:
    """A cell as a measurement: its number, NaN where none is told, and how it is censored (0: not at all)."""

    number: float
    censoring: int = 0


def text(cell: object) -> str:
    """The cell in words; a whole number that a spreadsheet holds as 1.0 is '1'."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, NUMBERS) and not isinstance(cell, bool) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).replace("\N{NO-BREAK SPACE}", " ").strip()


def is_missing(cell: object) -> bool:
    """Whether the cell says that nothing is there."""
    if isinstance(cell, str) and POINT.fullmatch(cell):
        return False
    return _key(cell) in MISSING


def number(cell: object, comma: bool = False) -> float | None:
    """The cell as a number, NaN where nothing is there, None where it is no number.

    `comma` says that the table writes decimal commas; then a decimal point is no number.
    """
    if isinstance(cell, (*NUMBERS, np.bool_)):
        return float(cell)
    if is_missing(cell):
        return math.nan
    if isinstance(cell, (date, datetime, time, timedelta)):
        return None
    written = text(cell).replace("\N{MINUS SIGN}", "-")
    if written.lower().lstrip("+-") in {"inf", "infinity"}:
        return float(written)
    if comma:
        written = "no number" if FRACTION.fullmatch(written) else written
        if COMMA.fullmatch(written):
            written = written.replace(",", ".")
    return float(written) if POINT.fullmatch(written) else None


def measured(cell: object, comma: bool = False) -> Measured | None:
    """The cell as a measurement; None where it cannot be read as one."""
    plain = number(cell, comma)
    if plain is not None:
        return Measured(plain)
    key = _key(cell)
    if key in BELOW or key in ABOVE:
        return Measured(math.nan, LEFT if key in BELOW else RIGHT)
    found = BEYOND.fullmatch(text(cell))
    if found is None:
        return None
    kind = LEFT if found[1] in "<≤" else RIGHT
    limit = number(found[2], comma)
    if limit is None or math.isnan(limit):
        return Measured(math.nan, kind) if _key(found[2]) in BELOW | ABOVE else None
    return Measured(limit, kind)


def is_numeric(cells: Iterable[object]) -> bool:
    """Whether half of what a column holds are numbers, with whichever decimal sign; the rest are mistakes."""
    told = [cell for cell in cells if not is_missing(cell)]
    good = sum(any(measured(cell, comma) is not None for comma in (False, True)) for cell in told)
    return bool(told) and 2 * good >= len(told)


def flag(cell: object) -> bool | None:
    """The cell as true or false; an empty one is false, and None is neither."""
    return False if is_missing(cell) else FLAGS.get(text(cell).lower())


def has_decimal_commas(cells: Iterable[object], separator: str) -> bool:
    """Whether a table writes decimal commas. Where commas also separate columns, '1,234' does not tell."""
    for cell in cells:
        if isinstance(cell, str):
            written = cell.strip().lstrip("<>≤≥= ")
            if COMMA.fullmatch(written) and (separator != "," or not THOUSANDS.fullmatch(written)):
                return True
    return False


def like_thousands(cells: Iterable[object]) -> str | None:
    """The first number with a point, if in all of them it may separate thousands, as in '1.000'; else None."""
    written = [cell.strip().lstrip("<>≤≥= ") for cell in cells if isinstance(cell, str)]
    fractions = [number for number in written if FRACTION.fullmatch(number)]
    return fractions[0] if fractions and all(GROUPED.fullmatch(number) for number in fractions) else None


def why_no_number(cell: object, comma: bool) -> str:
    """A hint for the message: what keeps the cell from being a number, if that can be said."""
    written = text(cell)
    if comma and FRACTION.fullmatch(written.lstrip("<>≤≥= ")):
        return " (the table has decimal commas elsewhere: write all numbers alike)"
    if THOUSANDS.fullmatch(written) or re.fullmatch(r"[-+]?\d{1,3}(\.\d{3})+(,\d+)?", written):
        return " (write it without separators of thousands)"
    if WITH_UNIT.fullmatch(written) and not re.fullmatch(r"[-+]?[\d.,]+[A-Za-z]", written):
        return " (a unit belongs in the header, as in 'P [mM]')"
    return ""


def _key(cell: object) -> str:
    return re.sub(r"(?<=\D)\.|\s|^\.$", "", text(cell).lower())
