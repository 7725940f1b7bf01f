"""Results as files: tables, verdict, draws and pictures in a folder."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ampost import files, plots
from ampost.comparison import Comparison
from ampost.errors import FileError, ModelError
from ampost.experiments import Experiments
from ampost.model import Model, Simulation
from ampost.plots.bands import units_of
from ampost.plots.panels import labelled
from ampost.plots.seen import seen
from ampost.results import by_label, summary, values
from ampost.tables import read_table, to_tables
from ampost.units import converted

FURTHER = ("conditions", "doses", "inputs")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def write(result: xr.DataTree, model: Model, data: Experiments, folder: str | Path) -> list[Path]:
    """Write `posterior.nc`, `summary.csv`, `verdict.json` and pictures; returns their paths."""
    folder = opened(folder)
    entries = {str(n): values(result, "fit", n) for n in result["fit"].data_vars}
    single = {name: entry.item() for name, entry in entries.items() if entry.ndim == 0}
    verdict = {name: _plain(value) for name, value in single.items()}
    files.write_text(folder / "verdict.json", json.dumps(verdict, indent=2, allow_nan=False) + "\n")
    files.write_text(folder / "summary.csv", summary(result).to_csv(index_label="parameter"))
    _netcdf(result, folder / "posterior.nc")
    picture(plots.predictive(result, data, dict(model.units)), folder / "predictive.png")
    picture(plots.pairs(result), folder / "pairs.png")
    names = ("summary.csv", "verdict.json", "posterior.nc", "predictive.png", "pairs.png")
    return [folder / name for name in names]


def _plain(value: object) -> object:
    """A value that JSON can hold: it has no NaN and no infinity, so what is not a number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_predictions(folder: Path) -> list[Path]:
    """Remove the predictions of an earlier posterior from a folder; returns what was there."""
    found = [folder / f"predictions.{kind}" for kind in ("nc", "csv", "png")]
    found = [path for path in found if path.is_file()]
    for path in found:
        path.unlink()
    return found


def write_summaries(results: Mapping[str, xr.DataTree], folder: Path) -> Path:
    """Write the summaries of several data sets, by name, as one table."""
    parts = []
    for k, (name, result) in enumerate(results.items()):
        table = summary(result).assign(dataset=name).reset_index(names="parameter").set_index("dataset")
        parts.append(table.to_csv(header=k == 0))
    files.write_text(folder / "summaries.csv", "".join(parts))
    return folder / "summaries.csv"


