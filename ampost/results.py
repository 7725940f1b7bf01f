"""Draws -> ArviZ's DataTree, the verdict and the summary; the one builder of ArviZ objects."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import arviz_base
import arviz_stats
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ampost.experiments import CENSORING, Channel, Experiments
from ampost.model import Model, Scores
from ampost.passes import idle
from ampost.program import recording, replaying
from ampost.seeds import derive


@dataclass(frozen=True)
class Verdict:
    """Two axes, never merged: may the computation be trusted, and does the model explain the data.

    `computation` is one of trusted, corrected, sampled, failed; `data` one of consistent, outside
    the design, unlike the training data, misfit.
    """

    computation: str
    data: str
    reasons: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"Computation: {self.computation}. Model and data: {self.data}."]
        return "\n".join([*lines, *(f"  - {reason}" for reason in self.reasons)])

    def to_json(self) -> dict[str, Any]:
        """Plain values, for saving."""
        return asdict(self)


def build(
    model: Model,
    data: Experiments,
    z: Tensor,
    reported: Report,
    prior: Mapping[str, Tensor],
    fit: Mapping[str, Any],
    importance: Mapping[str, Tensor] | None = None,
    chains: int = 1,
) -> xr.DataTree:
    """The result of one data set: equally weighted draws z (draw, z) and what is reported of them.

    `model_of` gives back the model for as long as the result lives in this process.
    """
    scores = reported.scores
    masks = {name: data.channels[name].mask.reshape(-1).numpy() for name in scores.pointwise}
    coords, dims, places = _coordinates(model, data)
    posterior = {n: _chained(v[:, 0], chains) for n, v in scores.parameters.items()}
    posterior |= {
        n: _chained(v.reshape(len(z), -1).squeeze(-1), chains) for n, v in scores.deterministic.items()
    }

    def flat(values: Tensor, name: str) -> np.ndarray[Any, Any]:
        return np.asarray(values.reshape(values.shape[0], -1)[:, masks[name]])

    groups: dict[str, dict[str, Any]] = {
        "posterior": posterior,
        "sample_stats": {
            "lp": _chained(scores.log_joint[:, 0], chains),
            "log_likelihood": _chained(scores.log_likelihood[:, 0], chains),
        },
        "log_likelihood": {n: _fold(flat(v[:, 0], n), chains) for n, v in scores.pointwise.items()},
        "posterior_predictive": {
            n: _fold(flat(v, n), chains) for n, v in reported.predicted.items() if n in masks
        },
        "prior": {n: _chained(v, 1) for n, v in prior.items()},
        "observed_data": {n: _observed(data, n)[masks[n]] for n in masks},
    }
    tree = arviz_base.from_dict(groups, coords=coords, dims=dims)
    # apart, since a parameter per experiment has one log prior
    by_site = {n: _chained(v[:, 0], chains) for n, v in scores.site_log_prior.items()}
    tree["log_prior"] = arviz_base.from_dict({"log_prior": by_site})["log_prior"]
    tree["unconstrained_posterior"] = xr.DataTree(
        xr.Dataset({"z": (("chain", "draw", "z_dim"), _chained(z, chains))}, _draws(len(z), chains))
    )
    if censored := _censoring(data):
        tree["censoring"] = xr.DataTree(
            xr.Dataset(censored, {f"{n}_id": coords[f"{n}_id"] for n in masks if f"{n}_censoring" in censored})
        )
    for node in tree.children.values():
        here = {k: v for k, v in places.items() if v[0] in node.dims}
        node.dataset = node.to_dataset().assign_coords(here)
    tree["constant_data"] = xr.DataTree(
        xr.Dataset(
            {k: (("experiment",), v[:, 0].numpy()) for k, v in data.conditions.items()},
            coords={"experiment": list(data.names[0])},
        )
    )
    _with_units(tree, {**data.units, **model.units})
    if importance is not None:
        names = {"z": ("sample", "z_dim"), "component": ("sample",)}
        tree["importance_samples"] = xr.DataTree(
            xr.Dataset({k: (names.get(k, ("sample",)), v.numpy()) for k, v in importance.items()})
        )
    tree["fit"] = xr.DataTree(_fit_dataset(fit))
    _MODELS[id(tree)] = model
    weakref.finalize(tree, _MODELS.pop, id(tree), None)
    return tree


_MODELS: dict[int, Model] = {}


def model_of(result: xr.DataTree) -> Model | None:
    """The model that gave `result` in this process; None for one that comes from a file or was copied."""
    return _MODELS.get(id(result))


def _coordinates(
    model: Model, data: Experiments
) -> tuple[dict[str, Any], dict[str, list[str]], dict[str, tuple[str, np.ndarray[Any, Any]]]]:
    """Indexes, dimensions, and the time and experiment of each measurement along `<channel>_id`."""
    coords: dict[str, Any] = {"experiment": list(data.names[0])}
    dims: dict[str, list[str]] = {}
    places: dict[str, tuple[str, np.ndarray[Any, Any]]] = {}
    for site in model.sites(data.count):
        if site.local:
            dims[site.name] = ["experiment"]
    for name, channel in data.channels.items():
        mask = channel.mask
        where = mask.nonzero()
        coords[f"{name}_id"] = np.arange(len(where))
        dims[name] = [f"{name}_id"]
        experiments = np.array([data.names[0][e] for e in where[:, 0].tolist()], dtype=str)
        places[f"{name}_time"] = (f"{name}_id", data.times[mask].numpy())
        places[f"{name}_experiment"] = (f"{name}_id", experiments)
    return coords, dims, places


WITH_UNITS = ("posterior", "prior", "observed_data", "posterior_predictive", "constant_data")


def _with_units(tree: xr.DataTree, units: Mapping[str, str]) -> None:
    """Set the attribute `units` of what has one: parameters, channels, conditions and times."""
    for group, node in tree.children.items():
        dataset = node.to_dataset()
        for name in dataset.data_vars if group in WITH_UNITS else ():
            if str(name) in units:
                dataset[name].attrs["units"] = units[str(name)]
        for name in dataset.coords:
            if str(name).endswith("_time") and "time" in units:
                dataset[name].attrs["units"] = units["time"]
        node.dataset = dataset


def _censoring(data: Experiments) -> dict[str, Any]:
    """How the rows of each channel with censored ones are censored, and where their intervals end."""
    out: dict[str, Any] = {}
    meaning = ", ".join(f"{code} {word}" for code, word in enumerate(CENSORING))
    for name, channel in data.channels.items():
        if has_censored(channel):
            assert channel.censoring is not None
            codes = channel.censoring[channel.mask].numpy()
            out[f"{name}_censoring"] = ((f"{name}_id",), codes, {"meaning": meaning})
            if channel.upper is not None:
                out[f"{name}_upper"] = ((f"{name}_id",), channel.upper[channel.mask].numpy())
    return out


def has_censored(channel: Channel) -> bool:
    """Whether any measurement of a channel is censored."""
    return channel.censoring is not None and bool((channel.censoring[channel.mask] != 0).any())


def _draws(count: int, chains: int) -> dict[str, Any]:
    return {"chain": np.arange(chains), "draw": np.arange(count // chains)}


def _observed(data: Experiments, name: str) -> np.ndarray[Any, Any]:
    values = data.channels[name].values
    assert values is not None
    return np.asarray(values.reshape(-1))


def _chained(values: Tensor, chains: int) -> np.ndarray[Any, Any]:
    return _fold(np.asarray(values.detach()), chains)


def _fold(values: np.ndarray[Any, Any], chains: int) -> np.ndarray[Any, Any]:
    return values.reshape(chains, -1, *values.shape[1:])


def _fit_dataset(fit: Mapping[str, Any]) -> xr.Dataset:
    """Scalars, texts and per-parameter numbers as one dataset."""
    out: dict[str, Any] = {}
    for name, value in fit.items():
        if isinstance(value, Mapping):
            keys = [k for k, v in value.items() if np.ndim(v) == 0]
            out[name] = (("parameter",), np.array([float(value[k]) for k in keys]))
            out.setdefault("parameter", keys)
        else:
            out[name] = value
    return xr.Dataset(
        {k: v for k, v in out.items() if k != "parameter"}, {"parameter": out.get("parameter", [])}
    )


def by_label(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Parameters at one point as numbers, `name` or `name[k]`."""
    out = {}
    for name, value in parameters.items():
        flat = value.flatten()
        for k, number in enumerate(flat.tolist()):
            out[name if len(flat) == 1 else f"{name}[{k}]"] = number
    return out


