"""Are corrected posteriors calibrated, whatever their verdict says of the computation?

Run: python benchmarks/exactness/pit.py MODEL --file FILE [--datasets 1000]
MODEL is michaelis_menten, lotka_volterra, one_compartment_oral or ecoli_fed_batch; FILE is an estimator that
`ampost train` made. Data sets are drawn from the prior; each is corrected to an effective size of 1,000, and
the truth has a probability under the corrected marginal of each coordinate of z (PIT). Over data sets these are
uniform, and they are so among the data sets of each verdict too, which depends on the data alone. It prints,
for all and for each verdict, which coordinates leave the simultaneous 95 % band, alpha divided over them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ampost import Budget, Estimator, Model
from ampost.calibration import inside_band
from ampost.correction import Corrected, correct

FEWEST = 20  # data sets of a verdict that are tested


def pit(found: Corrected, truth: Tensor, seed: int) -> Tensor:
    """The probability below `truth` (z,), by the weights or by the chains' draws."""
    if found.sampled:
        drawn = torch.rand(len(truth), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return ((found.z < truth).sum(0) + drawn) / (len(found.z) + 1)
    return found.final.weights[:, 0] @ (found.final.z[:, 0] < truth).double()


def main() -> None:
    """Correct, place the truth, test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--datasets", type=int, default=1_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model: Model = import_module(f"ampost.zoo.{asked.model}").model()
    estimator = Estimator.load(asked.file)
    names = [s.name if s.size == 1 else f"{s.name}[{k}]" for s in model.sites() for k in range(s.size)]
    drawn = model.simulate(asked.datasets, 977)
    places = defaultdict(list)
    for k in (~drawn.failed).nonzero()[:, 0].tolist():
        data = drawn.experiments.at(k)
        found = correct(model, data, estimator, k, Budget(effective_size=1_000), show=False)
        if found.sampled:
            label = "sampled" if found.complete else "failed"
        else:
            label = "trusted" if found.network.trusted else "corrected"
        places[label].append(pit(found, drawn.z[k], k))
    every = [place for label, found in places.items() if label != "failed" for place in found]
    for label, found in {"all but failed": every, **places}.items():
        if len(found) < FEWEST:
            print(f"{label}: {len(found)} data sets, too few to test")
            continue
        stacked = torch.stack(found)
        outside = [n for j, n in enumerate(names) if not inside_band(stacked[:, j], 0.05 / len(names))]
        told = "inside the band" if not outside else f"{', '.join(outside)} outside"
        print(f"{label}: {len(found)} data sets, {told}")


if __name__ == "__main__":
    main()
