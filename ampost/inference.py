"""The front door: `train` an estimator, `infer` a posterior; the stages in order."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ampost import bank as banks
from ampost import results
from ampost.alarms import alarms
from ampost.chains import EACH, GROUPS
from ampost.correction import Budget, Corrected, correct
from ampost.errors import CheckpointError, EstimatorError, ExperimentError, FileError
from ampost.estimator import QUANTILES, Estimator
from ampost.experiments import Experiments
from ampost.importance import Draws
from ampost.impossible import culprits
from ampost.judging import PRIOR, shape
from ampost.learning import Settings, enough_rows, train_estimator
from ampost.likeness import kept
from ampost.model import Model
from ampost.modes import STARTS as MODE_STARTS
from ampost.modes import search
from ampost.optima import STARTS, names, optima
from ampost.progress import tell
from ampost.proxy import train_proxy
from ampost.refining import leftovers
from ampost.results import Verdict
from ampost.seeds import derive
from ampost.transfer import refuse_other_sites

TRIED = 1_000  # draws of the prior, none of which makes the data possible, before a training is refused
POOR = 5.0  # an error of a proxy, in sd of the noise, from which on it is called poor
PROXY = 0.3  # the share of the schedule's seconds, where it has some, in which a proxy is trained


def train(
    model: Model,
    settings: Settings | None = None,
    seed: int = 0,
    progress: bool | None = None,
    *,
    bank: str | Path | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
) -> Estimator:
    """Simulate a bank and train an estimator for `model` and its design.

    Args:
        model: the program with its design.
        settings: solves, schedule, batch, networks, and whether to refine and to use a proxy.
        seed: same seed, same machine, same result.
        progress: False is quiet.
        bank: a folder to keep the bank in; simulations that are there already are used.
        checkpoint: a file to go on from after a kill. It is removed when training is done.
        out: a file to write the estimator to, before the checkpoint is removed; a proxy goes beside it, as
            `NAME.proxy.ampost`. Nothing is written where training was stopped before its first validation.

    Raises:
        BankError: the bank is another model's, design's or seed's.
        TrainingError: all simulations failed, or the loss is not finite time and again.
        KeyboardInterrupt: the proxy was stopped before its end; the same call goes on with it.
    """
    settings = settings or Settings()
    for path in (checkpoint, out):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise FileError(f"{str(path)!r} is to be written into a folder that is not there; make it first")
    folder, part = (None if p is None else Path(p) for p in (bank, checkpoint))
    held = banks.build(model, settings.simulations, derive(seed, "bank"), folder, progress)
    if held.failures:
        tell(
            f"{held.failures} of {held.solves} simulations failed and are left out "
            f"({', '.join(f'{n} {name}' for name, n in held.reasons.most_common())}); the first: "
            f"{held.examples[0] if held.examples else 'unknown'}",
            progress,
        )
    proxy = None
    enough_rows(held, settings)
    if settings.proxy is not None:
        taught = None if part is None else part.with_suffix(".proxy")
        schedule = settings.proxy.schedule
        schedule = replace(schedule, seconds=min(schedule.seconds, PROXY * settings.schedule.seconds))
        chosen = replace(settings.proxy, schedule=schedule)
        proxy = train_proxy(model, held, chosen, derive(seed, "proxy"), checkpoint=taught, show=progress)
        if proxy.report.interrupted:
            raise KeyboardInterrupt
        if proxy.report.best > POOR:
            tell(
                f"the proxy is poor: for 90 % of draws it is off by up to {proxy.report.best:.3g} sd of the "
                f"noise (all points together), and may teach what is wrong; train it longer, or train without",
                progress,
            )
        left = max(settings.schedule.seconds - proxy.report.seconds, (1 - PROXY) * settings.schedule.seconds)
        settings = replace(settings, schedule=replace(settings.schedule, seconds=left))
    trained = train_estimator(
        model, held, settings, derive(seed, "train"), proxy=proxy, checkpoint=part, show=progress
    )
    if out is not None and math.isfinite(trained.loss):
        trained.save(out)
        if proxy is not None:
            name = Path(out).name.removesuffix(".ampost")
            proxy.save(Path(out).with_name(f"{name}.proxy.ampost"))
    if part is not None and not trained.interrupted:
        _forget(part)
    return trained


def infer(
    model: Model,
    data: Experiments,
    estimator: Estimator | str | Path | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    settings: Settings | None = None,
    progress: bool | None = None,
    optimum: bool = True,
    trained_for: Model | None = None,
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
        trained_for: the model that the estimator was trained for, where this one has other priors or another
            noise: the estimator is reweighted to this model, with a k-hat and a verdict of its own.
        optimum: also search the optima by BFGS: `map_z`, `map` and `mle` in `fit`, and what the data determine.

    Raises:
        ExperimentError: more than one data set, an unknown channel, a value outside the support; data that no
            parameters explain, where an estimator would have to be trained first.
        EstimatorError: the estimator belongs to another model, or that one has other parameters.
    """
    if data.batch:
        if data.batch[0] != 1:
            raise ExperimentError(
                f"infer takes one data set, the record holds {data.batch[0]}; loop over data.split()"
            )
        data = data.at(0)
    data = model.prepare(data)
    trained = ready(trained_for or model, data, estimator, settings, seed, progress)
    if trained_for is not None:
        refuse_other_sites(trained_for, model, data.count)
    budget = budget or Budget()
    began = time.monotonic()
    corrected = correct(model, data, trained, derive(seed, "correct"), budget, progress, trained_for)
    seconds = time.monotonic() - began
    reported = results.report(model, data, corrected.z, seed)
    log_joint = reported.scores.log_joint[:, 0]
    fit: dict[str, Any] = {
        "solves": corrected.solves,
        "seconds": seconds,
        "seconds_training": trained.seconds,
        "best_log_joint": float(log_joint.max()),
        "khat": corrected.judged.khat,
        "khat_network": corrected.network.khat,
        "largest_weight": corrected.judged.largest,
        "halves_apart": corrected.judged.apart,
        "share_failed": corrected.judged.failed,
        "log_evidence": corrected.log_evidence,
        "log_evidence_error": corrected.log_evidence_error,
        "point_estimate": _point(trained_for or model, data, trained),
        "rhat": corrected.rhat,
        "effective_size": _by_parameter(model, data, corrected.effective),
    }
    found = None
    if optimum and bool(torch.isfinite(log_joint).any()):
        # the best draw of each quarter of them
        parts = [torch.arange(k, len(log_joint), STARTS) for k in range(min(STARTS, len(log_joint)))]
        starts = torch.stack([corrected.z[part[log_joint[part].argmax()]] for part in parts])
        found = optima(model, data, starts)
        for name, end in (("map_z", found.map_z), ("map", found.map), ("mle", found.mle)):
            if name != "mle" or found.bounded:
                fit[name] = results.by_label(model.parameters(end.z[None, None], data))
        fit |= {"best_log_joint": found.map_z.log_joint, "gradients": found.gradients}
        fit["condition_number"] = found.condition
    best = corrected.z[log_joint.nan_to_num(-torch.inf).argmax()]
    verdict = _verdict(model, data, trained, corrected, budget.effective_size, best, seed)
    if found is not None:
        verdict = replace(verdict, reasons=(*verdict.reasons, str(found)))
    fit |= {"computation": verdict.computation, "data": verdict.data, "verdict": str(verdict)}
    prior = results.prior_draws(model, data, 1_000, derive(seed, "prior"))
    weighted = None if corrected.sampled else _weighted(corrected.final)
    tree = results.build(model, data, corrected.z, reported, prior, fit, weighted)
    tree["program"] = kept(model)
    if found is not None:
        tree["optima"] = results.optima_group(found, names(model, data))
    return tree


