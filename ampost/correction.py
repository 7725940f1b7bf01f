"""Correction of one data set: network draws -> adapted, frozen proposal -> fresh final round -> draws.

Adaptation goes by the weights while they carry a covariance, else by a bridge of sequential Monte
Carlo from the proposal; where the final round stays poor, once more from the prior, which does not
trust the network; where that is poor too, by many Markov chains from its particles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost import importance
from ampost.errors import ArgumentError
from ampost.estimator import Estimator, Reading
from ampost.experiments import Experiments
from ampost.importance import Component, Draws
from ampost.judging import FINAL, Judged, alike, judged
from ampost.mcmc import SmcResult, convergence, hmc, smc
from ampost.model import Model
from ampost.modes import Modes, search
from ampost.progress import progress, tell
from ampost.ridges import Ridge
from ampost.seeds import derive

ROUND = 1_000
ROUNDS = 3
ENOUGH = 0.4  # effective draws per draw, from which on a proposal is left as it is
CHAINS, WARMUP, LENGTHS = 64, 30, (50, 100, 200, 400, 800)
RHAT, LEAST = 1.01, 400


@dataclass(frozen=True)
class Budget:
    """How a posterior is corrected: draws returned, effective size wanted, most ODE solves.

    `solves` limits the weighted rounds; where weights fail, the sampler that takes over spends what
    it needs, and the result says how many solves that were.
    """

    draws: int = 1_000
    effective_size: int = 4_000
    solves: int = 100_000

    def __post_init__(self) -> None:
        for name, least in (("draws", 1), ("effective_size", 100), ("solves", (ROUNDS + 1) * ROUND + FINAL)):
            if not getattr(self, name) >= least:
                raise ArgumentError(f"Budget({name}={getattr(self, name)}): expected at least {least}")


@dataclass(frozen=True)
class Alone:
    """What the network was worth by itself: k-hat of its draws, and whether they have the corrected marginals.

    `modes` were found from the prior, `missed` of which the adapted proposal had thought little of.
    """

    khat: float
    alike: bool
    modes: Modes
    missed: int

    @property
    def trusted(self) -> bool:
        """Whether the network's draws would have done."""
        return self.khat < 0.5 and self.alike and not self.missed


@dataclass(frozen=True)
class Corrected:
    """Equally weighted draws z (draw, z) of one data set, and the final round that speaks for them.

    `judged` is what the final round says of itself, `effective` (z,) are the effective sizes of `z`.
    `sampled` draws are those of Markov chains, `effective` and `rhat` are theirs, and `solves` counts a
    gradient as one more than the number of coordinates. `rhat` is NaN where nothing was sampled.
    """

    z: Tensor
    final: Draws
    judged: Judged
    network: Alone
    effective: Tensor
    log_evidence: float
    log_evidence_error: float
    solves: int
    shaped_by: str
    sampled: bool = False
    rhat: float = float("nan")

    @property
    def complete(self) -> bool:
        """Whether Markov chains that were needed agree and are long enough."""
        return not self.sampled or (self.rhat <= RHAT and float(self.effective.min()) >= LEAST)


