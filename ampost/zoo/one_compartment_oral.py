"""Theophylline by mouth: one compartment, first-order absorption; one subject, or twelve at once.

Data: A. J. Boeckmann, L. B. Sheiner and S. L. Beal, NONMEM Users Guide V (University of California, San
Francisco, 1994), also shipped with R as `Theoph`: concentrations in serum after one dose. Facts are free
of copyright. The dose is per body weight, so clearance and volume are too. The first sample is at the
time of the dose and counts as taken before it: nothing is there yet, and what a subject or two show is
error. So the error is additive; a log-normal one has no place for a zero.

`model()` is for one subject, `population_model()` for all of them, each with rates of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pyro
import pyro.distributions as dist

from ampost.design import Design
from ampost.distributions import between
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.program import observe, odeint
from ampost.stacking import stack
from ampost.tables import read_table

UNITS = {
    "time": "h",
    "depot": "mg/kg",  # and of the dose into it
    "central": "mg/kg",
    "concentration": "mg/L",
    "ka": "1/h",
    "CL": "L/h/kg",
    "V": "L/kg",
    "sigma": "mg/L",
    "half_life": "h",
}
POPULATION_UNITS = {
    **UNITS,
    **{f"{name}_typical": UNITS[name] for name in ("ka", "CL", "V")},
    **{f"{name}_spread": "1" for name in ("ka", "CL", "V")},
}

# Each prior is the log-normal with 95 % between its two ends. Absorption has a half-life of 5 minutes, faster
# than a stomach empties, to 3.5 hours, in which a tablet has left the small intestine (S. S. Davis, J. G. Hardy
# and J. W. Fara, Gut 27 (1986) 886). Clearance is 0.4 to 40 % of the blood flow through the liver,
# 1.24 L/h/kg. The volume of distribution lies between twice the plasma, 0.043 L/kg, and a few times all water
# of the body, 0.6 L/kg (B. Davies and T. Morris, Pharmaceutical Research 10 (1993) 1093). Absorption and
# elimination could change places and give the same curve ("flip-flop"); the volume would then be smaller than
# the plasma, so that the prior all but rules it out.
PRIOR = {"ka": between(0.2, 8.0), "CL": between(0.005, 0.5), "V": between(0.1, 2.0)}
ERROR = between(0.05, 2.0)  # mg/L: from the limit of good assays to a fifth of the peak


def absorption(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """From the gut into the blood, and out of it."""
    absorbed = p.ka * y.depot
    return {"depot": -absorbed, "central": absorbed - p.CL / p.V * y.central}


def oral(experiments: Experiments) -> None:
    """One subject: rate of absorption, clearance, volume and error."""
    rates = {name: pyro.sample(name, prior) for name, prior in PRIOR.items()}
    sigma = pyro.sample("sigma", ERROR)
    pyro.deterministic("half_life", 0.693147 * rates["V"] / rates["CL"])
    y = odeint(absorption, {"depot": 0.0, "central": 0.0}, rates, experiments)
    observe("concentration", dist.Normal(y.central / rates["V"], sigma), experiments)


def population(experiments: Experiments) -> None:
    """Subjects spread log-normally around typical values; each experiment is one subject."""
    typical = {name: pyro.sample(f"{name}_typical", prior) for name, prior in PRIOR.items()}
    # A spread of 0.5 is a factor of 2.7 between the ends of the middle two thirds.
    spread = {name: pyro.sample(f"{name}_spread", dist.HalfNormal(0.5)) for name in PRIOR}
    sigma = pyro.sample("sigma", ERROR)
    with experiments.plate():
        rates = {name: pyro.sample(name, dist.LogNormal(typical[name].log(), spread[name])) for name in PRIOR}
    y = odeint(absorption, {"depot": 0.0, "central": 0.0}, rates, experiments)
    observe("concentration", dist.Normal(y.central / rates["V"], sigma), experiments)


def population_data() -> Experiments:
    """The twelve subjects as twelve experiments of one data set."""
    folder = files("ampost.zoo") / "data"
    return read_table(str(folder / "theophylline.csv"), doses=str(folder / "theophylline_doses.csv"), say=False)


def data() -> Experiments:
    """The twelve subjects as twelve data sets of one experiment each."""
    everyone = population_data()
    subjects = []
    for k, name in enumerate(everyone.names[0]):
        one = everyone.map(lambda tensor, k=k: tensor[k : k + 1])  # type: ignore[misc]
        subjects.append(replace(one, names=((name,),), datasets=(name,)))
    return stack(subjects)


def model() -> Model:
    """One subject, designed for tables like the real ones."""
    return Model(oral, Design.like(data()), UNITS)


def population_model() -> Model:
    """All subjects at once, designed for tables like the real one."""
    return Model(population, Design.like(population_data()), POPULATION_UNITS)
