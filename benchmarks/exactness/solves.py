"""How many ODE solves does an effective draw of the corrected posterior cost?

Run: python benchmarks/exactness/solves.py MODEL [--file FILE] [--seconds 60] [--datasets 100]
MODEL is michaelis_menten, lotka_volterra, one_compartment_oral or ecoli_fed_batch; FILE is an estimator that
`ampost train` made, else one is trained here for so many seconds.
Data sets are simulated from the model; each is corrected to an effective size of 4,000. All solves count,
those of the searches for modes too, sensitivities as one for each parameter; the training is apart. It prints
solves per effective draw (the smallest effective size of any parameter), how many data sets got which verdict,
and the seconds of one.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

import torch

from ampost import Estimator, Model, Schedule, Settings, train
from ampost.correction import Budget, correct

SIMULATIONS = 20_000


def main() -> None:
    """Train or load, correct, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--datasets", type=int, default=100)
    asked = parser.parse_args()
    model: Model = import_module(f"ampost.zoo.{asked.model}").model()
    if asked.file is None:
        settings = Settings(SIMULATIONS, Schedule(steps=20_000, seconds=asked.seconds))
        estimator = train(model, settings, seed=0)
    else:
        estimator = Estimator.load(asked.file)
    drawn = model.simulate(asked.datasets, 177)
    cost, seconds, labels = [], [], Counter[str]()
    for k in (~drawn.failed).nonzero()[:, 0].tolist():
        began = time.perf_counter()
        found = correct(model, drawn.experiments.at(k), estimator, k, Budget(effective_size=4_000), show=False)
        seconds.append(time.perf_counter() - began)
        cost.append(found.solves / max(float(found.effective.min()), 1.0))
        if found.sampled:
            labels["sampled" if found.complete else "failed"] += 1
        else:
            labels["trusted" if found.network.trusted else "corrected"] += 1
    spread = torch.tensor(cost)
    low, middle, high = spread.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    print(f"{asked.model}: {estimator.seconds:.0f} s of training, {estimator.solves:,} solves")
    print(f"  solves per effective draw: best tenth {low:.1f}, median {middle:.1f}, worst tenth {high:.1f}")
    print(f"  {', '.join(f'{count} {label}' for label, count in labels.most_common())}")
    print(f"  {torch.tensor(seconds).median():.2f} s a data set (median)")


if __name__ == "__main__":
    main()
