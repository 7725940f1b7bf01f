"""Two tasks of sbibm against their reference posteriors, by C2ST as the published table computes it.

Run: python benchmarks/external/sbibm.py [lotka_volterra sir] [--observations 1 2] [--seconds 60]
Needs the reference cases (AMPOST_REFERENCE, default ../shared/reference).

One network for each task learns from 10,000 solves, its validation included, without a density about the mode.
Each observation is corrected so that training and correction together take at most 100,000 solves, and gives
10,000 distinct equally weighted draws. The network's own draws are the like-for-like row for the published
methods at 10,000 simulations: these did not use the likelihood, and a corrected posterior does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from c2st import c2st  # noqa: E402
from models import reference  # noqa: E402
from targets import Target, show  # noqa: E402

from ampost import Budget, Estimator, Experiments, Model, Schedule, Settings, infer, train  # noqa: E402
from ampost.learning import VALIDATION  # noqa: E402

DRAWS, SOLVES, TRAINING = 10_000, 100_000, 10_000
EFFECTIVE = 20_000  # so that hardly any of 10,000 draws is drawn twice


@dataclass(frozen=True)
class Task:
    """A task: its module in `models`, how many observations there are, the published medians at 10,000."""

    module: str
    observations: int
    published: str


TASKS = {
    "lotka_volterra": Task("lotka_volterra_sbibm", 3, "NPE 0.998, SNLE 0.724"),
    "sir": Task("sir_binomial", 2, "NPE 0.630, SNPE 0.556"),
}


def table(task: str, number: int) -> NDArray[np.float64]:
    """Reference draws of one observation (draw, parameter)."""
    path = reference("sbibm", task, f"num_observation_{number}", "reference_posterior_samples.csv.bz2")
    return pd.read_csv(path).to_numpy()


def measured(
    name: str, model: Model, data: Experiments, estimator: Estimator, known: NDArray[np.float64], seed: int
) -> tuple[str, float, float]:
    """A row in words, C2ST of the corrected draws, and the solves of both together."""
    began = time.perf_counter()
    budget = Budget(DRAWS, EFFECTIVE, SOLVES - estimator.solves)
    result = infer(model, data, estimator, seed, budget, progress=False, optimum=False)
    seconds = time.perf_counter() - began
    fit = result["fit"]
    names = [site.name for site in model.sites()]
    draws = np.stack([np.asarray(result[f"posterior/{n}"]).ravel() for n in names], 1)
    z = estimator.sample(estimator.reading(model, data), DRAWS, seed)[:, 0]
    alone = model.parameters(z[:, None], data)
    network = np.stack([alone[n].flatten().numpy() for n in names], 1)
    corrected, uncorrected = c2st(draws, known), c2st(network, known)
    solves = estimator.solves + int(fit["solves"])
    row = (
        f"| {name} | {corrected:.3f} | {uncorrected:.3f} | {estimator.solves:,} + {int(fit['solves']):,} | "
        f"{len(np.unique(draws, axis=0)):,} | {float(fit['effective_size'].min()):,.0f} | "
        f"{fit['computation'].item()} | {seconds:.1f} s |"
    )
    return row, corrected, solves


def main() -> None:
    """Train once for each task, correct each observation, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--observations", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| observation | C2ST, corrected | C2ST, network alone | solves: training + correction "
        "| distinct draws | smallest effective size | verdict | time |\n|" + " --- |" * 8
    )
    targets, notes = [], []
    for task in asked.tasks:
        entry = TASKS[task]
        module = import_module(f"models.{entry.module}")
        make: Callable[[], Model] = module.model
        model = make()
        schedule = Schedule(steps=20_000, seconds=asked.seconds)
        settings = Settings(TRAINING - VALIDATION, schedule, refining=None)
        estimator = train(model, settings, seed=0, progress=False)
        notes.append(f"{task}: published at 10,000 simulations, without the likelihood: {entry.published}")
        for number in asked.observations or range(1, entry.observations + 1):
            known = table(task, number)
            row, corrected, solves = measured(
                f"{task} {number}", model, module.data(number), estimator, known, number
            )
            print(row, flush=True)
            targets.append(Target(f"{task} {number}: C2ST", corrected, most=0.52))
            targets.append(Target(f"{task} {number}: solves in all", solves, most=SOLVES))
    show(targets)
    print("\n".join(notes))


if __name__ == "__main__":
    main()
