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
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ampost.experiments import CENSORING, Channel, Experiments
from ampost.labels import constant, entries, laid
from ampost.model import Model, Scores
from ampost.optima import Optima
from ampost.passes import Fixed, double, idle
from ampost.program import answering, recording, replaying
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

    Replicates in `posterior_predictive` are true values, also where the data are censored: group `censoring`
    says which those are. `model_of` gives back the model for as long as the result lives in this process.
    """
    scores = reported.scores
    masks = {name: data.channels[name].mask.reshape(-1).numpy() for name in scores.pointwise}
    coords, dims, places = _coordinates(model, data)
    posterior = {n: _chained(v[:, 0], chains) for n, v in scores.parameters.items()}
    for name, (axes, value) in derived(model, data, scores.deterministic, len(z)).items():
        posterior[name], dims[name] = _chained(value, chains), list(axes)
    if scores.deterministic:
        fit = _with_derived(model, data, fit, importance)

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
    units = {**data.units, **model.units}
    tree["constant_data"] = xr.DataTree(constant(data, units))
    _with_units(tree, units)
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
    if bool((data.times == data.times[:1]).all()):
        coords["time"] = data.times[0].numpy()
    dims: dict[str, list[str]] = {}
    places: dict[str, tuple[str, np.ndarray[Any, Any]]] = {}
    for site in model.sites(data.count):
        if site.local:
            own = len(site.batch) - 2
            kept = [k for k, size in enumerate(site.batch) if size > 1 or k == own]
            dims[site.name] = ["experiment" if k == own else f"{site.name}_dim_{k}" for k in kept]
    for name, channel in data.channels.items():
        mask = channel.mask
        where = mask.nonzero()
        coords[f"{name}_id"] = np.arange(len(where))
        dims[name] = [f"{name}_id"]
        experiments = np.array([data.names[0][e] for e in where[:, 0].tolist()], dtype=str)
        places[f"{name}_time"] = (f"{name}_id", data.times[mask].numpy())
        places[f"{name}_experiment"] = (f"{name}_id", experiments)
    return coords, dims, places


WITH_UNITS = ("posterior", "prior", "observed_data", "posterior_predictive")


def _with_units(tree: xr.DataTree, units: Mapping[str, str]) -> None:
    """Set the attribute `units` of what has one: parameters, channels and times."""
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
    """Scalars, texts and per-parameter numbers as one dataset; NaN where a parameter has no number."""
    by_parameter = {name: value for name, value in fit.items() if isinstance(value, Mapping)}
    keys = list(dict.fromkeys(key for value in by_parameter.values() for key in value))
    columns = {
        name: (("parameter",), np.array([float(value.get(key, np.nan)) for key in keys]))
        for name, value in by_parameter.items()
    }
    return xr.Dataset({**fit, **columns}, {"parameter": keys})


class _Telling(Messenger):
    """The values of `pyro.deterministic` sites by name."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        if msg["infer"].get("_deterministic"):
            self.values[msg["name"]] = msg["value"]


def derived(
    model: Model, data: Experiments, deterministic: Mapping[str, Tensor], count: int
) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """`pyro.deterministic` sites of one data set as (draw, ...), each with the names of its axes."""
    depth = _depth(model, data)
    return {name: laid(name, value, count, depth, data) for name, value in deterministic.items()}


def _depth(model: Model, data: Experiments) -> int:
    """The number of the model's own axes, of which the last are experiment and time."""
    return max(2, *(len(site.batch) for site in model.sites(data.count)))


