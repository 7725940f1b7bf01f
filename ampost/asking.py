"""What is asked for in words: times, columns and limits from texts; experiments from tables without values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ampost.design import Design
from ampost.errors import ArgumentError, TableError
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.tables import names_of_experiments, read_table, to_tables

POINTS = 101
MOST = 100_000  # times


def grid(text: str | None, design: Design) -> Tensor:
    """Times (time,) from "start:stop:step" or "0,1,2.5"; None is an even grid up to the design's end.

    Raises:
        ArgumentError: the text is neither, or the times do not rise.
    """
    if text is None:
        return torch.linspace(design.start, design.horizon, POINTS, dtype=torch.float64)
    fix = "expected start:stop:step, such as 0:24:0.1, or times that rise, such as 0,1,2.5"
    ranged = ":" in text
    try:
        numbers = [float(part) for part in text.split(":" if ranged else ",")]
    except ValueError as error:
        raise ArgumentError(f"the times are {text!r}, {fix}") from error
    if not ranged:
        times = torch.tensor(numbers, dtype=torch.float64)
    elif len(numbers) == 3 and numbers[2] > 0 and 0 <= (numbers[1] - numbers[0]) / numbers[2] < MOST:
        start, stop, step = numbers
        count = int((stop - start) / step + 1e-9) + 1
        times = start + step * torch.arange(count, dtype=torch.float64)
    else:
        raise ArgumentError(f"the times are {text!r}, {fix}")
    if not bool(torch.isfinite(times).all()) or bool((times.diff() <= 0).any()):
        raise ArgumentError(f"the times are {text!r}, {fix}")
    return times


def columns(texts: Sequence[str]) -> dict[str, str | None]:
    """ "Zeit=time [min]" as their header to our name; "Zeit=" drops the column.

    Raises:
        ArgumentError: there is no = in a text.
    """
    return {header: name or None for header, name in (_pair(t, "HEADER=NAME") for t in texts)}


def limits(texts: Sequence[str]) -> dict[str, float | tuple[float | None, float | None]]:
    """ "P=0.05", "P=0.05:20" or "P=:20" as limits of detection, the lower and the upper one.

    Raises:
        ArgumentError: a text of another form.
    """
    found: dict[str, float | tuple[float | None, float | None]] = {}
    for text in texts:
        name, ends = _pair(text, "NAME=LOW:HIGH")
        low, _, high = ends.partition(":")
        try:
            found[name] = (float(low) if low else None, float(high) if high else None)
        except ValueError as error:
            raise ArgumentError(f"the limit is {text!r}, expected numbers as in P=0.05 or P=0.05:20") from error
    return found


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise ArgumentError(f"{text!r} is not of the form {form}")
    return name, value


def looks(
    conditions: str | Path | None, doses: str | Path | None, inputs: str | Path | None, model: Model
) -> Experiments:
    """The experiments that the tables name, to be looked at in the model's channels at their start.

    Raises:
        TableError: a table has no column of experiments, or none has any.
    """
    given = [table for table in (conditions, doses, inputs) if table is not None]
    names = tuple(dict.fromkeys(name for table in given for name in names_of_experiments(table)))
    if not names:
        raise TableError(f"{' and '.join(map(str, given))} hold no experiments; add a row for each experiment")
    begin = model.design.start
    blank = replace(Experiments.on([[begin]] * len(names), model.channels), names=(names,))
    rows = to_tables(blank).measurements.assign(value=0.0)
    return read_table(rows, conditions, doses, inputs, say=False, start=begin).without_values()
