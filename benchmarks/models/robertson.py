"""Robertson's kinetics, the textbook's stiff case, with its three rates unknown.

Source: H. H. Robertson, in J. Walsh (ed.), Numerical Analysis: An Introduction (Academic Press, 1966) 178.
The rates span nine orders of magnitude, the times seven.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist

from ampost import Design, Experiments, Looks, Model, between, observe, odeint

UNITS = {
    "time": "s",
    **dict.fromkeys(("A", "B", "C", "A_error", "B_error", "C_error"), "1"),
    **dict.fromkeys(("k1", "k2", "k3"), "1/s"),
}
KNOWN = {"k1": 0.04, "k2": 3e7, "k3": 1e4}
TIMES = tuple(10.0 ** (0.5 * k - 2) for k in range(13))


def kinetics(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    """A -> B, 2 B -> B + C, B + C -> A + C; amounts of A + B + C stay 1."""
    first, second, third = p.k1 * y.A, p.k2 * y.B**2, p.k3 * y.B * y.C
    return {"A": third - first, "B": first - second - third, "C": second}


def robertson(experiments: Experiments) -> None:
    """Each rate within a factor of ten around the textbook's; every species has a relative error."""
    rates = {name: pyro.sample(name, between(rate / 10, 10 * rate)) for name, rate in KNOWN.items()}
    error = {name: pyro.sample(f"{name}_error", between(0.01, 0.2)) for name in ("A", "B", "C")}
    y = odeint(kinetics, {"A": 1.0, "B": 0.0, "C": 0.0}, rates, experiments)
    for name, spread in error.items():
        amount = getattr(y, name).clamp(min=1e-12)  # B is at zero to the solver's tolerance now and then
        observe(name, dist.LogNormal(amount.log(), spread), experiments)


def model() -> Model:
    """Thirteen times from 10 ms to 10,000 s, two per decade."""
    looks = Looks(TIMES, (13, 13))
    design = Design(dict.fromkeys(("A", "B", "C"), looks), {}, (1, 1), horizon=2e4, cut=0.0)
    return Model(robertson, design, UNITS)
