"""A search for modes that no proposal has told of: from pure prior draws, on the exact log joint.

All starts climb in one batch. What ends outside the proposal's bulk with mass to speak of
becomes a component of the proposal. A search proves nothing; it says what it would have found, and how surely.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ampost.climbing import climb
from ampost.experiments import Experiments
from ampost.importance import Component, student
from ampost.laplace import Laplace, laplace
from ampost.model import Model
from ampost.seeds import derive

STARTS = 60
STEPS = 60  # of each climb
POLISH = 6  # exact ones from where a climb ended
POLISHED = 12  # climbs, at most, that are polished; further ones count where they end at a mode that is known
ENDED = 0.1  # decrement of the log joint below which a search has ended at an optimum
DISTINCT = 4.0  # squared distance of two modes, in sd of the higher one
MASS = 0.01  # share of the posterior from which on a mode counts
OUTSIDE = math.log(10.0)  # by how much the posterior may exceed the proposal there
BASIN = 0.05  # share of the prior, of the basin that the verdict speaks of


@dataclass(frozen=True)
class Modes:
    """Distinct ends of a search, highest first: places (mode, z), Cholesky factors of the information there,
    heights (mode,) of the log joint and log masses (mode,) by Laplace; how many starts ended; solves.
    """

    place: Tensor
    factor: Tensor
    height: Tensor
    log_mass: Tensor
    ended: int
    solves: int

    @property
    def best(self) -> Laplace:
        """The highest mode, as one of a batch of one data set."""
        first = slice(0, 1)
        exact = torch.zeros(1, dtype=torch.float64)
        return Laplace(self.place[first], self.factor[first], exact, self.height[first], 0)

    def outside(self, log_proposal: Callable[[Tensor], Tensor], log_evidence: float) -> Tensor:
        """The modes (index,) that a proposal thinks little of, and that hold a share of the posterior.

        `log_proposal` takes z (draw, 1, z). The evidence is that of the proposal's own draws; a mode that they
        missed adds to it.
        """
        if not len(self.height):
            return torch.zeros(0, dtype=torch.long)
        excess = self.height - log_proposal(self.place[:, None])[:, 0] - log_evidence
        known = torch.where(excess > OUTSIDE, self.log_mass, -torch.inf)
        evidence = torch.logsumexp(torch.cat([known, torch.tensor([log_evidence]).double()]), 0)
        return ((excess > OUTSIDE) & (self.log_mass - evidence > math.log(MASS))).nonzero()[:, 0]

    def components(self, index: Tensor, log_evidence: float, degrees: float) -> list[Component]:
        """Student-t components at some of the modes, each with the share of the posterior that it holds."""
        total = torch.logsumexp(
            torch.cat([self.log_mass[index], torch.tensor([log_evidence], dtype=torch.float64)]), 0
        )
        out = []
        for k in index.tolist():
            share = (self.log_mass[k] - total).exp().clamp(0.05, 0.45).reshape(1)
            scale = torch.linalg.inv(self.factor[k]).T  # z = mode + scale u
            lower = torch.linalg.cholesky(scale @ scale.T)
            out.append(student(self.place[k : k + 1], lower[None], degrees, share))
        return out

    def sentence(self, others: int) -> str:
        """What was searched and found; `others` are modes that the network had not told of."""
        missed = (1 - BASIN) ** self.ended
        if not self.ended:
            return f"Other modes are not known of: none of {STARTS} searches from the prior ended."
        starts = "1 prior start" if self.ended == 1 else f"{self.ended} prior starts"
        limits = (
            f"one whose basin holds {BASIN:.0%} of the prior would have been missed with probability "
            f"{100 * missed:.2g} %"
        )
        if others:
            few = "A further mode was" if others == 1 else f"{others} further modes were"
            return f"{few} found from {starts} and added to the proposal; {limits}."
        heavy = int((torch.softmax(self.log_mass, 0) > MASS).sum())
        known = "No other mode" if heavy == 1 else f"{heavy} modes, and none outside of the proposal, were"
        return f"{known} found from {starts}; {limits}."


def search(model: Model, data: Experiments, seed: int) -> Modes:
    """The modes of one data set that climbs from prior draws end at, the highest few of them.

    A climb has ended where it is at a mode by exact slopes, or within two sd of one.
    """
    start = model.simulate(STARTS, derive(seed, "modes"), data.without_values()).z
    ends = climb(model, data, start, STEPS)
    ended = (ends.decrement < ENDED).nonzero()[:, 0]
    found, solves, number, tried = list[Laplace](), STARTS + ends.solves, 0, 0
    for k in ended[ends.height[ended].argsort(descending=True)].tolist():
        if any(_near(other, ends.z[k]) for other in found):
            number += 1
        elif tried < POLISHED:
            exact = laplace(model, data, ends.z[k : k + 1], POLISH)
            tried, solves = tried + 1, solves + exact.solves
            if float(exact.decrement) < ENDED:
                number += 1
                if not any(_near(other, exact.mode[0]) for other in found):
                    found.append(exact)
    if not found:
        none = torch.zeros(0, dtype=torch.float64)
        size = start.shape[-1]
        return Modes(none.reshape(0, size), none.reshape(0, size, size), none, none, 0, solves)
    found.sort(key=lambda mode: -float(mode.height))
    place, factor = torch.cat([m.mode for m in found]), torch.cat([m.factor for m in found])
    height, scale = torch.cat([m.height for m in found]), torch.cat([m.log_scale for m in found])
    mass = height + 0.5 * place.shape[1] * math.log(2 * math.pi) - scale
    return Modes(place, factor, height, mass, number, solves)


def _near(mode: Laplace, z: Tensor) -> bool:
    """Whether z (z,) is at a mode."""
    return float((mode.factor[0].T @ (z - mode.mode[0])).square().sum()) <= DISTINCT
