"""Several answers to one question side by side: cost, optimum, means, sds, distances; when training pays."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import wasserstein_distance
from torch import Tensor

from ampost import baselines, results
from ampost.correction import Budget
from ampost.errors import ArgumentError
from ampost.estimator import QUANTILES, Estimator
from ampost.experiments import Experiments
from ampost.inference import infer
from ampost.model import Model
from ampost.ode.problem import Solver
from ampost.optimize import laplace, maximise
from ampost.proxy import Proxy
from ampost.results import scalars, values
from ampost.seeds import derive, seeded

DRAWS = 1_000
STARTS = 4  # of the optimum from the network's draws

TABLES = (
    ("mean", "mean"),
    ("sd", "sd"),
    ("off", "mean less the first's, in its sds"),
    ("ratio", "sd over the first's"),
    ("distance", "distance of the marginal from the first's, in its sds"),
)


@dataclass(frozen=True)
class Comparison:
    """`results` has one entry per result; `parameters` one per (result, parameter).

    `results`: seconds; ODE solves, where a gradient counts one more than the number of parameters; how far the
    log joint at the best point is below the best of all; smallest effective size, and that per second; R-hat of
    Markov chains; the label of the computation; seconds of training, and from how many data sets on these pay
    (`break_even`), against the first result that needed none and has effective draws. `parameters`: mean, sd,
    how far the mean is off that of the first result in its sds, the ratio of the sds, and the distance
    (Wasserstein) of the marginal from the first's, in its sds. `answers` are what was compared.
    """

    results: xr.Dataset
    parameters: xr.Dataset
    answers: Mapping[str, xr.DataTree]

    def __str__(self) -> str:
        table = self.results.drop_vars(["training", "break_even"]).to_dataframe()
        parts = [_text(table)]
        for name, title in TABLES:
            parts.append(f"{title}\n{_text(self.parameters[name].to_pandas())}")
        return "\n\n".join([*parts, *self.paying()])

    def paying(self) -> list[str]:
        """From which number of data sets on a training pays, in sentences."""
        other = _untrained(self.results["training"].values, self.results["effective_size"].values)
        if other is None:
            return []
        first = str(self.results["result"].values[other])
        said = []
        for name in map(str, self.results["result"].values):
            row = self.results.sel(result=name)
            if not (float(row["training"]) > 0 and float(row["effective_size"]) > 0):
                continue  # what is not corrected is no answer to compare times with
            pays = float(row["break_even"])
            words = (
                f"pays from {math.ceil(pays):,} data set{'' if pays <= 1 else 's'} on"
                if math.isfinite(pays)
                else f"does not pay here: {first} is as fast for each data set"
            )
            theirs = self.results.isel(result=other)
            said.append(
                f"{name}: {float(row['training']):.0f} s of training and {float(row['seconds']):.2g} s for "
                f"each data set (effective size {float(row['effective_size']):,.0f}), against "
                f"{float(theirs['seconds']):.3g} s by {first} ({float(theirs['effective_size']):,.0f}); "
                f"it {words}."
            )
        return said


def compare(results: Mapping[str, xr.DataTree]) -> Comparison:
    """Put results of `infer`, `baselines.nuts` and `baselines.fit` for one data set side by side.

    The first is what the others are measured against; `compare_methods` makes them all. Seconds leave out the
    training of an estimator, which is paid once.

    Raises:
        ArgumentError: fewer than two results, or results without a common parameter.
    """
    if len(results) < 2:
        raise ArgumentError(f"compare got {len(results)} result(s), expected two or more, by name")
    draws = {name: _flat(result) for name, result in results.items()}
    first = next(iter(results))
    shared = [p for p in draws[first] if all(p in d for d in draws.values())]
    if not shared:
        raise ArgumentError(
            f"the results {', '.join(results)} have no parameter in common; compare results of one model"
        )
    seconds, size, best, training = (
        np.array([take(r) for r in results.values()])
        for take in (
            lambda r: _entry(r, "seconds"),
            _effective,
            lambda r: _entry(r, "best_log_joint"),
            lambda r: _entry(r, "seconds_training"),
        )
    )
    other = _untrained(training, size)
    saved = np.zeros_like(seconds) if other is None else seconds[other] - seconds
    pays = np.where(saved > 0, training / np.where(saved > 0, saved, 1.0), np.inf)
    overview = {
        "seconds": seconds,
        "solves": [_entry(r, "solves") for r in results.values()],
        "below_best": np.nanmax(best) - best if np.isfinite(best).any() else np.full_like(best, np.nan),
        "effective_size": size,
        "effective_per_second": size / seconds,
        "rhat": [_entry(r, "rhat") for r in results.values()],
        "computation": [str(r["fit/computation"].item()) for r in results.values()],
        "training": training,
        "break_even": np.where(np.isnan(training), np.nan, pays),
    }
    with np.errstate(divide="ignore", invalid="ignore"):  # a single point has no sd, an infinite draw no mean
        mean = np.array([[draws[m][p].mean() for p in shared] for m in results])
        sd = np.array([[draws[m][p].std() for p in shared] for m in results])
        apart = [[wasserstein_distance(draws[m][p], draws[first][p]) for p in shared] for m in results]
        table = {
            "mean": mean,
            "sd": sd,
            "off": (mean - mean[0]) / sd[0],
            "ratio": sd / sd[0],
            "distance": np.array(apart) / sd[0],
        }
    axes = ("result", "parameter")
    return Comparison(
        xr.Dataset({k: (("result",), v) for k, v in overview.items()}, {"result": list(results)}),
        xr.Dataset({k: (axes, v) for k, v in table.items()}, {"result": list(results), "parameter": shared}),
        dict(results),
    )


def compare_methods(
    model: Model,
    data: Experiments,
    estimator: Estimator,
    seed: int = 0,
    *,
    proxy: Proxy | None = None,
    budget: Budget | None = None,
    starts: int = 10,
    draws: int = 500,
    warmup: int = 500,
    chains: int = 4,
    progress: bool | None = None,
) -> Comparison:
    """Run every way to answer one data set, and put the answers side by side, NUTS first.

    nuts (Pyro's, `chains` from the prior); fit (BFGS from `starts` prior draws, normal approximation); point
    (medians of the network, by one pass); network (its draws as they are); with a `proxy`, its optimum from the
    network's draws, where the exact log joint is then taken; optimum (the exact one from there, normal
    approximation); corrected (`infer`).

    Raises:
        EstimatorError: the estimator or the proxy belongs to another model.
    """
    estimator.belongs_to(model)
    if proxy is not None:
        proxy.belongs_to(model)
    data = model.prepare(data.at(0) if data.batch else data)
    answers = {
        "nuts": baselines.nuts(model, data, draws, warmup, chains, derive(seed, "nuts"), progress),
        "fit": baselines.fit(model, data, starts, derive(seed, "fit"), progress),
        "point": _point(model, data, estimator, seed),
        "network": _network(model, data, estimator, seed),
    }
    if proxy is not None:
        answers["proxy optimum"] = _optimum(model, data, estimator, proxy, seed)
    answers["optimum"] = _optimum(model, data, estimator, model.solver, seed)
    budget = budget or Budget(effective_size=2_000)
    answers["corrected"] = infer(model, data, estimator, seed, budget, progress=progress, optimum=False)
    return compare(answers)


def _untrained(training: np.ndarray, size: np.ndarray) -> int | None:
    """The place of the first result that needed no training and has effective draws."""
    found = np.flatnonzero(~(training > 0) & (size > 0))
    return int(found[0]) if len(found) else None


def _point(model: Model, data: Experiments, estimator: Estimator, seed: int) -> xr.DataTree:
    """The medians by the network's one pass."""
    began = time.monotonic()
    z = estimator.quantiles(data)[:, :, QUANTILES.index(0.5)]
    return _told(model, data, z, "point estimate", began, 0, estimator, seed)


