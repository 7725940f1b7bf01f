"""A result as files: table, verdict, draws and pictures in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import xarray as xr

from ampost import files, plots
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.results import summary, values


def write(result: xr.DataTree, model: Model, data: Experiments, folder: str | Path) -> list[Path]:
    """Write `posterior.nc`, `summary.csv`, `verdict.json` and pictures; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {str(n): values(result, "fit", n) for n in result["fit"].data_vars}
    single = {name: entry.item() for name, entry in entries.items() if entry.ndim == 0}
    # JSON has no NaN: what is not known is null
    verdict = {name: None if value != value else value for name, value in single.items()}
    files.write_text(folder / "verdict.json", json.dumps(verdict, indent=2))
    files.write_text(folder / "summary.csv", summary(result).to_csv(index_label="parameter"))
    with files.replacing(folder / "posterior.nc") as temporary:
        result.to_netcdf(temporary, engine="h5netcdf")
    for name, figure in (
        ("predictive.png", plots.predictive(result, data, dict(model.units))),
        ("pairs.png", plots.pairs(result)),
    ):
        with files.replacing(folder / name) as temporary:
            plots.save(figure, str(temporary))
    names = ("summary.csv", "verdict.json", "posterior.nc", "predictive.png", "pairs.png")
    return [folder / name for name in names]
