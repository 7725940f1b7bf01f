"""Correction of one data set: network draws -> adapted, frozen proposal -> fresh final round -> draws.

Adaptation goes by the weights while they carry a covariance, else by a bridge of sequential Monte Carlo from
the proposal. Where the final round stays poor, many Markov chains jump by its proposal and move along the
ridge; where they do not agree, all begins once more from the prior by sequential Monte Carlo, which does not
trust the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost import importance
from ampost.chains import GROUPS, LEAST, LENGTHS, RHAT, Chains, Local, chains
from ampost.errors import ArgumentError
from ampost.estimator import Estimator, Reading
from ampost.experiments import Experiments
from ampost.importance import Component, Draws
from ampost.judging import FINAL, Judged, alike, judged
from ampost.mcmc import SmcResult, smc
from ampost.model import Model
from ampost.modes import ENDED, Modes, search
from ampost.progress import progress, tell
from ampost.ridges import Ridge, ridge
from ampost.seeds import derive
from ampost.transfer import transferred

ROUND = 1_000
ROUNDS = 3
ENOUGH = 0.4  # effective draws per draw, from which on a proposal is left as it is
GAIN = 1.2  # times more of them, below which further rounds are not worth their solves
POOR = 0.15  # of them, below which Markov chains give the draws that a proposal is fitted to


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
    `sampled` draws are those of Markov chains, `effective` and (nested) `rhat` are theirs. `rhat` is NaN where
    nothing was sampled.
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
    model: Model,
    data: Experiments,
    trained: Estimator,
    seed: int,
    budget: Budget,
    show: bool | None = None,
    trained_for: Model | None = None,
) -> Corrected:
    """The exact posterior of one data set from the network's proposal, or from Markov chains that say so.

    The estimator may have been trained for a model with other priors or noise, `trained_for`.
    """
    exact = _Exact(model, data)
    reading = trained.reading(trained_for or model, data)
    exact.solves += 0 if reading.ridge is None else reading.ridge.solves
    flow, prior, size = _flow(trained, reading), _prior(model, data), model.z_size(data.count)
    if trained_for is not None:
        flow = transferred(flow, trained_for, model, data)
        reading = replace(reading, ridge=None)  # its coordinates are the other model's
    modes = search(model, data, seed)
    exact.solves += modes.solves
    about = _about(model, data, reading, modes, exact)
    first = [importance.shared(flow, 0.95), importance.shared(prior, 0.05)]
    if about is not None:
        first = _mixture([_normal(about)], flow, prior, 0.6)
    plain = importance.draw_round(first, exact, ROUND, derive(seed, "plain"))
    proposal, trial, shaped_by = _adapt(plain, first, flow, prior, about, exact, derive(seed, "adapt"))
    missed = modes.outside(lambda z: importance.log_mixture(z, proposal), _evidence(trial))
    if len(missed):
        proposal = _with_modes(proposal, modes, missed, _evidence(trial))
        trial = importance.draw_round(proposal, exact, ROUND, derive(seed, "modes"))
    final = _final(proposal, exact, _rate(trial), derive(seed, "final"), budget, last=False)
    said = _judged(final, proposal, modes)
    short = said.smallest < budget.effective_size
    if (said.faults or short) and budget.solves - exact.solves >= ROUND + FINAL and said.kish >= 10 * size:
        # many draws know better than few where the proposal is thin
        refitted = _fitted(final.z, final.log_weight, derive(seed, "refit"), about)
        better = _mixture(refitted, flow, prior, _share(final))
        trial = importance.draw_round(better, exact, ROUND, derive(seed, "retrial"))
        other = _final(better, exact, _rate(trial), derive(seed, "refined"), budget)
        told = _judged(other, better, modes)
        if (bool(told.faults), -told.smallest) < (bool(said.faults), -said.smallest):
            final, proposal, said, shaped_by = other, better, told, "weights"
    network = Alone(
        _khat_alone(plain, flow),
        alike(flow.sample(FINAL, derive(seed, "alone")), final),
        modes,
        len(missed),
    )
    if not said.faults:
        return _accepted(final, said, exact, network, shaped_by, derive(seed, "equal"), budget)
    drawn = _sampled(final, proposal, modes, about, exact, derive(seed, "chains"), show)
    if drawn is None or not drawn.agree or said.missed:
        found = _from_prior(model, data, exact, derive(seed, "smc"), max(budget.draws, ROUND))
        if found.complete:
            fitted = _fitted(found.z, torch.zeros_like(found.log_joint), seed)
            proposal, shaped_by = _mixture(fitted, flow, prior, 0.2), "prior"
            trial = importance.draw_round(proposal, exact, ROUND, derive(seed, "trial"))
            final = _final(proposal, exact, _rate(trial), derive(seed, "last"), budget)
            said = _judged(final, proposal, modes)
            if not said.faults:
                return _accepted(final, said, exact, network, "prior", derive(seed, "equal"), budget)
            drawn = _sampled(final, proposal, modes, about, exact, derive(seed, "last chains"), show)
    z, effective, rhat = _taken(drawn, final, budget.draws)
    return Corrected(
        z=z,
        final=final,
        judged=said,
        network=network,
        effective=effective,
        log_evidence=float("nan"),
        log_evidence_error=float("nan"),
        solves=exact.solves,
        shaped_by=shaped_by,
        sampled=True,
        rhat=rhat,
    )


def _about(model: Model, data: Experiments, reading: Reading, modes: Modes, exact: _Exact) -> Ridge | None:
    """Coordinates about the highest mode that is known: the network's, or one that was found from the prior."""
    known = reading.ridge
    if not len(modes.height) or (
        known is not None and float(modes.height[0] - known.laplace.height[0]) < ENDED
    ):
        return known
    found = ridge(model, data, modes.best)
    exact.solves += found.solves
    return found


