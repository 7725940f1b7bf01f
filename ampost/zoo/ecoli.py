"""E. coli in fed-batch, with overflow metabolism and acetate cycling.

Source: E. Anane, D. C. Lopez C., P. Neubauer and M. N. Cruz Bournazou, Biochemical Engineering Journal
125 (2017) 23-30. Rates are in g/(g h), the volume in L, concentrations in g/L, dissolved oxygen in % of
saturation. The feed comes as an input (L/h), and as pulses of volume (L) by the event "pulse".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost.design import Design, DosePlan, Looks
from ampost.distributions import between
from ampost.experiments import Doses, Experiments
from ampost.model import Model
from ampost.program import observe, odeint

UNITS = {"time": "h", "V": "L", "X": "g/L", "S": "g/L", "A": "g/L", "DOT": "%", "DOTm": "%"}
FITTED = {  # as fitted in the paper
    "K_ap": 0.5052,
    "K_sa": 0.0134,
    "K_o": 0.0001,
    "K_s": 0.0370,
    "K_ia": 1.2399,
    "K_is": 2.1231,
    "p_Amax": 0.2268,
    "q_Amax": 0.1148,
    "q_m": 0.0129,
    "q_Smax": 0.6356,
    "Y_as": 0.9097,
    "Y_oa": 0.5440,
    "Y_xa": 0.5718,
    "Y_em": 0.5333,
    "Y_os": 1.5620,
    "Y_xsof": 0.2268,
}
START = {"V": 2.0, "X": 0.17, "S": 4.94, "A": 0.0129, "DOT": 98.0, "DOTm": 98.0}
CARBON_S, CARBON_X = 0.391, 0.488  # g carbon per g glucose, per g biomass
SATURATION = 14_000.0  # % of saturation per g/L of oxygen
FEED_S = 300.0  # g/L
DOT_MAX, TRANSFER, PROBE = 99.0, 220.0, 3600.0 / 35.0  # %, 1/h, 1/h


def fed_batch(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Growth on glucose and acetate, overflow, oxygen and a slow probe; `p.F` is the feed in L/h.

    What is used up may be a rounding error below zero, where the rates would have a pole: they see zero.
    """
    S, A, DOT = (value.clamp(min=0.0) for value in (y.S, y.A, y.DOT))
    uptake = p.q_Smax / (1 + A / p.K_ia) * S / (S + p.K_s)
    overflow = p.p_Amax * uptake / (uptake + p.K_ap)
    oxidised = (uptake - overflow) * DOT / (DOT + p.K_o)
    anabolism = (oxidised - p.q_m) * p.Y_em * CARBON_X / CARBON_S
    acetate = p.q_Amax / (1 + uptake / p.K_is) * A / (A + p.K_sa)
    growth = (oxidised - p.q_m) * p.Y_em + acetate * p.Y_xa + overflow * p.Y_xsof
    oxygen = p.Y_os * (oxidised - anabolism) + acetate * p.Y_oa
    dilution = p.F / y.V
    return {
        "V": p.F,
        "X": (growth - dilution) * y.X,
        "S": dilution * (FEED_S - y.S) - uptake * y.X,
        "A": (overflow * p.Y_as - acetate) * y.X - dilution * y.A,
        "DOT": TRANSFER * (DOT_MAX - y.DOT) - oxygen * y.X * SATURATION,
        "DOTm": PROBE * (y.DOT - y.DOTm),
    }


def pulse(y: Any, p: Any, amount: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """`amount` litres of feed at once: it brings glucose and dilutes the rest."""
    volume = y.V + amount
    return {
        "V": volume,
        "X": y.X * y.V / volume,
        "S": (y.S * y.V + FEED_S * amount) / volume,
        "A": y.A * y.V / volume,
    }


def sample(y: Any, p: Any, amount: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """`amount` litres taken out; concentrations stay."""
    return {"V": y.V - amount}


EVENTS = {"pulse": pulse, "sample": sample}


def ecoli(experiments: Experiments) -> None:
    """Sixteen parameters within a factor of about two, and the errors of what is measured."""
    rates: dict[str, Any] = {
        name: pyro.sample(name, between(value / 2, 2 * value)) for name, value in FITTED.items()
    }
    errors = {
        "X": pyro.sample("X_error", between(0.01, 0.2)),
        "S": pyro.sample("S_error", between(0.02, 0.5)),
        "A": pyro.sample("A_error", between(0.005, 0.1)),
        "DOTm": pyro.sample("DOT_error", between(0.2, 5.0)),
    }
    rates["F"] = experiments.inputs.get("feed", 0.0)
    y = odeint(fed_batch, START, rates, experiments, events=EVENTS)
    for name, error in errors.items():
        observe(name, dist.Normal(getattr(y, name), error), experiments)


def protocol(horizon: float = 14.0) -> Doses:
    """Pulses of 1.5 mL every 10 minutes once the batch is used up, and hourly samples of 20 mL."""
    pulses = torch.arange(10.0, horizon, 1 / 6, dtype=torch.float64)
    samples = torch.arange(1.0, horizon, dtype=torch.float64) - 0.05  # before a pulse, never with it
    time = torch.cat([pulses, samples])[None]
    amount = torch.cat([torch.full_like(pulses, 0.0015), torch.full_like(samples, 0.02)])[None]
    target = torch.cat([torch.zeros_like(pulses), torch.ones_like(samples)])[None].long()
    return Doses(
        time, amount, torch.zeros_like(time), target, torch.ones_like(target).bool(), ("pulse", "sample")
    )


def model() -> Model:
    """A batch of ten hours and four of pulses; biomass, glucose, acetate and the probe are measured."""
    hours = tuple(0.5 * k for k in range(29))
    doses = protocol()
    plans = tuple(
        DosePlan(doses.targets[int(k)], (float(t), float(t)), (0.5 * float(a), 1.5 * float(a)))
        for t, a, k in zip(doses.time[0], doses.amount[0], doses.target[0], strict=True)
    )
    channels = {name: Looks(times=hours, rows=(14, 29)) for name in ("X", "S", "A", "DOTm")}
    design = Design(channels=channels, conditions={}, experiments=(1, 1), horizon=14.0, doses=plans)
    return Model(ecoli, design, UNITS)
