"""Bands behind data: posterior predictive, predictions, prior predictive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ampost.experiments import Experiments
from ampost.plots.panels import (
    COLOURS,
    Array,
    bands,
    heading,
    labelled,
    legend,
    legend_below,
    measured,
    multiples,
    scaled,
    wrapped,
)
from ampost.results import values
from ampost.units import converted

TOGETHER = 4  # experiments in one panel


def predictive(result: xr.DataTree, data: Experiments, units: Mapping[str, str] | None = None) -> Figure:
    """Posterior predictive bands (50 and 90 %) behind the data, one panel per channel.

    With more than four experiments each has panels of its own. Units are those of the result by default.
    """
    known = units_of(result, "posterior_predictive")
    data, units = in_units(data, known), known if units is None else units
    title = "Posterior predictive: median, 50 and 90 %"
    shares = {90.0: 0.18, 50.0: 0.35}
    names = list(data.channels)
    if data.count > TOGETHER:
        figure, placed = multiples(names, data.names[0], units)
        for (name, e), axis in placed.items():
            bands(axis, *_replicated(result, data, name, e), shares, COLOURS[0])
            measured(axis, data, name, e, "black")
        legend_below(figure, placed.values())
        heading(figure, title, data.count)
        return figure
    figure, axes = wrapped(len(names), 3, 4.6, 3.5, shared=False)
    for axis, name in zip(axes, names, strict=True):
        for e in range(data.count):
            colour = COLOURS[e % len(COLOURS)]
            bands(axis, *_replicated(result, data, name, e), shares, colour)
            alone = data.count == 1
            label = "data" if alone else f"experiment {data.names[0][e]}"
            measured(axis, data, name, e, "black" if alone else colour, label)
        axis.set_xlabel(labelled("time", units))
        axis.set_ylabel(labelled(name, units))
        legend(axis)
    heading(figure, title, data.count)
    return figure


def _replicated(result: xr.DataTree, data: Experiments, name: str, e: int) -> tuple[Array, Array]:
    """Times and replicated true values (draw, time) of one channel and experiment."""
    mask = data.channels[name].mask
    drawn = values(result, "posterior_predictive", name)
    mine = (mask.nonzero()[:, 0] == e).numpy()
    return data.times[mask].numpy()[mine], drawn.reshape(-1, drawn.shape[-1])[:, mine]


def prediction(predictions: xr.DataTree, data: Experiments | None = None) -> Figure:
    """Predictions: median, 50 and 90 % bands without noise (dark) and with it (light); data on top, by name."""
    units = units_of(predictions, "predictions_noiseless")
    names = [str(name) for name in predictions["predictions_noiseless"].data_vars]
    experiments = [str(name) for name in predictions["predictions_noiseless"]["experiment"].to_numpy()]
    times = values(predictions, "predictions_noiseless", "times")
    record = None if data is None else in_units(data.at(0) if data.batch else data, units)
    figure, placed = multiples(names, experiments, units)
    for (name, e), axis in placed.items():
        for group, shares, colour, median, label in (
            ("predictions", {90.0: 0.3, 50.0: 0.5}, "0.6", False, "{} with noise"),
            ("predictions_noiseless", {90.0: 0.35, 50.0: 0.6}, COLOURS[0], True, "{} without"),
        ):
            drawn = values(predictions, group, name)[:, :, e]
            bands(axis, times[e], drawn.reshape(-1, drawn.shape[-1]), shares, colour, median, label)
        if record is not None and experiments[e] in record.names[0]:
            measured(axis, record, name, record.names[0].index(experiments[e]), "black")
    legend_below(figure, placed.values())
    alone = f" of experiment {experiments[0]}" if len(experiments) == 1 else ""
    heading(figure, f"Predictions{alone}, without and with noise", len(experiments))
    return figure


def prior_predictive(
    drawn: Mapping[str, Sequence[Array]],
    records: Sequence[Experiments],
    units: Mapping[str, str],
) -> Figure:
    """Prior predictive bands (50, 90 and 99 %) behind the data.

    `drawn` holds for each channel one array (draw, experiment, time) per data set of `records`. An axis whose
    values span decades is logarithmic.
    """
    places = [(record, k, e) for k, record in enumerate(records) for e in range(len(record.names[0]))]
    several = len(records) > 1
    labels = [record.datasets[0] if several else record.names[0][e] for record, _, e in places]
    names = list(drawn)
    figure, placed = multiples(names, labels, units)
    numbers: dict[str, list[Array]] = {name: [] for name in names}
    for (name, p), axis in placed.items():
        record, k, e = places[p]
        mask = record.channels[name].mask[e].numpy()
        if mask.any():
            times = record.times[e].numpy()[mask]
            shares = {99.0: 0.15, 90.0: 0.25, 50.0: 0.4}
            edges = bands(axis, times, drawn[name][k][:, e][:, mask], shares, COLOURS[0], label="{}")[2:]
            measured(axis, record, name, e, "black")
            seen = record.channels[name].values
            numbers[name] += [edges.ravel()] if seen is None else [edges.ravel(), seen[e].numpy()[mask]]
    for (name, _), axis in placed.items():
        if numbers[name]:
            scaled(axis, np.concatenate(numbers[name]))
    legend_below(figure, placed.values())
    heading(figure, "Prior predictive and data", len(labels))
    return figure


def in_units(data: Experiments, units: Mapping[str, str]) -> Experiments:
    """The data in the units of a result; what the result says nothing of stays."""
    if all(units.get(name, unit) == unit for name, unit in data.units.items()):
        return data
    own = {name.removeprefix("dose "): unit for name, unit in data.units.items()}
    return converted(data, {**own, **units})


def units_of(tree: xr.DataTree, group: str) -> dict[str, str]:
    """Units of the variables of a group by name, and that of its times as "time"."""
    dataset = tree[group].to_dataset()
    found = {str(name): str(v.attrs["units"]) for name, v in dataset.data_vars.items() if "units" in v.attrs}
    for name, coordinate in dataset.coords.items():
        if str(name).endswith(("_time", "times")) and "units" in coordinate.attrs:
            found["time"] = str(coordinate.attrs["units"])
    return found
