"""Michaelis-Menten with a limit of detection that hides half of the late substrate values: is it calibrated?

One estimator is trained for designs with the limit. Simulation-based calibration (Talts et al., arXiv
1804.06788) asks where the true parameters fall in the posteriors of data sets drawn from the prior: by the
network alone for 1,000 of them, and by weights for 300 more.
Run: python benchmarks/censored.py [--out FILE.png] [--estimator FILE] [--corrected 300]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from targets import Target, show
from torch import Tensor

from ampost import (
    Budget,
    Design,
    Estimator,
    Experiments,
    Looks,
    Model,
    between,
    calibrate,
    observe,
    odeint,
    plots,
    train,
)
from ampost.calibration import inside_band
from ampost.correction import correct
from ampost.experiments import LEFT
from ampost.zoo.michaelis_menten import kinetics

TIMES = tuple(10 * k / 11 for k in range(12))
LIMIT = 0.3  # mM


def limited(experiments: Experiments) -> None:
    """Substrate and product are measured with one error; substrate only above the limit."""
    vmax = pyro.sample("vmax", between(0.05, 20.0))
    km = pyro.sample("km", between(0.05, 20.0))
    sigma = pyro.sample("sigma", between(0.002, 0.2))
    y = odeint(kinetics, {"S": experiments["S0"], "P": 0.0}, {"vmax": vmax, "km": km}, experiments)
    observe("S", dist.Normal(y.S, sigma), experiments)
    observe("P", dist.Normal(y.P, sigma), experiments)


def hidden(data: Experiments) -> float:
    """The share of the substrate values of the second half that are below the limit."""
    channel = data.channels["S"]
    late = channel.mask & (data.times > 5.0)
    assert channel.censoring is not None
    return float((channel.censoring[late] == LEFT).double().mean())


def corrected(model: Model, estimator: Estimator, count: int) -> Tensor:
    """PIT (dataset, z) of weighted posteriors of `count` data sets from the prior."""
    drawn = model.simulate(count, seed=11)
    budget, rows = Budget(draws=500, effective_size=1_000), []
    for k in range(count):
        z = correct(model, drawn.experiments.at(k), estimator, k, budget).z
        below = (z < drawn.z[k]).double().sum(0)
        rows.append((below + torch.rand(z.shape[1], generator=torch.Generator().manual_seed(k))) / (len(z) + 1))
    return torch.stack(rows)


def main() -> None:
    """Train, calibrate, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="picture of the calibration")
    parser.add_argument("--estimator", type=Path, help="trained estimator: loaded if it is there, else saved")
    parser.add_argument("--corrected", type=int, default=300, help="data sets with weights")
    given = parser.parse_args()
    torch.set_num_threads(1)
    looks = {"S": Looks(TIMES, (6, 12), lowest=(LIMIT, LIMIT)), "P": Looks(TIMES, (6, 12))}
    model = Model(limited, Design(looks, {"S0": (0.5, 5.0)}, (1, 3), horizon=10.5))
    share = hidden(model.simulate(2_000, seed=0).experiments)
    if given.estimator is not None and given.estimator.exists():
        estimator = Estimator.load(given.estimator)
    else:
        estimator = train(model, seed=1)
        if given.estimator is not None:
            estimator.save(given.estimator)
    print(f"trained for {estimator.report.seconds:.0f} s")
    found = calibrate(model, estimator, datasets=1_000, seed=2)
    print("network alone:", found["fit/sentence"].item())
    if given.out is not None:
        plots.save(plots.calibration(found), str(given.out))
    pit = corrected(model, estimator, given.corrected)
    inside = sum(inside_band(pit[:, k], 0.05 / pit.shape[1]) for k in range(pit.shape[1]))
    show(
        [
            Target("share of late substrate values below the limit", share, 0.4, 0.6),
            Target("network alone, 1,000 data sets inside the band", float(found["fit/calibrated"].item()), 1),
            Target(f"corrected, parameters of {len(pit)} data sets inside the band", inside, pit.shape[1]),
        ]
    )


if __name__ == "__main__":
    main()
