"""Batched sampling where weights fail: sequential Monte Carlo from the prior, moves by pCN.

Particles pass from the prior to the posterior along prior x likelihood^b; each b keeps half of the
effective size. It does not trust the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ampost.importance import Draws, equally_weighted, kish, move, weighted_moments
from ampost.seeds import derive

Parts = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SmcResult:
    """Particles (draw, dataset, z) of the posterior, their log joint, evidence, stages and solves."""

    z: Tensor
    log_joint: Tensor
    log_evidence: Tensor
    stages: int
    solves: int
    acceptance: float
    complete: bool


def smc(start: Tensor, parts: Parts, seed: int, steps: int = 10, most_stages: int = 60) -> SmcResult:
    """From prior draws `start` to the posterior; `parts(z)` gives log prior and log likelihood.

    The last stage moves twice as long. `complete` is false where b = 1 was not reached.
    """
    z = start
    prior, likelihood = parts(z)
    likelihood = torch.nan_to_num(likelihood, nan=-torch.inf)
    solves = likelihood.numel()
    datasets = z.shape[1]
    power = torch.zeros(datasets, dtype=torch.float64)
    evidence = torch.zeros_like(power)
    rate, stage = 0.0, 0
    while bool((power < 1).any()) and stage < most_stages:
        raised = _next_power(likelihood, power)
        weight = torch.where(torch.isfinite(likelihood), (raised - power) * likelihood, -torch.inf)
        evidence = evidence + torch.logsumexp(weight, 0) - torch.log(torch.tensor(float(len(z))))
        power = raised

        def target(x: Tensor, at: Tensor = power) -> Tensor:
            a, b = parts(x)
            return torch.where(torch.isfinite(b), a + at * b, -torch.inf)

        joint = torch.where(torch.isfinite(likelihood), prior + power * likelihood, -torch.inf)
        mean, factor = weighted_moments(z, weight)
        moved = Draws(z, joint, joint, weight, 0, 0)
        z, joint, _ = equally_weighted(moved, target, len(z), derive(seed, "resample", stage), steps=0)
        last = bool((power >= 1).all())
        z, joint, spent, rate = move(
            z, joint, target, mean, factor, steps * (2 if last else 1), derive(seed, "move", stage)
        )
        prior, likelihood = parts(z)
        solves += spent + likelihood.numel()
        stage += 1
    complete = bool((power >= 1).all())
    return SmcResult(z, prior + likelihood, evidence, stage, solves, rate, complete)


def _next_power(likelihood: Tensor, power: Tensor) -> Tensor:
    """The largest next power, per data set, that keeps half of the effective size."""
    half = 0.5 * len(likelihood)
    finite = torch.isfinite(likelihood)

    def size(at: Tensor) -> Tensor:
        return kish(torch.where(finite, (at - power) * likelihood, -torch.inf))

    usable = half * finite.double().mean(0)
    low, high = power.clone(), torch.ones_like(power)
    done = size(high) >= usable
    for _ in range(50):
        middle = (low + high) / 2
        good = size(middle) >= usable
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    step = torch.maximum(low, power + 1e-9)
    return torch.where(done, 1.0, step).clamp(max=1.0)
