"""Predator and prey of sbibm: four parameters, twenty log-normal data.

Source: sbi-benchmark/sbibm 1.1.1, task `lotka_volterra` (MIT licence). Its posterior is a hundredth of
the prior wide and strongly correlated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost import Design, Experiments, Looks, Model, observe, odeint
from models import observation

UNITS = dict.fromkeys(("time", "prey", "predator", "alpha", "beta", "gamma", "delta"), "1")
LOG_MEANS = {"alpha": -0.125, "beta": -3.0, "gamma": -0.125, "delta": -3.0}
TIMES = tuple(2.1 * k for k in range(10))


def predation(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """Lotka and Volterra's equations."""
    return {
        "prey": (p.alpha - p.beta * y.predator) * y.prey,
        "predator": (p.delta * y.prey - p.gamma) * y.predator,
    }


def lotka_volterra(experiments: Experiments) -> None:
    """Four rates; both populations are seen with an error of a tenth."""
    rates = {name: pyro.sample(name, dist.LogNormal(mean, 0.5)) for name, mean in LOG_MEANS.items()}
    y = odeint(predation, {"prey": 30.0, "predator": 1.0}, rates, experiments)
    for name in ("prey", "predator"):
        size = getattr(y, name).clamp(min=1e-10, max=1e4)
        observe(name, dist.LogNormal(size.log(), 0.1), experiments)


def data(number: int = 1) -> Experiments:
    """Observation `number` (1 to 3)."""
    values = torch.tensor(observation("lotka_volterra", number), dtype=torch.float64)
    looks = Experiments.on([TIMES], ["prey", "predator"])
    return looks.with_values({"prey": values[None, :10], "predator": values[None, 10:]})


def model() -> Model:
    """The task's ten times, always."""
    looks = Looks(TIMES, (10, 10))
    design = Design({"prey": looks, "predator": looks}, {}, (1, 1), horizon=19.0, cut=0.0)
    return Model(lotka_volterra, design, UNITS)
