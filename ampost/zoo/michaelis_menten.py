"""Michaelis-Menten kinetics: a substrate turned into a product by an enzyme (arXiv 2312.03166)."""

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
    **dict.fromkeys(("S", "P", "S0", "km", "sigma"), "mM"),
    "vmax": "mM/min",
}


def kinetics(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """The rate saturates in the substrate."""
    rate = p.vmax * y.S / (p.km + y.S)
    return {"S": -rate, "P": rate}


def michaelis_menten(experiments: Experiments) -> None:
    """Maximal rate, half-saturation and measurement error; the product is measured."""
    vmax = pyro.sample("vmax", between(0.05, 5.0))
    km = pyro.sample("km", between(0.1, 10.0))
    sigma = pyro.sample("sigma", between(0.01, 0.2))
    y = odeint(kinetics, {"S": experiments["S0"], "P": 0.0}, {"vmax": vmax, "km": km}, experiments)
    observe("P", dist.Normal(y.P, sigma), experiments)


def model() -> Model:
    """Two experiments of about 12 times over 10 minutes, started from 0.5 to 5 mM."""
    looks = Looks(times=tuple(10.0 * k / 11 for k in range(12)), rows=(6, 18))
    design = Design(channels={"P": looks}, conditions={"S0": (0.5, 5.0)}, experiments=(2, 2), horizon=10.5)
    return Model(michaelis_menten, design, UNITS)
