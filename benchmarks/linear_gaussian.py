"""Ten thousand equally weighted draws of a linear-Gaussian program against its exact posterior.

The task is `gaussian_linear` of sbi-benchmark: ten means with variance 0.1, each seen once with
variance 0.1, no ODE. Run: python benchmarks/linear_gaussian.py
"""

from __future__ import annotations

import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from c2st import c2st
from targets import Target, show

from ampost import Budget, Design, Experiments, Model, Settings, infer, observe
from ampost.plans import Looks
from ampost.training import Schedule

SIZE, SD = 10, 0.1**0.5


def gaussian(experiments: Experiments) -> None:
    """Ten means, each observed once."""
    for k in range(SIZE):
        mean = pyro.sample(f"mean{k}", dist.Normal(0.0, SD))
        observe(f"x{k}", dist.Normal(mean + 0 * experiments.times, SD), experiments)


def main() -> None:
    """Train, infer, compare."""
    names = [f"x{k}" for k in range(SIZE)]
    model = Model(gaussian, Design({n: Looks((0.0,), (1, 1)) for n in names}, {}, (1, 1), 1.0, cut=0.0))
    rng = np.random.default_rng(1)
    x = rng.normal(rng.normal(0.0, SD, SIZE), SD)
    looks = Experiments.on([[0.0]], names)
    data = looks.with_values(
        {n: torch.tensor([[v]], dtype=torch.float64) for n, v in zip(names, x, strict=True)}
    )
    settings = Settings(simulations=10_000, schedule=Schedule(steps=1_500))
    began = time.perf_counter()
    result = infer(model, data, settings=settings, budget=Budget(draws=10_000, effective_size=10_000))
    print(f"{time.perf_counter() - began:.0f} s with training; {result['fit']['verdict'].item()}")
    draws = np.stack([np.asarray(result[f"posterior/mean{k}"]).ravel() for k in range(SIZE)], 1)
    exact = rng.normal(x / 2, 0.05**0.5, (10_000, SIZE))
    floor = rng.normal(x / 2, 0.05**0.5, (10_000, SIZE))
    print(f"two exact samples against each other: C2ST {c2st(floor, exact):.4f}")
    show([Target("linear Gaussian, C2ST of 10,000 equally weighted draws", c2st(draws, exact), 0.49, 0.51)])


if __name__ == "__main__":
    main()
