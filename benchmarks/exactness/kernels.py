"""Which Markov chains take over where no proposal carries the weights? Effective draws by solves and seconds.

Run: python benchmarks/exactness/kernels.py MODEL --file FILE [--datasets 3]
FILE is an estimator that `ampost train` made. Each kernel begins at draws of the corrected posterior of
simulated data sets, with the moments and the mixture that are fitted to them, so that all have the best start:

    local   preconditioned Crank-Nicolson about a Student-t distribution, along the ridge (256 chains)
    blended half of the steps jump by a mixture proposal (256 chains): what `correct` uses
    HMC     Hamiltonian Monte Carlo in whitened z by forward sensitivities (64 chains)

A gradient counts as one solve more than there are parameters.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ampost import Budget, Estimator, Experiments, Model, importance
from ampost.chains import GROUPS, Local, chains
from ampost.correction import correct
from ampost.importance import LogDensity
from ampost.mcmc import convergence
from ampost.modes import search
from ampost.ridges import ridge
from ampost.seeds import seeded

LENGTHS = (50, 100)
CHAINS, WARMUP, LONG = 64, 30, 60
Row = tuple[float, int, float, float]


def timed(call: Callable[[], tuple[Tensor, int]]) -> Row:
    """Smallest effective size, solves, seconds and largest R-hat of chains."""
    began = time.perf_counter()
    z, solves = call()
    seconds = time.perf_counter() - began
    rhat, effective = convergence(z)
    return float(effective.min()), solves, seconds, float(rhat.max())


def measured(model: Model, data: Experiments, estimator: Estimator, seed: int) -> dict[str, Row]:
    """A row for each kernel."""
    found = correct(model, data, estimator, seed, Budget(draws=4_000), show=False)
    z = found.z[:, None]
    none = torch.zeros(z.shape[:2], dtype=z.dtype)
    modes = search(model, data, seed)
    about = ridge(model, data, modes.best) if len(modes.height) else None
    local = Local.of(z, none, about, 10.0)
    proposal = importance.fitted_mixture(z, none, 10.0, seed)
    starts = z[torch.linspace(0, len(z) - 1, GROUPS).long(), 0]
    size = z.shape[-1]
    mean, factor = importance.weighted_moments(z, none)

    def joint(at: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_joint(at, data)

    def blended(jumps: float) -> tuple[Tensor, int]:
        out = chains(joint, starts, proposal, local, seed, LENGTHS, jumps)
        return out.z, out.solves

    def hamiltonian() -> tuple[Tensor, int]:
        begin = z[torch.linspace(0, len(z) - 1, CHAINS).long(), 0]
        white = torch.linalg.solve_triangular(factor[0], (begin - mean[0]).T, upper=False).T

        def there(u: Tensor) -> Tensor:
            return model.log_joint((mean[0] + u @ factor[0].T)[:, None], data)[:, 0]

        drawn, gradients = hmc(there, white, WARMUP, LONG, seed)
        return mean[0] + drawn @ factor[0].T, gradients * CHAINS * (1 + size)

    return {
        "local": timed(lambda: blended(0.0)),
        "blended": timed(lambda: blended(0.5)),
        "HMC": timed(hamiltonian),
    }


def hmc(
    log_joint: LogDensity,
    starts: Tensor,
    warmup: int,
    draws: int,
    seed: int,
) -> tuple[Tensor, int]:
    """Hamiltonian Monte Carlo of all `starts` (chain, z) in step: draws (chain, draw, z), gradients per chain.

    For coordinates in which the posterior is about round: trajectories last a quarter of its period on
    average, at random, since one length may come back to where it began. During the warm-up the common step
    follows the acceptance rate by dual averaging towards 0.8 (Hoffman and Gelman, JMLR 15 (2014) 1593); each
    chain takes 0.6 to 1.2 of it, anew each time, which helps it out of narrow places.
    """
    z, gradients, kept = starts, 1, []
    joint, slope = _gradient(log_joint, z)
    goal = math.log(10 * (first := 0.5 * starts.shape[1] ** -0.25))
    log_step, averaged, missed = math.log(first), math.log(first), 0.0
    with seeded(seed):
        for k in range(warmup + draws):
            common = math.exp(log_step if k < warmup else averaged)
            step = common * (0.6 + 0.6 * torch.rand(len(z), 1, dtype=z.dtype))
            reach = 0.5 * math.pi * (0.5 + float(torch.rand(())))
            count = min(50, max(1, math.ceil(reach / common)))
            momentum = torch.randn_like(z)
            before = joint - 0.5 * momentum.square().sum(-1)
            there, force = z, slope
            for _ in range(count):
                momentum = momentum + 0.5 * step * force
                there = there + step * momentum
                value, force = _gradient(log_joint, there)
                momentum = momentum + 0.5 * step * force
            gradients += count
            gain = torch.nan_to_num(value - 0.5 * momentum.square().sum(-1) - before, nan=-torch.inf)
            accept = torch.rand_like(gain).log() < gain
            z = torch.where(accept[:, None], there, z)
            joint, slope = torch.where(accept, value, joint), torch.where(accept[:, None], force, slope)
            if k < warmup:
                weight = 1 / (k + 11)
                missed = (1 - weight) * missed + weight * (0.8 - float(gain.exp().clamp(max=1.0).mean()))
                log_step = goal - 20 * math.sqrt(k + 1) * missed
                forget = (k + 1) ** -0.75
                averaged = forget * log_step + (1 - forget) * averaged
            else:
                kept.append(z)
    return torch.stack(kept, 1), gradients


def _gradient(log_joint: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log joint (chain,) and its gradient (chain, z); -inf and 0 where either is not finite."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_joint(z)
        (slope,) = torch.autograd.grad(torch.where(torch.isfinite(value), value, 0.0).sum(), z)
    good = torch.isfinite(value.detach()) & torch.isfinite(slope).all(-1)
    return torch.where(good, value.detach(), -torch.inf), torch.where(good[:, None], slope, 0.0)


def main() -> None:
    """A line for each data set and kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--datasets", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model: Model = import_module(f"ampost.zoo.{asked.model}").model()
    estimator = Estimator.load(asked.file)
    drawn = model.simulate(4 * asked.datasets, 177)
    print("| data set | kernel | effective | per 1,000 solves | per second | R-hat |\n|" + " --- |" * 6)
    for k in (~drawn.failed).nonzero()[: asked.datasets, 0].tolist():
        rows = measured(model, drawn.experiments.at(k), estimator, k)
        for name, (size, solves, seconds, rhat) in rows.items():
            each = f"{1_000 * size / solves:.1f} | {size / seconds:,.0f}"
            print(f"| {asked.model} {k} | {name} | {size:,.0f} | {each} | {rhat:.3f} |", flush=True)


if __name__ == "__main__":
    main()
