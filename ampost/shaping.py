"""How a proposal is shaped for one data set: from what weighted draws say, and cheap chains on a nearby proxy.

Every round weighs fresh draws by the exact log joint, and keeps their trajectories. A proxy fitted to these
says where the posterior lies; Markov chains on it take no solve. The next mixture is fitted to their draws.
Where no proxy can be fitted, it is fitted to the weighted draws, or to those of short chains on the ODE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ampost import importance, nearby, triangular
from ampost.chains import GROUPS, LENGTHS, Chains, Local, chains
from ampost.estimator import Estimator, Reading
from ampost.experiments import Experiments
from ampost.importance import Component, Draws, LogDensity
from ampost.mcmc import SmcResult, smc
from ampost.model import Model
from ampost.modes import ENDED, Modes
from ampost.nearby import Answers, Nearby
from ampost.ridges import Ridge, ridge
from ampost.seeds import derive

ROUND = 1_000  # draws, at least
PER_TERM = 5  # draws of a round, of a quadratic function's terms, where that is more
MOST_DRAWS = 2_000
ROUNDS = 3
ENOUGH = 0.4  # effective draws per draw, from which on a proposal is left as it is
GAIN = 1.2  # times more of them, below which further rounds are not worth their solves
POOR = 0.15  # of them, below which Markov chains on the ODE give the draws that a proposal is fitted to
SPREAD = 0.25  # effective size of the draws that a nearby proxy is fitted to, of their number
ON_PROXY = (50, 100)  # lengths of chains on it
BENT = 20  # effective draws, times the dimension, from which on a bent component is fitted
WRONG = 1.0  # log joint by which a nearby proxy may be off
MEMORY = 40_000_000  # values of trajectories that are kept
LEAST, MOST, GUARD = 0.2, 0.5, 0.05  # the network's share in a proposal, and the prior's
KEPT = 0.2  # part of the shares of a mixture's components that stays as it was


@dataclass
class Exact:
    """The exact log joint of one data set, without gradients, counting ODE solves; it can keep trajectories."""

    model: Model
    data: Experiments
    solves: int = 0
    told: list[Answers] = field(default_factory=list)

    def __call__(self, z: Tensor) -> Tensor:
        return self.from_prior(z)[1]

    def from_prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior and log joint of z (draw, dataset, z)."""
        self.solves += z.shape[0] * z.shape[1]
        with torch.no_grad():
            scores = self.model.score(z, self.data)
        return scores.log_prior, scores.log_joint

    def kept(self, z: Tensor) -> Tensor:
        """Log joint of z (draw, 1, z), whose trajectories are kept."""
        self.solves += len(z)
        told = nearby.answers(self.model, self.data, z)
        self.told.append(told)
        while len(self.told) > 1 and sum(len(t.z) for t in self.told) * told.values > MEMORY:
            del self.told[0]
        return told.log_joint[:, None]


@dataclass(frozen=True)
class Parts:
    """What the proposals of one data set are made of: its log joint, the network, the prior, and a ridge."""

    exact: Exact
    flow: Component
    prior: Component
    about: Ridge | None

    def first(self) -> list[Component]:
        """The network, a share of the prior and, where a mode is known, a Student-t along its ridge."""
        if self.about is None:
            return [importance.shared(self.flow, 0.95), importance.shared(self.prior, 0.05)]
        return self.mixture([self.normal()], 0.6)

    def normal(self) -> Component:
        """A Student-t distribution that is standard in coordinates about a mode."""
        assert self.about is not None
        zero = torch.zeros_like(self.about.laplace.mode)
        one = torch.eye(zero.shape[1], dtype=torch.float64)[None]
        share = torch.ones(1, dtype=torch.float64)
        return _along(self.about, importance.student(zero, one, degrees(zero.shape[1]), share))

    def mixture(self, fitted: list[Component], share: float) -> list[Component]:
        """The network with `share`, 5 % of the prior, which guards the tails, and the fitted components."""
        rest = (0.95 - share) / torch.stack([c.share for c in fitted]).sum(0)
        parts = [replace(c, share=rest * c.share) for c in fitted]
        return [importance.shared(self.flow, share), importance.shared(self.prior, GUARD), *parts]

    def proposal(
        self, z: Tensor, log_weight: Tensor, seed: int, carried: float, effective: float = math.inf
    ) -> list[Component]:
        """The network, the prior, and what is fitted to weighted draws, of which so many are effective at most.

        Shares are those under which the draws are likeliest; the network, whose tails are wide, has at least
        the part of the weight that it has `carried`, within its bounds.
        """
        fitted = self._fitted(z, log_weight, derive(seed, "fit"), effective)
        before = [
            importance.shared(self.flow, LEAST),
            *(replace(c, share=(1 - LEAST) * c.share) for c in fitted),
        ]
        index, _ = importance.resample(log_weight, min(len(z), ROUND), derive(seed, "shares"))
        flow, *rest = importance.likeliest(before, z[index[:, 0]])
        kept = [
            replace(old, share=KEPT * old.share + (1 - KEPT) * new.share)
            for old, new in zip(before[1:], rest, strict=True)
        ]
        return self.mixture(kept, min(MOST, max(LEAST, carried, float(flow.share))))

    def _fitted(self, z: Tensor, log_weight: Tensor, seed: int, effective: float) -> list[Component]:
        """Student-t components, whose tails are heavier in few dimensions, and a bent one.

        They follow the ridge where there is one, and the Student-t about its mode goes among them.
        """
        size, about = z.shape[-1], self.about
        effective = min(effective, float(importance.kish(log_weight).min()))
        u = z if about is None else about.standard(z)
        found = importance.fitted_mixture(u, log_weight, degrees(size), derive(seed, "mixture"), effective)
        if effective >= BENT * size:
            axes = None if about is None else about.turn[0]
            bent = triangular.fitted(u, log_weight, degrees(size), derive(seed, "bent"), axes, effective)
            found = [importance.shared(bent, 0.5), *(replace(c, share=0.5 * c.share) for c in found)]
        if about is None:
            return found
        found = [_along(about, replace(c, share=0.9 * c.share)) for c in found]
        return [importance.shared(self.normal(), 0.1), *found]


