"""Tidy tables <-> Experiments: the one door to pandas.

One row per measurement: `dataset, experiment, observable, time, value`, plus optional `replicate,
sd, censoring, upper, unit, after_dose`; any further numeric column is a covariate, and a condition
where it is constant within every experiment. Conditions, doses and inputs may be further tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ampost.errors import TableError
from ampost.experiments import CENSORING, Channel, Doses, Experiments, Input, Signals, no_doses
from ampost.progress import tell
from ampost.stacking import stack

REQUIRED = ("observable", "time", "value")
OPTIONAL = ("replicate", "sd", "censoring", "upper", "unit", "after_dose")


@dataclass(frozen=True)
class Tables:
    """A record as tables: measurements, and conditions, doses and inputs where there are any."""

    measurements: pd.DataFrame
    conditions: pd.DataFrame
    doses: pd.DataFrame
    inputs: pd.DataFrame


def read_table(
    source: str | Path | pd.DataFrame,
    conditions: str | Path | pd.DataFrame | None = None,
    doses: str | Path | pd.DataFrame | None = None,
    inputs: str | Path | pd.DataFrame | None = None,
    by: str | None = None,
    say: bool = True,
) -> Experiments:
    """Read a tidy table (CSV or DataFrame) and say what was understood.

    Args:
        source: measurements, one per row.
        conditions: `[dataset,] experiment`, then one column per condition.
        doses: `[dataset,] experiment, time, amount[, duration], target`.
        inputs: `[dataset,] experiment, input, time, value[, linear]`.
        by: the column whose values are data sets, in place of `dataset`.
        say: print the account.

    Raises:
        TableError: a missing column, a value that is no number, a negative time, an empty table.
    """
    table, where = _frame(source, "the table")
    if by is not None:
        if by not in table:
            raise TableError(f"{where} has no column {by!r} for by=; it has {', '.join(table.columns)}")
        table = table.assign(dataset=table[by]).drop(columns=[by])
    if not len(table):
        raise TableError(f"{where} has no rows; expected one row per measurement")
    for name in REQUIRED:
        if name not in table:
            raise TableError(
                f"{where} has no column {name!r}; it has {', '.join(map(str, table.columns))}; "
                f"expected {', '.join(REQUIRED)}"
            )
    table = _defaults(table, where)
    for name in ("time", "value", "sd", "upper", "replicate"):
        if name in table:
            table[name] = _numbers(table, name, where, required=name in {"time", "value"})
    if "after_dose" in table:
        table["after_dose"] = _flags(table, "after_dose", where)
    _no_less(table, "time", where, "count time from the start of the experiment")
    if "sd" in table and bool((table["sd"] <= 0).any()):
        row = table.index[table["sd"] <= 0][0]
        raise TableError(
            f"{where}, row {row + 2}: sd is {table['sd'][row]:g}, expected above 0; correct it, or leave "
            f"the column out if it is unknown"
        )
    twice = table.duplicated(keep="first")
    if bool(twice.any()):
        rows = ", ".join(str(i + 2) for i in table.index[twice][:5])
        warnings.warn(
            f"{where}: rows equal in every column to an earlier one (rows {rows}); they are used as "
            f"replicates: remove them if they were entered twice",
            stacklevel=2,
        )
    further = {
        name: _further(frame, name)
        for name, frame in (("conditions", conditions), ("doses", doses), ("inputs", inputs))
        if frame is not None
    }
    for name, frame in further.items():
        _known_experiments(frame, table, name)
    constant = _constant(table, say)
    records = [_record(str(k), part, further, constant) for k, part in table.groupby("dataset", sort=False)]
    record = stack(records) if len(records) > 1 else records[0]
    if say:
        tell(account(record, len(table), where))
    return record


def account(record: Experiments, rows: int, where: str) -> str:
    """What a record holds, in words."""
    names = ", ".join(record.channels)
    used = sum(int(c.mask.sum()) for c in record.channels.values())
    lines = [
        f"{where}: {rows} rows, {used} measurements of {names} in {int(record.live.sum())} "
        f"experiment(s) of {len(record.datasets)} data set(s)"
    ]
    if record.conditions:
        lines.append(f"  conditions: {', '.join(record.conditions)}")
    if record.doses.any:
        lines.append(f"  doses: {int(record.doses.mask.sum())} into {', '.join(record.doses.targets)}")
    return "\n".join(lines)


def to_tables(record: Experiments) -> Tables:
    """The record as tidy tables; `read_table` of them gives the record back."""
    parts: dict[str, list[dict[str, Any]]] = {
        "measurements": [],
        "conditions": [],
        "doses": [],
        "inputs": [],
    }
    for single in record.split():
        for name, rows in _rows(single).items():
            parts[name] += rows
    return Tables(**{name: pd.DataFrame(rows) for name, rows in parts.items()})


def _rows(record: Experiments) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {
        "measurements": [],
        "conditions": [],
        "doses": [],
        "inputs": [],
    }
    doses = record.doses
    for e in range(record.count):
        if not bool(record.live[e]):
            continue
        key = {"dataset": record.datasets[0], "experiment": record.names[0][e]}
        for name, channel in record.channels.items():
            for t in channel.mask[e].nonzero()[:, 0].tolist():
                out["measurements"].append({**key, "observable": name, **_measurement(record, channel, e, t)})
        if record.conditions:
            out["conditions"].append({**key, **{k: float(v[e, 0]) for k, v in record.conditions.items()}})
        out["doses"] += [
            {
                **key,
                "time": float(doses.time[e, n]),
                "amount": float(doses.amount[e, n]),
                "duration": float(doses.duration[e, n]),
                "target": doses.targets[int(doses.target[e, n])],
            }
            for n in doses.mask[e].nonzero()[:, 0].tolist()
        ]
        for name, signal in record.inputs.items():
            out["inputs"] += [
                {
                    **key,
                    "input": name,
                    "time": float(signal.time[e, k]),
                    "value": float(signal.value[e, k]),
                    "linear": signal.linear,
                }
                for k in signal.mask[e].nonzero()[:, 0].tolist()
            ]
    return out


def _measurement(record: Experiments, channel: Channel, e: int, t: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "time": float(record.times[e, t]),
        "value": float("nan") if channel.values is None else float(channel.values[e, t]),
        "after_dose": bool(record.after_dose[e, t]),
    }
    for name in ("sd", "upper"):
        held = getattr(channel, name)
        if held is not None:
            row[name] = float(held[e, t])
    if channel.replicate is not None:
        row["replicate"] = int(channel.replicate[e, t])
    if channel.censoring is not None:
        row["censoring"] = CENSORING[int(channel.censoring[e, t])]
    row.update({name: float(column[e, t]) for name, column in channel.columns.items()})
    return row


def _frame(source: str | Path | pd.DataFrame, what: str) -> tuple[pd.DataFrame, str]:
    if isinstance(source, pd.DataFrame):
        return source.reset_index(drop=True), what
    if not isinstance(source, (str, Path)):
        raise TableError(
            f"{what} is of type {type(source).__name__}, expected a DataFrame or the path of a CSV file"
        )
    path = Path(source)
    if not path.is_file():
        raise TableError(f"there is no file {str(path)!r}; give the path of a CSV file")
    try:
        return pd.read_csv(path, skipinitialspace=True), path.name
    except pd.errors.EmptyDataError as error:
        raise TableError(f"{path.name} is empty; expected a header and one row per measurement") from error


def _defaults(table: pd.DataFrame, where: str) -> pd.DataFrame:
    table = table.copy()
    for name in ("dataset", "experiment", "observable"):
        if name not in table:
            table[name] = "1"
        table[name] = _names(table, name, where)
    return table


def _names(table: pd.DataFrame, name: str, where: str) -> pd.Series[str]:
    missing = table.index[table[name].isna()]
    if len(missing):
        raise TableError(f"{where}, row {missing[0] + 2}: {name} is empty, expected a name; fill it in")
    return table[name].astype(str)


def _flags(table: pd.DataFrame, name: str, where: str) -> pd.Series[bool]:
    """A column as true or false; empty is false."""
    words = table[name].astype(object).where(table[name].notna(), "false").astype(str).str.strip().str.lower()
    flags = words.map({"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False})
    bad = table.index[flags.isna()]
    if len(bad):
        word = str(table[name][bad[0]])
        raise TableError(f"{where}, row {bad[0] + 2}: {name} is {word!r}, expected true or false")
    return flags.astype(bool)


def _no_less(table: pd.DataFrame, name: str, where: str, fix: str) -> None:
    early = table.index[table[name] < 0]
    if len(early):
        raise TableError(
            f"{where}, row {early[0] + 2}: {name} is {table[name][early[0]]:g}, expected 0 or later; {fix}"
        )


def _known_experiments(frame: pd.DataFrame, table: pd.DataFrame, name: str) -> None:
    """Refuse conditions, doses or inputs of an experiment without measurements, most likely misspelt."""
    keys = ["dataset", "experiment"] if "dataset" in frame else ["experiment"]
    known = set(table[keys].itertuples(index=False, name=None))
    for key in frame[keys].itertuples(index=False, name=None):
        if key not in known:
            have = ", ".join(dict.fromkeys(table["experiment"]))
            raise TableError(
                f"the {name} name experiment {key[-1]!r}, which has no measurements; the table has "
                f"experiments {have}: correct the name or leave the row out"
            )


def _numbers(table: pd.DataFrame, name: str, where: str, required: bool) -> pd.Series[float]:
    numbers = pd.to_numeric(table[name], errors="coerce").astype(float)
    bad = numbers.isna() if required else numbers.isna() & table[name].notna()
    bad = bad | np.isinf(numbers)
    if bool(bad.any()):
        row = table.index[bad][0]
        hint = " (below a limit: the limit, and 'left' as censoring)" if name == "value" else ""
        raise TableError(
            f"{where}, row {row + 2}: {name} is {str(table[name][row])!r}, expected a number; "
            f"correct it, or leave the row out if nothing was measured{hint}"
        )
    return numbers


def _further(source: str | Path | pd.DataFrame, name: str) -> pd.DataFrame:
    frame, where = _frame(source, f"the table of {name}")
    needed = {
        "conditions": ("experiment",),
        "doses": ("experiment", "time", "amount", "target"),
        "inputs": ("experiment", "input", "time", "value"),
    }[name]
    for column in needed:
        if column not in frame:
            have = ", ".join(map(str, frame.columns))
            raise TableError(f"{where} has no column {column!r}; it has {have}; expected {', '.join(needed)}")
    optional = {"doses": ("dataset", "duration"), "inputs": ("dataset", "linear")}.get(name)
    for column in frame.columns:
        if optional is not None and column not in (*needed, *optional):
            raise TableError(
                f"{where} has the unknown column {column!r}; expected {', '.join(needed)} and perhaps "
                f"{', '.join(optional)}: rename it or leave it out"
            )
    frame = frame.copy()
    text = {"dataset", "experiment", *{"target", "input"}.intersection(needed)}
    for column in [str(c) for c in frame.columns]:
        if name == "inputs" and column == "linear":
            frame[column] = _flags(frame, column, where)
        elif column in text:
            frame[column] = _names(frame, column, where)
        else:
            frame[column] = _numbers(frame, column, where, required=True)
    for column in [c for c in ("time", "duration") if c in frame]:
        _no_less(frame, column, where, "count from the start of the experiment")
    return frame


def _record(
    dataset: str, table: pd.DataFrame, further: Mapping[str, pd.DataFrame], constant: list[str]
) -> Experiments:
    names = list(dict.fromkeys(table["experiment"]))
    conditions = {
        name: torch.tensor(
            [[float(table.loc[table["experiment"] == e, name].iloc[0])] for e in names],
            dtype=torch.float64,
        )
        for name in constant
    }
    per_row = [name for name in _covariates(table) if name not in conditions]
    mine = {
        name: frame[frame["dataset"] == dataset] if "dataset" in frame else frame
        for name, frame in further.items()
    }
    if "conditions" in mine:
        conditions |= _conditions(mine["conditions"], names, dataset)
    grid, slots = _grid(table, names)
    shape = grid.shape
    after = torch.zeros(shape, dtype=torch.bool)
    channels = {}
    for channel, part in table.groupby("observable", sort=False):
        channels[str(channel)] = _channel(part, slots, shape, per_row)
    if "after_dose" in table:
        for row, flag in table["after_dose"].items():
            after[slots[row]] = bool(flag) if not pd.isna(flag) else False
    return Experiments(
        times=grid,
        channels=channels,
        conditions=conditions,
        doses=_doses(mine["doses"], names) if "doses" in mine else no_doses(len(names)),
        inputs=_inputs(mine["inputs"], names) if "inputs" in mine else Signals(),
        live=torch.ones(len(names), dtype=torch.bool),
        after_dose=after,
        names=(tuple(names),),
        datasets=(dataset,),
    )


def _covariates(table: pd.DataFrame, say: bool = False) -> list[str]:
    known = {*REQUIRED, *OPTIONAL, "dataset", "experiment"}
    found = []
    for name in [c for c in table.columns if c not in known]:
        if pd.api.types.is_numeric_dtype(table[name]):
            found.append(str(name))
        elif say:
            tell(f"column {name!r} holds text and is left aside")
    return found


def _constant(table: pd.DataFrame, say: bool) -> list[str]:
    """Covariates that have one value in every experiment of every data set: its conditions."""
    groups = table.groupby(["dataset", "experiment"], sort=False)
    return [
        name
        for name in _covariates(table, say)
        if bool(table[name].notna().all())
        and bool((groups[name].nunique() == 1).all())
        and (len(groups) > 1 or len(table) > 1)
    ]


def _grid(table: pd.DataFrame, names: list[str]) -> tuple[Tensor, dict[Any, tuple[int, int]]]:
    """The union of the channels' times, and the slot (experiment, time) of each table row."""
    keys: list[list[tuple[float, bool, int]]] = []
    place: list[tuple[Any, int, tuple[float, bool, int]]] = []
    for e, name in enumerate(names):
        part = table[table["experiment"] == name]
        seen: dict[tuple[str, float, bool], int] = {}
        here: set[tuple[float, bool, int]] = set()
        for row, item in part.iterrows():
            flag = item.get("after_dose", False)
            time, after = float(item["time"]), bool(flag) if not pd.isna(flag) else False
            repeat = seen.get((item["observable"], time, after), 0)
            seen[(item["observable"], time, after)] = repeat + 1
            here.add((time, after, repeat))
            place.append((row, e, (time, after, repeat)))
        keys.append(sorted(here))
    width = max(len(k) for k in keys)
    grid = torch.tensor([[k[0] for k in row] + [row[-1][0]] * (width - len(row)) for row in keys])
    index = [{key: t for t, key in enumerate(row)} for row in keys]
    return grid.double(), {row: (e, index[e][key]) for row, e, key in place}


