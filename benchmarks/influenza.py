"""Influenza in a boarding school: does the model cover the counts, and does NUTS agree?

Run: python benchmarks/influenza.py [--chains 4] [--out FILE.csv] [--estimators FOLDER]. An estimator is
trained with the default settings unless it is in FOLDER, and is saved there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from agreement import agreements, print_and_write, targets_of
from targets import Target, show

from ampost import Budget, infer
from ampost.baselines import nuts
from ampost.zoo import sir_influenza


def covered(result: xr.DataTree, share: float) -> float:
    """The share of counts inside their central predictive interval of probability `share`."""
    drawn = result["posterior_predictive/in_bed"].to_numpy()
    drawn = drawn.reshape(-1, drawn.shape[-1])
    low, high = np.quantile(drawn, [0.5 - share / 2, 0.5 + share / 2], axis=0)
    seen = result["observed_data/in_bed"].to_numpy()
    return float(((seen >= low) & (seen <= high)).mean())


def main() -> None:
    """Train, infer, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--estimators", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, data = sir_influenza.model(), sir_influenza.data()
    budget = Budget(draws=8_000, effective_size=8_000)
    kept = given.estimators / "influenza.ampost"
    mine = infer(model, data, kept, seed=0, budget=budget, optimum=False)
    print(mine["fit/verdict"].item())
    theirs = nuts(model, data, draws=2_000, warmup=500, chains=given.chains, seed=0)
    rows = agreements("influenza", model, mine, theirs)
    print_and_write(rows, given.out)
    show(
        [
            Target("influenza: share of counts inside the 50 % band", covered(mine, 0.5), 0.4),
            Target("influenza: share of counts inside the 95 % band", covered(mine, 0.95), 0.95),
            *targets_of("influenza", rows),
        ]
    )


if __name__ == "__main__":
    main()