class _Exact:
    """The exact log joint of one data set, without gradients, counting ODE solves."""

    def __init__(self, model: Model, data: Experiments) -> None:
        self.model, self.data, self.solves = model, data, 0

    def __call__(self, z: Tensor) -> Tensor:
        return self.from_prior(z)[1]

    def from_prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior and log joint of z (draw, dataset, z)."""
        self.solves += z.shape[0] * z.shape[1]
        with torch.no_grad():
            scores = self.model.score(z, self.data)
        return scores.log_prior, scores.log_joint


def correct(
    model: Model, data: Experiments, trained: Estimator, seed: int, budget: Budget, show: bool | None = None
) -> Corrected:
    """The exact posterior of one data set from the network's proposal, or from Markov chains that say so."""
    exact = _Exact(model, data)
    reading = trained.reading(model, data)
    exact.solves += 0 if reading.ridge is None else reading.ridge.solves
    flow, prior = _flow(trained, reading), _prior(model, data)
    plain = importance.draw_round(
        [importance.shared(flow, 0.95), importance.shared(prior, 0.05)], exact, ROUND, derive(seed, "plain")
    )
    proposal, trial, shaped_by = _adapt(plain, flow, prior, reading.ridge, exact, derive(seed, "adapt"))
    modes = search(model, data, seed)
    exact.solves += modes.solves
    missed = modes.outside(lambda z: importance.log_mixture(z, proposal), _evidence(trial))
    if len(missed):
        proposal = _with_modes(proposal, modes, missed, _evidence(trial))
        trial = importance.draw_round(proposal, exact, ROUND, derive(seed, "modes"))
    final = _final(proposal, exact, _rate(trial), derive(seed, "final"), budget)
    said = _judged(final, proposal, modes)
    if said.faults and float(importance.kish(final.log_weight)) >= 10 * final.z.shape[-1]:
        # many draws know better than few where the proposal is thin
        proposal = _mixture(
            _fitted(final.z, final.log_weight, derive(seed, "refit"), reading.ridge), flow, prior, _share(final)
        )
        trial = importance.draw_round(proposal, exact, ROUND, derive(seed, "retrial"))
        final, shaped_by = _final(proposal, exact, _rate(trial), derive(seed, "refined"), budget), "weights"
        said = _judged(final, proposal, modes)
    network = Alone(
        _khat_alone(plain, flow),
        alike(trained.sample(reading, FINAL, derive(seed, "alone")), final),
        modes,
        len(missed),
    )
    if not said.faults:
        return _accepted(final, said, exact, network, shaped_by, derive(seed, "equal"), budget)
    found = _from_prior(model, data, exact, derive(seed, "smc"), max(budget.draws, ROUND))
    if found.complete:
        fitted = _fitted(found.z, torch.zeros_like(found.log_joint), seed)
        proposal = _mixture(fitted, flow, prior, 0.2)
        trial = importance.draw_round(proposal, exact, ROUND, derive(seed, "trial"))
        final = _final(proposal, exact, _rate(trial), derive(seed, "last"), budget)
        said = _judged(final, proposal, modes)
        if not said.faults:
            return _accepted(final, said, exact, network, "prior", derive(seed, "equal"), budget)
    z, effective, rhat, gradients = _by_chains(model, data, found, derive(seed, "nuts"), budget.draws, show)
    return Corrected(
        z=z,
        final=final,
        judged=said,
        network=network,
        effective=effective,
        log_evidence=float(found.log_evidence) if found.complete else float("nan"),
        log_evidence_error=float("nan"),
        solves=exact.solves + gradients * (1 + z.shape[-1]),
        shaped_by="prior",
        sampled=True,
        rhat=rhat,
    )


def _evidence(found: Draws) -> float:
    return float(importance.log_evidence(found.log_weight)[0])


def _judged(final: Draws, proposal: list[Component], modes: Modes) -> Judged:
    """What a final round says of itself, and how many modes its proposal thinks little of."""
    lost = modes.outside(lambda z: importance.log_mixture(z, proposal), _evidence(final))
    return judged(final, len(lost))


def _with_modes(
    proposal: list[Component], modes: Modes, missed: Tensor, log_evidence: float
) -> list[Component]:
    """A proposal with a component at each mode that it missed."""
    added = modes.components(missed, log_evidence, _degrees(modes.place.shape[-1]))
    taken = torch.stack([c.share for c in added]).sum(0)
    scale = 0.5 / taken.clamp(min=0.5)  # half at most
    added = [replace(c, share=c.share * scale) for c in added]
    return [*(replace(c, share=c.share * (1 - taken * scale)) for c in proposal), *added]