def about_mode(model: Model, data: Experiments, reading: Reading, modes: Modes, exact: Exact) -> Ridge | None:
    """Coordinates about the highest mode that is known: the network's, or one that was found from the prior."""
    known = reading.ridge
    if not len(modes.height) or (
        known is not None and float(modes.height[0] - known.laplace.height[0]) < ENDED
    ):
        return known
    found = ridge(model, data, modes.best)
    exact.solves += found.solves
    return found


def round_of(size: int) -> int:
    """Draws of a round in so many dimensions: what a nearby proxy of second degree takes."""
    return min(MOST_DRAWS, max(ROUND, PER_TERM * math.comb(size + 2, 2)))


def adapt(
    parts: Parts, found: Draws, proposal: list[Component], seed: int, again: bool = False
) -> tuple[list[Component], Draws, str]:
    """Proposal, the last round drawn from it, and what shaped it; at most three rounds after the first one.

    The draws of the round `found` from `proposal` have been kept. Where every proposal's weights stay below the
    dimension in effective size, particles are carried over from the best one to the posterior. The best of
    the new proposals is kept. `again`, after a round that would not do, it is the next one.
    """
    size = found.z.shape[-1]
    best, rate = (proposal, found, "network"), 0.0
    for k in range(1 if again else ROUNDS):
        proposal, shaped_by = _next(parts, found, proposal, k, derive(seed, "fit", k))
        found = importance.draw_round(proposal, parts.exact.kept, round_of(size), derive(seed, "round", k))
        before, rate = rate, max(rate, rate_of(found))
        if rate > before:
            best = proposal, found, shaped_by
        if rate >= ENOUGH or (k and rate >= POOR and rate < GAIN * before):
            break
    if float(importance.kish(best[1].log_weight)) < size:
        proposal, found, _ = best
        moved = _bridge(found, proposal, parts.exact, derive(seed, "bridge"))
        if moved.complete:
            flat = torch.zeros_like(moved.log_joint)
            proposal = parts.proposal(moved.z, flat, derive(seed, "bridged"), carried_by_network(found))
            found = importance.draw_round(proposal, parts.exact, ROUND, derive(seed, "bridged"))
            best = proposal, found, "bridge"
    return best


def _next(
    parts: Parts, found: Draws, proposal: list[Component], k: int, seed: int
) -> tuple[list[Component], str]:
    """The next proposal, and what shaped it."""
    size = found.z.shape[-1]
    pooled = _pooled(parts.exact, proposal)
    weight = importance.temper(pooled.log_weight, 10.0 * size)
    local = Local.of(pooled.z, weight, parts.about, degrees(size))
    near = _near(parts.exact, pooled, local)
    carried = carried_by_network(found)
    start = parts.proposal(pooled.z, weight, derive(seed, "start"), carried)
    if near is not None:
        drawn = walked(pooled, start[2:], local, near, derive(seed, "near"), ON_PROXY)
        shaped_by = "proxy"
    elif k and rate_of(found) < POOR:
        drawn = walked(found, proposal, local, parts.exact, derive(seed, "walk"), LENGTHS[:1])
        shaped_by = "chains"
    else:
        return start, "weights"
    z = drawn.z.flatten(0, 1)[:, None]
    flat = torch.zeros(z.shape[:2], dtype=z.dtype)
    if near is not None:
        z, flat = _with_missed(z, near, pooled)
    effective = float(drawn.effective.min())
    return parts.proposal(z, flat, derive(seed, "walked"), carried, effective), shaped_by


