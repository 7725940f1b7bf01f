"""A drug given into a vein: two compartments, a bolus and an infusion.

M. Gibaldi and D. Perrier, Pharmacokinetics, 2nd edition (Marcel Dekker, 1982). Amounts are states, so that
doses are plain masses; the concentration in the central compartment is measured.
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
from ampost.plans import DosePlan, Looks
from ampost.program import observe, odeint

UNITS = {
    "time": "h",
    **dict.fromkeys(("central", "peripheral"), "mg"),  # and of doses into them
    "concentration": "mg/L",
    **dict.fromkeys(("CL", "Q"), "L/h"),
    **dict.fromkeys(("V1", "V2", "steady_volume"), "L"),
    "absolute_error": "mg/L",
    "relative_error": "1",
}


def distribution(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Elimination from the central compartment, exchange with the peripheral one; amounts in mg."""
    central, peripheral = y.central / p.V1, y.peripheral / p.V2
    exchanged = p.Q * (central - peripheral)
    return {"central": -p.CL * central - exchanged, "peripheral": exchanged}


def intravenous(experiments: Experiments) -> None:
    """Clearance, two volumes, the flow between them, and an absolute and a relative error."""
    # The log-normals with 95 % between two ends, for adults of 70 kg. Clearance up to 60 % of the blood flow
    # through the liver, 87 L/h; the central volume from the plasma, 3 L, to all water of the body, 42 L; the
    # flows and tissues beyond wider still (B. Davies and T. Morris, Pharmaceutical Research 10 (1993) 1093).
    CL = pyro.sample("CL", between(0.5, 50.0))
    V1 = pyro.sample("V1", between(3.0, 42.0))
    Q = pyro.sample("Q", between(0.5, 50.0))
    V2 = pyro.sample("V2", between(3.0, 200.0))
    # Near the limit of an assay the error is absolute, far above it relative (guidelines allow 15 %).
    absolute = pyro.sample("absolute_error", between(0.005, 0.2))
    relative = pyro.sample("relative_error", between(0.02, 0.3))
    pyro.deterministic("steady_volume", V1 + V2)
    rates = {"CL": CL, "V1": V1, "Q": Q, "V2": V2}
    y = odeint(distribution, {"central": 0.0, "peripheral": 0.0}, rates, experiments)
    concentration = y.central / V1
    sd = (absolute**2 + (relative * concentration) ** 2).sqrt()
    observe("concentration", dist.Normal(concentration, sd), experiments)


def model() -> Model:
    """One patient: a bolus at the start, an infusion of one to two hours at 24 h, about 14 samples in 48 h."""
    hours = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0, 25.0, 26.0, 28.0, 36.0, 48.0)
    doses = (
        DosePlan("central", time=(0.0, 0.0), amount=(50.0, 200.0)),
        DosePlan("central", time=(23.5, 24.5), amount=(50.0, 200.0), duration=(1.0, 2.0)),
    )
    design = Design(
        channels={"concentration": Looks(times=hours, rows=(7, 20))},
        conditions={},
        experiments=(1, 1),
        horizon=50.0,
        doses=doses,
    )
    return Model(intravenous, design, UNITS)
