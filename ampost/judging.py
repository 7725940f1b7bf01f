"""By what a final round of weighted draws is judged, and whether the network alone would have done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ampost import importance
from ampost.importance import Draws

PRIOR = 1  # the place of the prior among the components of a proposal
FINAL = 4_000  # draws of a final round, at least
GOOD = 0.7  # k-hat of many draws, from which on weights are not to be relied on
LEAST = 1_000  # effective size
LARGEST = 0.01  # share of all weight that one draw may carry
APART = 3.0  # combined errors between the means of two halves of a round, of one parameter
FAILED = 0.01  # share of draws at which the model may fail
LEVELS = (0.05, 0.5, 0.95)
MIDDLE, WIDTH = 0.1, 0.1  # sd by which the network's medians, and share by which its widths, may be off


@dataclass(frozen=True)
class Judged:
    """What a final round says of itself.

    `khat`; `effective` sizes of each mean (z,) and by the weights (`kish`); `largest`, the largest weight's
    share; `apart`, between the means of its two halves in combined errors, of the worst coordinate; `failed`,
    the share of draws at which the model fails. Draws of the prior are left out of the last, for a model may
    fail far from any data. `missed` modes were found that the proposal thinks little of.
    """

    draws: int
    khat: float
    effective: Tensor
    kish: float
    largest: float
    apart: float
    failed: float
    missed: int = 0

    @property
    def smallest(self) -> float:
        """The smallest effective size: by the weights, and of the worst coordinate's mean."""
        return min(self.kish, float(self.effective.min()))

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the weights are not to be relied on; none where they are."""
        found = []
        limit = min(1 - 1 / math.log10(max(self.draws, 11)), GOOD)
        agree = _agree(len(self.effective))
        if self.draws < FINAL:
            found.append(f"only {self.draws} draws in the final round")
        if not self.khat < limit:
            found.append(f"k-hat {shape(self.khat)}, where {limit:.2f} is the most")
        if not self.smallest >= LEAST:
            found.append(f"effective size {self.smallest:.0f}, where {LEAST:,} is the least")
        if not self.largest <= LARGEST:
            found.append(f"one draw carries {self.largest:.1%} of the weight")
        if math.isnan(self.apart):
            found.append("a half of the draws has no weight")
        elif not self.apart <= agree:
            found.append(f"two halves of the draws differ by {self.apart:.3g} of their errors")
        if not self.failed <= FAILED:
            found.append(f"the model fails at {self.failed:.1%} of the draws")
        if self.missed:
            found.append(f"{self.missed} mode(s) of the posterior lie outside of the proposal")
        return tuple(found)


def _agree(parameters: int) -> float:
    """Combined errors that the worst of several parameters may be apart as rarely as one is three."""
    rare = 2 * NormalDist().cdf(-APART)
    return NormalDist().inv_cdf(1 - rare / (2 * max(parameters, 1)))


def shape(khat: float) -> str:
    """k-hat in words where it is not a number to print."""
    return f"{khat:.2f}" if khat < torch.inf else "beyond measure (few draws carry all weight)"


def judged(final: Draws, missed: int = 0) -> Judged:
    """What a round of one data set says of itself, where a search found so many modes outside its proposal."""
    return Judged(
        draws=len(final.z),
        khat=float(importance.khat(final.log_weight)),
        effective=importance.effective_sizes(final)[0].nan_to_num(0.0),
        kish=float(importance.kish(final.log_weight)),
        largest=float(final.weights.nan_to_num(0.0).max()),
        apart=float(importance.halves_apart(final).max()),
        failed=float((~torch.isfinite(final.log_joint[final.component != PRIOR])).double().mean()),
        missed=missed,
    )


def alike(network: Tensor, final: Draws) -> bool:
    """Whether draws (draw, dataset, z) of the network alone have the marginals of a final round.

    These are compared by medians and by the widths from 5 to 95 %: a hundredth of far draws, which the network
    keeps against surprises, would double a standard deviation.
    """
    weight = final.weights[..., None]
    mean = (weight * final.z).sum(0)
    sd = (weight * (final.z - mean).square()).sum(0).sqrt()
    mine = network[:, 0].quantile(torch.tensor(LEVELS, dtype=torch.float64), 0)
    right = torch.stack([_quantiles(z, final.weights[:, 0]) for z in final.z[:, 0].T], 1)
    off = (mine[1] - right[1]).abs() / sd[0]
    wide = ((mine[2] - mine[0]) / (right[2] - right[0]) - 1).abs()
    return bool((off <= MIDDLE).all()) and bool((wide <= WIDTH).all())


def _quantiles(z: Tensor, weight: Tensor) -> Tensor:
    """Quantiles (level,) of weighted draws (draw,)."""
    order = z.argsort()
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    place = torch.searchsorted(weight[order].cumsum(0), levels).clamp(max=len(z) - 1)
    return z[order[place]]
