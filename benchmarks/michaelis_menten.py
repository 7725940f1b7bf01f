"""Michaelis-Menten: calibration before correction, cost after it, and time per data set.

Run: python benchmarks/michaelis_menten.py [--estimator FILE]. Trains with the default settings unless
FILE exists; saves it there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from targets import Target, show

from ampost import Budget, Estimator, Model, calibrate, infer, train
from ampost.correction import correct
from ampost.zoo import michaelis_menten


def solves_per_effective_draw(model: Model, estimator: Estimator, count: int) -> list[float]:
    """All solves over the smallest effective size, for fresh data sets; infinite where a sampler took over."""
    simulated = model.simulate(count, 11).experiments
    ratios = []
    for k in range(count):
        found = correct(model, simulated.at(k), estimator, k, Budget())
        smallest = float(found.effective.min())
        ratios.append(float("inf") if found.sampled else found.solves / smallest)
    return ratios


def main() -> None:
    """Measure every target and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(tempfile.gettempdir()) / "michaelis_menten.ampost"
    parser.add_argument("--estimator", type=Path, default=default)
    path = parser.parse_args().estimator
    model = michaelis_menten.model()
    if path.exists():
        estimator = Estimator.load(path)
    else:
        estimator = train(model, seed=0)
        estimator.save(path)
    print(f"training took {estimator.report.seconds:.0f} s, validation loss {estimator.report.best:.3f}")

    calibration = calibrate(model, estimator, datasets=1_000, seed=3)
    print(calibration["fit/sentence"].item())

    thousand = model.simulate(1_000, 5).experiments
    estimator.quantiles(thousand)
    began = time.perf_counter()
    estimator.quantiles(thousand)
    quantiles = time.perf_counter() - began

    some = model.simulate(12, 7).experiments
    budget = Budget(effective_size=2_000)
    infer(model, some.at(0), estimator, budget=budget, optimum=False)
    seconds, sizes = [], []
    for k in range(12):
        began = time.perf_counter()
        result = infer(model, some.at(k), estimator, seed=k, budget=budget, optimum=False)
        seconds.append(time.perf_counter() - began)
        sizes.append(result["fit/effective_size"].min().item())
    print(f"seconds of 12 data sets: {np.sort(seconds).round(2)}; smallest effective size {min(sizes):.0f}")

    ratios = solves_per_effective_draw(model, estimator, 100)
    print(f"solves per effective draw, deciles: {np.quantile(ratios, np.arange(0.1, 1, 0.1)).round(2)}")
    show(
        [
            Target("PIT of 1,000 data sets inside the 95 % band", float(calibration["fit/calibrated"]), 1),
            Target("quantiles of 1,000 data sets, s", quantiles, most=0.1),
            Target("effective size 2,000 without MAP, median of 12, s", float(np.median(seconds)), most=1.0),
            Target("effective size 2,000 without MAP, slowest of 12, s", max(seconds), most=1.0),
            Target("solves per effective draw, median of 100", float(np.median(ratios)), most=4.0),
            Target("solves per effective draw, 90th percentile", float(np.quantile(ratios, 0.9)), most=12.0),
        ]
    )


if __name__ == "__main__":
    main()
