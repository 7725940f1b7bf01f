"""NUTS in blocks of draws, timed: until an effective size is reached or time is up. Pyro's is here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.infer import NUTS
from torch import Tensor

from ampost.mcmc import convergence
from ampost.seeds import derive, seeded

BETWEEN = 100  # draws of each chain between looks at the effective size
STEP = 0.1  # at first where the metric is right: adaptation begins by steps that are ten times as long
ENOUGH = 500  # effective draws, below which seconds are not extrapolated from
RHAT = 1.01


@dataclass(frozen=True)
class Sampler:
    """`advance()` gives the next `block` draws of each chain (chain, draw, z) and the gradients that they took.

    The first `warmup` draws of each chain adapt; `compiling` are the seconds spent before the first of them.
    """

    name: str
    warmup: int
    block: int
    compiling: float
    advance: Callable[[], tuple[Tensor, int]]


@dataclass(frozen=True)
class Run:
    """Seconds of warm-up and of draws after it, with what these are worth."""

    name: str
    compiling: float
    warming: float
    drawing: float
    warmed: int
    draws: int
    gradients: int
    effective: float
    rhat: float

    def seconds(self, wanted: int) -> float:
        """Warm-up once, and the draws scaled to an effective size; where it is not known, as if all counted."""
        if not self.draws:
            return self.warming
        worth = self.effective if self.known else min(self.draws, wanted)
        return self.warming + self.drawing * wanted / worth

    @property
    def known(self) -> bool:
        """Whether there are enough effective draws to scale from; else the seconds are a lower bound."""
        return self.effective >= ENOUGH

    def words(self, wanted: int) -> str:
        """Seconds, as far as they are known."""
        if not self.known:
            return f"> {self.seconds(wanted):.3g}"
        reached = "" if self.effective >= wanted else " (extrapolated)"
        return f"{self.seconds(wanted):.3g}{reached}{'' if self.rhat <= RHAT else f' (R-hat {self.rhat:.3f})'}"

    def account(self) -> str:
        """What was run."""
        each = 1e3 * (self.warming + self.drawing) / max(self.gradients, 1)
        return (
            f"{self.name}: {self.warming:.3g} s for {self.warmed:,} draws of warm-up, {self.drawing:.3g} s for "
            f"{self.draws:,} draws, effective {self.effective:.0f}, R-hat {self.rhat:.3f}; {self.gradients:,} "
            f"gradients of {each:.3g} ms; compiled in {self.compiling:.1f} s"
        )


def run(sampler: Sampler, wanted: int, limit: float) -> Run:
    """Warm up and draw until bulk and tail effective sizes are `wanted`, or `limit` seconds are over."""
    warming, drawing, gradients = 0.0, 0.0, 0
    blocks: list[Tensor] = []
    effective, rhat, done, warmed = 0.0, float("nan"), 0, 0
    while effective < wanted and warming + drawing < limit:
        began = time.process_time()
        z, spent = sampler.advance()
        took = time.process_time() - began
        gradients, done = gradients + spent, done + sampler.block
        if done <= sampler.warmup:
            warming, warmed = warming + took, warmed + z.shape[0] * z.shape[1]
            continue
        drawing += took
        blocks.append(z)
        if (done - sampler.warmup) % BETWEEN == 0 or warming + drawing >= limit:
            rhat, effective = _worth(blocks)
    draws = sum(z.shape[0] * z.shape[1] for z in blocks)
    return Run(sampler.name, sampler.compiling, warming, drawing, warmed, draws, gradients, effective, rhat)


def _worth(blocks: list[Tensor]) -> tuple[float, float]:
    """The largest R-hat and the smallest effective size."""
    rhat, effective = convergence(torch.cat(blocks, 1))
    return float(rhat.max()), float(effective.nan_to_num(0.0).min())


def by_pyro(
    potential: Callable[[Tensor], Tensor],
    starts: Tensor,
    warmup: int,
    seed: int,
    metric: bool,
    block: int,
    compiling: float,
) -> Sampler:
    """Pyro's NUTS on a potential of z from `starts` (chain, z), as `baselines.nuts` runs it.

    It adapts a full mass matrix, unless the `metric` is right from the start.
    """
    spent = 0

    def counted(given: dict[str, Tensor]) -> Tensor:
        nonlocal spent
        spent += 1
        return potential(given["z"])

    kernels, places = [], []
    for start in starts:
        kernel = NUTS(
            potential_fn=counted,
            step_size=STEP if metric else 1.0,
            full_mass=True,
            adapt_mass_matrix=not metric,
        )
        kernel.initial_params = {"z": start}
        kernel.setup(warmup)
        kernels.append(kernel)
        places.append(kernel.initial_params)
    done = 0

    def advance() -> tuple[Tensor, int]:
        nonlocal done
        before, chains = spent, []
        for c, kernel in enumerate(kernels):
            drawn = []
            with seeded(derive(seed, "chain", c, done)):
                for _ in range(block):
                    places[c] = kernel.sample(places[c])
                    drawn.append(places[c]["z"].detach())
            chains.append(torch.stack(drawn))
        done += block
        return torch.stack(chains), spent - before

    return Sampler("Pyro", warmup, block, compiling, advance)