def _normal(about: Ridge) -> Component:
    """A Student-t distribution that is standard in coordinates about a mode."""
    zero = torch.zeros_like(about.laplace.mode)
    one = torch.eye(zero.shape[1], dtype=torch.float64)[None]
    share = torch.ones(1, dtype=torch.float64)
    return _along(about, importance.student(zero, one, _degrees(zero.shape[1]), share))


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


def _sampled(
    final: Draws,
    proposal: list[Component],
    modes: Modes,
    about: Ridge | None,
    exact: _Exact,
    seed: int,
    show: bool | None,
) -> Chains | None:
    """Markov chains that begin at weighted draws and jump by their proposal; None where nothing has weight.

    They also jump to modes that the proposal thinks little of.
    """
    if not float(importance.kish(final.log_weight)) > 0:
        return None
    lost = modes.outside(lambda z: importance.log_mixture(z, proposal), _evidence(final))
    if len(lost):
        proposal = _with_modes(proposal, modes, lost, _evidence(final))
    tell("no proposal carries the weights: Markov chains take over", show)
    with progress("Markov chains", sum(LENGTHS), show) as bar:
        return _walked(final, proposal, about, exact, seed, LENGTHS, bar.advance)


def _walked(
    found: Draws,
    proposal: list[Component],
    about: Ridge | None,
    exact: _Exact,
    seed: int,
    lengths: tuple[int, ...],
    advance: Callable[[], None] = lambda: None,
) -> Chains:
    """Chains that begin at weighted draws."""
    size = found.z.shape[-1]
    weight = importance.temper(found.log_weight, 10.0 * size)
    index, _ = importance.resample(weight, GROUPS, derive(seed, "starts"))
    local = Local.of(found.z, weight, about, _degrees(size))
    return chains(exact, found.z[index[:, 0], 0], proposal, local, seed, lengths, advance=advance)


def _taken(drawn: Chains | None, final: Draws, draws: int) -> tuple[Tensor, Tensor, float]:
    """Draws (draw, z) of chains, effective sizes and R-hat; draws without meaning where there are none."""
    if drawn is None:
        return final.z[:draws, 0], torch.full_like(final.z[0, 0], torch.nan), float("nan")
    z = drawn.z.transpose(0, 1).flatten(0, 1)
    return z[torch.linspace(0, len(z) - 1, draws).long()], drawn.effective, drawn.rhat


