"""Carbon given off by incubated soil: two pools that feed each other, 25 real measurements.

Source: stan-dev/posteriordb, `soil_carbon-soil_incubation` (BSD-3 licence). There are no reference draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost import Design, Experiments, Model, observe, odeint
from models import reference

UNITS = {
    "time": "day",
    **dict.fromkeys(("C1", "C2", "eCO2", "total", "sigma"), "mg/g"),
    **dict.fromkeys(("k1", "k2"), "1/day"),
    **dict.fromkeys(("a21", "a12", "gamma"), "1"),
}


def decay(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """Each pool decays; a share goes over into the other, the rest is given off."""
    first, second = p.k1 * y.C1, p.k2 * y.C2
    return {"C1": p.a12 * second - first, "C2": p.a21 * first - second}


def soil(experiments: Experiments) -> None:
    """Two rates, two shares of transfer, the first pool's share at the start, and the error."""
    rates = {name: pyro.sample(name, dist.HalfNormal(1.0)) for name in ("k1", "k2", "a21", "a12")}
    gamma = pyro.sample("gamma", dist.Beta(10.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    total = experiments["total"]
    y = odeint(decay, {"C1": gamma * total, "C2": (1 - gamma) * total}, rates, experiments)
    observe("eCO2", dist.Normal(total - y.C1 - y.C2, sigma), experiments)


def data() -> Experiments:
    """The real means of 25 times."""
    path = reference("posteriordb", "soil_carbon-soil_incubation", "data.json")
    held = json.loads(path.read_text(encoding="utf-8"))
    looks = Experiments.on([held["ts"]], ["eCO2"], conditions={"total": [held["totalC_t0"]]})
    return looks.with_values({"eCO2": torch.tensor([held["eCO2mean"]], dtype=torch.float64)})


def model() -> Model:
    """Designed for data like the real ones."""
    return Model(soil, Design.like(data()), UNITS)