def values(result: xr.DataTree, group: str, name: object) -> np.ndarray[Any, Any]:
    """The numbers of one variable of a result."""
    return np.asarray(result[f"{group}/{name}"])


def scalars(result: xr.DataTree, name: str) -> dict[str, float]:
    """A per-parameter entry of `fit` as a dict; empty where it is missing."""
    if name not in result["fit"]:
        return {}
    keys = values(result, "fit", "parameter").tolist()
    return dict(zip(keys, values(result, "fit", name).tolist(), strict=True))


def with_effective_size(result: xr.DataTree) -> xr.DataTree:
    """`result` of a Markov chain, with ArviZ's effective size of each parameter in `fit`."""
    sizes: xr.Dataset = arviz_stats.ess(result["posterior"].dataset)  # type: ignore[attr-defined,no-untyped-call]
    found: dict[str, float] = {}
    for name, size in sizes.data_vars.items():
        flat = np.asarray(size).ravel()
        found |= {str(name) if len(flat) == 1 else f"{name}[{k}]": float(s) for k, s in enumerate(flat)}
    fit = result["fit"].to_dataset().assign_coords(parameter=list(found))
    result["fit"] = xr.DataTree(fit.assign(effective_size=("parameter", list(found.values()))))
    return result


def summary(result: xr.DataTree) -> pd.DataFrame:
    """Per parameter: unit (where any is known), MAP, mean, sd, 90 % interval, effective size."""
    rows: dict[str, dict[str, float]] = {}
    units: dict[str, str] = {}
    for name in result["posterior"].data_vars:
        drawn = values(result, "posterior", name)
        wide = drawn.reshape(drawn.shape[0] * drawn.shape[1], -1)
        for k in range(wide.shape[1]):
            column = wide[:, k]
            low, high = np.quantile(column, [0.05, 0.95])
            label = str(name) if wide.shape[1] == 1 else f"{name}[{k}]"
            units[label] = result[f"posterior/{name}"].attrs.get("units", "")
            rows[label] = {"mean": column.mean(), "sd": column.std(), "5 %": low, "95 %": high}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.insert(0, "MAP", table.index.map(scalars(result, "map_z")))
    table["ESS"] = table.index.map(scalars(result, "effective_size"))
    if any(units.values()):
        table.insert(0, "unit", table.index.map(units))
    return table


