"""Pictures of results; the one door to matplotlib."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

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


def save(figure: Figure, path: str) -> None:
    """Write a picture as PNG."""
    with mpl.rc_context({"savefig.dpi": 130}):
        figure.savefig(path)
