"""Pictures of results; the one door to matplotlib."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from ampost.calibration import GRID, band
from ampost.experiments import Experiments
from ampost.results import scalars, values

COLOURS = ("#1f6f8b", "#c8553d", "#5b8c5a", "#8e6c8a", "#d9a441")


def predictive(result: xr.DataTree, data: Experiments, units: dict[str, str]) -> Figure:
    """Posterior predictive bands (50 and 90 %) behind the data, one panel per channel."""
    names = list(data.channels)
    figure = Figure(figsize=(5.5 * len(names), 4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        channel = data.channels[name]
        drawn = values(result, "posterior_predictive", name)
        drawn = drawn.reshape(-1, drawn.shape[-1])
        where = channel.mask.nonzero()
        times = data.times[channel.mask].numpy()
        assert channel.values is not None
        seen = channel.values[channel.mask].numpy()
        for e in range(data.count):
            mine = (where[:, 0] == e).numpy()
            colour = COLOURS[e % len(COLOURS)]
            order = np.argsort(times[mine], kind="stable")
            t, y = times[mine][order], drawn[:, mine][:, order]
            for low, high, alpha in ((5, 95, 0.18), (25, 75, 0.35)):
                bands = np.percentile(y, [low, high], axis=0)
                axis.fill_between(t, *bands, color=colour, alpha=alpha, lw=0)
            axis.plot(t, np.median(y, 0), color=colour, lw=1.2)
            label = data.names[0][e] if data.count > 1 else "data"
            axis.plot(
                t,
                seen[mine][order],
                "o",
                ms=4,
                color="black" if data.count == 1 else colour,
                label=label,
            )
        axis.set_xlabel(f"time [{units['time']}]" if "time" in units else "time")
        axis.set_ylabel(f"{name} [{units[name]}]" if name in units else name)
        axis.legend(frameon=False, title="experiment" if data.count > 1 else None)
    figure.suptitle("Posterior predictive: median, 50 % and 90 % bands")
    return figure


def pairs(result: xr.DataTree) -> Figure:
    """Every pair of scalar parameters, marginals on the diagonal, the MAP marked."""
    found = {str(n): values(result, "posterior", n) for n in result["posterior"].data_vars}
    names = [name for name, drawn in found.items() if drawn.ndim == 2]
    draws = np.stack([found[name].reshape(-1) for name in names])
    mode = scalars(result, "map_z")
    size = len(names)
    figure = Figure(figsize=(1.7 * size + 0.6, 1.7 * size + 0.6), layout="constrained")
    axes = figure.subplots(size, size, squeeze=False)
    shown = draws[:, :: max(1, draws.shape[1] // 1500)]
    for i in range(size):
        for j in range(size):
            axis = axes[i, j]
            axis.tick_params(labelsize=6)
            if j > i:
                axis.set_visible(False)
                continue
            if i == j:
                axis.hist(draws[i], bins=40, color=COLOURS[0], alpha=0.7)
                axis.set_yticks([])
                if names[i] in mode:
                    axis.axvline(mode[names[i]], color=COLOURS[1], lw=1.2)
            else:
                axis.plot(shown[j], shown[i], ".", ms=1.2, color=COLOURS[0], alpha=0.5)
                if names[i] in mode:
                    axis.plot(mode[names[j]], mode[names[i]], "+", ms=9, mew=1.6, color=COLOURS[1])
            if i == size - 1:
                axis.set_xlabel(names[j], fontsize=8)
            else:
                axis.set_xticklabels([])
            if j == 0 and i > 0:
                axis.set_ylabel(names[i], fontsize=8)
            elif j != i:
                axis.set_yticklabels([])
    figure.suptitle("Posterior draws; the mark is the MAP (mode in z)")
    return figure


def calibration(tree: xr.DataTree) -> Figure:
    """A calibration: ECDF of the PIT less uniform with its simultaneous 95 % band, and coverage."""
    names = [str(n) for n in tree["prior_sbc"].data_vars]
    pit = {n: np.sort(values(tree, "prior_sbc", n).ravel()) for n in names}
    count = len(pit[names[0]])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
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


def comparison(results: Mapping[str, xr.DataTree]) -> Figure:
    """Marginal densities of every scalar parameter, one line per method."""
    first = next(iter(results.values()))
    names = [str(n) for n in first["posterior"].data_vars if values(first, "posterior", n).ndim == 2]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        drawn = {m: values(r, "posterior", name).ravel() for m, r in results.items()}
        low, high = (np.quantile(np.concatenate(list(drawn.values())), q) for q in (0.002, 0.998))
        grid = np.linspace(low, high, 200)
        for k, (method, column) in enumerate(drawn.items()):
            if column.std() > 0:
                density = gaussian_kde(column)(grid)
                axis.plot(grid, density, color=COLOURS[k % len(COLOURS)], lw=1.4, label=method)
            else:
                axis.axvline(column[0], color=COLOURS[k % len(COLOURS)], lw=1.4, label=method)
        unit = first[f"posterior/{name}"].attrs.get("units")
        axis.set_xlabel(f"{name} [{unit}]" if unit else name)
        axis.set_yticks([])
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Posterior marginals by method")
    return figure


def save(figure: Figure, path: str) -> None:
    """Write a picture as PNG."""
    with mpl.rc_context({"savefig.dpi": 130}):
        figure.savefig(path)