@dataclass(frozen=True)
class Report:
    """Scores of draws, replicated data at their places, and the log likelihood of each replicate."""

    scores: Scores
    predicted: Mapping[str, Tensor]
    log_likelihood_replicated: Tensor


def report(model: Model, data: Experiments, z: Tensor, seed: int) -> Report:
    """What a result says about z (draw, z) under one data set; every ODE is solved once.

    `predicted` holds one replicate per draw, (draw, experiment, time); its log likelihood (draw,)
    is taken at the draw that made it.
    """
    with torch.no_grad(), recording() as record:
        scores = model.score(z[:, None], data)
    stored = replace(model, solver=replaying(record.solved))
    drawn = stored.simulate_at(z, data.expand((len(z),)), derive(seed, "predict")).experiments
    with torch.no_grad():
        again = stored.score(z[None], drawn).log_likelihood[0]
    predicted = {name: c.values for name, c in drawn.channels.items() if c.values is not None}
    return Report(scores, predicted, again)


def prior_draws(model: Model, data: Experiments, count: int, seed: int) -> dict[str, Tensor]:
    """Parameters drawn from the prior, without solving any ODE."""
    looks = data.without_values().expand((count,))
    return dict(model.simulate_at(None, looks, seed, solver=idle).parameters)


def calibration_tree(
    names: list[str],
    rank: Tensor,
    pit: Tensor,
    contraction: Tensor,
    levels: Tensor,
    covered: Tensor,
    calibrated: bool,
    sentence: str,
    failures: int,
) -> xr.DataTree:
    """The result of a calibration: one entry per coordinate of z in each group."""

    def by_name(values: Tensor) -> dict[str, Any]:
        return {name: values[None, :, k].numpy() for k, name in enumerate(names)}

    # "prior_sbc" is where ArviZ's plot_ecdf_pit looks for the PIT
    groups = {"ranks": by_name(rank), "prior_sbc": by_name(pit), "contraction": by_name(contraction)}
    tree = arviz_base.from_dict(groups, sample_dims=["chain", "draw"])
    tree["coverage"] = xr.DataTree(
        xr.Dataset(
            {name: (("level",), covered[:, k].numpy()) for k, name in enumerate(names)},
            coords={"level": levels.numpy()},
        )
    )
    tree["fit"] = xr.DataTree(
        xr.Dataset({"calibrated": calibrated, "sentence": sentence, "failures": failures})
    )
    return tree
