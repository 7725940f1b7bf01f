"""Pictures of results; the one door to matplotlib."""

from ampost.plots.bands import prediction, predictive, prior_predictive
from ampost.plots.coverage import calibration
from ampost.plots.curves import learning
from ampost.plots.ends import waterfall
from ampost.plots.marginals import comparison, pairs
from ampost.plots.panels import save
from ampost.plots.proxy import proxy

__all__ = [
    "calibration",
    "comparison",
    "learning",
    "pairs",
    "prediction",
    "predictive",
    "prior_predictive",
    "proxy",
    "save",
    "waterfall",
]
