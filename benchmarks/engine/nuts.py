"""NUTS on Michaelis-Menten: through the recorded potential, and by Pyro's MCMC on the unchanged program.

    python benchmarks/engine/nuts.py [--draws 1000] [--plain-draws 200]

Wanted: 1,000 + 1,000 draws through the potential under 30 s.
"""

from __future__ import annotations

import argparse
import time

import pyro
import torch
from pyro.infer import MCMC, NUTS

from ampost import baselines
from ampost.zoo import michaelis_menten


def main() -> None:
    """Print seconds and gradients of both, for four simulated data sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--plain-draws", type=int, default=200)
    parser.add_argument("--datasets", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = michaelis_menten.model()
    data = model.simulate(given.datasets, seed=1).experiments
    print("| data set | way | draws | seconds | gradients | smallest effective size |")
    print("| --- | --- | --- | --- | --- | --- |")
    for k in range(given.datasets):
        tree = baselines.nuts(model, data.at(k), draws=given.draws, warmup=given.draws, seed=0, progress=False)
        fit = tree["fit"]
        print(
            f"| {k} | potential | {given.draws} + {given.draws} | {float(fit['seconds']):.1f} | "
            f"{int(fit['gradients'])} | {float(fit['effective_size'].min()):.0f} |",
            flush=True,
        )
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    plain = MCMC(
        NUTS(model.program, full_mass=True),
        given.plain_draws,
        warmup_steps=given.plain_draws,
        disable_progbar=True,
    )
    began = time.monotonic()
    plain.run(data.at(0))
    seconds = time.monotonic() - began
    print(f"| 0 | pyro.infer.MCMC | {given.plain_draws} + {given.plain_draws} | {seconds:.1f} | - | - |")


if __name__ == "__main__":
    main()