def ready(
    model: Model,
    data: Experiments,
    estimator: Estimator | str | Path | None,
    settings: Settings | None,
    seed: int,
    progress: bool | None,
) -> Estimator:
    """A trained estimator for the model: the given one, that of a file, or a new one, saved there.

    Raises:
        EstimatorError: the estimator belongs to another model, or the data lie outside the design.
    """
    if isinstance(estimator, Estimator):
        estimator.belongs_to(model)
        return estimator
    path = None if estimator is None else Path(estimator)
    if path is not None and path.exists():
        loaded = Estimator.load(path)
        loaded.belongs_to(model)
        return loaded
    outside = model.design.outside(data)
    if outside:
        raise EstimatorError(f"the data lie outside the design to train for: {'; '.join(outside)}")
    tell(model.design.words(), progress)
    preliminary(model, data, seed, progress)
    if path is None:
        return train(model, settings, seed, progress)
    part = path.with_name(f"{path.name}.part")
    try:
        trained = train(model, settings, seed, progress, checkpoint=part, out=path)
    except CheckpointError as error:
        tell(f"{error}. It is deleted, and training starts anew", progress)
        _forget(part)
        trained = train(model, settings, seed, progress, checkpoint=part, out=path)
    if path.exists():
        tell(f"saved the estimator to {path}", progress)
    return trained


