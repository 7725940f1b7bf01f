"""Two posteriors of one data set side by side, as rows of a table."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from targets import Target

from ampost import Model


@dataclass(frozen=True)
class Agreement:
    """One positive parameter: mean and sd by both, the difference of means in NUTS sds, and the ratio of sds.

    `log_off` and `log_ratio` are the same of its logarithm. A rate that hardly any measurement holds from
    above has a kurtosis of 50 and more: then thousands of draws leave 5 to 10 % of error in its sd, and that
    of the logarithm is the one to compare.
    """

    case: str
    parameter: str
    mean: float
    sd: float
    nuts_mean: float
    nuts_sd: float
    off: float
    ratio: float
    log_off: float
    log_ratio: float
    computation: str


def agreements(case: str, model: Model, mine: xr.DataTree, theirs: xr.DataTree) -> list[Agreement]:
    """One row per latent parameter of `mine` against NUTS's `theirs`; what follows from them is left out."""
    computation = str(mine["fit/computation"].item())
    rows = []
    for site in model.sites():
        ours, nuts = (_draws(result, site.name) for result in (mine, theirs))
        for k in range(ours.shape[1]):
            label = site.name if ours.shape[1] == 1 else f"{site.name}[{k}]"
            plain = (ours[:, k].mean(), ours[:, k].std(), nuts[:, k].mean(), nuts[:, k].std())
            numbers = (*plain, *_apart(ours[:, k], nuts[:, k]), *_apart(np.log(ours[:, k]), np.log(nuts[:, k])))
            rows.append(Agreement(case, label, *(float(number) for number in numbers), computation))
    return rows


def _draws(result: xr.DataTree, name: str) -> NDArray[np.float64]:
    """All chains' draws of a parameter (draw, entry)."""
    drawn = np.asarray(result[f"posterior/{name}"], dtype=np.float64)
    return drawn.reshape(drawn.shape[0] * drawn.shape[1], -1)


def _apart(ours: NDArray[np.float64], nuts: NDArray[np.float64]) -> tuple[float, float]:
    """Difference of the means in sds of `nuts`, and ratio of the sds."""
    return float((ours.mean() - nuts.mean()) / nuts.std()), float(ours.std() / nuts.std())


def targets_of(what: str, rows: list[Agreement]) -> list[Target]:
    """The largest differences, against what is asked for."""
    means = max(abs(row.off) for row in rows)
    logs = max(abs(row.log_off) for row in rows)
    wide = max(abs(row.ratio - 1) for row in rows)
    log_wide = max(abs(row.log_ratio - 1) for row in rows)
    return [
        Target(f"{what}: largest difference of a mean, NUTS sds", means, most=0.1),
        Target(f"{what}: the same of logarithms", logs, most=0.1),
        Target(f"{what}: largest relative difference of an sd", wide, most=0.1),
        Target(f"{what}: the same of logarithms", log_wide, most=0.1),
    ]


def print_and_write(rows: list[Agreement], path: Path | None) -> None:
    """The rows as a table, and as CSV where a path is given."""
    names = [f.name for f in fields(Agreement)]
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) else v for v in asdict(row).values()]
        print("| " + " | ".join(cells) + " |")
    if path is not None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
