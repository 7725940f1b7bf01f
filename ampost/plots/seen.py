"""Pictures of data alone: what was measured, or simulated."""

from __future__ import annotations

from matplotlib.figure import Figure

from ampost.experiments import Experiments
from ampost.plots.panels import heading, legend, measured, multiples


def seen(data: Experiments) -> Figure:
    """The values of each channel over time, one panel per experiment of each data set."""
    records = data.split()
    places = [(record, e) for record in records for e in range(record.count) if bool(record.live[e])]
    labels = [_label(record, e, len(records) > 1) for record, e in places]
    figure, placed = multiples(list(data.channels), labels, data.units)
    for (name, k), axis in placed.items():
        record, e = places[k]
        measured(axis, record, name, e, "black")
    legend(next(iter(placed.values())))
    heading(figure, "Data", len(labels))
    return figure


def _label(record: Experiments, experiment: int, several: bool) -> str:
    name = record.names[0][experiment]
    if not several:
        return name
    return f"{record.datasets[0]}, {name}" if record.count > 1 else record.datasets[0]
