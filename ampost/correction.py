"""Correction of one data set: network draws -> adapted, frozen proposal -> fresh final round -> draws.

Adaptation goes by the weights while they carry a covariance, else by a bridge of sequential Monte Carlo from
the proposal. Where the final round stays poor, many Markov chains jump by its proposal and move along the
ridge; where they do not agree, all begins once more from the prior by sequential Monte Carlo, which does not
trust the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost import importance
from ampost.chains import LEAST, LENGTHS, RHAT, Chains, Local
from ampost.errors import ArgumentError
from ampost.estimator import Estimator
from ampost.experiments import Experiments
from ampost.importance import Component, Draws
from ampost.judging import FINAL, Judged, alike, judged
from ampost.mcmc import SmcResult, smc
from ampost.model import Model
from ampost.modes import Modes, search
from ampost.progress import progress, tell
from ampost.seeds import derive
from ampost.shaping import (
    ROUND,
    ROUNDS,
    Exact,
    Parts,
    about_mode,
    adapt,
    degrees,
    network,
    prior_of,
    rate_of,
    round_of,
    walked,
)
from ampost.transfer import transferred

KNOWN = 0.5  # k-hat, from which on the evidence is not told
AT_ONCE = 0.6  # effective draws per draw of the first proposal, from which on it is frozen as it is
REFITS = 2  # times that a proposal is fitted once more to the draws of a final round that would not do


@dataclass(frozen=True)
class Budget:
    """How a posterior is corrected: draws returned, effective size wanted, most ODE solves.

    `solves` limits the weighted rounds, and the steps that draws take where some are drawn twice, but for one
    step of each; where weights fail, the sampler that takes over spends what it needs, and the result says how
    many solves that were.
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

    `modes` were found from the prior. The network thinks little of `unknown` of these, and the adapted proposal
    had thought little of `missed`.
    """

    khat: float
    alike: bool
    modes: Modes
    missed: int
    unknown: int

    @property
    def trusted(self) -> bool:
        """Whether the network's draws would have done."""
        return self.khat < KNOWN and self.alike and not self.missed and not self.unknown


