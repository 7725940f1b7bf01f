"""How good is an estimator before any correction, from nothing, in a given time?

Run: python benchmarks/training/estimators.py MODEL --seconds 60 [--datasets 1000] [--plain] [--file FILE]
MODEL is michaelis_menten, lotka_volterra or ecoli_fed_batch; --plain leaves out the density about the mode;
FILE is an estimator that `ampost train` made, to be measured in place of a new one.
It prints losses, whether every PIT stays inside its band, the plain importance efficiency from 10,000 draws for
each of 60 data sets (and the real one of Hudson Bay), and times of draws. The learning curves go to
docs/learning_MODEL.png.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from pathlib import Path

import torch
from scores import DRAWS, best, efficiency

from ampost import Estimator, Model, Schedule, Settings, calibrate, plots, train
from ampost.refining import Refining

SETS, MANY = 60, 1_000


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--datasets", type=int, default=1_000)
    parser.add_argument("--simulations", type=int, default=20_000)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--file", type=Path)
    asked = parser.parse_args()
    zoo = import_module(f"ampost.zoo.{asked.model}")
    model: Model = zoo.model()
    schedule = Schedule(steps=20_000, seconds=asked.seconds)
    refining = None if asked.plain else Refining()
    began = time.perf_counter()
    if asked.file is None:
        estimator = train(model, Settings(asked.simulations, schedule, refining=refining), seed=0)
        print(f"{asked.model}: {time.perf_counter() - began:.0f} s from nothing, {estimator.solves:,} solves")
    else:
        estimator = Estimator.load(asked.file)
        print(f"{asked.model}: {estimator.seconds:.0f} s of training, {estimator.solves:,} solves")
    print(f"  loss given the context {estimator.report.best:.3f}, in the end {estimator.loss:.3f} nats")
    print(f"  validation less bank: {estimator.teaching.overfitting:.3f} nats")
    found = calibrate(model, estimator, datasets=asked.datasets, seed=1)
    print(f"  {found['fit/sentence'].item()}")
    drawn = model.simulate(SETS, 77)
    sets = [drawn.experiments.at(k) for k in range(SETS) if not bool(drawn.failed[k])]
    shares = torch.tensor([efficiency(model, estimator, data) for data in sets])
    low, middle, high = shares.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    print(f"  efficiency: lowest tenth {low:.1%}, median {middle:.1%}, highest tenth {high:.1%}")
    if asked.model == "lotka_volterra":
        real = model.prepare(zoo.data())
        print(f"  efficiency on Hudson Bay's counts: {efficiency(model, estimator, real):.1%}")
    reading = estimator.reading(model, sets[0])

    def both() -> None:
        estimator.log_density(estimator.sample(reading, DRAWS, seed=1), reading)

    print(f"  reading of one data set {1e3 * best(lambda: estimator.reading(model, sets[0])):.0f} ms")
    print(f"  {DRAWS:,} draws with densities {1e3 * best(both):.0f} ms")
    several = model.simulate(MANY, 78).experiments

    def all_at_once() -> None:
        for part in torch.arange(MANY).split(100):
            estimator.sample(estimator.reading(model, several.at(part)), MANY, seed=1)

    print(f"  {MANY:,} draws for each of {MANY:,} data sets {best(all_at_once, 1):.1f} s")
    print(f"  quantiles: one data set {1e3 * best(lambda: estimator.quantiles(sets[0])):.1f} ms, ", end="")
    batch = drawn.experiments
    print(f"{1e6 * best(lambda: estimator.quantiles(batch)) / SETS:.0f} µs each of {SETS}")
    path = Path(__file__).parents[2] / "docs" / f"learning_{asked.model}.png"
    plots.save(plots.learning(estimator), path)
    print(f"  wrote {path.name}")


if __name__ == "__main__":
    main()