def _with_derived(
    model: Model, data: Experiments, fit: Mapping[str, Any], importance: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """`fit` with the values of deterministic sites at the MAP, and their effective sizes by the weights."""
    found = dict(fit)
    if "map_z" in fit:
        mode = derived(model, data, _at(model, data, fit["map_z"]), 1)
        found["map_z"] = {**fit["map_z"], **by_label({name: value[0] for name, (_, value) in mode.items()})}
    if importance is not None and "effective_size" in fit:
        z, weight = importance["z"], torch.softmax(importance["log_weight"], 0)
        with torch.no_grad():
            drawn = derived(model, data, model.score(z[:, None], data).deterministic, len(z))
        sizes = by_label({name: _effective(value, weight) for name, (_, value) in drawn.items()})
        found["effective_size"] = {**fit["effective_size"], **sizes}
    return found


def _at(model: Model, data: Experiments, parameters: Mapping[str, float]) -> dict[str, Tensor]:
    """Deterministic sites of the program at parameters by label, shaped as in a batch of one draw."""
    held: dict[str, Any] = {}
    for site in model.sites(data.count):
        shape = (1, 1, *site.batch, *site.event)
        number = int(torch.Size(shape).numel())
        labels = [site.name] if number == 1 else [f"{site.name}[{k}]" for k in range(number)]
        held[site.name] = torch.tensor([parameters[label] for label in labels]).double().reshape(shape)
    with torch.no_grad(), double(), _Telling() as told, Fixed(held), answering(model.solver):
        model.program(data.unsqueezed(_depth(model, data)))
    return told.values


def _effective(values: Tensor, weight: Tensor) -> Tensor:
    """Effective size of the mean of each entry of values (draw, ...); NaN where an entry is constant."""
    wide = weight.reshape(-1, *(1,) * (values.dim() - 1))
    known = torch.where(wide > 0, values, 0.0)
    centred = (known - (wide * known).sum(0)).square()
    size = (wide * centred).sum(0) / (wide.square() * centred).sum(0)
    return torch.where((values == values[:1]).all(0), torch.nan, size)


def by_label(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Parameters at one point as numbers, `name` or `name[k]`, where k counts from 0."""
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
    """A per-parameter entry of `fit` as a dict of what is known; empty where it is missing."""
    if name not in result["fit"]:
        return {}
    keys = values(result, "fit", "parameter").tolist()
    pairs = zip(keys, values(result, "fit", name).tolist(), strict=True)
    return {key: number for key, number in pairs if number == number}


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
    """Per parameter: unit (where any is known), MAP, mean, sd, 90 % interval, ESS.

    Parameters of single experiments go by their names, `k[A1]`. MAP is the most probable point in z, where
    priors are normal. ESS is the effective size of the mean by the weighted draws of the last round, or by the
    chains: it may exceed the number of the equally weighted draws in `posterior`. Cells of what is not known
    are empty.
    """
    rows: dict[str, dict[str, Any]] = {}
    mode, sizes = scalars(result, "map_z"), scalars(result, "effective_size")
    for name, variable in result["posterior"].data_vars.items():
        drawn = values(result, "posterior", name)
        wide = drawn.reshape(drawn.shape[0] * drawn.shape[1], -1)
        for k, label in enumerate(entries(variable)):
            column, key = wide[:, k], str(name) if wide.shape[1] == 1 else f"{name}[{k}]"
            low, high = np.quantile(column, [0.05, 0.95])
            rows[label] = {
                "unit": variable.attrs.get("units", ""),
                "MAP": mode.get(key, ""),
                "mean": column.mean(),
                "sd": column.std(),
                "5 %": low,
                "95 %": high,
                "ESS": sizes.get(key, ""),
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table if any(table["unit"]) else table.drop(columns="unit")


@dataclass(frozen=True)
class Report:
    """Scores of draws, and replicated data at their places."""

    scores: Scores
    predicted: Mapping[str, Tensor]


def report(model: Model, data: Experiments, z: Tensor, seed: int) -> Report:
    """What a result says about z (draw, z) under one data set; every ODE is solved once.

    `predicted` holds one replicate per draw, (draw, experiment, time), its true values: limits of detection
    are not applied.
    """
    with torch.no_grad(), recording() as record:
        scores = model.score(z[:, None], data)
    stored = replace(model, solver=replaying(record.solved))
    true = stored.simulate_at(z, unlimited(data).expand((len(z),)), derive(seed, "predict")).experiments
    return Report(scores, {name: c.values for name, c in true.channels.items() if c.values is not None})


def unlimited(record: Experiments) -> Experiments:
    """The looks of a record without values, limits of detection and intervals."""
    free = {
        name: replace(channel, lowest=None, highest=None, width=None)
        for name, channel in record.without_values().channels.items()
    }
    return replace(record, channels=free)


def prior_draws(model: Model, data: Experiments, count: int, seed: int) -> dict[str, Tensor]:
    """Parameters drawn from the prior, without solving any ODE."""
    looks = data.without_values().expand((count,))
    return dict(model.simulate_at(None, looks, seed, solver=idle).parameters)


def optima_group(found: Optima, named: list[str]) -> xr.DataTree:
    """The optima in z, and the information at `map_z`; coordinates of z go by their parameters."""
    ends = {"map_z": found.map_z, "map": found.map, "mle": found.mle}
    return xr.DataTree(
        xr.Dataset(
            {
                "z": (("optimum", "coordinate"), torch.stack([e.z for e in ends.values()]).numpy()),
                "converged": (("optimum",), [e.converged for e in ends.values()]),
                "information": (("coordinate", "coordinate_2"), found.information.numpy()),
            },
            {"optimum": list(ends), "coordinate": named, "coordinate_2": named},
        )
    )


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
