"""What pictures share: panels, labels with units, bands, and data with what is known of censored values."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ampost.experiments import CENSORING, Experiments

RESOLUTION = 130.0  # dots per inch of files and notebooks
COLOURS = ("#1f6f8b", "#c8553d", "#5b8c5a", "#8e6c8a", "#d9a441")
MOST = 24  # experiments in one picture
CROWDED = 60  # measurements from which on points are small
DECADES = 2.0  # from here on an axis is logarithmic

CENSORED = {"left": "below a limit", "right": "above a limit", "interval": "in an interval"}

Array = NDArray[Any]


class Picture(Figure):
    """A figure that a notebook shows as it is, without pyplot or `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=RESOLUTION)
        return out.getvalue()


def labelled(name: str, units: Mapping[str, str]) -> str:
    """`name [unit]`, or the name where there is no unit or none is known."""
    unit = units.get(name, "")
    return name if unit in {"", "1", "dimensionless"} else f"{name} [{unit}]"


def wrapped(number: int, columns: int, width: float, height: float, shared: bool) -> tuple[Figure, list[Axes]]:
    """A figure with `number` panels in rows of at most `columns`; `shared` ones have the same axes."""
    rows = -(-number // columns)
    columns = -(-number // rows)
    figure = Picture(figsize=(width * columns + 0.4, height * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel()
    for axis in axes[number:]:
        axis.set_visible(False)
    for axis in axes[max(0, number - columns) : number]:
        axis.tick_params(labelbottom=True)
    return figure, list(axes[:number])


def multiples(
    channels: Sequence[str], experiments: Sequence[str], units: Mapping[str, str]
) -> tuple[Figure, dict[tuple[str, int], Axes]]:
    """One panel per channel and experiment, with titles and labels; the first `MOST` experiments only."""
    shown = experiments[:MOST]
    if len(shown) == 1:
        figure, axes = wrapped(len(channels), 3, 4.6, 3.3, shared=False)
        placed = {(name, 0): axis for name, axis in zip(channels, axes, strict=True)}
    elif len(channels) == 1:
        figure, axes = wrapped(len(shown), 4, 3.2, 2.5, shared=True)
        placed = {(channels[0], e): axis for e, axis in enumerate(axes)}
    else:
        size = (3.3 * len(channels) + 0.4, 2.2 * len(shown) + 0.6)
        figure = Picture(figsize=size, layout="constrained")
        grid = figure.subplots(len(shown), len(channels), squeeze=False, sharex=True, sharey="col")
        placed = {(name, e): grid[e, k] for e in range(len(shown)) for k, name in enumerate(channels)}
    for (name, e), axis in placed.items():
        spec = axis.get_subplotspec()
        alone = len(shown) == 1
        if alone or (spec is not None and (spec.is_first_col() or len(channels) > 1)):
            axis.set_ylabel(labelled(name, units))
        if alone or axis.xaxis.get_tick_params().get("labelbottom", True):
            axis.set_xlabel(labelled("time", units))
        if not alone:
            axis.set_title(f"experiment {shown[e]}", fontsize=9)
    return figure, placed


def heading(figure: Figure, text: str, experiments: int) -> None:
    """The title, with a word on experiments that are not shown."""
    left = f" (the first {MOST} of {experiments} experiments)" if experiments > MOST else ""
    figure.suptitle(text + left, fontsize=11)


def by_time(times: Array, drawn: Array) -> tuple[Array, list[Array]]:
    """Distinct times in order, and the finite draws of each; drawn is (draw, time)."""
    distinct = np.unique(times)
    pooled = [drawn[:, times == t].ravel() for t in distinct]
    return distinct, [column[np.isfinite(column)] for column in pooled]


def quantiles(columns: Sequence[Array], percents: Sequence[float]) -> Array:
    """(percent, time) of the draws at each time; NaN where there are none."""
    return np.stack(
        [np.percentile(c, percents) if len(c) else np.full(len(percents), np.nan) for c in columns], 1
    )


def bands(
    axis: Axes,
    times: Array,
    drawn: Array,
    shares: Mapping[float, float],
    colour: str,
    median: bool = True,
    label: str = "_{}",
) -> Array:
    """Central bands of draws (draw, time): `shares` in percent, with the opacity of each; returns the edges.

    The share goes into the braces of `label`; one that starts with "_" is not shown.
    """
    distinct, columns = by_time(times, drawn)
    edges = []
    for share, alpha in shares.items():
        low, high = quantiles(columns, [50 - share / 2, 50 + share / 2])
        edges += [low, high]
        axis.fill_between(
            distinct, low, high, color=colour, alpha=alpha, lw=0, label=label.format(f"{share:g} %")
        )
        if len(distinct) == 1:  # no area: a bar
            axis.vlines(distinct, low, high, color=colour, alpha=alpha, lw=8)
    if median:
        axis.plot(distinct, quantiles(columns, [50])[0], color=colour, lw=1.3)
    return np.stack(edges)


def measured(axis: Axes, data: Experiments, name: str, e: int, colour: str, label: str = "data") -> None:
    """The data of one channel and experiment: points; triangles at limits; bars for intervals."""
    channel = data.channels.get(name)
    if channel is None or channel.values is None:
        return
    mask = channel.mask[e]
    times, seen = data.times[e][mask].numpy(), channel.values[e][mask].numpy()
    code = np.zeros(len(seen), dtype=int)
    if channel.censoring is not None:
        code = channel.censoring[e][mask].numpy()
    marks = {"none": ("o", label), "left": ("v", CENSORED["left"]), "right": ("^", CENSORED["right"])}
    for kind, (mark, said) in marks.items():
        here = code == CENSORING.index(kind)
        if here.any():
            face = colour if kind == "none" else "white"
            size = 6 if kind != "none" else 4 if len(seen) <= CROWDED else 2
            axis.plot(
                times[here], seen[here], mark, ms=size, mec=colour, mfc=face, ls="none", label=said, zorder=5
            )
    here = code == CENSORING.index("interval")
    if here.any() and channel.upper is not None:
        upper = channel.upper[e][mask].numpy()[here]
        axis.vlines(times[here], seen[here], upper, color=colour, lw=2.5, label=CENSORED["interval"], zorder=5)


def scaled(axis: Axes, numbers: Array) -> None:
    """A logarithmic scale where sizes of `numbers` span decades; linear around 0 if some are not above it."""
    finite = numbers[np.isfinite(numbers)]
    sizes = np.abs(finite[finite != 0])
    if not len(sizes):
        return
    low, high = np.percentile(sizes, 10), sizes.max()
    if np.log10(high / low) < DECADES:
        return
    if (finite > 0).all():
        axis.set_yscale("log")
    else:
        axis.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(low)), linscale=0.6)


def legend(axis: Axes) -> None:
    """A legend with each label once, how values are censored last."""
    handles, labels = axis.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    order = sorted(once, key=lambda label: label in CENSORED.values())
    if once:
        axis.legend([once[label] for label in order], order, frameon=False, fontsize=8)


def legend_below(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend of all panels below them, with each label once."""
    once: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        once = {**dict(zip(labels, handles, strict=True)), **once}
    if once:
        columns = min(len(once), max(2, int(figure.get_figwidth() / 1.3)))
        figure.legend(
            list(once.values()),
            list(once),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8,
        )


def save(figure: Figure, path: str) -> None:
    """Write a picture as PNG."""
    with mpl.rc_context({"savefig.dpi": RESOLUTION}):
        figure.savefig(path)