def _network(model: Model, data: Experiments, estimator: Estimator, seed: int) -> xr.DataTree:
    """The network's draws, as they are; of a refined one the search for its mode takes solves."""
    began = time.monotonic()
    reading = estimator.reading(model, data)
    z = estimator.sample(reading, DRAWS, derive(seed, "network"))[:, 0]
    solves = 0 if reading.ridge is None else reading.ridge.solves
    return _told(model, data, z, "not corrected", began, solves, estimator, seed)


def _optimum(model: Model, data: Experiments, estimator: Estimator, solver: Solver, seed: int) -> xr.DataTree:
    """BFGS on the log joint by a solver from the network's draws; draws of the normal approximation there."""
    began = time.monotonic()
    by_solver = replace(model, solver=solver)

    def joint(z: Tensor) -> Tensor:
        return by_solver.log_joint(z[:, None], data)[:, 0]

    reading = estimator.reading(model, data)
    found = maximise(joint, estimator.sample(reading, STARTS, derive(seed, "starts"))[:, 0].clamp(-4, 4))
    best = found[0].z
    covariance = laplace(joint, best)
    z, label = best[None], "optimum only: singular Hessian"
    if covariance is not None:
        with seeded(derive(seed, "laplace")):
            noise = torch.randn(DRAWS, len(best), dtype=torch.float64)
        z, label = best + noise @ torch.linalg.cholesky(covariance).T, "laplace"
    spent = 0
    if solver is model.solver:
        spent = (sum(f.gradients for f in found) + 2 * len(best)) * (1 + len(best))
    spent += 0 if reading.ridge is None else reading.ridge.solves
    return _told(model, data, z, label, began, spent, estimator, seed, best)