def _with_missed(z: Tensor, near: Nearby, pooled: Draws) -> tuple[Tensor, Tensor]:
    """Draws of a nearby proxy beside the weighted draws at which it is wrong, and log weights of all."""
    off = near(pooled.z) - pooled.log_joint
    weight = importance.temper(pooled.log_weight, 5.0 * z.shape[-1])
    right = torch.isfinite(pooled.log_weight) & (off.abs() < WRONG)
    inside = torch.logsumexp(torch.where(right, weight, -torch.inf), 0)
    wrong = torch.where(right, -torch.inf, weight)
    return torch.cat([z, pooled.z]), torch.cat(
        [torch.zeros(z.shape[:2]).double() + inside - math.log(len(z)), wrong]
    )


def _pooled(exact: Exact, proposal: list[Component]) -> Draws:
    """All draws that were kept, weighed against the latest proposal."""
    told = nearby.joined(exact.told)
    z, joint = told.z[:, None], told.log_joint[:, None]
    origin = torch.zeros(len(z), dtype=torch.long)
    return importance.weighed(z, importance.log_mixture(z, proposal), joint, origin)


def _near(exact: Exact, pooled: Draws, local: Local) -> Nearby | None:
    """A proxy fitted to the draws that were kept."""
    flat = torch.softmax(importance.temper(pooled.log_weight, SPREAD * len(pooled.z)), 0)[:, 0]
    return nearby.nearby(exact.model, exact.data, local, nearby.joined(exact.told), flat)


def walked(
    found: Draws,
    jumps: list[Component],
    local: Local,
    target: LogDensity,
    seed: int,
    lengths: tuple[int, ...],
    advance: Callable[[], None] = lambda: None,
) -> Chains:
    """Chains that begin at weighted draws, and jump by a mixture."""
    weight = importance.temper(found.log_weight, 10.0 * found.z.shape[-1])
    index, _ = importance.resample(weight, GROUPS, derive(seed, "starts"))
    return chains(target, found.z[index[:, 0], 0], jumps, local, seed, lengths, advance=advance)


def carried_by_network(found: Draws) -> float:
    """The part of the weight that the network's draws carry."""
    return float(found.weights[found.component == 0].sum())


def rate_of(found: Draws) -> float:
    """Effective draws per draw: the smaller of Kish's and that of the worst coordinate."""
    worst = float(importance.effective_sizes(found).min())
    return min(worst, float(importance.kish(found.log_weight))) / len(found.z)


def _bridge(found: Draws, proposal: list[Component], exact: Exact, seed: int) -> SmcResult:
    """Particles from the proposal to the posterior."""

    def path(z: Tensor) -> tuple[Tensor, Tensor]:
        return importance.log_mixture(z, proposal), exact(z)

    return smc(found.z, path, seed, steps=5)


def _along(about: Ridge, part: Component) -> Component:
    """A component in coordinates about a mode as one in z."""
    return replace(
        part,
        sample=lambda count, seed: about.back(part.sample(count, seed)),
        log_density=lambda z: part.log_density(about.standard(z)) + about.log_scale,
    )


def degrees(size: int) -> float:
    """Degrees of freedom of components in so many dimensions."""
    return 5.0 if size <= 4 else 10.0 if size <= 12 else 20.0


def network(trained: Estimator, reading: Reading) -> Component:
    """The network's draws of one data set."""
    return Component(
        "flow",
        torch.ones(1, dtype=torch.float64),
        lambda count, seed: trained.sample(reading, count, seed),
        lambda z: trained.log_density(z, reading),
    )


def prior_of(model: Model, data: Experiments) -> Component:
    """The prior in z as a component: standard normal where the maps are exact, a wide normal else."""
    size = model.z_size(data.count)
    exact = all(site.exact for site in model.sites(data.count))
    wide = torch.eye(size, dtype=torch.float64) * (1.0 if exact else 1.5)
    one = torch.ones(1, dtype=torch.float64)
    normal = importance.student(torch.zeros(1, size, dtype=torch.float64), wide[None], 50.0, one)
    return replace(normal, name="prior")