def _adapt(
    found: Draws,
    proposal: list[Component],
    flow: Component,
    prior: Component,
    about: Ridge | None,
    exact: _Exact,
    seed: int,
) -> tuple[list[Component], Draws, str]:
    """Proposal, the last round drawn from it, and what shaped it; one to three rounds after the first one.

    A mixture, whose tails are heavier than the network's, is fitted to the weighted draws, flattened where
    their effective size is below ten times the dimension. Where it is below the dimension, the weights carry no
    covariance, and particles are carried over from the proposal to the posterior instead, once. Where the
    weights stay poor, short Markov chains from there give draws to fit to. The best proposal is kept.
    """
    size = found.z.shape[-1]
    shaped_by, best, rate = "weights", (proposal, found), 0.0
    for k in range(ROUNDS):
        share = _share(found)
        if float(importance.kish(found.log_weight)) < size and shaped_by != "bridge":
            moved = _bridge(found, proposal, exact, derive(seed, "bridge"))
            if not moved.complete:
                break
            fitted, shaped_by = _fitted(moved.z, torch.zeros_like(moved.log_joint), seed, about), "bridge"
        elif k and _rate(found) < POOR:
            walked = _walked(found, proposal, about, exact, derive(seed, "walk", k), LENGTHS[:1])
            z = walked.z.flatten(0, 1)[:, None]
            size_of = float(walked.effective.min())
            fitted = _fitted(z, torch.zeros(z.shape[:2], dtype=z.dtype), seed, about, size_of)
        else:
            fitted = _fitted(found.z, importance.temper(found.log_weight, 10.0 * size), seed, about)
        proposal = _mixture(fitted, flow, prior, share)
        found = importance.draw_round(proposal, exact, ROUND, derive(seed, "round", k))
        before, rate = rate, max(rate, _rate(found))
        if rate > before:
            best = proposal, found
        if rate >= ENOUGH or (k and rate >= POOR and rate < GAIN * before):
            break
    return *best, shaped_by


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


def _final(
    proposal: list[Component], exact: _Exact, rate: float, seed: int, budget: Budget, last: bool = True
) -> Draws:
    """A fresh round from the frozen proposal, and further draws while its effective size falls short.

    Where draws will be drawn twice, the solves that moving them takes are kept. Unless it is the `last` round,
    it ends where what is left of the budget would not do.
    """
    moves = importance.MOVES * budget.draws
    left = budget.solves - exact.solves - moves
    count = int(1.1 * budget.effective_size / max(rate, 0.05))
    count = max(min(count, left if last else left // 3), FINAL)
    final = importance.draw_round(proposal, exact, count, derive(seed, "first"))
    while (said := judged(final)).smallest < budget.effective_size and said.smallest >= 0.01 * len(final.z):
        kept = moves if budget.draws * said.largest > 1 else 0
        left = budget.solves - exact.solves - kept
        missing = 1.1 * (budget.effective_size - said.smallest) * len(final.z) / said.smallest
        if left < ROUND or (not last and missing > left):
            break
        more = min(int(missing) + 100, left)
        further = importance.draw_round(proposal, exact, more, derive(seed, "further", len(final.z)))
        final = importance.joined(final, further)
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


def _fitted(
    z: Tensor, log_weight: Tensor, seed: int, about: Ridge | None = None, effective: float = math.inf
) -> list[Component]:
    """Student-t components fitted to weighted draws, in coordinates that follow a ridge where there are some.

    Their tails are heavier in few dimensions.
    """
    degrees = _degrees(z.shape[-1])
    if about is None:
        return importance.fitted_mixture(z, log_weight, degrees, derive(seed, "fit"), effective)
    parts = importance.fitted_mixture(about.standard(z), log_weight, degrees, derive(seed, "fit"), effective)
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
