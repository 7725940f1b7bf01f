"""The cases of the engine benchmark: right-hand sides, parameters, times, pulses of feed.

Each right-hand side is written twice. `rhs(t, y, p)` takes sequences, uses + - * / only and returns a
tuple, so it runs on floats, numpy, jax, torch, and the expressions of heyoka and CasADi, and numba
compiles it. `rhs_named(t, y, p)` is what `ampost.odeint` takes. No case depends on time explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ampost.zoo.ecoli_fed_batch import FITTED as ECOLI

Array = np.ndarray[Any, Any]
Slopes = Callable[[Any, Any, Any], Sequence[Any]]
Named = Callable[[Any, Any, Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Pulses:
    """At each time all rows jump from `y` to `jump(y, amount)`; a look at that time comes before it."""

    times: Array
    amounts: Array
    jump: Callable[[Any, Any], Sequence[Any]]
    jump_named: Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Case:
    """One problem for all engines.

    `floor` is the size per state below which an error counts as absolute. `atol_ratio` is the absolute
    over the relative tolerance. `explicit` tells whether an explicit method is worth trying.
    """

    name: str
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    times: Array
    start: tuple[float, ...]
    rhs: Slopes
    rhs_named: Named
    make_parameters: Callable[[int, int], Array]
    floor: tuple[float, ...]
    stiff: bool = False
    explicit: bool = True
    atol_ratio: float = 1e-2
    pulses: Pulses | None = None

    def rhs_python(self, t: float, y: Sequence[float], p: Sequence[float]) -> list[float]:
        """The slopes of one row as a list of floats."""
        return list(self.rhs(t, y, p))

    @property
    def weights(self) -> Array:
        """One weight per state, for gradients of a sum: a plain sum would be constant by mass balance."""
        return np.arange(1.0, len(self.states) + 1)

    def starts(self, count: int) -> Array:
        """The start of each row (row, state)."""
        return np.tile(np.array(self.start), (count, 1))


@dataclass(frozen=True)
class Segment:
    """From `begin` to the last time of `grid` without a pulse; the first `looks` of `grid` are looked at."""

    begin: float
    grid: Array
    looks: int
    amount: float | None


def segments(case: Case) -> list[Segment]:
    """The stretches between pulses; one where there are none."""
    times, begin = case.times[1:], float(case.times[0])
    pulses = case.pulses
    ends = [] if pulses is None else list(zip(pulses.times, pulses.amounts, strict=True))
    found = []
    for end, amount in [*ends, (times[-1], None)]:
        inside = times[(times > begin) & (times <= end)]
        looks = len(inside)
        grid = inside if looks and inside[-1] == end else np.append(inside, end)
        if grid[-1] > begin:
            found.append(Segment(begin, grid, looks, amount))
        begin = float(end)
    return found


# ----------------------------------------------------------------------------- Michaelis-Menten


def michaelis_menten(t: Any, y: Any, p: Any) -> Sequence[Any]:
    """States S, P; parameters vmax, km."""
    rate = p[0] * y[0] / (p[1] + y[0])
    return (-rate, rate)


def michaelis_menten_named(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """The same by name."""
    rate = p.vmax * y.S / (p.km + y.S)
    return {"S": -rate, "P": rate}


def michaelis_menten_parameters(count: int, seed: int) -> Array:
    """Log-normal around 0.7 with log-sd 0.8, held in [0.1, 5]."""
    noise = np.random.default_rng(seed).standard_normal((count, 2))
    return np.clip(0.7 * np.exp(0.8 * noise), 0.1, 5.0)


# ------------------------------------------------------------------------------- Lotka-Volterra

LOTKA_VOLTERRA = np.array([0.55, 0.028, 0.8, 0.024])


def lotka_volterra(t: Any, y: Any, p: Any) -> Sequence[Any]:
    """States hare, lynx; parameters birth, hunt, death, gain."""
    return ((p[0] - p[1] * y[1]) * y[0], (p[3] * y[0] - p[2]) * y[1])


def lotka_volterra_named(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """The same by name."""
    return {
        "hare": (p.birth - p.hunt * y.lynx) * y.hare,
        "lynx": (p.gain * y.hare - p.death) * y.lynx,
    }


def lotka_volterra_parameters(count: int, seed: int) -> Array:
    """Log-normal around the pelts' rates with log-sd 0.3."""
    noise = np.random.default_rng(seed).standard_normal((count, 4))
    return LOTKA_VOLTERRA * np.exp(0.3 * noise)


# ------------------------------------------------------------------------------------ Robertson


def robertson(t: Any, y: Any, p: Any) -> Sequence[Any]:
    """States A, B, C; parameters k1, k2, k3: A -> B, 2 B -> B + C, B + C -> A + C."""
    first, second, third = p[0] * y[0], p[1] * y[1] * y[1], p[2] * y[1] * y[2]
    return (third - first, first - third - second, second)


def robertson_named(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """The same by name."""
    first, second, third = p.k1 * y.A, p.k2 * y.B * y.B, p.k3 * y.B * y.C
    return {"A": third - first, "B": first - third - second, "C": second}


def robertson_parameters(count: int, seed: int) -> Array:
    """The textbook's constants, each log-uniform over one decade."""
    decades = np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 3))
    return np.array([0.04, 3e7, 1e4]) * 10.0**decades


# ------------------------------------------------------------------------------ E. coli fed-batch