def _channel(
    part: pd.DataFrame, slots: Mapping[Any, tuple[int, int]], shape: torch.Size, per_row: list[str]
) -> Channel:
    mask = torch.zeros(shape, dtype=torch.bool)
    for row in part.index:
        mask[slots[row]] = True

    def filled(name: str) -> Tensor:
        out = torch.zeros(shape, dtype=torch.float64)
        for row, value in part[name].items():
            out[slots[row]] = float(str(value))
        return out

    def has(name: str) -> bool:
        return name in part and bool(part[name].notna().any())

    for name in ("sd", "replicate"):
        if has(name) and bool(part[name].isna().any()):
            row = part.index[part[name].isna()][0]
            raise TableError(
                f"row {row + 2}: {name} is empty, but other rows of {part['observable'][row]!r} have one; "
                f"fill it in, or leave it out in all of them"
            )
    censoring = None
    if has("censoring"):
        censoring = torch.zeros(shape, dtype=torch.long)
        for row, word in zip(part.index.tolist(), part["censoring"].fillna("none"), strict=True):
            if word not in CENSORING:
                raise TableError(
                    f"row {row + 2}: censoring is {word!r}, expected one of {', '.join(CENSORING)}"
                )
            if word == "interval" and ("upper" not in part or bool(part["upper"].isna()[row])):
                raise TableError(
                    f"row {row + 2}: censoring is 'interval', but upper is empty; value and upper "
                    f"are the ends of the interval"
                )
            censoring[slots[row]] = CENSORING.index(word)
    return Channel(
        mask=mask,
        values=filled("value"),
        sd=filled("sd") if has("sd") else None,
        censoring=censoring,
        upper=filled("upper") if has("upper") else None,
        replicate=filled("replicate").long() if has("replicate") else None,
        columns={name: filled(name) for name in per_row},
    )