def read(path: str | Path) -> xr.DataTree:
    """The result that `write` put into `posterior.nc`.

    Raises:
        FileError: no such file, or not a result of ampost.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no file {str(path)!r}; give the posterior.nc that ampost infer wrote")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as stored:
            result = stored.load()
    except (OSError, ValueError) as error:
        raise FileError(f"{str(path)!r} cannot be read as NetCDF ({error}); run ampost infer again") from error
    if "posterior" not in result.children:
        raise FileError(f"{str(path)!r} holds no posterior; give the posterior.nc that ampost infer wrote")
    return result


def write_prediction(
    predicted: xr.DataTree, data: Experiments | None, folder: str | Path, name: str = "predictions"
) -> list[Path]:
    """Write predictions as NetCDF, as a table of quantiles and as a picture; returns their paths."""
    folder = opened(folder)
    _netcdf(predicted, folder / f"{name}.nc")
    files.write_text(folder / f"{name}.csv", _text(_quantiles(predicted)))
    picture(plots.prediction(predicted, data), folder / f"{name}.png")
    return [folder / f"{name}{suffix}" for suffix in (".nc", ".csv", ".png")]


def write_simulation(simulation: Simulation, model: Model, folder: str | Path) -> list[Path]:
    """Write simulated data sets as tidy tables with the true parameters and a picture.

    Raises:
        ModelError: every simulation failed; single ones are left out with a warning.
    """
    count, lost = len(simulation.failed), int(simulation.failed.sum())
    first = f"; the first: {simulation.failures[0]}" if simulation.failures else ""
    if lost == count:
        raise ModelError(f"all {count} simulations failed{first}")
    if lost:
        warnings.warn(f"{lost} of {count} simulations failed and are left out{first}", stacklevel=2)
    kept = (~simulation.failed).nonzero()[:, 0]
    record = simulation.experiments.at(kept)
    ids = tuple(str(k + 1) for k in kept.tolist())
    record = replace(record, datasets=ids, names=record.names[:1] * len(ids), units={})
    record = converted(record, model.units)  # which it is in: this names the units
    truth = [
        {"dataset": label, **by_label({name: value[k] for name, value in simulation.parameters.items()})}
        for label, k in zip(ids, kept.tolist(), strict=True)
    ]
    folder = opened(folder)
    files.write_text(folder / "parameters.csv", _text([list(truth[0]), *(list(row.values()) for row in truth)]))
    shown = picture(seen(record), folder / "simulated.png")
    return [*_tables(record, folder), folder / "parameters.csv", shown]


def write_comparison(told: Comparison, folder: str | Path) -> list[Path]:
    """Write a comparison as two tables and pictures; returns their paths."""
    folder = opened(folder)
    files.write_text(folder / "methods.csv", told.results.to_dataframe().to_csv())
    files.write_text(folder / "parameters.csv", told.parameters.to_dataframe().to_csv())
    written = [
        folder / "methods.csv",
        folder / "parameters.csv",
        picture(plots.comparison(told.answers), folder / "marginals.png"),
    ]
    if "fit" in told.answers:
        written.append(picture(plots.waterfall(told.answers["fit"]), folder / "waterfall.png"))
    return written


def write_data(data: Experiments, folder: str | Path) -> list[Path]:
    """Write the data as they were understood into `folder`/data, as tidy tables that `read_table` reads."""
    return _tables(data, opened(Path(folder) / "data"))


def data_of(result: str | Path) -> tuple[Experiments, Experiments]:
    """The data beside a written result: all data sets, and the one that the result is of.

    Raises:
        FileError: the folder data is neither beside the result nor one further up.
    """
    near = Path(result).resolve().parent
    found = next((d for d in (near / "data", near.parent / "data") if (d / "measurements.csv").is_file()), None)
    if found is None:
        raise FileError(
            f"beside {str(result)!r} there is no folder data with what it was fitted to, which ampost infer "
            f"writes; move both together, or run it again"
        )
    further = [path if (path := found / f"{n}.csv").is_file() else None for n in FURTHER]
    conditions, doses, inputs = further
    data = read_table(found / "measurements.csv", conditions, doses, inputs, say=False)
    parts = folders(data)
    return data, parts[""] if "" in parts else parts[near.name]


def folders(data: Experiments) -> dict[str, Experiments]:
    """Each data set under the name of its folder, which is empty where there is only one."""
    records = data.split()
    if len(records) == 1:
        return {"": records[0]}
    names = [re.sub(r"[^\w.-]+", "_", record.datasets[0]).strip(".") or "_" for record in records]
    return {
        f"{name}_{k + 1}" if names.count(name) > 1 else name: record
        for k, (name, record) in enumerate(zip(names, records, strict=True))
    }


def _tables(record: Experiments, folder: Path) -> list[Path]:
    """Write a record as tidy tables; those that are empty are left out."""
    written = []
    for name, frame in vars(to_tables(record)).items():
        path = folder / f"{name}.csv"
        if len(frame):
            files.write_text(path, frame.to_csv(index=False))
            written.append(path)
        else:
            path.unlink(missing_ok=True)  # of an earlier call
    return written


@contextmanager
def set_aside(path: Path) -> Iterator[None]:
    """Room for a new file at `path`; what was there comes back if none is written."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        path.replace(old)
    try:
        yield
    finally:
        if path.exists():
            old.unlink(missing_ok=True)
        elif old.exists():
            old.replace(path)


def picture(figure: Figure, path: Path) -> Path:
    """Write a picture as PNG, in a folder that is made if it is not there."""
    opened(path.parent)
    with files.replacing(path) as temporary:
        plots.save(figure, str(temporary))
    return path


def opened(folder: str | Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        FileError: something else has its name, or it may not be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"the folder {str(folder)!r} cannot be made ({error.strerror}); choose another"
        ) from error
    return folder


def _netcdf(tree: xr.DataTree, path: Path) -> None:
    with files.replacing(path) as temporary:
        tree.to_netcdf(temporary, engine="h5netcdf")


def _quantiles(predicted: xr.DataTree) -> list[list[object]]:
    """Rows of experiment, observable, time, then quantiles with and without measurement noise, and their unit.

    The header of the times has their unit, as in `time [h]`; without any unit there is no column of units.
    """
    noisy, bare = (predicted[group].to_dataset() for group in ("predictions", "predictions_noiseless"))
    units = units_of(predicted, "predictions_noiseless")
    known = any(name in units for name in map(str, bare.data_vars))
    head: list[object] = ["experiment", "observable", labelled("time", units)]
    head += [f"{100 * q:g} %" for q in QUANTILES] + [f"{100 * q:g} % without noise" for q in QUANTILES]
    rows = [[*head, "unit"] if known else head]
    for name in map(str, bare.data_vars):
        told = [np.nanquantile(np.asarray(t[name]), QUANTILES, axis=(0, 1)) for t in (noisy, bare)]
        unit = [units.get(name, "")] if known else []
        for e, experiment in enumerate(bare["experiment"].to_numpy().tolist()):
            for t, moment in enumerate(np.asarray(bare["times"])[e].tolist()):
                numbers = [float(f"{v:.6g}") for part in told for v in part[:, e, t]]
                rows.append([experiment, name, moment, *numbers, *unit])
    return rows


def _text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
