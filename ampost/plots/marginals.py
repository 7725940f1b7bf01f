"""Posterior draws of parameters: in pairs, and one by one by method."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from ampost.plots.panels import COLOURS, Array, Picture, labelled, wrapped
from ampost.results import scalars, values

MOST = 10  # parameters in one picture
LETTERS = 12  # of the title in an inch
MARK = "the mark is the most probable point (MAP), on the scale where priors are normal"


def pairs(result: xr.DataTree) -> Figure:
    """Pairs of scalar parameters, marginals on the diagonal, the MAP marked; the ten most correlated ones."""
    found = {str(n): values(result, "posterior", n) for n in result["posterior"].data_vars}
    drawn = {name: column.reshape(-1) for name, column in found.items() if column.ndim == 2}
    names = most_correlated(drawn)
    draws = np.stack([drawn[name] for name in names])
    mode, units = scalars(result, "map_z"), parameter_units(result)
    size = len(names)
    figure = Picture(figsize=(1.7 * size + 0.6, 1.7 * size + 0.6), layout="constrained")
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
                _marginal(axis, draws[i], mode.get(names[i]))
            else:
                axis.plot(shown[j], shown[i], ".", ms=1.2, color=COLOURS[0], alpha=0.5)
                if names[i] in mode and names[j] in mode:
                    axis.plot(mode[names[j]], mode[names[i]], "+", ms=9, mew=1.6, color=COLOURS[1])
            if i == size - 1:
                axis.set_xlabel(labelled(names[j], units), fontsize=8)
            else:
                axis.set_xticklabels([])
            if j == 0 and i > 0:
                axis.set_ylabel(labelled(names[i], units), fontsize=8)
            elif j != i:
                axis.set_yticklabels([])
    left = f"; the {size} most correlated of {len(drawn)}" if size < len(drawn) else ""
    said = f"Posterior draws{left}; {MARK}" if mode else f"Posterior draws{left}"
    figure.suptitle(fill(said, max(24, int(LETTERS * figure.get_figwidth()))), fontsize=10)
    return figure


def _marginal(axis: Axes, draws: Array, mode: float | None) -> None:
    axis.hist(draws, bins=40, color=COLOURS[0], alpha=0.7)
    axis.set_yticks([])
    if mode is not None:
        axis.axvline(mode, color=COLOURS[1], lw=1.2)


def most_correlated(drawn: Mapping[str, Array], most: int = MOST) -> list[str]:
    """The names, in order, of the `most` columns with the largest correlation to any other."""
    names = list(drawn)
    if len(names) <= most:
        return names
    moving = [name for name in names if np.ptp(drawn[name]) > 0]
    related = np.abs(np.atleast_2d(np.corrcoef(np.stack([drawn[name] for name in moving]))))
    np.fill_diagonal(related, 0.0)
    chosen = {moving[k] for k in np.argsort(-related.max(1), kind="stable")[:most]}
    return [name for name in names if name in chosen]


def comparison(results: Mapping[str, xr.DataTree]) -> Figure:
    """Marginal densities of every scalar parameter, one line per method."""
    first = next(iter(results.values()))
    units = parameter_units(first)
    names = [str(n) for n in first["posterior"].data_vars if values(first, "posterior", n).ndim == 2]
    figure, axes = wrapped(len(names), 4, 3.2, 2.6, shared=False)
    for axis, name in zip(axes, names, strict=True):
        drawn = {m: values(r, "posterior", name).ravel() for m, r in results.items()}
        low, high = (np.quantile(np.concatenate(list(drawn.values())), q) for q in (0.002, 0.998))
        grid = np.linspace(low, high, 200)
        for k, (method, column) in enumerate(drawn.items()):
            again, place = divmod(k, len(COLOURS))
            style: dict[str, Any] = {"color": COLOURS[place], "ls": "-" if not again else "--", "lw": 1.4}
            if column.std() > 0:
                axis.plot(grid, gaussian_kde(column)(grid), label=method, **style)
            else:
                axis.axvline(column[0], label=method, **style)
        axis.set_xlabel(labelled(name, units))
        axis.set_yticks([])
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Posterior marginals by method")
    return figure


def parameter_units(result: xr.DataTree) -> dict[str, str]:
    """Units of the parameters of a result by name."""
    parameters = result["posterior"].to_dataset().data_vars
    return {str(name): str(v.attrs["units"]) for name, v in parameters.items() if "units" in v.attrs}