def _conditions(frame: pd.DataFrame, names: list[str], dataset: str) -> dict[str, Tensor]:
    indexed = frame.set_index("experiment")
    for name in names:
        rows = int((frame["experiment"] == name).sum())
        if rows != 1:
            fix = "add its row" if not rows else "keep one row of conditions per experiment"
            raise TableError(
                f"the conditions have {rows} rows for experiment {name!r} of data set {dataset!r}, expected "
                f"one; {fix}"
            )
    columns = [c for c in indexed.columns if c != "dataset"]
    return {
        str(c): torch.tensor([[float(str(indexed.loc[n, c]))] for n in names], dtype=torch.float64)
        for c in columns
    }


def _doses(frame: pd.DataFrame, names: list[str]) -> Doses:
    targets = tuple(dict.fromkeys(frame["target"].astype(str)))
    parts = [frame[frame["experiment"] == n].sort_values("time", kind="stable") for n in names]
    width = max(len(p) for p in parts)

    def column(name: str) -> Tensor:
        out = torch.zeros(len(names), width, dtype=torch.float64)
        for e, part in enumerate(parts):
            if name in part:
                out[e, : len(part)] = torch.tensor(part[name].to_numpy(dtype=float))
        return out

    target = torch.zeros(len(names), width, dtype=torch.long)
    mask = torch.zeros(len(names), width, dtype=torch.bool)
    for e, part in enumerate(parts):
        mask[e, : len(part)] = True
        for n, word in enumerate(part["target"].astype(str)):
            target[e, n] = targets.index(word)
    return Doses(column("time"), column("amount"), column("duration"), target, mask, targets)


def _inputs(frame: pd.DataFrame, names: list[str]) -> dict[str, Input]:
    out = {}
    for signal, rows in frame.groupby("input", sort=False):
        parts = [rows[rows["experiment"] == n].sort_values("time", kind="stable") for n in names]
        width = max(len(p) for p in parts)
        time, value = torch.zeros(2, len(names), width, dtype=torch.float64)
        mask = torch.zeros(len(names), width, dtype=torch.bool)
        for e, part in enumerate(parts):
            time[e, : len(part)] = torch.tensor(part["time"].to_numpy(dtype=float))
            value[e, : len(part)] = torch.tensor(part["value"].to_numpy(dtype=float))
            mask[e, : len(part)] = True
        linear = bool(rows["linear"].iloc[0]) if "linear" in rows else False
        out[str(signal)] = Input(time, value, mask, linear)
    return out
