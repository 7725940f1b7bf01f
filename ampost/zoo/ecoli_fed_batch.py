"""E. coli in fed-batch: overflow metabolism and acetate cycling, pulses of feed, a slow oxygen probe.

Source: E. Anane, D. C. Lopez C., P. Neubauer and M. N. Cruz Bournazou, Biochemical Engineering Journal
125 (2017) 23-30. Rates are in g/(g h), the volume in L, concentrations in g/L, dissolved oxygen in % of
saturation. The feed comes as pulses of volume (L) by the event "pulse", and as the input "feed" (L/h)
where the data hold one; the event "sample" takes volume out.

Biomass, glucose and acetate are measured in samples every half an hour, the probe every two minutes.
Many of the sixteen parameters are not determined by one such experiment; the posterior says which. No
real data ship with ampost: `data()` simulates a fermentation at the fitted values. At those, carbon does
not balance by itself: overflow makes 0.47 g carbon of acetate and biomass of 0.39 g carbon of glucose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost.design import Design
from ampost.distributions import between
from ampost.experiments import Channel, Doses, Experiments
from ampost.model import Model
from ampost.plans import DosePlan, Looks
from ampost.program import observe, odeint

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

UNITS = {
    "time": "h",
    **dict.fromkeys(("V", "pulse", "sample"), "L"),
    "feed": "L/h",
    **dict.fromkeys(("X", "S", "A", "X_error", "S_error", "A_error"), "g/L"),
    **dict.fromkeys(("DOT", "DOTm", "DOTm_error", "K_o"), "%"),
    **dict.fromkeys(("relative_error", "DOTm_relative_error"), "1"),
    **dict.fromkeys(("K_sa", "K_s", "K_ia"), "g/L"),
    **dict.fromkeys(("K_ap", "K_is", "p_Amax", "q_Amax", "q_m", "q_Smax"), "g/g/h"),
    **dict.fromkeys(("Y_as", "Y_oa", "Y_xa", "Y_em", "Y_os", "Y_xsof"), "g/g"),
}


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
    """Sixteen parameters and the errors, absolute and relative, of what is measured."""
    # The log-normals around the paper's fit with 95 % within a factor of two, as strains and media differ;
    # yields are bound by stoichiometry and lie within a quarter (above Y_em = C_s / C_x = 0.80 g/g, growth
    # would take more carbon than there is, and give off oxygen).
    rates: dict[str, Any] = {}
    for name, value in FITTED.items():
        factor = 1.25 if name.startswith("Y_") else 2.0
        rates[name] = pyro.sample(name, between(value / factor, factor * value))
    rates["F"] = experiments.inputs.get("feed", 0.0)
    # Near zero the error is absolute: limits of dry weight, of sugar and acid assays, of the probe.
    absolute = {
        "X": pyro.sample("X_error", between(0.01, 0.2)),
        "S": pyro.sample("S_error", between(0.01, 0.2)),
        "A": pyro.sample("A_error", between(0.003, 0.05)),
        "DOTm": pyro.sample("DOTm_error", between(0.2, 2.0)),
    }
    # Far above it is relative: samples share dilution and handling, the probe has a slope of its own.
    handling = pyro.sample("relative_error", between(0.01, 0.15))
    slope = pyro.sample("DOTm_relative_error", between(0.003, 0.03))
    relative = {"X": handling, "S": handling, "A": handling, "DOTm": slope}
    y = odeint(fed_batch, START, rates, experiments, events=EVENTS)
    for name, level in absolute.items():
        value = getattr(y, name)
        sd = (level**2 + (relative[name] * value) ** 2).sqrt()
        observe(name, dist.Normal(value, sd), experiments)


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


def design(horizon: float = 14.0) -> Design:
    """Schedules and looks around `protocol`: pulses within three minutes, amounts by half."""
    doses = protocol(horizon)
    plans = []
    for time, amount, index in zip(doses.time[0], doses.amount[0], doses.target[0], strict=True):
        when, much, target = float(time), float(amount), doses.targets[int(index)]
        moved = 0.05 if target == "pulse" else 0.02
        plans.append(DosePlan(target, (when - moved, when + moved), (0.5 * much, 1.5 * much)))
    sampled = Looks(times=tuple(0.5 * k for k in range(int(2 * horizon) + 1)), rows=(14, 29))
    probed = Looks(times=tuple(k / 30 for k in range(int(30 * horizon) + 1)), rows=(211, 421))
    channels = {"X": sampled, "S": sampled, "A": sampled, "DOTm": probed}
    return Design(channels, {}, (1, 1), horizon=horizon, doses=tuple(plans), together=False)


def data() -> Experiments:
    """One simulated fermentation: the paper's fit, the errors' prior medians, a fixed seed. Not real data."""
    hours = torch.arange(421, dtype=torch.float64)[None] / 30
    record = Experiments.on(hours, ["X", "S", "A", "DOTm"], doses=protocol())
    sampled = torch.arange(421)[None] % 15 == 0
    looks = {n: Channel(c.mask if n == "DOTm" else sampled) for n, c in record.channels.items()}
    record = replace(record, channels=looks)
    chosen = model().fix(**FITTED)
    middle = torch.zeros(1, chosen.z_size(), dtype=torch.float64)
    return chosen.simulate_at(middle, record.unsqueezed(1), seed=1).experiments.at(0)


def model() -> Model:
    """A batch of ten hours and four of pulses; biomass, glucose, acetate and the probe are measured."""
    return Model(ecoli, design(), UNITS)
