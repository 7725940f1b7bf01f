"""Calibration: ranks against their band, and coverage of intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ampost.calibration import GRID, band
from ampost.plots.panels import COLOURS, Picture
from ampost.results import values


def calibration(tree: xr.DataTree) -> Figure:
    """A calibration: ECDF of the PIT less uniform with its simultaneous 95 % band, and coverage."""
    names = [str(n) for n in tree["prior_sbc"].data_vars]
    pit = {n: np.sort(values(tree, "prior_sbc", n).ravel()) for n in names}
    count = len(pit[names[0]])
    figure = Picture(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = band(count, 0.05 / len(names))
    left.fill_between(GRID, low - GRID, high - GRID, color="0.85", lw=0, label="95 % band")
    for k, name in enumerate(names):
        ecdf = np.searchsorted(pit[name], GRID, side="right") / count
        left.plot(GRID, ecdf - GRID, color=COLOURS[k % len(COLOURS)], lw=1.3, label=name)
    left.axhline(0.0, color="black", lw=0.6)
    left.set_xlabel("probability integral transform")
    left.set_ylabel("ECDF less uniform")
    levels = tree["coverage"]["level"].to_numpy()
    right.plot([0, 1], [0, 1], color="black", lw=0.6)
    for k, name in enumerate(names):
        covered = values(tree, "coverage", name)
        right.plot(levels, covered, "o-", ms=4, lw=1, color=COLOURS[k % len(COLOURS)], label=name)
    right.set_xlabel("central interval")
    right.set_ylabel("share of data sets whose truth it holds")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    right.set_xlim(0.4, 1.0)
    right.set_ylim(0.4, 1.0)
    figure.suptitle(tree["fit/sentence"].item(), fontsize=10)
    return figure