def _told(
    model: Model,
    data: Experiments,
    z: Tensor,
    computation: str,
    began: float,
    solves: int,
    estimator: Estimator,
    seed: int,
    best: Tensor | None = None,
) -> xr.DataTree:
    """The result of draws z (draw, z), whose best point is `best` or the best of them."""
    said: dict[str, Any] = {"seconds": time.monotonic() - began, "seconds_training": estimator.seconds}
    reported = results.report(model, data, z, seed)
    joint = reported.scores.log_joint[:, 0]
    if best is not None:
        with torch.no_grad():
            joint = model.log_joint(best[None, None], data)[:, 0]
    said |= {"solves": solves, "best_log_joint": float(joint.max()), "computation": computation}
    prior = results.prior_draws(model, data, 500, derive(seed, "prior"))
    return results.build(model, data, z, reported, prior, said)


def _flat(result: xr.DataTree) -> dict[str, np.ndarray]:
    """Draws of every scalar entry of the posterior, all chains together."""
    out: dict[str, np.ndarray] = {}
    for name in result["posterior"].data_vars:
        drawn = values(result, "posterior", name)
        wide = drawn.reshape(drawn.shape[0] * drawn.shape[1], -1)
        for k in range(wide.shape[1]):
            out[str(name) if wide.shape[1] == 1 else f"{name}[{k}]"] = wide[:, k]
    return out


def _entry(result: xr.DataTree, name: str) -> float:
    return float(values(result, "fit", name)) if name in result["fit"] else float("nan")


def _effective(result: xr.DataTree) -> float:
    """The smallest effective size: by the weights, or by the chains; a normal approximation has none."""
    known = scalars(result, "effective_size")
    return min(known.values()) if known else float("nan")


def _text(table: Any) -> str:  # noqa: ANN401 - a pandas DataFrame
    table.columns.name = table.index.name = None
    return str(table.to_string(float_format=lambda x: f"{x:.4g}", na_rep="-"))
