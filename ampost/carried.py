"""Posterior draws for the experiments of a prediction: of the right model, and carried over by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ampost.errors import ArgumentError, ModelError
from ampost.experiments import Experiments
from ampost.labels import arranged, constant
from ampost.model import Model
from ampost.passes import Site
from ampost.results import values
from ampost.seeds import derive, seeded

FEW = 5  # draws whose parameters are computed again


def refuse_other(result: xr.DataTree, model: Model) -> None:
    """Refuse a model whose sites, or whose parameters at a few draws of z, are not those of the result.

    Raises:
        ArgumentError: it is not the model that the result came from.
    """
    fitted = _fitted(result)
    posterior = {str(name): v for name, v in result["posterior"].data_vars.items()}
    z = torch.tensor(result["unconstrained_posterior/z"].to_numpy()).flatten(0, 1)
    fix = "give the model that the result came from, unchanged, with its design"
    names = [site.name for site in model.sites(len(fitted))]
    missing = [name for name in names if name not in posterior]
    if missing:
        raise ArgumentError(
            f"the result has the parameters {', '.join(posterior)}, the model {model.name!r} has "
            f"{', '.join(names)}; {fix}"
        )
    if z.shape[-1] != (expected := model.z_size(len(fitted))):
        raise ArgumentError(
            f"the result has {z.shape[-1]} coordinates of z, the model {model.name!r} has {expected} for "
            f"{len(fitted)} experiment(s); {fix}"
        )
    some = np.unique(np.linspace(0, len(z) - 1, FEW).round()).astype(int)
    again = model.parameters(z[some][:, None], _fitted_looks(result, model, len(fitted)))
    for name in names:
        stored = posterior[name].to_numpy()
        stored = stored.reshape(-1, *stored.shape[2:])[some]
        found = again[name][:, 0].numpy()
        if stored.shape != found.shape:
            raise ArgumentError(
                f"parameter {name!r} has shape {stored.shape[1:]} in the result and {found.shape[1:]} in the "
                f"model {model.name!r}; {fix}"
            )
        off = ~np.isclose(stored, found, rtol=1e-5, atol=0.0)
        if off.any():
            raise ArgumentError(
                f"parameter {name!r} is {stored[off][0]:.6g} at a draw of the result, and {found[off][0]:.6g} "
                f"by the priors of the model {model.name!r}: the order of its sites, a prior or the design "
                f"changed since; {fix}"
            )


def _fitted(result: xr.DataTree) -> list[str]:
    """The names of the experiments of the fit."""
    return [str(name) for name in values(result, "constant_data", "experiment")]


def _fitted_looks(result: xr.DataTree, model: Model, count: int) -> Experiments:
    """Looks of the design, under the conditions of the fit."""
    looks = replace(model.design, experiments=(count, count)).draw(1, seed=0).at(0)
    known = result["constant_data"].to_dataset()
    conditions = {
        name: torch.tensor(known[name].to_numpy()).double()[:, None] if name in known else value
        for name, value in looks.conditions.items()
    }
    return replace(looks, conditions=conditions)


def taken_for_known(result: xr.DataTree, model: Model, looks: Experiments) -> str:
    """Which experiments have the name of one of the fit but other conditions, doses or inputs; "" if none.

    Where no parameter is an experiment's own, names mean nothing, and nothing is said.
    """
    fitted, wanted = _fitted(result), list(looks.names[0])
    if not any(site.local for site in model.sites(len(fitted))):
        return ""
    before = result["constant_data"].to_dataset()
    now = constant(looks, {})
    said = []
    for name in wanted:
        if name in fitted:
            old, new = arranged(before, name), arranged(now, name)
            differ = [key for key in dict.fromkeys([*old, *new]) if not _same(old.get(key), new.get(key))]
            said += [f"{name!r} ({', '.join(differ)})"] if differ else []
    if not said:
        return ""
    return (
        f"these experiments take the fitted parameters of those of the same name, though what is given in "
        f"brackets differs from the fit: {', '.join(said)}; to draw new individuals from the population "
        f"give them names of their own, as by Experiments.on(..., names=[...])"
    )


def _same(old: list[float | str] | None, new: list[float | str] | None) -> bool:
    """Whether both are equal up to rounding; what is absent is as nothing."""
    old, new = old or [], new or []
    if len(old) != len(new):
        return False
    pairs = zip(old, new, strict=True)
    return all(a == b if isinstance(a, str) else bool(np.isclose(a, b, rtol=1e-6)) for a, b in pairs)


def chosen_draws(
    result: xr.DataTree, model: Model, looks: Experiments, draws: int, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """Coordinates of the draws that are used, and their z (draw, z) for the experiments of `looks`."""
    if draws < 1:
        raise ArgumentError(f"predict(draws={draws}): expected at least 1")
    posterior = result["unconstrained_posterior/z"]
    number = posterior.sizes["draw"]
    kept = np.unique(np.linspace(0, number - 1, min(number, -(-draws // posterior.sizes["chain"]))).round())
    posterior = posterior.isel(draw=kept.astype(int))
    coords = {"chain": posterior["chain"].to_numpy(), "draw": posterior["draw"].to_numpy()}
    z = torch.tensor(posterior.to_numpy()).flatten(0, 1)
    with seeded(derive(seed, "population")):
        return coords, carried_over(model, z, _fitted(result), list(looks.names[0]))


def carried_over(model: Model, z: Tensor, fitted: list[str], wanted: list[str]) -> Tensor:
    """z (draw, z) of the experiments `fitted` -> z of those `wanted`; new ones come from the population."""
    if fitted == wanted:
        return z
    old, new = model.sites(len(fitted)), model.sites(len(wanted))
    parts = []
    for before, after in zip(old, new, strict=True):
        raw = _unscaled(z[:, before.start : before.start + before.size], before)
        if before.local:
            raw = _by_experiment(raw, before, after.exact, fitted, wanted)
        parts.append(_scaled(raw, after).flatten(1))
    return torch.cat(parts, -1)


def _unscaled(z: Tensor, site: Site) -> Tensor:
    """One site's z (draw, *batch, *z_event) without the shift and scale of its layout."""
    shaped = z.reshape(len(z), *site.batch, *site.z_event)
    return shaped if site.standard is None else site.standard.shift + site.standard.scale * shaped


def _scaled(raw: Tensor, site: Site) -> Tensor:
    return raw if site.standard is None else (raw - site.standard.shift) / site.standard.scale


def _by_experiment(raw: Tensor, site: Site, exact: bool, fitted: list[str], wanted: list[str]) -> Tensor:
    """The rows of known experiments, and fresh standard normal ones of new experiments."""
    axis = len(site.batch) - 1
    known = torch.tensor([name in fitted for name in wanted])
    place = torch.tensor([fitted.index(name) if name in fitted else 0 for name in wanted])
    picked = raw.index_select(axis, place)
    if bool(known.all()):
        return picked
    if not exact:
        new = next(name for name in wanted if name not in fitted)
        raise ModelError(
            f"experiment {new!r} is not one of the fit ({', '.join(fitted)}), and its own parameter "
            f"{site.name!r} cannot be drawn from the population, since its prior has no exact map to the "
            f"normal; use a Normal, LogNormal, Uniform, HalfNormal, HalfCauchy, Exponential or TruncatedNormal"
        )
    fresh = torch.randn(picked.shape, dtype=picked.dtype)
    return torch.where(known.reshape(-1, *(1,) * (picked.dim() - axis - 1)), picked, fresh)
