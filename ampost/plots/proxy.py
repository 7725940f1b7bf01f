"""How far a proxy is from the exact solver."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ampost.plots.panels import COLOURS, Picture, labelled
from ampost.proxy import Example, ProxyError

SMALLEST = 1e-5  # of the noise's sd: errors below are shown as this
PLACES = ("worst", "second worst", "median", "next to median")


def proxy(error: ProxyError) -> Figure:
    """Errors of a proxy on fresh draws: their distribution by channel, and the worst and median trajectories.

    Lines are the exact solver's, dashes the proxy's; each experiment has its colour. Of a log-normal noise the
    centre is a logarithm.
    """
    channels = list(error.units)
    figure = Picture(figsize=(3.0 * (len(error.examples) + 1), 2.5 * len(channels) + 0.5), layout="constrained")
    grid = figure.subplots(len(channels), len(error.examples) + 1, squeeze=False)
    for row, name in zip(grid, channels, strict=True):
        size = np.abs(error.units[name].numpy())
        size = np.sort(np.maximum(size[np.isfinite(size)], SMALLEST))
        row[0].plot(size, np.arange(1, len(size) + 1) / len(size), color=COLOURS[0], lw=1.5)
        row[0].axhline(0.9, color="0.7", lw=0.7)
        row[0].set_xscale("log")
        row[0].set_xlabel("|proxy - exact| / sd of the noise")
        row[0].set_ylabel("share of points")
        row[0].set_title(f"{name}: 90 % below {error.channels[name].most:.2g}", fontsize=9)
        for axis, example, place in zip(row[1:], error.examples, PLACES, strict=False):
            _trajectories(axis, example, name)
            axis.set_title(f"{place}: {example.error:.2g}", fontsize=9)
            axis.set_xlabel(labelled("time", error.names))
        row[1].set_ylabel(f"{name}: centre of the noise")
    shares = ", ".join(f"{share:.0%} of draws below {error.quantile(share):.2g}" for share in (0.5, 0.9))
    figure.suptitle(f"Root of the sum of squares over the points of a draw: {shares}", fontsize=10)
    return figure


def _trajectories(axis: Axes, example: Example, name: str) -> None:
    """Exact and proxy, one colour for each experiment."""
    for e, (times, exact, mine) in enumerate(
        zip(example.times.numpy(), example.exact[name].numpy(), example.proxy[name].numpy(), strict=True)
    ):
        colour = COLOURS[e % len(COLOURS)]
        axis.plot(times, exact, color=colour, lw=1.2, alpha=0.6)
        axis.plot(times, mine, color=colour, lw=1.2, ls=(0, (3, 2)))
