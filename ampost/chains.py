"""Many Markov chains in step, without gradients: jumps by a proposal, and local moves along a ridge.

Each step of a chain is a jump, which takes a draw of a mixture proposal or stays (independence sampler), or a
local move, preconditioned Crank-Nicolson about a Student-t distribution in coordinates that follow the ridge.
Jumps go from mode to mode and forget where a chain began; local moves reach what the proposal thinks little of.
All chains' proposals are one batched call of the log joint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from ampost import importance
from ampost.importance import Component, LogDensity
from ampost.mcmc import convergence
from ampost.ridges import Ridge
from ampost.seeds import derive, seeded

GROUPS, EACH = 16, 16  # groups of chains that begin at one point, for nested R-hat
LENGTHS = (50, 100, 200, 400)  # draws of each chain; longer ones go on where the last ones are
WARMUP = 0.5  # of the first length, before draws are kept
JUMPS = 0.5  # share of steps that are jumps
ACCEPTED = 0.25  # share of local moves that are to be accepted
RHAT, LEAST = 1.01, 400  # nested R-hat at most, bulk and tail effective sizes at least


@dataclass(frozen=True)
class Chains:
    """Draws z (chain, draw, z) of chains in groups, their nested R-hat, and effective sizes (z,)."""

    z: Tensor
    rhat: float
    effective: Tensor
    solves: int

    @property
    def agree(self) -> bool:
        """Whether they may be taken for the posterior."""
        return self.rhat <= RHAT and float(self.effective.min()) >= LEAST


@dataclass(frozen=True)
class Local:
    """A Student-t distribution, in coordinates about a ridge if there is one: mean (z,), factor (z, z)."""

    about: Ridge | None
    mean: Tensor
    factor: Tensor
    degrees: float

    @classmethod
    def of(cls, z: Tensor, log_weight: Tensor, about: Ridge | None, degrees: float) -> Local:
        """That of weighted draws z (draw, 1, z)."""
        u = z if about is None else about.standard(z)
        mean, factor = importance.weighted_moments(u, log_weight)
        return cls(about, mean[0], factor[0], degrees)

    def standard(self, z: Tensor) -> Tensor:
        """Coordinates (chain, z) in which it is round; volumes change by a constant."""
        u = z if self.about is None else self.about.standard(z[:, None])[:, 0]
        white: Tensor = torch.linalg.solve_triangular(self.factor, (u - self.mean).T, upper=False).T
        return white

    def back(self, white: Tensor) -> Tensor:
        """The inverse of `standard`."""
        u = self.mean + white @ self.factor.T
        return u if self.about is None else self.about.back(u[:, None])[:, 0]

    def log_density(self, white: Tensor) -> Tensor:
        """Its log density (chain,), up to a constant."""
        size = white.shape[-1]
        return -0.5 * (self.degrees + size) * torch.log1p(white.square().sum(-1) / self.degrees)

    def moved(self, white: Tensor, rho: float) -> Tensor:
        """A step that leaves it as it is, of length rho (0 to 1): Crank-Nicolson given a scale."""
        size = white.shape[-1]
        shape = torch.full((len(white),), 0.5 * (size + self.degrees), dtype=white.dtype)
        rate = 0.5 * (self.degrees + white.square().sum(-1))
        scale = (rate / torch.distributions.Gamma(shape, torch.ones_like(shape)).sample()).sqrt()
        return math.sqrt(1 - rho**2) * white + rho * scale[:, None] * torch.randn_like(white)


def chains(
    log_joint: LogDensity,
    starts: Tensor,
    proposal: list[Component],
    local: Local,
    seed: int,
    lengths: tuple[int, ...] = LENGTHS,
    jumps: float = JUMPS,
    advance: Callable[[], None] = lambda: None,
) -> Chains:
    """Chains from `starts` (group, z) until they agree, or are as long as they may be.

    `log_joint` takes z (draw, 1, z); `jumps` is the share of steps that are jumps. Solves count one for each
    step of each chain.
    """
    z = starts.repeat_interleave(EACH, 0)
    state = _State(z, log_joint(z[:, None])[:, 0], importance.log_mixture(z[:, None], proposal)[:, 0])
    solves, rho, found = len(z), 0.5, None
    for k, length in enumerate(lengths):
        state, kept, rho = _steps(
            log_joint, state, proposal, local, length, rho, jumps, derive(seed, k), advance
        )
        solves += length * len(z)
        if k == 0:
            kept = kept[int(WARMUP * length) :]
        drawn = torch.stack(kept, 1)
        rhat, (_, effective) = nested_rhat(drawn), convergence(drawn)
        found = Chains(drawn, rhat, effective, solves)
        if found.agree:
            break
    assert found is not None
    return found


@dataclass(frozen=True)
class _State:
    """Where chains are: z (chain, z), the log joint and the log density of the proposal there."""

    z: Tensor
    joint: Tensor
    proposed: Tensor


def _steps(
    log_joint: LogDensity,
    state: _State,
    proposal: list[Component],
    local: Local,
    length: int,
    rho: float,
    jumping: float,
    seed: int,
    advance: Callable[[], None],
) -> tuple[_State, list[Tensor], float]:
    """The state after so many steps, z after each, and the length of local moves, which follows their rate."""
    z, joint, proposed, kept = state.z, state.joint, state.proposed, list[Tensor]()
    jumps = _drawn(proposal, length * len(z), derive(seed, "jumps")).reshape(length, *z.shape)
    with seeded(seed):
        for step in range(length):
            white = local.standard(z)
            moved = local.moved(white, rho)
            jump = torch.rand(len(z), dtype=torch.float64) < jumping
            there = torch.where(jump[:, None], jumps[step], local.back(moved))
            joint_there = log_joint(there[:, None])[:, 0]
            proposed_there = importance.log_mixture(there[:, None], proposal)[:, 0]
            reference = torch.where(jump, proposed_there, local.log_density(moved))
            here = torch.where(jump, proposed, local.log_density(white))
            gain = (joint_there - reference) - (joint - here)
            accept = torch.isfinite(joint_there) & (torch.rand_like(gain).log() < gain)
            z = torch.where(accept[:, None], there, z)
            joint = torch.where(accept, joint_there, joint)
            proposed = torch.where(accept, proposed_there, proposed)
            kept.append(z)
            if step < length // 2:
                rate = float(accept[~jump].double().mean()) if bool((~jump).any()) else ACCEPTED
                rho = min(0.95, max(0.02, rho * math.exp(0.5 * (rate - ACCEPTED))))
            advance()
    return _State(z, joint, proposed), kept, rho


def _drawn(proposal: list[Component], count: int, seed: int) -> Tensor:
    """Independent draws z (draw, z) of a mixture, in random order."""
    shares = torch.stack([component.share for component in proposal])[:, 0]
    with seeded(derive(seed, "who")):
        who = torch.multinomial(shares, count, replacement=True)
    z = torch.empty(count, proposal[0].sample(1, seed).shape[-1], dtype=torch.float64)
    for k, component in enumerate(proposal):
        mine = (who == k).nonzero()[:, 0]
        if len(mine):
            z[mine] = component.sample(len(mine), derive(seed, component.name, k))[:, 0]
    return z


def nested_rhat(z: Tensor) -> float:
    """The largest nested R-hat of chains (chain, draw, z) in `GROUPS` groups, by the ranks of all draws.

    For many short chains, each group of which begins at one point: it tells whether they forgot where they
    began (Margossian et al., Bayesian Analysis 19 (2024) 1; ranks as in Vehtari et al., ibid. 16 (2021) 667).
    """
    count, draws, size = z.shape
    ranks = rankdata(z.reshape(-1, size).numpy(), axis=0)
    score = torch.as_tensor(ndtri((ranks - 0.375) / (count * draws + 0.25))).reshape(GROUPS, -1, draws, size)
    each = score.mean(2)
    between = each.mean(1).var(0)
    within = (each.var(1) + score.var(2).mean(1)).mean(0)
    return float((1 + between / within.clamp(min=1e-300)).sqrt().max())