def _forget(checkpoint: Path) -> None:
    """Delete a checkpoint, itself at last, with what is beside it and what interrupted writes left."""
    paths = (*leftovers(checkpoint), checkpoint.with_suffix(".proxy"), checkpoint)
    for path in paths:
        for left in path.parent.glob(f".{escape(path.name)}.*"):
            left.unlink()
        path.unlink(missing_ok=True)


def preliminary(model: Model, data: Experiments, seed: int, progress: bool | None) -> None:
    """A quick multi-start fit, shown while the training is still to come."""
    found = search(model, data, derive(seed, "preliminary"))
    if not len(found.height):
        _refuse_impossible(model, data, derive(seed, "tried"))
        tell(f"preliminary fit: none of {MODE_STARTS} searches from the prior ended at an optimum", progress)
        return
    values = model.parameters(found.place[:1, None], data)
    words = ", ".join(f"{k} {float(v.flatten()[0]):.3g}" for k, v in values.items() if v.numel() == 1)
    tell(
        f"preliminary fit (best of {MODE_STARTS} starts, log joint {float(found.height[0]):.2f}): {words}",
        progress,
    )


def _refuse_impossible(model: Model, data: Experiments, seed: int) -> None:
    """Name what makes the data impossible at every draw of the prior, before minutes of training.

    Raises:
        ExperimentError: measurements, or an ODE that cannot be solved for these data.
    """
    z = model.simulate(TRIED, seed, data.without_values()).z
    with torch.no_grad():
        possible = bool(torch.isfinite(model.log_joint(z[:, None], data)).any())
    if not possible:
        raise ExperimentError(f"no parameters explain these data: {culprits(model, data, z)}")


def _point(model: Model, data: Experiments, trained: Estimator) -> dict[str, float]:
    median = trained.quantiles(data)[:, :, QUANTILES.index(0.5)]
    return results.by_label(model.parameters(median[None], data))


def _by_parameter(model: Model, data: Experiments, effective: Tensor) -> dict[str, float]:
    out: dict[str, float] = {}
    for site in model.sites(data.count):
        part = effective[site.start : site.start + site.size].tolist()
        number = int(torch.Size((*site.batch, *site.event)).numel())
        values = part if number == len(part) else [min(part)] * number
        out |= {site.name if number == 1 else f"{site.name}[{k}]": v for k, v in enumerate(values)}
    return out