def _by_chains(
    model: Model, data: Experiments, found: SmcResult, seed: int, draws: int, show: bool | None
) -> tuple[Tensor, Tensor, float, int]:
    """Draws of Markov chains from the particles `found`, effective sizes, largest R-hat, gradients spent.

    Where the chains do not agree yet, longer ones go on from where they are.
    """
    alive = found.z[torch.isfinite(found.log_joint[:, 0]), 0]
    if not len(alive):  # no parameters explain the data at all: there is nothing to sample
        unknown = torch.full((found.z.shape[-1],), torch.nan, dtype=torch.float64)
        return found.z[:draws, 0], unknown, float("nan"), 0
    tell(
        "no proposal carries the weights: Markov chains take over, which takes minutes where solves are slow",
        show,
    )
    spent, z = 0, alive
    starts = alive[torch.linspace(0, len(alive) - 1, CHAINS).long()]
    with progress(
        "no proposal carries the weights: Markov chains", sum(WARMUP + n for n in LENGTHS), show
    ) as bar:
        for attempt, length in enumerate(LENGTHS):
            # in coordinates where the draws so far are round, few steps make a long way
            mean, factor = _round(z)
            u = torch.linalg.solve_triangular(factor, (starts - mean).T, upper=False).T

            def joint(at: Tensor, mean: Tensor = mean, factor: Tensor = factor) -> Tensor:
                return model.log_joint((mean + at @ factor.T)[:, None], data)[:, 0]

            drawn, gradients = hmc(joint, u, WARMUP, length, derive(seed, attempt), bar.advance)
            chains = mean + drawn @ factor.T
            starts, z = chains[:, -1], chains.flatten(0, 1)
            spent += gradients * CHAINS
            rhat, effective = convergence(chains)
            if float(rhat.max()) <= RHAT and float(effective.min()) >= LEAST:
                break
    return z[torch.linspace(0, len(z) - 1, draws).long()], effective, float(rhat.max()), spent