@dataclass(frozen=True)
class Corrected:
    """Equally weighted draws z (draw, z) of one data set, and the final round that speaks for them.

    `judged` is what the final round says of itself, `effective` (z,) are the effective sizes of `z`.
    `beyond` solves were more than the budget has, `repeats` of the draws repeat another.
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
    beyond: int = 0
    repeats: int = 0
    sampled: bool = False
    rhat: float = float("nan")

    @property
    def complete(self) -> bool:
        """Whether Markov chains that were needed agree and are long enough."""
        return not self.sampled or (self.rhat <= RHAT and float(self.effective.min()) >= LEAST)


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
    exact = Exact(model, data)
    reading = trained.reading(trained_for or model, data)
    exact.solves += 0 if reading.ridge is None else reading.ridge.solves
    flow, size = network(trained, reading), model.z_size(data.count)
    if trained_for is not None:
        flow = transferred(flow, trained_for, model, data)
        reading = replace(reading, ridge=None)  # its coordinates are the other model's
    modes = search(model, data, seed)
    exact.solves += modes.solves
    parts = Parts(exact, flow, prior_of(model, data), about_mode(model, data, reading, modes, exact))
    first = parts.first()
    plain = importance.draw_round(first, exact.kept, round_of(size), derive(seed, "plain"))
    proposal, trial, shaped_by = first, plain, "network"
    if rate_of(plain) < AT_ONCE:
        proposal, trial, shaped_by = adapt(parts, plain, first, derive(seed, "adapt"))
    proposal, trial, missed = _covering(proposal, trial, modes, exact, derive(seed, "modes"))
    final = _final(proposal, exact, rate_of(trial), derive(seed, "final"), budget, last=False)
    said = _judged(final, proposal, modes)
    for k in range(REFITS):
        short = said.smallest < budget.effective_size
        if not (said.faults or short) or budget.solves - exact.solves < 2 * FINAL:
            break
        # many draws know better than few where the proposal is thin
        better, trial, shape = adapt(parts, final, proposal, derive(seed, "refit", k), again=True)
        better, trial, more = _covering(better, trial, modes, exact, derive(seed, "modes", k))
        other = _final(better, exact, rate_of(trial), derive(seed, "refined", k), budget, last=k == REFITS - 1)
        told = _judged(other, better, modes)
        if (bool(told.faults), -told.smallest) < (bool(said.faults), -said.smallest):
            final, proposal, said, shaped_by, missed = other, better, told, shape, missed + more
    alone = Alone(
        _khat_alone(plain, flow),
        alike(flow.sample(FINAL, derive(seed, "alone")), final),
        modes,
        missed,
        len(modes.outside(flow.log_density, _evidence(final))),
    )
    if not said.faults:
        return _accepted(final, said, exact, alone, shaped_by, derive(seed, "equal"), budget)
    drawn = _sampled(final, proposal, modes, parts, derive(seed, "chains"), show)
    if drawn is None or not drawn.agree or said.missed:
        found = _from_prior(model, data, exact, derive(seed, "smc"), max(budget.draws, ROUND))
        if found.complete:
            away = replace(parts, about=None)
            flat = torch.zeros_like(found.log_joint)
            proposal, shaped_by = away.proposal(found.z, flat, derive(seed, "away"), 0.0), "prior"
            trial = importance.draw_round(proposal, exact, ROUND, derive(seed, "trial"))
            final = _final(proposal, exact, rate_of(trial), derive(seed, "last"), budget)
            said = _judged(final, proposal, modes)
            if not said.faults:
                return _accepted(final, said, exact, alone, "prior", derive(seed, "equal"), budget)
            drawn = _sampled(final, proposal, modes, parts, derive(seed, "last chains"), show)
    z, effective, rhat = _taken(drawn, final, budget.draws)
    return Corrected(
        z=z,
        final=final,
        judged=said,
        network=alone,
        effective=effective,
        log_evidence=float("nan"),
        log_evidence_error=float("nan"),
        solves=exact.solves,
        shaped_by=shaped_by,
        sampled=True,
        rhat=rhat,
    )


def _evidence(found: Draws) -> float:
    return float(importance.log_evidence(found.log_weight)[0])


def _judged(final: Draws, proposal: list[Component], modes: Modes) -> Judged:
    """What a final round says of itself, and how many modes its proposal thinks little of."""
    lost = modes.outside(lambda z: importance.log_mixture(z, proposal), _evidence(final))
    return judged(final, len(lost))


def _covering(
    proposal: list[Component], trial: Draws, modes: Modes, exact: Exact, seed: int
) -> tuple[list[Component], Draws, int]:
    """A proposal with the modes that it missed, a round drawn from it, and how many these are."""
    missed = modes.outside(lambda z: importance.log_mixture(z, proposal), _evidence(trial))
    if not len(missed):
        return proposal, trial, 0
    proposal = _with_modes(proposal, modes, missed, _evidence(trial))
    return proposal, importance.draw_round(proposal, exact, ROUND, seed), len(missed)


def _with_modes(
    proposal: list[Component], modes: Modes, missed: Tensor, log_evidence: float
) -> list[Component]:
    """A proposal with a component at each mode that it missed."""
    added = modes.components(missed, log_evidence, degrees(modes.place.shape[-1]))
    taken = torch.stack([c.share for c in added]).sum(0)
    scale = 0.5 / taken.clamp(min=0.5)  # half at most
    added = [replace(c, share=c.share * scale) for c in added]
    return [*(replace(c, share=c.share * (1 - taken * scale)) for c in proposal), *added]


def _sampled(
    final: Draws,
    proposal: list[Component],
    modes: Modes,
    parts: Parts,
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
        size = final.z.shape[-1]
        weight = importance.temper(final.log_weight, 10.0 * size)
        local = Local.of(final.z, weight, parts.about, degrees(size))
        return walked(final, proposal, local, parts.exact, seed, LENGTHS, bar.advance)


def _taken(drawn: Chains | None, final: Draws, draws: int) -> tuple[Tensor, Tensor, float]:
    """Draws (draw, z) of chains, effective sizes and R-hat; draws without meaning where there are none."""
    if drawn is None:
        return final.z[:draws, 0], torch.full_like(final.z[0, 0], torch.nan), float("nan")
    z = drawn.z.transpose(0, 1).flatten(0, 1)
    return z[torch.linspace(0, len(z) - 1, draws).long()], drawn.effective, drawn.rhat


def _from_prior(model: Model, data: Experiments, exact: Exact, seed: int, particles: int) -> SmcResult:
    start = model.simulate(particles, derive(seed, "start"), data.without_values()).z[:, None]
    return smc(start, exact.from_prior, derive(seed, "path"))


def _final(
    proposal: list[Component], exact: Exact, rate: float, seed: int, budget: Budget, last: bool = True
) -> Draws:
    """A fresh round from the frozen proposal, and further draws while its effective size falls short.

    Where draws will be drawn twice, the solves that moving them takes are kept. Unless it is the `last` round,
    it grows step by step, and ends where what is left of the budget would not do.
    """
    moves = importance.MOVES * budget.draws
    count = int(1.1 * budget.effective_size / max(rate, 0.05))
    count = max(min(count, budget.solves - exact.solves - moves if last else FINAL), FINAL)
    final = importance.draw_round(proposal, exact if last else exact.kept, count, derive(seed, "first"))
    while (said := judged(final)).smallest < budget.effective_size and said.smallest >= 0.01 * len(final.z):
        kept = moves if budget.draws * said.largest > 1 else 0
        left = budget.solves - exact.solves - kept
        missing = 1.1 * (budget.effective_size - said.smallest) * len(final.z) / said.smallest
        if left < ROUND or (not last and missing > left):
            break
        more = min(int(missing) + 100, left) if last else min(int(missing) + 100, left, 2 * len(final.z))
        further = importance.draw_round(proposal, exact, more, derive(seed, "further", len(final.z)))
        final = importance.joined(final, further)
    return final


def _accepted(
    final: Draws,
    said: Judged,
    exact: Exact,
    network: Alone,
    shaped_by: str,
    seed: int,
    budget: Budget,
) -> Corrected:
    left = budget.solves - exact.solves
    z, _ = importance.equally_weighted(final, exact, budget.draws, seed, solves=left)
    evidence, error = importance.log_evidence(final.log_weight)
    return Corrected(
        z=z[:, 0],
        final=final,
        judged=said,
        network=network,
        effective=said.effective,
        log_evidence=float(evidence) if said.khat < KNOWN else float("nan"),
        log_evidence_error=float(error) if said.khat < KNOWN else float("nan"),
        solves=exact.solves,
        shaped_by=shaped_by,
        beyond=max(0, exact.solves - budget.solves),
        repeats=len(z) - len(z[:, 0].unique(dim=0)),
    )


def _khat_alone(plain: Draws, flow: Component) -> float:
    """k-hat of the network's own draws, weighed against the network alone."""
    mine = plain.component == 0
    alone = torch.where(
        torch.isfinite(plain.log_joint[mine]),
        plain.log_joint[mine] - flow.log_density(plain.z[mine]),
        -torch.inf,
    )
    return float(importance.khat(alone))