def _weighted(final: Draws) -> dict[str, Tensor]:
    return {
        "z": final.z[:, 0],
        "log_weight": final.log_weight[:, 0],
        "log_joint": final.log_joint[:, 0],
        "log_proposal": final.log_proposal[:, 0],
        "component": final.component,
    }


def _verdict(
    model: Model,
    data: Experiments,
    trained: Estimator,
    corrected: Corrected,
    wanted: int,
    best: Tensor,
    seed: int,
) -> Verdict:
    computation, reason = _computation(model, data, corrected, wanted)
    numbers = {
        "khat": corrected.judged.khat,
        "khat_network": corrected.network.khat,
        "largest_weight": corrected.judged.largest,
        "halves_apart": corrected.judged.apart,
        "share_failed": corrected.judged.failed,
        "effective_size": float(corrected.effective.min()),
        "solves": float(corrected.solves),
    }
    state, words, p_values = _data_state(model, data, trained, best, seed)
    searched = corrected.network.modes.sentence(corrected.network.missed)
    return Verdict(computation, state, (reason, searched, words), numbers | p_values)


def _computation(model: Model, data: Experiments, corrected: Corrected, wanted: int) -> tuple[str, str]:
    """The computation's label and the sentence behind it."""
    smallest = float(corrected.effective.min())
    if corrected.sampled:
        number = GROUPS * EACH
        chains = (
            f"largest nested R-hat {corrected.rhat:.3f}, smallest effective size {smallest:.0f}, "
            f"{corrected.solves} ODE solves"
        )
        why = f"No proposal carried the weights ({'; '.join(corrected.judged.faults)})"
        if corrected.complete:
            return "sampled", (
                f"{why}, so these draws are from {number} Markov chains: {chains}; the evidence is not known."
            )
        if not bool(torch.isfinite(corrected.final.log_weight).any()):
            found = culprits(model, data, corrected.final.z[corrected.final.component == PRIOR, 0])
            return "failed", f"No parameters explain these data, and the draws mean nothing: {found}."
        return "failed", (
            f"{why}, and the {number} Markov chains from there do not agree or are too short: {chains}; "
            f"try baselines.nuts with more draws, a tighter prior, or fewer parameters."
        )
    beyond = ""
    if corrected.beyond:
        beyond += f", {corrected.beyond} of them beyond the budget"
    if corrected.repeats:
        beyond += (
            f"; {corrected.repeats} of {len(corrected.z)} draws are repeats, for want of solves to move them"
        )
    short = f" of {wanted} asked for: the budget of solves ended" if smallest < wanted else ""
    said = (
        f"k-hat {corrected.judged.khat:.2f} (network alone {shape(corrected.network.khat)}), smallest "
        f"effective size {smallest:.0f}{short}, {corrected.solves} ODE solves{beyond}."
    )
    how = {
        "weights": "The proposal was adapted by its weights",
        "network": "The proposal was the network, beside a Student-t distribution about the mode",
        "chains": "The proposal was shaped by short Markov chains",
        "proxy": "The draws were shaped by a proxy fitted to this data set",
        "bridge": "The network was far off; its draws were carried to the posterior by sequential Monte Carlo",
        "prior": "The proposal was found from the prior, without the network",
    }[corrected.shaped_by]
    if corrected.network.trusted:
        return "trusted", f"The network's draws would have done as they stood. {how}: {said}"
    return "corrected", f"{how}: {said}"


def _data_state(
    model: Model, data: Experiments, trained: Estimator, best: Tensor, seed: int
) -> tuple[str, str, dict[str, float]]:
    """The label of model and data, the sentence behind it, and the p-values."""
    found = alarms(model, data, best, trained, derive(seed, "alarms"))
    outside = trained.design.outside(data)
    if outside:
        return "outside the design", f"{outside[0]}. {found}", found.numbers
    if found.misfit:
        return "misfit", str(found), found.numbers
    if found.context.raised:
        return "unlike the training data", str(found), found.numbers
    return "consistent", str(found), found.numbers