CARBON = 0.488 / 0.391  # carbon of biomass over carbon of glucose
OXYGEN = 14_000.0  # g/L of oxygen to % of saturation
SATURATION = 99.0
AERATION = 220.0  # k_La, 1/h
PROBE = 3600.0 / 35.0  # 1/h
FEED = 300.0  # g/L of glucose
# The mean feed rate is then 6 mL/h. A set growth rate of 0.222 1/h asks for 4 mL/h at 7 h and 12 mL/h at
# 11.5 h. Pulses of 10 mL would pile up 30 g/L of glucose.
PULSE = 0.001  # L


def ecoli(t: Any, y: Any, p: Any) -> Sequence[Any]:
    """States V, X, S, A, DOT, DOTm between pulses; parameters in the order of `ECOLI`."""
    uptake = p[9] / (1.0 + y[3] / p[4]) * y[2] / (y[2] + p[3])
    overflow = p[6] * uptake / (uptake + p[0])
    oxidised = (uptake - overflow) * y[4] / (y[4] + p[2])
    anabolic = (oxidised - p[8]) * p[13] * CARBON
    acetate = p[7] / (1.0 + uptake / p[5]) * y[3] / (y[3] + p[1])
    growth = (oxidised - p[8]) * p[13] + acetate * p[12] + overflow * p[15]
    oxygen = p[14] * (oxidised - anabolic) + acetate * p[11]
    return (
        0.0 * y[0],
        growth * y[1],
        -uptake * y[1],
        (overflow * p[10] - acetate) * y[1],
        AERATION * (SATURATION - y[4]) - oxygen * y[1] * OXYGEN,
        PROBE * (y[4] - y[5]),
    )


def ecoli_named(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """The same by name."""
    uptake = p.q_Smax / (1.0 + y.A / p.K_ia) * y.S / (y.S + p.K_s)
    overflow = p.p_Amax * uptake / (uptake + p.K_ap)
    oxidised = (uptake - overflow) * y.DOT / (y.DOT + p.K_o)
    anabolic = (oxidised - p.q_m) * p.Y_em * CARBON
    acetate = p.q_Amax / (1.0 + uptake / p.K_is) * y.A / (y.A + p.K_sa)
    growth = (oxidised - p.q_m) * p.Y_em + acetate * p.Y_xa + overflow * p.Y_xsof
    oxygen = p.Y_os * (oxidised - anabolic) + acetate * p.Y_oa
    return {
        "V": 0.0 * y.V,
        "X": growth * y.X,
        "S": -uptake * y.X,
        "A": (overflow * p.Y_as - acetate) * y.X,
        "DOT": AERATION * (SATURATION - y.DOT) - oxygen * y.X * OXYGEN,
        "DOTm": PROBE * (y.DOT - y.DOTm),
    }


def ecoli_parameters(count: int, seed: int) -> Array:
    """Log-normal around the fitted values with log-sd 0.1."""
    noise = np.random.default_rng(seed).standard_normal((count, len(ECOLI)))
    return np.array(list(ECOLI.values())) * np.exp(0.1 * noise)


def ecoli_jump(y: Any, amount: Any) -> Sequence[Any]:
    """A bolus of feed: it adds glucose and dilutes the rest; dissolved oxygen stays."""
    share = y[0] / (y[0] + amount)
    return (y[0] + amount, share * y[1], share * y[2] + (1.0 - share) * FEED, share * y[3], y[4], y[5])


def ecoli_jump_named(y: Any, p: Any, amount: Any) -> Mapping[str, Any]:
    """The same by name."""
    share = y.V / (y.V + amount)
    return {
        "V": y.V + amount,
        "X": share * y.X,
        "S": share * y.S + (1.0 - share) * FEED,
        "A": share * y.A,
        "DOT": y.DOT,
        "DOTm": y.DOTm,
    }


# ---------------------------------------------------------------------------------------- cases

CASES = {
    case.name: case
    for case in (
        Case(
            name="michaelis_menten",
            states=("S", "P"),
            parameters=("vmax", "km"),
            times=np.linspace(0.0, 10.0, 21),
            start=(2.0, 0.0),
            rhs=michaelis_menten,
            rhs_named=michaelis_menten_named,
            make_parameters=michaelis_menten_parameters,
            floor=(1e-2, 1e-2),
        ),
        Case(
            name="lotka_volterra",
            states=("hare", "lynx"),
            parameters=("birth", "hunt", "death", "gain"),
            times=np.linspace(0.0, 20.0, 21),
            start=(34.0, 6.0),
            rhs=lotka_volterra,
            rhs_named=lotka_volterra_named,
            make_parameters=lotka_volterra_parameters,
            floor=(1e-1, 1e-1),
        ),
        Case(
            name="robertson",
            states=("A", "B", "C"),
            parameters=("k1", "k2", "k3"),
            times=np.concatenate([[0.0], np.logspace(-2, 5, 12)]),
            start=(1.0, 0.0, 0.0),
            rhs=robertson,
            rhs_named=robertson_named,
            make_parameters=robertson_parameters,
            floor=(1e-3, 1e-7, 1e-3),
            stiff=True,
            explicit=False,
            atol_ratio=1e-4,
        ),
        Case(
            name="ecoli",
            states=("V", "X", "S", "A", "DOT", "DOTm"),
            parameters=tuple(ECOLI),
            times=np.linspace(0.0, 12.0, 25),
            start=(2.0, 0.17, 4.94, 0.0129, 98.0, 98.0),
            rhs=ecoli,
            rhs_named=ecoli_named,
            make_parameters=ecoli_parameters,
            floor=(1e-2, 1e-2, 1e-2, 1e-2, 1.0, 1.0),
            stiff=True,
            pulses=Pulses(
                times=np.arange(42, 70) / 6.0,
                amounts=np.full(28, PULSE),
                jump=ecoli_jump,
                jump_named=ecoli_jump_named,
            ),
        ),
    )
}
