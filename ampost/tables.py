"""Tables <-> Experiments: what laboratories have, read into the record and written from it.

A tidy table has one row per measurement: `dataset, experiment, observable, time, value`, plus optional
`replicate, sd, censoring, upper, limit, unit, after_dose`. A wide one has a column per observable. Any
further numeric column is a covariate, and a condition where it is constant within every experiment.
Conditions, doses and inputs may be further tables.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ampost.errors import TableError
from ampost.experiments import CENSORING, Channel, Experiments
from ampost.progress import tell
from ampost.reading.accounts import account, repeats
from ampost.reading.cells import is_missing, text
from ampost.reading.entries import Breakpoint, Dose, Entries, Key, same_units
from ampost.reading.further import KNOWN as KNOWN_FURTHER
from ampost.reading.further import Frame, conditions_of, doses_of, inputs_of
from ampost.reading.headings import Table, headed, named, refuse_doubles, refuse_unknown_keys
from ampost.reading.keys import LIKE_EXPERIMENT, Keyed, Names, keyed, keyed_like
from ampost.reading.layouts import KNOWN, NEEDED, PER_ROW, is_wide, layout, refuse_mixed, with_time
from ampost.reading.measurements import Limits, Measurements, measurements
from ampost.reading.records import record
from ampost.reading.sheets import Sheet, Source, sheet
from ampost.reading.times import Begin, Times, times_of

__all__ = ["Tables", "account", "names_of_experiments", "read_table", "to_tables"]

PARTS = {name: name for name in ("sd", "upper", "lowest", "highest")} | {"width": "interval_width"}


@dataclass(frozen=True)
class Tables:
    """A record as tables: measurements, and conditions, doses and inputs where there are any."""

    measurements: pd.DataFrame
    conditions: pd.DataFrame
    doses: pd.DataFrame
    inputs: pd.DataFrame


def read_table(
    source: Source,
    conditions: Source | None = None,
    doses: Source | None = None,
    inputs: Source | None = None,
    by: Names | None = None,
    say: bool | Callable[[str], object] = True,
    *,
    columns: Mapping[str, str | None] | None = None,
    observables: Sequence[str] | None = None,
    experiments: Names | None = None,
    limits: Limits | None = None,
    start: Begin | None = None,
) -> Experiments:
    """Read tables and say what was understood. Each is a CSV, .xlsx or .parquet file, or a DataFrame.

    Headers may have units: `time [h]`, `P (mM)`. `<0.05`, `>100`, `n.d.` and `BLQ` are censored values. Times
    by the clock become hours.

    Args:
        source: measurements; one per row, or one column per observable (`P sd`, `P limit` stand beside `P`).
        conditions: `[dataset,] experiment`, then one column per condition.
        doses: `[dataset,] experiment, time, amount[, duration], target[, unit]`.
        inputs: `[dataset,] experiment, input, time, value[, linear, unit]`.
        by: the columns whose values are data sets, in place of `dataset`.
        say: print the account, or hand it to this function.
        columns: their headers to our names, `{"Zeit": "time [min]", "well": "experiment"}`; None drops one.
        observables: of a wide table, the columns that hold measurements.
        experiments: the columns whose values are experiments, in place of `experiment`; [] for one alone.
        limits: limits of detection, `{"P": 0.05}` or `{"P": (0.05, 20.0)}`, which hold for all rows.
        start: where the hours begin, a time by the clock for all or by experiment, in place of the first row;
            or, where times are numbers, the time at which the experiments begin, in place of 0.

    Raises:
        TableError: what cannot be read, by file, row and column, with the nearest name of what is misspelt.
    """
    sheets = {"table": sheet(source, "the table")} | {
        name: sheet(other, f"the table of {name}")
        for name, other in (("conditions", conditions), ("doses", doses), ("inputs", inputs))
        if other is not None
    }
    refuse_unknown_keys(columns or {}, sheets.values())
    if not sheets["table"].rows:
        raise TableError(f"{sheets['table'].where} has no rows; expected one row per measurement")
    _warn_of_equal_rows(sheets["table"])
    table, said = _complete(with_time(named(sheets["table"], columns or {}, KNOWN)))
    rows = keyed(table, by, experiments)
    found, times, begin = _measured(rows, observables, limits, start, experiments)
    if not found.entries:
        raise TableError(f"{table.where} has no value in any row; expected at least one measurement")
    measured_keys = {m.key for m in found.entries}
    order = tuple(key for key in rows.order() if key in measured_keys)
    frame = Frame(order, by, experiments, times.unit, times.clock, begin or None)
    others = {
        name: named(other, columns or {}, KNOWN_FURTHER) for name, other in sheets.items() if name != "table"
    }
    entries = _entries(found, times, order, begin, frame, others)
    result = record(entries)
    empty = [key[1] for key in rows.order() if key not in measured_keys]
    said += [*rows.said, *times.said, *_unit_of_time_in_words(table, times, entries)]
    said += [*found.said, *([_left_out(empty)] if empty else [])]
    _tell(say, sheets["table"], table, said, found, result)
    return result


def names_of_experiments(source: Source, columns: Mapping[str, str | None] | None = None) -> list[str]:
    """The experiments that a table of conditions, doses or inputs names, in order.

    Raises:
        TableError: it has no column of experiments, or a row without one.
    """
    table = named(sheet(source, "the table"), columns or {}, KNOWN_FURTHER)
    return list(dict.fromkeys(key[1] for key in keyed_like(table, None, None, single=False).keys))


def _complete(table: Table) -> tuple[Table, list[str]]:
    """The table with the columns it needs and without rows that say nothing, and words about those."""
    if is_wide(table):
        needed: tuple[str, ...] = ("time",)
        table.need("time", ("time", "one column per observable, or observable, time, value"))
        held = [
            c for c in table.columns if c.name not in KNOWN.values() and c.name.lower() not in LIKE_EXPERIMENT
        ]
    else:
        needed = NEEDED
        for name in NEEDED:
            table.need(name, NEEDED)
        held = [table["value"]]
    refuse_doubles(table, {c.name for c in held} if is_wide(table) else ())
    names = [c for c in table.columns if c.name in (*needed, "dataset", "experiment") and c.name != "value"]
    idle = {
        i
        for i in range(len(table.rows))
        if all(is_missing(c.cells[i]) for c in held) and any(is_missing(c.cells[i]) for c in names)
    }
    said = [f"excluded, as they hold no value: {len(idle)} row(s)"] if idle else []
    return table.kept([i for i in range(len(table.rows)) if i not in idle]), said


def _measured(
    rows: Keyed,
    observables: Sequence[str] | None,
    limits: Limits | None,
    start: Begin | None,
    experiments: Names | None,
) -> tuple[Measurements, Times, float]:
    """The measurements, their times, and where the experiments begin."""
    table = rows.table
    wide = is_wide(table)
    of_rows = [""] * len(table.rows) if wide else table.words(table["observable"])
    groups = list(zip(rows.keys, of_rows, strict=True))
    replicates = table["replicate"].cells if "replicate" in table else [None] * len(groups)
    sequences = list(zip(groups, map(text, replicates), strict=True))
    times = times_of(table, rows.keys, sequences, _begin(table, start))
    plan = layout(table, rows.keys, observables)
    if not rows.named and experiments is None:
        refuse_mixed(table, groups, times.values)
    found = measurements(table, rows.keys, plan, times.values, limits)
    begin = _begin(table, start)
    said = (*plan.said, *found.said)
    found = Measurements(found.entries, found.channels, found.conditions, found.units, said)
    return found, times, float(begin) if isinstance(begin, (int, float)) else 0.0


def _begin(table: Table, start: Begin | None) -> Begin | None:
    """Where the experiments begin: the argument, or the column `ode_start` that `to_tables` writes."""
    if start is None and "ode_start" in table:
        return table.number(table["ode_start"], 0, required=True)
    return start


def _entries(
    found: Measurements,
    times: Times,
    order: tuple[Key, ...],
    begin: float,
    frame: Frame,
    others: Mapping[str, Table],
) -> Entries:
    conditions = {key: dict(found.conditions.get(key, {})) for key in order}
    units = same_units({"time": times.unit} if times.unit else {}, found.units)
    if "conditions" in others:
        more, more_units = conditions_of(others["conditions"], frame)
        conditions = {key: _joined(conditions[key], more[key], key) for key in order}
        units = same_units(units, more_units)
    doses: list[Dose] = []
    inputs: list[Breakpoint] = []
    if "doses" in others:
        doses, dose_units = doses_of(others["doses"], frame)
        units = same_units(units, dose_units)
    if "inputs" in others:
        inputs, input_units = inputs_of(others["inputs"], frame)
        units = same_units(units, input_units)
    return Entries(found.entries, order, found.channels, conditions, tuple(doses), tuple(inputs), units, begin)


def _joined(one: Mapping[str, float], other: Mapping[str, float], key: Key) -> dict[str, float]:
    for name in one.keys() & other.keys():
        if one[name] != other[name]:
            raise TableError(
                f"{name!r} of experiment {key[1]!r} is {one[name]:g} in the table and {other[name]:g} in the "
                f"conditions; keep one of them"
            )
    return {**one, **other}


def _warn_of_equal_rows(table: Sheet) -> None:
    first: dict[tuple[str, ...], int] = {}
    twice = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        if first.setdefault(tuple(map(repr, cells)), row) != row and not all(is_missing(c) for c in cells):
            twice.append(row)
    if twice:
        rows = ", ".join(str(row) for row in twice[:5])
        warnings.warn(
            f"{table.where}: rows equal in every column to an earlier one (rows {rows}); they are used as "
            f"replicates: remove them if they were entered twice",
            stacklevel=3,
        )


def _unit_of_time_in_words(table: Table, times: Times, entries: Entries) -> list[str]:
    """That the times of the measurements are taken to be in the unit that a further table gives."""
    unit = entries.units.get("time")
    if times.unit or not unit:
        return []
    return [f"{table.where} gives no unit of time; it is taken to be {unit}, as a further table says"]


def _left_out(empty: Sequence[str]) -> str:
    return f"left out, as they have no value: experiment(s) {', '.join(empty[:6])}"


def _tell(
    say: bool | Callable[[str], object],
    source: Sheet,
    table: Table,
    said: Sequence[str],
    found: Measurements,
    result: Experiments,
) -> None:
    if say is False:
        return
    layout_of = "one column per observable" if is_wide(table) else "one row per measurement"
    words = ", ".join(word for word in (layout_of, source.format) if word)
    lines = [f"{source.where}: {len(source.rows)} rows ({words}), {len(found.entries)} measurements used"]
    lines += [*table.notes, *said, *account(result).splitlines()]
    hand = tell if say is True else say
    hand("\n  ".join(dict.fromkeys(lines)))


# ----------------------------------------------------------------------------------- record -> tables


def to_tables(record: Experiments) -> Tables:
    """The record as tidy tables; `read_table` of them gives the record back. Replicates are numbered."""
    parts: dict[str, list[dict[str, Any]]] = {"measurements": [], "conditions": [], "doses": [], "inputs": []}
    constant, repeated = _constant(record), _repeated(record)
    for single in record.split():
        for name, rows in _rows(single, constant, repeated).items():
            parts[name] += rows
    return Tables(**{name: pd.DataFrame(rows) for name, rows in parts.items()})


def _rows(record: Experiments, constant: set[str], repeated: set[str]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {"measurements": [], "conditions": [], "doses": [], "inputs": []}
    for e in range(record.count):
        if not bool(record.live[e]):
            continue
        key = {"dataset": record.datasets[0], "experiment": record.names[0][e]}
        for name, channel in record.channels.items():
            numbers = _replicates(record, channel, e) if name in repeated else {}
            for t in channel.mask[e].nonzero()[:, 0].tolist():
                row = _measurement(record, channel, e, t, constant) | numbers.get(t, {})
                out["measurements"].append({**key, "observable": name, **row, **_unit_of(record, name)})
        if record.conditions:
            own = {_header(record, k): float(v[e, 0]) for k, v in record.conditions.items()}
            out["conditions"].append({**key, **own})
        out["doses"] += [{**key, **row} for row in _dose_rows(record, e)]
        out["inputs"] += [{**key, **row} for row in _input_rows(record, e)]
    return out


def _dose_rows(record: Experiments, e: int) -> list[dict[str, Any]]:
    doses = record.doses
    return [
        {
            _header(record, "time"): float(doses.time[e, n]),
            "amount": float(doses.amount[e, n]),
            "duration": float(doses.duration[e, n]),
            "target": (target := doses.targets[int(doses.target[e, n])]),
            **_unit_of(record, f"dose {target}"),
        }
        for n in doses.mask[e].nonzero()[:, 0].tolist()
    ]


def _input_rows(record: Experiments, e: int) -> list[dict[str, Any]]:
    return [
        {
            "input": name,
            _header(record, "time"): float(signal.time[e, k]),
            "value": float(signal.value[e, k]),
            "linear": signal.linear,
            **_unit_of(record, name),
        }
        for name, signal in record.inputs.items()
        for k in signal.mask[e].nonzero()[:, 0].tolist()
    ]


def _measurement(record: Experiments, channel: Channel, e: int, t: int, constant: set[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        _header(record, "time"): float(record.times[e, t]),
        "value": math.nan if channel.values is None else float(channel.values[e, t]),
        "after_dose": bool(record.after_dose[e, t]),
    }
    for name, header in PARTS.items():
        held = getattr(channel, name)
        if held is not None:
            row[header] = float(held[e, t])
    if channel.replicate is not None:
        row["replicate"] = int(channel.replicate[e, t])
    if channel.censoring is not None:
        row["censoring"] = CENSORING[int(channel.censoring[e, t])]
    if record.start:
        row["ode_start"] = record.start
    for name, column in channel.columns.items():
        header = _header(record, name)
        row[f"{PER_ROW} {header}" if name in constant else header] = float(column[e, t])
    return row


def _constant(record: Experiments) -> set[str]:
    """Covariates that never change within an experiment, so that a reader would take them for conditions."""
    values: dict[str, dict[tuple[str, str], set[float]]] = {}
    for single in record.split():
        for channel in single.channels.values():
            for name, column in channel.columns.items():
                for e in channel.mask.any(-1).nonzero()[:, 0].tolist():
                    key = (single.datasets[0], single.names[0][e])
                    held = values.setdefault(name, {}).setdefault(key, set())
                    held.update(column[e][channel.mask[e]].tolist())
    return {name for name, held in values.items() if all(len(told) == 1 for told in held.values())}


def _repeated(record: Experiments) -> set[str]:
    """Channels with replicates that have no number."""
    return {
        name
        for single in record.split()
        for name, channel in single.channels.items()
        if channel.replicate is None and repeats(single.times, single.after_dose, channel.mask)
    }


def _replicates(record: Experiments, channel: Channel, e: int) -> dict[int, dict[str, int]]:
    """The number of each measurement of an experiment among those at its time, by its place."""
    seen: Counter[tuple[float, bool]] = Counter()
    found = {}
    for t in channel.mask[e].nonzero()[:, 0].tolist():
        moment = (float(record.times[e, t]), bool(record.after_dose[e, t]))
        seen[moment] += 1
        found[t] = {"replicate": seen[moment]}
    return found


def _header(record: Experiments, name: str) -> str:
    return headed(name, record.units.get(name))


def _unit_of(record: Experiments, name: str) -> dict[str, str]:
    return {"unit": record.units[name]} if name in record.units else {}