def _round(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of draws (draw, z); those of the prior where they are too few to tell."""
    size = z.shape[-1]
    if len(z) < 2 * size:
        return torch.zeros(size, dtype=z.dtype), torch.eye(size, dtype=z.dtype)
    mean, factor = importance.weighted_moments(z[:, None], torch.zeros(len(z), 1, dtype=z.dtype))
    return mean[0], factor[0]


def _adapt(
    found: Draws, flow: Component, prior: Component, about: Ridge | None, exact: _Exact, seed: int
) -> tuple[list[Component], Draws, str]:
    """Proposal, the last round drawn from it, and what shaped it; one to three rounds.

    A mixture, whose tails are heavier than the network's, is fitted to the weighted draws, flattened where
    their effective size is below ten times the dimension. Where it is below the dimension, the weights carry no
    covariance, and particles are carried over from the proposal to the posterior instead, once.
    """
    proposal = [importance.shared(flow, 0.95), importance.shared(prior, 0.05)]
    size = found.z.shape[-1]
    shaped_by, count = "weights", ROUND
    for k in range(ROUNDS):
        if k and _rate(found) >= ENOUGH:
            break
        share = _share(found)
        if float(importance.kish(found.log_weight)) < size and shaped_by != "bridge":
            moved = _bridge(found, proposal, exact, derive(seed, "bridge"))
            if not moved.complete:
                break
            fitted = _fitted(moved.z, torch.zeros_like(moved.log_joint), seed, about)
            shaped_by, count = "bridge", 3 * ROUND
        else:
            fitted = _fitted(found.z, importance.temper(found.log_weight, 10.0 * size), seed, about)
        proposal = _mixture(fitted, flow, prior, share)
        found = importance.draw_round(proposal, exact, count, derive(seed, "round", k))
    return proposal, found, shaped_by


def _share(found: Draws) -> float:
    """The network's share in the next proposal: the part of the weight that its draws carry."""
    return min(0.5, max(0.2, float(found.weights[found.component == 0].sum())))


def _bridge(found: Draws, proposal: list[Component], exact: _Exact, seed: int) -> SmcResult:
    """Particles from the proposal to the posterior."""

    def path(z: Tensor) -> tuple[Tensor, Tensor]:
        return importance.log_mixture(z, proposal), exact(z)

    return smc(found.z, path, seed, steps=5)


def _from_prior(model: Model, data: Experiments, exact: _Exact, seed: int, particles: int) -> SmcResult:
    start = model.simulate(particles, derive(seed, "start"), data.without_values()).z[:, None]
    return smc(start, exact.from_prior, derive(seed, "path"))


def _final(proposal: list[Component], exact: _Exact, rate: float, seed: int, budget: Budget) -> Draws:
    """A fresh round from the frozen proposal, and further draws while its effective size falls short."""
    left = budget.solves - exact.solves
    count = max(min(int(1.1 * budget.effective_size / max(rate, 0.05)), left), FINAL)
    final = importance.draw_round(proposal, exact, count, derive(seed, "first"))
    size, left = judged(final).smallest, budget.solves - exact.solves
    while size < budget.effective_size and left >= ROUND and size >= 0.01 * len(final.z):
        more = min(int(1.1 * (budget.effective_size - size) * len(final.z) / size) + 100, left)
        further = importance.draw_round(proposal, exact, more, derive(seed, "further", len(final.z)))
        final = importance.joined(final, further)
        size, left = judged(final).smallest, budget.solves - exact.solves
    return final


def _accepted(
    final: Draws,
    said: Judged,
    exact: _Exact,
    network: Alone,
    shaped_by: str,
    seed: int,
    budget: Budget,
) -> Corrected:
    z, _ = importance.equally_weighted(final, exact, budget.draws, seed)
    evidence, error = importance.log_evidence(final.log_weight)
    return Corrected(
        z=z[:, 0],
        final=final,
        judged=said,
        network=network,
        effective=said.effective,
        log_evidence=float(evidence),
        log_evidence_error=float(error),
        solves=exact.solves,
        shaped_by=shaped_by,
    )


def _rate(found: Draws) -> float:
    """Effective draws per draw: the smaller of Kish's and that of the worst coordinate."""
    worst = float(importance.effective_sizes(found).min())
    return min(worst, float(importance.kish(found.log_weight))) / len(found.z)


def _khat_alone(plain: Draws, flow: Component) -> float:
    """k-hat of the network's own draws, weighed against the network alone."""
    mine = plain.component == 0
    alone = torch.where(
        torch.isfinite(plain.log_joint[mine]),
        plain.log_joint[mine] - flow.log_density(plain.z[mine]),
        -torch.inf,
    )
    return float(importance.khat(alone))


def _fitted(z: Tensor, log_weight: Tensor, seed: int, about: Ridge | None = None) -> list[Component]:
    """Student-t components fitted to weighted draws, in coordinates that follow a ridge where there are some.

    Their tails are heavier in few dimensions.
    """
    degrees = _degrees(z.shape[-1])
    if about is None:
        return importance.fitted_mixture(z, log_weight, degrees, derive(seed, "fit"))
    parts = importance.fitted_mixture(about.standard(z), log_weight, degrees, derive(seed, "fit"))
    return [_along(about, part) for part in parts]


def _along(about: Ridge, part: Component) -> Component:
    """A component in coordinates about a mode as one in z."""
    return replace(
        part,
        sample=lambda count, seed: about.back(part.sample(count, seed)),
        log_density=lambda z: part.log_density(about.standard(z)) + about.log_scale,
    )


def _degrees(size: int) -> float:
    return 5.0 if size <= 4 else 10.0 if size <= 12 else 20.0


def _mixture(fitted: list[Component], flow: Component, prior: Component, share: float) -> list[Component]:
    """The network with `share`, 5 % of the prior, which guards the tails, and the fitted components."""
    rest = 0.95 - share
    parts = [replace(c, share=rest * c.share) for c in fitted]
    return [importance.shared(flow, share), importance.shared(prior, 0.05), *parts]


def _flow(trained: Estimator, reading: Reading) -> Component:
    return Component(
        "flow",
        torch.ones(1, dtype=torch.float64),
        lambda count, seed: trained.sample(reading, count, seed),
        lambda z: trained.log_density(z, reading),
    )


def _prior(model: Model, data: Experiments) -> Component:
    """The prior in z as a component: standard normal where the maps are exact, a wide normal else."""
    size = model.z_size(data.count)
    exact = all(site.exact for site in model.sites(data.count))
    wide = torch.eye(size, dtype=torch.float64) * (1.0 if exact else 1.5)
    one = torch.ones(1, dtype=torch.float64)
    normal = importance.student(torch.zeros(1, size, dtype=torch.float64), wide[None], 50.0, one)
    return replace(normal, name="prior")
