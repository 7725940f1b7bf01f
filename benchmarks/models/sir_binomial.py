"""An epidemic of sbibm: two parameters, ten binomial counts of which many are zero.

Source: sbi-benchmark/sbibm 1.1.1, task `sir` (MIT licence).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost import Design, Experiments, Looks, Model, observe, odeint
from models import observation

UNITS = {
    "time": "day",
    **dict.fromkeys(("S", "I", "R", "infected"), "people"),
    **dict.fromkeys(("beta", "gamma"), "1/day"),
}
PEOPLE, FIRST, ASKED = 1e6, 1.0, 1_000
TIMES = tuple(17.0 * k for k in range(10))


def epidemic(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """Susceptible, infected, recovered."""
    infected, recovered = p.beta * y.S * y.I / PEOPLE, p.gamma * y.I
    return {"S": -infected, "I": infected - recovered, "R": recovered}


def sir(experiments: Experiments) -> None:
    """Contact and recovery; a thousand people are asked each time."""
    beta = pyro.sample("beta", dist.LogNormal(math.log(0.4), 0.5))
    gamma = pyro.sample("gamma", dist.LogNormal(math.log(0.125), 0.2))
    start = {"S": PEOPLE - FIRST, "I": FIRST, "R": 0.0}
    y = odeint(epidemic, start, {"beta": beta, "gamma": gamma}, experiments)
    share = (y.I / PEOPLE).clamp(min=0.0, max=1.0)  # a solver may end a rounding error below zero
    observe("infected", dist.Binomial(ASKED, probs=share), experiments)


def data(number: int = 1) -> Experiments:
    """Observation `number` (1 or 2)."""
    counts = torch.tensor(observation("sir", number), dtype=torch.float64)
    return Experiments.on([TIMES], ["infected"]).with_values({"infected": counts[None]})


def model() -> Model:
    """The task's ten times, always."""
    design = Design({"infected": Looks(TIMES, (10, 10))}, {}, (1, 1), horizon=154.0, cut=0.0)
    return Model(sir, design, UNITS)
