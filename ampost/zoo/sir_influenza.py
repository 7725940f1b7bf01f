"""Influenza in a boarding school, 1978: susceptible, infected, recovered; boys in bed are counted.

Data: British Medical Journal, 4 March 1978, page 587: boys in bed on each of 14 days in January, in a
school of 763. One boy is ill at day 0. Counts scatter more than independent cases would, so they are
negative binomial with the infected as their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pyro
import pyro.distributions as dist

from ampost.design import Design
from ampost.distributions import between
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.program import observe, odeint
from ampost.tables import read_table

UNITS = {
    "time": "day",
    **dict.fromkeys(("S", "I", "R", "in_bed"), "boys"),
    **dict.fromkeys(("transmission", "recovery"), "1/day"),
    **dict.fromkeys(("overdispersion", "R0"), "1"),
}
BOYS, FIRST = 763.0, 1.0


def epidemic(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Kermack and McKendrick's equations in a closed school."""
    infected, recovered = p.transmission * y.S * y.I / BOYS, p.recovery * y.I
    return {"S": -infected, "I": infected - recovered, "R": recovered}


def sir(experiments: Experiments) -> None:
    """Transmission, recovery and overdispersion; the variance of a count m is m + overdispersion m^2."""
    # The log-normals with 95 % between two ends. A boy infects one in five days up to ten in a day. He does so
    # for half a day to ten days: virus is shed for 4.8 days on average (F. Carrat et al., Am. J. Epidemiology
    # 167 (2008) 775), and a boy in bed meets few.
    transmission = pyro.sample("transmission", between(0.2, 10.0))
    recovery = pyro.sample("recovery", between(0.1, 2.0))
    # High counts scatter by 10 to 100 % of their mean, the square root of this.
    overdispersion = pyro.sample("overdispersion", between(0.01, 1.0))
    pyro.deterministic("R0", transmission / recovery)
    rates = {"transmission": transmission, "recovery": recovery}
    y = odeint(epidemic, {"S": BOYS - FIRST, "I": FIRST, "R": 0.0}, rates, experiments)
    mean = y.I.clamp(min=1e-6)  # a solver may end a rounding error below zero
    noise = dist.NegativeBinomial(1 / overdispersion, logits=(overdispersion * mean).log())
    observe("in_bed", noise, experiments)


def data() -> Experiments:
    """The real counts of 14 days."""
    return read_table(str(files("ampost.zoo") / "data" / "influenza_1978.csv"), say=False)


def model() -> Model:
    """The model, designed for tables like the real one."""
    return Model(sir, Design.like(data()), UNITS)
