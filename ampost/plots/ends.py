"""Where the searches of a fit ended."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ampost.plots.panels import COLOURS, Picture
from ampost.results import values


def waterfall(result: xr.DataTree) -> Figure:
    """The ends of a multi-start fit (`baselines.fit`), best first: how far each log joint is below the best.

    Steps are local optima; a long first step says that the best one was found again and again.
    """
    joint = values(result, "optima", "log_joint")
    converged, failed = values(result, "optima", "converged"), values(result, "optima", "failed")
    figure = Picture(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    place, below = np.arange(1, len(joint) + 1), joint[0] - joint
    for shown, face, label in (
        (converged, COLOURS[0], "converged"),
        (~converged & ~failed, "none", "ended before"),
    ):
        if shown.any():
            axis.plot(
                place[shown], below[shown], "o", ms=6, color=COLOURS[0], markerfacecolor=face, label=label
            )
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set(xlabel="start, sorted", ylabel="log joint below the best", xlim=(0.3, len(joint) + 0.7))
    known = below[np.isfinite(below)]
    axis.set_ylim(-0.03, max(1.0, 3 * float(known.max(initial=0.0))))
    axis.set_yticks([0.0, *(t for t in 10.0 ** np.arange(-1, 9) if t <= axis.get_ylim()[1])])
    axis.minorticks_off()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, loc="upper left")
    lost = f"; at {int(failed.sum())} the model fails" if failed.any() else ""
    figure.suptitle(f"{len(joint)} starts: {int((below < 0.1).sum())} at the best optimum{lost}", fontsize=10)
    return figure
