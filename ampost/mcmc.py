"""Sampling where weights fail: sequential Monte Carlo, and Pyro's NUTS.

Particles pass from a reference q to the posterior along q^(1-b) x joint^b, moved by pCN; each step in b
keeps half of the effective size. With the prior as reference it does not trust the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from arviz_stats.base import array_stats  # type: ignore[attr-defined]
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ampost.importance import Draws, equally_weighted, kish, move, weighted_moments
from ampost.seeds import derive, seeded

Path = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SmcResult:
    """Particles (draw, dataset, z) of the posterior, their log joint, evidence, and how it went."""

    z: Tensor
    log_joint: Tensor
    log_evidence: Tensor
    stages: int
    acceptance: float
    complete: bool


def smc(start: Tensor, path: Path, seed: int, steps: int = 10, most_stages: int = 60) -> SmcResult:
    """From draws `start` of a reference to the posterior; `path(z)` gives log reference and log joint.

    The last stage moves twice as long. `complete` is false where b = 1 was not reached (Del Moral,
    Doucet and Jasra, J. R. Statist. Soc. B 68 (2006) 411), or where every particle is impossible.
    """
    z = start
    ends = path(z)
    datasets = z.shape[1]
    power = torch.zeros(datasets, dtype=torch.float64)
    evidence = torch.zeros_like(power)
    rate, stage = 0.0, 0
    while bool((power < 1).any()) and stage < most_stages:
        if not bool(torch.isfinite(ends[1]).any(0).all()):
            break  # of some data set no particle is possible: there is nothing to weigh
        gain = torch.where(torch.isfinite(ends[1]), ends[1] - ends[0], -torch.inf)
        raised = _next_power(gain, power)
        weight = torch.where(torch.isfinite(gain), (raised - power) * gain, -torch.inf)
        evidence = evidence + torch.logsumexp(weight, 0) - torch.log(torch.tensor(float(len(z))))
        power = raised

        def target(x: Tensor, at: Tensor = power) -> Tensor:
            return _between(*path(x), at)

        joint = _between(*ends, power)
        mean, factor = weighted_moments(z, weight)
        present = Draws(z, joint, joint, weight, torch.zeros(len(z), dtype=torch.long))
        z, joint = equally_weighted(present, target, len(z), derive(seed, "resample", stage), steps=0)
        last = bool((power >= 1).all())
        z, joint, rate = move(
            z, joint, target, mean, factor, steps * (2 if last else 1), derive(seed, "move", stage)
        )
        ends = path(z)
        stage += 1
    return SmcResult(z, ends[1], evidence, stage, rate, bool((power >= 1).all()))


def _between(reference: Tensor, joint: Tensor, power: Tensor) -> Tensor:
    """(1 - b) log reference + b log joint; -inf where the joint is not finite."""
    return torch.where(torch.isfinite(joint), (1 - power) * reference + power * joint, -torch.inf)


def _next_power(gain: Tensor, power: Tensor) -> Tensor:
    """The largest next power, per data set, that keeps half of the effective size."""
    finite = torch.isfinite(gain)

    def size(at: Tensor) -> Tensor:
        return kish(torch.where(finite, (at - power) * gain, -torch.inf))

    usable = 0.5 * len(gain) * finite.double().mean(0)
    low, high = power.clone(), torch.ones_like(power)
    done = size(high) >= usable
    for _ in range(50):
        middle = (low + high) / 2
        good = size(middle) >= usable
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    step = torch.maximum(low, power + 1e-9)
    return torch.where(done, 1.0, step).clamp(max=1.0)


def nuts(
    potential: Callable[[Tensor], Tensor],
    starts: Tensor,
    warmup: int,
    draws: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, int]:
    """Pyro's NUTS from each of `starts` (chain, z), one after another: z (chain, draw, z), gradients spent.

    `potential(z)` is -log joint at z (z,); `advance` is called after each step.
    """
    gradients = 0

    def counted(given: dict[str, Tensor]) -> Tensor:
        nonlocal gradients
        gradients += 1
        return potential(given["z"])

    parts = []
    for chain, start in enumerate(starts):
        with seeded(derive(seed, "chain", chain)):
            sampler = MCMC(
                NUTS(potential_fn=counted, full_mass=True),
                draws,
                warmup_steps=warmup,
                initial_params={"z": start},
                hook_fn=lambda *_: advance(),
                disable_progbar=True,
            )
            sampler.run()
        parts.append(sampler.get_samples()["z"])
    return torch.stack(parts), gradients


def convergence(z: Tensor) -> tuple[Tensor, Tensor]:
    """Rank-normalised R-hat, and the smaller of bulk and tail effective size, of chains (chain, draw, z)."""
    axes = {"chain_axis": 0, "draw_axis": 1}

    def each(of: Callable[..., object], **kind: object) -> Tensor:
        """One number per coordinate."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a coordinate that does not move has none
            return torch.tensor([float(of(c, **axes, **kind)) for c in z.movedim(-1, 0).numpy()]).double()  # type: ignore[arg-type]

    bulk = each(array_stats.ess, method="bulk")
    tail = each(array_stats.ess, method="tail", prob=(0.05, 0.95))
    return each(array_stats.rhat), torch.minimum(bulk, tail)
