"""A drug taken by mouth and eliminated by an enzyme that saturates, under heavy-tailed priors.

Source: stan-dev/posteriordb, `one_comp_mm_elim_abs` (BSD-3 licence): C' = ka exp(-ka t) D / V
- (Vm / V) C / (Km + C) with half-Cauchy(0, 1) priors throughout, so that a parameter a thousand times its
median is nothing unusual. The measurements are not at hand; `model().simulate` gives some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost import Design, Experiments, Looks, Model, observe, odeint

UNITS = {
    "time": "day",
    **dict.fromkeys(("C", "concentration", "Km"), "mg/L"),
    "ka": "1/day",
    "Vm": "mg/day",
    "D": "mg",
    "V": "L",
    "sigma": "1",
}


def elimination(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """What is left in the gut is absorbed at the rate ka; elimination saturates."""
    absorbed = p.ka * torch.exp(-p.ka * t) * p.D / p.V
    return {"C": absorbed - p.Vm / p.V * y.C / (p.Km + y.C)}


def one_compartment(experiments: Experiments) -> None:
    """Absorption, saturating elimination and a relative error; dose and volume are known."""
    rates = {name: pyro.sample(name, dist.HalfCauchy(1.0)) for name in ("ka", "Km", "Vm")}
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    y = odeint(elimination, {"C": 0.0}, {**rates, "D": experiments["D"], "V": experiments["V"]}, experiments)
    observe("concentration", dist.LogNormal(y.C.clamp(min=1e-10).log(), sigma), experiments)


def model() -> Model:
    """Twenty times over ten days after 30 mg into 2 L."""
    looks = Looks(tuple(0.5 * k for k in range(1, 21)), (20, 20))
    conditions = {"D": (30.0, 30.0), "V": (2.0, 2.0)}
    design = Design({"concentration": looks}, conditions, (1, 1), horizon=10.5, cut=0.0)
    return Model(one_compartment, design, UNITS)
