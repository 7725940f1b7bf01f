"""Growth in batch: biomass on one substrate by Monod's law.

J. Monod, Annual Review of Microbiology 3 (1949) 371. Start concentrations are conditions of each
experiment; biomass and substrate are measured, with an error of their own.
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
    "time": "h",
    **dict.fromkeys(("X", "S", "X0", "S0", "Ks", "X_error", "S_error"), "g/L"),
    "mu_max": "1/h",
    "biomass_yield": "g/g",
    "doubling_time": "h",
}


def growth(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """The growth rate saturates in the substrate, of which each gram makes `biomass_yield` grams."""
    made = p.mu_max * y.S / (p.Ks + y.S) * y.X
    return {"X": made, "S": -made / p.biomass_yield}


def monod(experiments: Experiments) -> None:
    """Largest growth rate, half-saturation and yield, and the errors of both channels."""
    # The log-normals with 95 % between two ends. Doubling in 20 minutes (the fastest bacteria) to 14 h.
    mu_max = pyro.sample("mu_max", between(0.05, 2.0))
    # Half-saturation on sugars is milligrams per litre, far more in mixed or poorly stirred cultures.
    Ks = pyro.sample("Ks", between(0.005, 1.0))
    # Fermenting cells keep a tenth of the sugar, respiring ones half; above 0.8 g/g carbon runs out.
    biomass_yield = pyro.sample("biomass_yield", between(0.1, 0.6))
    X_error = pyro.sample("X_error", between(0.02, 0.5))
    S_error = pyro.sample("S_error", between(0.05, 1.0))
    pyro.deterministic("doubling_time", 0.693147 / mu_max)
    start = {"X": experiments["X0"], "S": experiments["S0"]}
    rates = {"mu_max": mu_max, "Ks": Ks, "biomass_yield": biomass_yield}
    y = odeint(growth, start, rates, experiments)
    observe("X", dist.Normal(y.X, X_error), experiments)
    observe("S", dist.Normal(y.S, S_error), experiments)


def model() -> Model:
    """Two cultures sampled every hour or so for 12 h, from 5 to 20 g/L of substrate."""
    looks = Looks(times=tuple(float(hour) for hour in range(13)), rows=(6, 18))
    design = Design(
        channels={"X": looks, "S": looks},
        conditions={"X0": (0.05, 0.5), "S0": (5.0, 20.0)},
        experiments=(2, 2),
        horizon=12.5,
    )
    return Model(monod, design, UNITS)
