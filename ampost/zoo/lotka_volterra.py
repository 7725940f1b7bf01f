"""Predator and prey: hare and lynx pelts of the Hudson's Bay Company, 1900 to 1920.

Data: C. Elton and M. Nicholson, J. Animal Ecology 11 (1942), as tabulated by J. M. Mahaffy and
B. Carpenter; priors as in posteriordb's `hudson_lynx_hare-lotka_volterra` (stan-dev/posteriordb).
Unlike the usual text-book fit, the first year's counts are observations as all others are.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pyro
import pyro.distributions as dist

from ampost.design import Design
from ampost.distributions import TruncatedNormal
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.program import observe, odeint
from ampost.tables import read_table

UNITS = {
    "time": "year",
    **dict.fromkeys(("hare", "lynx", "hare0", "lynx0"), "1000 pelts"),
    **dict.fromkeys(("birth", "death"), "1/year"),
    **dict.fromkeys(("hunt", "gain"), "1/year/(1000 pelts)"),
    **dict.fromkeys(("hare_error", "lynx_error"), "1"),
}


def predation(t: Any, y: Any, p: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Lotka and Volterra's equations for hare and lynx."""
    return {
        "hare": (p.birth - p.hunt * y.lynx) * y.hare,
        "lynx": (p.gain * y.hare - p.death) * y.lynx,
    }


def lotka_volterra(experiments: Experiments) -> None:
    """Four rates, two initial sizes and two relative errors; counts are log-normal."""
    birth = pyro.sample("birth", TruncatedNormal(1.0, 0.5, low=0.0))
    hunt = pyro.sample("hunt", TruncatedNormal(0.05, 0.05, low=0.0))
    death = pyro.sample("death", TruncatedNormal(1.0, 0.5, low=0.0))
    gain = pyro.sample("gain", TruncatedNormal(0.05, 0.05, low=0.0))
    hare0 = pyro.sample("hare0", dist.LogNormal(2.302585092994046, 1.0))
    lynx0 = pyro.sample("lynx0", dist.LogNormal(2.302585092994046, 1.0))
    hare_error = pyro.sample("hare_error", dist.LogNormal(-1.0, 1.0))
    lynx_error = pyro.sample("lynx_error", dist.LogNormal(-1.0, 1.0))
    rates = {"birth": birth, "hunt": hunt, "death": death, "gain": gain}
    y = odeint(predation, {"hare": hare0, "lynx": lynx0}, rates, experiments)
    observe("hare", dist.LogNormal(y.hare.clamp(min=1e-10).log(), hare_error), experiments)
    observe("lynx", dist.LogNormal(y.lynx.clamp(min=1e-10).log(), lynx_error), experiments)


def data() -> Experiments:
    """The real counts of 21 years."""
    return read_table(str(files("ampost.zoo") / "data" / "hudson_bay.csv"), say=False)


def model() -> Model:
    """The model, designed for tables like the real one."""
    return Model(lotka_volterra, Design.like(data()), UNITS)
