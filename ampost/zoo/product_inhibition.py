"""An enzyme that its product holds up: competitive inhibition, from progress curves.

A. Cornish-Bowden, Fundamentals of Enzyme Kinetics, 4th edition (Wiley-Blackwell, 2012). One curve alone
hardly tells a strong affinity with inhibition from a weak one without; curves that start with product
do, so the product at the start is a condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist

from ampost.design import Design
from ampost.distributions import between
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.plans import Looks
from ampost.program import observe, odeint

UNITS = {
    "time": "min",
    **dict.fromkeys(("S", "P", "S0", "P0", "km", "ki", "sigma"), "mM"),
    "vmax": "mM/min",
}


def kinetics(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Product and substrate compete for the enzyme."""
    rate = p.vmax * y.S / (p.km * (1 + y.P / p.ki) + y.S)
    return {"S": -rate, "P": rate}


def product_inhibition(experiments: Experiments) -> None:
    """Maximal rate, half-saturation, inhibition constant and measurement error."""
    # The log-normals with 95 % between two ends. The enzyme is dosed so that minutes to an hour suffice;
    # substrates are run around their half-saturation, which most enzymes have at 0.01 to 10 mM
    # (A. Bar-Even et al., Biochemistry 50 (2011) 4402); products bind as tightly, or ten times less.
    vmax = pyro.sample("vmax", between(0.05, 2.0))
    km = pyro.sample("km", between(0.05, 10.0))
    ki = pyro.sample("ki", between(0.05, 50.0))
    sigma = pyro.sample("sigma", between(0.01, 0.2))
    rates = {"vmax": vmax, "km": km, "ki": ki}
    y = odeint(kinetics, {"S": experiments["S0"], "P": experiments["P0"]}, rates, experiments)
    observe("P", dist.Normal(y.P, sigma), experiments)


def model() -> Model:
    """Three curves of about 12 times over 20 minutes, with up to 5 mM of product at the start."""
    looks = Looks(times=tuple(20.0 * k / 11 for k in range(12)), rows=(6, 18))
    design = Design(
        channels={"P": looks},
        conditions={"S0": (1.0, 10.0), "P0": (0.0, 5.0)},
        experiments=(3, 3),
        horizon=21.0,
    )
    return Model(product_inhibition, design, UNITS)
