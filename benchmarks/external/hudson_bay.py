"""Hudson Bay's pelts at an effective size of 10,000, against posteriordb's reference draws.

Run: python benchmarks/external/hudson_bay.py [--file FILE] [--seconds 240]
FILE is an estimator of lotka_volterra that `ampost train` made, else one is trained here. Needs the reference
cases (AMPOST_REFERENCE, default ../shared/reference). Moments are those of the weighted draws.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hudson_bay import NAMES
from models import reference
from targets import Target, show

from ampost import Budget, Estimator, Schedule, Settings, infer, train
from ampost.zoo import lotka_volterra

EFFECTIVE, SOLVES = 10_000, 300_000


def main() -> None:
    """Correct, compare each parameter, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0)
    asked = parser.parse_args()
    model, data = lotka_volterra.model(), lotka_volterra.data()
    known = pd.read_csv(reference("posteriordb", "hudson_lynx_hare-lotka_volterra", "reference_draws.csv.bz2"))
    if asked.file is None:
        estimator = train(model, Settings(schedule=Schedule(20_000, seconds=asked.seconds)), seed=0)
    else:
        estimator = Estimator.load(asked.file)
    budget = Budget(draws=10_000, effective_size=EFFECTIVE, solves=SOLVES)
    result = infer(model, data, estimator, 1, budget, progress=False, optimum=False)
    print(result["fit/verdict"].item())
    z = torch.as_tensor(np.asarray(result["importance_samples/z"]))
    weight = torch.softmax(torch.as_tensor(np.asarray(result["importance_samples/log_weight"])), 0)
    parameters = model.parameters(z[:, None], data)
    off, wide = [], []
    for mine, theirs in NAMES.items():
        drawn, right = parameters[mine].flatten(), known[theirs].to_numpy()
        mean = float(weight @ drawn)
        sd = float((weight @ (drawn - mean).square()).sqrt())
        off.append(abs(mean - right.mean()) / right.std())
        wide.append(abs(sd / right.std() - 1))
        print(f"{mine:10} mean off by {off[-1]:.3f} reference sd, sd off by {100 * wide[-1]:.1f} %")
    show(
        [
            Target("smallest effective size", float(result["fit/effective_size"].min()), EFFECTIVE),
            Target("largest error of a mean, reference sds", max(off), most=0.05),
            Target("largest relative error of an sd", max(wide), most=0.05),
        ]
    )
    print(f"{int(result['fit/solves']):,} ODE solves, {float(result['fit/seconds']):.1f} s")


if __name__ == "__main__":
    main()
