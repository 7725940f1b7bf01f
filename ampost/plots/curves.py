"""Learning curves of an estimator."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ampost.estimator import Estimator
from ampost.plots.panels import COLOURS, Picture
from ampost.training import FitReport


def learning(estimator: Estimator) -> Figure:
    """Losses by step: of the density given the context, and of the one about the mode where there is one."""
    reports = {"given the context": estimator.report}
    if estimator.refining is not None:
        reports["about the mode"] = estimator.refining
    figure = Picture(figsize=(5.5 * len(reports), 4), layout="constrained")
    axes = figure.subplots(1, len(reports), squeeze=False)[0]
    beside = ("point heads included", "blurred where data sets are few")
    for axis, (title, report), more in zip(axes, reports.items(), beside, strict=False):
        _curve(axis, report, f"training, {more}")
        axis.set_title(f"{title}: {report.best:.2f} nats after {report.seconds:.0f} s", fontsize=10)
    axes[0].set_ylabel("loss (nats)")
    return figure


def _curve(axis: Axes, report: FitReport, label: str) -> None:
    """Training losses as points, validation losses as a line; training losses are cut where they began."""
    trained = np.array(report.training)
    every = report.training_every
    axis.plot(
        (np.arange(len(trained)) + 0.5) * every,
        trained,
        ".",
        ms=2,
        color="0.6",
        label=label,
    )
    checked = np.array(report.validation)
    steps = np.minimum((np.arange(len(checked)) + 1) * report.validation_every, report.steps)
    axis.plot(steps, checked, "-", lw=1.5, color=COLOURS[0], label="validation")
    late = trained[len(trained) // 10 :]
    low = min(float(late.min()), float(checked.min()))
    high = max(float(np.quantile(late, 0.98)), float(checked.max()))
    axis.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-9)
    axis.set_xlabel("step")
    axis.legend(frameon=False, fontsize=8)
