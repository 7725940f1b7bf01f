"""The front door: `train` an estimator, `infer` a posterior; the stages in order."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ampost import bank as banks
from ampost import checks, importance, results
from ampost.errors import EstimatorError, ExperimentError
from ampost.estimator import QUANTILES, Architecture, Estimator, train_estimator
from ampost.experiments import Experiments
from ampost.importance import Component, Draws
from ampost.mcmc import smc
from ampost.model import Model
from ampost.optimize import maximise
from ampost.progress import tell
from ampost.results import Verdict
from ampost.seeds import derive, seeded
from ampost.training import Schedule


@dataclass(frozen=True)
class Settings:
    """How an estimator is trained: ODE solves for the bank, the schedule, batch and networks."""

    simulations: int = 20_000
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 256
    architecture: Architecture = field(default_factory=Architecture)


@dataclass(frozen=True)
class Budget:
    """How a posterior is corrected: draws returned, wanted effective size, most solves."""

    draws: int = 4_000
    effective_size: int = 4_000
    solves: int = 60_000


@dataclass(frozen=True)
class Corrected:
    """Equally weighted draws z (draw, z) of one data set, with what carries the verdict."""

    z: Tensor
    final: Draws | None
    khat: float
    khat_flow: float
    effective: Tensor
    log_evidence: float
    log_evidence_error: float
    solves: int
    sampled: bool
    complete: bool


def train(
    model: Model, settings: Settings | None = None, seed: int = 0, progress: bool | None = None
) -> Estimator:
    """Simulate a bank and train an estimator for `model` and its design."""
    settings = settings or Settings()
    bank = banks.build(model, settings.simulations, derive(seed, "bank"), progress)
    if bank.failures:
        tell(
            f"{bank.failures} of {settings.simulations} simulations failed and are left out",
            progress,
        )
    return train_estimator(
        model,
        bank,
        settings.schedule,
        derive(seed, "train"),
        settings.architecture,
        settings.batch,
        progress,
    )


def infer(
    model: Model,
    data: Experiments,
    estimator: Estimator | str | Path | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    settings: Settings | None = None,
    progress: bool | None = None,
    optimum: bool = True,
) -> xr.DataTree:
    """The corrected posterior of one data set, as a DataTree with a verdict in `fit`.

    Args:
        model: the program with its design.
        data: one data set (`data.split()` gives them one by one).
        estimator: a trained one, or a file: loaded if it is there, else trained and saved; None
            trains one for this call.
        seed: same seed, same machine, same result.
        budget: draws, effective size, solves.
        settings: how to train if that is needed.
        progress: False is quiet.
        optimum: also search the mode in z by BFGS.

    Raises:
        ExperimentError: more than one data set, an unknown channel, a value outside the support.
        EstimatorError: the estimator belongs to another model.
    """
    if data.batch:
        if data.batch[0] != 1:
            raise ExperimentError(
                f"infer takes one data set, the record holds {data.batch[0]}; loop over data.split()"
            )
        data = data.at(0)
    model.check_data(data)
    budget = budget or Budget()
    trained = _ready(model, data, estimator, settings, seed, progress)
    began = time.monotonic()
    corrected = correct(model, data, trained, derive(seed, "correct"), budget)
    seconds = time.monotonic() - began
    scores = results.scored(model, data, corrected.z)
    fit: dict[str, Any] = {
        "solves": corrected.solves,
        "seconds_correction": seconds,
        "seconds_training": trained.report.seconds,
        "khat": corrected.khat,
        "khat_network": corrected.khat_flow,
        "log_evidence": corrected.log_evidence,
        "log_evidence_error": corrected.log_evidence_error,
        "point_estimate": _point(model, data, trained),
        "effective_size": _by_parameter(model, data, corrected.effective),
    }
    if optimum:
        fit["map_z"] = _mode(model, data, corrected.z, scores.log_joint[:, 0])
    predicted = results.predict_at(model, data, corrected.z, seed)
    verdict = _verdict(model, data, trained, corrected, scores.log_likelihood[:, 0], budget, seed)
    fit |= {"computation": verdict.computation, "data": verdict.data, "verdict": str(verdict)}
    prior = model.simulate(1_000, derive(seed, "prior"), data).parameters
    return results.build(model, data, corrected.z, scores, predicted, prior, fit, _samples(corrected.final))


def correct(model: Model, data: Experiments, trained: Estimator, seed: int, budget: Budget) -> Corrected:
    """Network draws -> adapted, frozen proposal -> fresh final round -> equally weighted draws.

    Where the weights stay poor, sequential Monte Carlo from the prior takes over.
    """
    context = trained.context(data)
    one = torch.ones(1, dtype=torch.float64)
    flow = Component(
        "flow",
        one,
        lambda n, s: trained.sample(context, n, s),
        lambda z: trained.log_density(z, context),
    )
    prior = _prior_component(model, data, one)

    def joint(z: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_joint(z, data)

    plain = importance.draw_round([flow], joint, 1_000, derive(seed, "plain"))
    khat_flow = float(importance.khat(plain.log_weight))
    components, spent = importance.adapt(flow, prior, joint, derive(seed, "adapt"))
    spent += plain.solves
    pilot = importance.draw_round(components, joint, 500, derive(seed, "pilot"))
    spent += pilot.solves
    rate = max(float(importance.kish(pilot.log_weight)) / 500, 0.01)
    count = int(min(max(4_000, 1.15 * budget.effective_size / rate), budget.solves - spent))
    final = importance.draw_round(components, joint, max(count, 1_000), derive(seed, "final"))
    spent += final.solves
    khat = float(importance.khat(final.log_weight))
    effective = importance.effective_sizes(final)[0]
    evidence, error = importance.log_evidence(final.log_weight)
    size = float(importance.kish(final.log_weight))
    if khat < 0.7 and min(size, float(effective.min())) >= 400:
        z, _, moved = importance.equally_weighted(final, joint, budget.draws, derive(seed, "equal"))
        return Corrected(
            z[:, 0],
            final,
            khat,
            khat_flow,
            effective,
            float(evidence),
            float(error),
            spent + moved,
            False,
            True,
        )
    with seeded(derive(seed, "smc")):
        start = model.simulate(budget.draws, derive(seed, "start"), data.without_values()).z[:, None]

    def parts(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            scores = model.score(z, data)
        return scores.log_prior, scores.log_likelihood

    found = smc(start, parts, derive(seed, "smc"))
    spent += found.solves
    if found.complete:
        # the particles shape a proposal; a fresh round of draws from it then carries the verdict
        mean, factor = importance.weighted_moments(found.z, torch.zeros_like(found.log_joint))
        fitted = importance.student(mean, factor, _degrees(mean.shape[1]), 0.9 * one)
        wide = replace(prior, share=0.05 * one)
        parts_of_proposal = [fitted, wide, replace(flow, share=0.05 * one)]
        final = importance.draw_round(parts_of_proposal, joint, len(start) * 3, derive(seed, "last"))
        spent += final.solves
        khat = float(importance.khat(final.log_weight))
        effective = importance.effective_sizes(final)[0]
        evidence, error = importance.log_evidence(final.log_weight)
        if khat < 0.7 and min(float(importance.kish(final.log_weight)), float(effective.min())) >= 1_000:
            z, _, moved = importance.equally_weighted(final, joint, budget.draws, derive(seed, "equal"))
            return Corrected(
                z[:, 0],
                final,
                khat,
                khat_flow,
                effective,
                float(evidence),
                float(error),
                spent + moved,
                False,
                True,
            )
    # the particles are correlated by their ancestry: no effective size is claimed for them
    sizes = torch.full_like(effective, float("nan"))
    return Corrected(
        found.z[:, 0],
        final,
        khat,
        khat_flow,
        sizes,
        float(found.log_evidence),
        float("nan"),
        spent,
        True,
        found.complete,
    )


def _degrees(size: int) -> float:
    """Degrees of freedom of a Student-t component: heavier tails in few dimensions."""
    return 5.0 if size <= 4 else 10.0 if size <= 12 else 20.0


def _prior_component(model: Model, data: Experiments, share: Tensor) -> Component:
    """The prior in z as a component: standard normal where the maps are exact, a wide normal else."""
    size = model.z_size(data.count)
    exact = all(site.exact for site in model.sites(data.count))
    wide = torch.eye(size, dtype=torch.float64) * (1.0 if exact else 1.5)
    return importance.student(torch.zeros(1, size, dtype=torch.float64), wide[None], 50.0, share)


def _ready(
    model: Model,
    data: Experiments,
    estimator: Estimator | str | Path | None,
    settings: Settings | None,
    seed: int,
    progress: bool | None,
) -> Estimator:
    if isinstance(estimator, Estimator):
        estimator.belongs_to(model)
        return estimator
    if estimator is not None and Path(estimator).exists():
        loaded = Estimator.load(estimator)
        loaded.belongs_to(model)
        return loaded
    outside = model.design.outside(data)
    if outside:
        raise EstimatorError(f"the data lie outside the design to train for: {'; '.join(outside)}")
    tell(model.design.words(), progress)
    preliminary(model, data, seed, progress)
    trained = train(model, settings, seed, progress)
    if estimator is not None:
        trained.save(estimator)
        tell(f"saved the estimator to {estimator}", progress)
    return trained


def preliminary(model: Model, data: Experiments, seed: int, progress: bool | None) -> None:
    """A quick multi-start fit, shown while the training is still to come."""
    start = model.simulate(200, derive(seed, "preliminary"), data.without_values()).z
    with torch.no_grad():
        value = model.log_joint(start[:, None], data)[:, 0]
    best = start[value.argsort(descending=True)[:3]]
    found = maximise(lambda z: model.log_joint(z[:, None], data)[:, 0], best, most=20)[0]
    values = model.parameters(found.z[None, None], data)
    words = ", ".join(f"{k} {float(v.flatten()[0]):.3g}" for k, v in values.items() if v.numel() == 1)
    tell(f"preliminary fit (3 starts, log joint {found.log_joint:.2f}): {words}", progress)


def _point(model: Model, data: Experiments, trained: Estimator) -> dict[str, float]:
    median = trained.quantiles(data)[:, :, QUANTILES.index(0.5)]
    return _scalars(model.parameters(median[None], data))


def _mode(model: Model, data: Experiments, z: Tensor, joint: Tensor) -> dict[str, float]:
    start = z[joint.argmax()][None]
    best = maximise(lambda x: model.log_joint(x[:, None], data)[:, 0], start)[0]
    return _scalars(model.parameters(best.z[None, None], data))


def _scalars(values: dict[str, Tensor]) -> dict[str, float]:
    out = {}
    for name, value in values.items():
        flat = value.flatten()
        for k, number in enumerate(flat.tolist()):
            out[name if len(flat) == 1 else f"{name}[{k}]"] = number
    return out


def _by_parameter(model: Model, data: Experiments, effective: Tensor) -> dict[str, float]:
    out: dict[str, float] = {}
    for site in model.sites(data.count):
        part = effective[site.start : site.start + site.size].tolist()
        number = int(torch.Size((*site.batch, *site.event)).numel())
        values = part if number == len(part) else [min(part)] * number
        out |= {site.name if number == 1 else f"{site.name}[{k}]": v for k, v in enumerate(values)}
    return out


def _samples(final: Draws | None) -> dict[str, Tensor] | None:
    if final is None:
        return None
    return {
        "z": final.z[:, 0],
        "log_weight": final.log_weight[:, 0],
        "log_joint": final.log_joint[:, 0],
        "log_proposal": final.log_proposal[:, 0],
    }


def _verdict(
    model: Model,
    data: Experiments,
    trained: Estimator,
    corrected: Corrected,
    log_likelihood: Tensor,
    budget: Budget,
    seed: int,
) -> Verdict:
    reasons, numbers = [], {"khat": corrected.khat, "khat_network": corrected.khat_flow}
    smallest = float(corrected.effective.min())
    numbers["effective_size"] = smallest
    numbers["solves"] = float(corrected.solves)
    if corrected.sampled:
        computation = "sampled" if corrected.complete else "failed"
        reasons.append(
            f"The weights were poor (k-hat {corrected.khat:.2f}), so sequential Monte Carlo from the "
            f"prior took over; compare with baselines.nuts before you rely on it."
        )
    elif smallest >= 1_000 and corrected.khat < 0.7:
        computation = "trusted" if corrected.khat_flow < 0.5 else "corrected"
        reasons.append(
            f"k-hat {corrected.khat:.2f} (network alone {corrected.khat_flow:.2f}), smallest effective "
            f"size {smallest:.0f} from {corrected.solves} solves."
        )
    else:
        computation = "failed"
        reasons.append(
            f"The effective size is only {smallest:.0f} (k-hat {corrected.khat:.2f}); raise "
            f"Budget(solves=...), train longer, or use baselines.nuts."
        )
    state, words = _data_state(model, data, trained, corrected, log_likelihood, seed, numbers)
    return Verdict(computation, state, (*reasons, words), numbers)


def _data_state(
    model: Model,
    data: Experiments,
    trained: Estimator,
    corrected: Corrected,
    log_likelihood: Tensor,
    seed: int,
    numbers: dict[str, float],
) -> tuple[str, str]:
    outside = trained.design.outside(data)
    some = corrected.z[:: max(1, len(corrected.z) // 500)]
    mine = log_likelihood[:: max(1, len(corrected.z) // 500)]
    replicate = model.simulate_at(some, data.expand((len(some),)), derive(seed, "misfit"))
    # each replicate is scored at its own draw: one data set per draw, on the diagonal
    with torch.no_grad():
        again = model.score(some[None], replicate.experiments).log_likelihood[0]
    p_misfit = checks.misfit(-mine, -again)
    simulated = model.simulate(300, derive(seed, "contexts"), data.without_values())
    p_context = checks.unlike(trained.context(data)[0], trained.context(simulated.experiments))
    numbers |= {"p_misfit": p_misfit, "p_context": p_context}
    if outside:
        return "outside the design", outside[0]
    if p_misfit < 0.01:
        return (
            "misfit",
            f"The model does not explain the data (p = {p_misfit:.3f} by replicated data).",
        )
    if p_context < 0.01:
        return (
            "unlike the training data",
            f"Data like these are rare under the prior (p = {p_context:.3f}).",
        )
    return "consistent", f"The model explains the data (p = {p_misfit:.2f} by replicated data)."
