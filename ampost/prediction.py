"""Predictions: the program run again at posterior draws, under other conditions, doses, inputs or times."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ampost import outside
from ampost.design import Design
from ampost.errors import ArgumentError, ModelError
from ampost.experiments import Channel, Experiments
from ampost.model import Model
from ampost.ode.failures import reasons
from ampost.ode.problem import OdeProblem, Trajectory
from ampost.passes import Holding, Site, noise_of
from ampost.program import is_observation, recording
from ampost.results import model_of, values
from ampost.seeds import derive, seeded
from ampost.units import converted

ENTRIES = 2_000_000  # draws x experiments x times at once


def predict(
    result: xr.DataTree,
    experiments: Experiments,
    times: Any = None,  # noqa: ANN401 - whatever torch.as_tensor takes
    model: Model | None = None,
    seed: int = 0,
    draws: int = 1_000,
) -> xr.DataTree:
    """What the posterior says about `experiments`: channels with and without noise, states, derived sites.

    The experiments need no values: conditions, doses and inputs may be new, or be those of the data. An
    experiment named as one of the fit has that one's parameters of `experiments.plate()`; one of another
    name gets fresh ones from the population. Limits of detection are not applied. What stands beside a
    measurement (`sd`, covariates) is that of the measurement nearest in time.

    Args:
        result: a posterior, of `infer`, `baselines.nuts` or `baselines.fit`.
        experiments: what to predict, (experiment, time).
        times: in place of their times, (time,) or (experiment, time), rising, in the model's unit.
        model: needed for a result that comes from a file.
        seed: of the noise and of new experiments' own parameters.
        draws: at most so many, evenly spaced in each chain.

    Returns:
        Groups `predictions` (chain, draw, experiment, time) with noise and with `pyro.deterministic`
        sites, `predictions_noiseless` (the median of the noise, or its mean where no median is known),
        `predictions_states`, `predictions_stats` (which rows failed: they are NaN) and
        `predictions_constant_data` (conditions, doses, inputs). Coordinate `times` holds
        the times (experiment, time).

    Raises:
        ArgumentError: the model is not known; times that do not rise or fit; several data sets.
        ModelError: a new experiment's parameter cannot be drawn.
    """
    model = _model(result, model)
    looks = _looks(model, converted(_one(experiments), model.units), times)
    if said := extrapolated(model.design, looks):
        warnings.warn(
            f"these predictions of {model.name!r} lie outside its design and rest on the model alone: "
            f"{'; '.join(said)}",
            stacklevel=2,
        )
    chosen, z = _chosen(result, model, looks, draws, seed)
    size = max(1, ENTRIES // looks.times.numel())
    parts = [_pass(model, part, looks, derive(seed, "predict", k)) for k, part in enumerate(z.split(size))]
    told = _joined(parts)
    if told.reasons:
        warnings.warn(
            f"{int(told.failed.any(-1).sum())} of {len(z)} draws could not be solved for every experiment "
            f"({', '.join(f'{n} {name}' for name, n in told.reasons.most_common())}); the rows that "
            f"predictions_stats/failed names are NaN",
            stacklevel=2,
        )
    return _tree(model, looks, told, chosen)


def extrapolated(design: Design, experiments: Experiments) -> list[str]:
    """What the ODE sees of `experiments` and the design does not hold: conditions, doses, inputs, times."""
    found = (
        outside.in_conditions(design.conditions, experiments)
        + outside.in_doses(design.doses, experiments)
        + outside.in_inputs(design.inputs, experiments)
    )
    last = float(experiments.times.max())
    if last > design.horizon * (1 + 1e-9):
        found.append(f"the times reach {last:.4g}, the design ends at {design.horizon:.4g}")
    return list(dict.fromkeys(found))


# --------------------------------------------------------------------------------- what is asked for


def _model(result: xr.DataTree, model: Model | None) -> Model:
    known = model_of(result) if model is None else model
    if known is None:
        raise ArgumentError(
            "this result comes from a file or is a copy, and a file holds no program; give the model: "
            "predict(result, experiments, model=...)"
        )
    if "unconstrained_posterior" not in result.children:
        raise ArgumentError(
            "the result has no group 'unconstrained_posterior', which infer, baselines.nuts and baselines.fit "
            "write; run one of them again"
        )
    return known


def _one(experiments: Experiments) -> Experiments:
    if not isinstance(experiments, Experiments):
        raise ArgumentError(
            f"predict(experiments={type(experiments).__name__}): expected Experiments, such as the data or "
            f"Experiments.on(times, channels, conditions=...)"
        )
    if len(experiments.batch) == 1 and experiments.batch[0] == 1:
        return experiments.at(0)
    if experiments.batch:
        raise ArgumentError(
            f"predict takes one data set, the record holds {experiments.batch[0]}; loop over its split()"
        )
    return experiments


def _looks(model: Model, experiments: Experiments, times: Any) -> Experiments:  # noqa: ANN401
    """Every channel of the model at every time, without values and limits."""
    grid = experiments.times if times is None else _grid(times, experiments)
    everywhere = torch.ones_like(grid, dtype=torch.bool)
    nothing = Channel(torch.zeros_like(experiments.times, dtype=torch.bool))
    channels = {
        name: _beside(experiments.channels.get(name, nothing), experiments.times, grid)
        for name in model.channels
    }
    after = experiments.after_dose if times is None else torch.zeros_like(everywhere)
    live = torch.ones_like(experiments.live)
    return replace(experiments, times=grid, channels=channels, after_dose=after, live=live)


def _grid(times: Any, experiments: Experiments) -> Tensor:  # noqa: ANN401
    """Times as (experiment, time)."""
    try:
        grid = torch.as_tensor(times, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"predict(times={times!r}): expected numbers") from error
    if grid.dim() == 1:
        grid = grid.expand(experiments.count, -1)
    if grid.dim() != 2 or grid.shape[0] != experiments.count or not grid.shape[1]:
        raise ArgumentError(
            f"predict(times=...) has shape {tuple(grid.shape)}, expected (time,) or (experiment, time) with "
            f"{experiments.count} experiment(s)"
        )
    if not bool(torch.isfinite(grid).all()) or bool((grid.diff(dim=-1) < 0).any()):
        raise ArgumentError("predict(times=...): expected finite times that rise; sort them")
    if float(grid.min()) < experiments.start:
        raise ArgumentError(
            f"predict(times=...) has the time {float(grid.min()):.4g}, before the start of the experiments at "
            f"{experiments.start:.4g}; leave it out"
        )
    return grid


def _beside(channel: Channel, times: Tensor, grid: Tensor) -> Channel:
    """A channel looked at on `grid`, with sd and covariates of the measurement nearest in time."""
    everywhere = torch.ones_like(grid, dtype=torch.bool)
    if not bool(channel.mask.any()):
        return Channel(everywhere)
    far = torch.where(channel.mask[:, None, :], 0.0, torch.inf)
    nearest = ((grid[:, :, None] - times[:, None, :]).abs() + far).argmin(-1)
    measured = channel.mask.any(-1, keepdim=True)

    def carried(column: Tensor) -> Tensor:
        return torch.where(measured, column.gather(-1, nearest), column[channel.mask].median())

    return Channel(
        everywhere,
        sd=None if channel.sd is None else carried(channel.sd),
        columns={name: carried(column) for name, column in channel.columns.items()},
    )


# ------------------------------------------------------------------------------------------- draws


def _chosen(
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
    fitted = [str(name) for name in values(result, "constant_data", "experiment")]
    expected = model.z_size(len(fitted))
    if z.shape[-1] != expected:
        raise ArgumentError(
            f"the result has {z.shape[-1]} coordinates of z, the model {model.name!r} has {expected} for "
            f"{len(fitted)} experiment(s); give the model that the result came from"
        )
    with seeded(derive(seed, "population")):
        return coords, carried_over(model, z, fitted, list(looks.names[0]))


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


# ---------------------------------------------------------------------------------------- one pass


class Watching(Messenger):
    """What a program says on the way: medians of noises by channel, and `pyro.deterministic` sites."""

    def __init__(self) -> None:
        super().__init__()
        self.noiseless: dict[str, Tensor] = {}
        self.deterministic: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        if msg["infer"].get("_deterministic"):
            self.deterministic[msg["name"]] = msg["value"]
        elif is_observation(msg):
            self.noiseless[msg["name"]] = centre(msg["name"], noise_of(msg["fn"]))


def centre(channel: str, noise: Any) -> Tensor:  # noqa: ANN401 - a distribution
    """The median of a noise, or its mean where no formula gives the median (counts, say)."""
    if isinstance(noise, torch.distributions.StudentT):
        loc: Tensor = noise.loc
        return loc
    half = torch.full(noise.batch_shape, 0.5, dtype=torch.float64)
    for known in (lambda: noise.icdf(half), lambda: noise.mean):
        found = _or_none(known)
        if found is not None:
            return found
    raise ModelError(
        f"the noise of channel {channel!r}, {type(noise).__name__}, has neither quantiles nor a mean, so there "
        f"is no prediction without noise; use another noise"
    )


def _or_none(formula: Callable[[], Tensor]) -> Tensor | None:
    """What `formula` gives, None where a distribution has no such formula."""
    try:
        return formula()
    except NotImplementedError:
        return None


@dataclass(frozen=True)
class Predicted:
    """Arrays of one pass by name, (draw, experiment, time), of states (draw, member, experiment, time).

    `failed` is (draw, experiment). `deterministic` comes with the names of its axes; `own_times` (experiment,
    time) are those of ODEs that were looked at on another grid, by the name of the state.
    """

    channels: Mapping[str, Tensor]
    noiseless: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    deterministic: Mapping[str, tuple[tuple[str, ...], Tensor]]
    failed: Tensor
    reasons: Counter[str]
    own_times: Mapping[str, Tensor]


def _pass(model: Model, z: Tensor, looks: Experiments, seed: int) -> Predicted:
    count = looks.count
    depth = max(2, *(len(site.batch) for site in model.sites(count)))
    holding = Holding(model.solver)
    with torch.no_grad(), recording() as record, Watching() as seen:
        drawn = model.simulate_at(z, looks.expand((len(z),)), seed, solver=holding).experiments
    failed = torch.zeros(len(z), count, dtype=torch.bool)
    for status in holding.statuses:
        failed = failed | (status != 0).expand(len(z), *status.shape[1:]).reshape(len(z), -1, count).any(1)

    def marked(value: Tensor) -> Tensor:
        """(draw, experiment, time) of what broadcasts to (draw, 1, ..., experiment, time); failed rows NaN."""
        full = value.expand(
            torch.broadcast_shapes(value.shape, (len(z), *(1,) * (depth - 1), *looks.times.shape))
        )
        return torch.where(failed[..., None], torch.nan, full.reshape(len(z), count, -1).double())

    states, own_times = _states(record.solved, looks)
    return Predicted(
        channels={
            name: torch.where(failed[..., None], torch.nan, channel.values.double())
            for name, channel in drawn.channels.items()
            if channel.values is not None
        },
        noiseless={name: marked(value) for name, value in seen.noiseless.items()},
        states={n: torch.where(failed[:, None, :, None], torch.nan, value) for n, value in states.items()},
        deterministic={
            name: _laid(name, value, failed, depth, looks) for name, value in seen.deterministic.items()
        },
        failed=failed,
        reasons=reasons(holding.statuses),
        own_times=own_times,
    )


def _states(
    solved: list[tuple[OdeProblem, Trajectory]], looks: Experiments
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every state of every ODE (draw, member, experiment, time), and the times of those on another grid.

    A state that several ODEs have is named `<odeint>_<state>`; members are those of the program's own plates.
    Times that differ between draws are NaN.
    """
    names = Counter(state for _, trajectory in solved for state in trajectory.names)
    states, own_times = {}, {}
    for problem, trajectory in solved:
        times = trajectory.times
        grid = times.expand(*trajectory.states.shape[:-1])
        grid = grid.reshape(len(grid), -1, *grid.shape[-2:])[:, 0]
        other = grid[0].shape != looks.times.shape or not torch.equal(grid[0], looks.times)
        for k, state in enumerate(trajectory.names):
            label = state if names[state] == 1 else f"{problem.name}_{state}"
            value = trajectory.states[..., k]
            states[label] = value.reshape(len(value), -1, *value.shape[-2:])
            if other:
                own_times[label] = torch.where((grid == grid[:1]).all(0), grid[0], torch.nan)
    return states, own_times


def _laid(
    name: str, value: Tensor, failed: Tensor, depth: int, looks: Experiments
) -> tuple[tuple[str, ...], Tensor]:
    """A `pyro.deterministic` site as (draw, ...) with the names of its axes; axes of size 1 are dropped.

    `value` broadcasts to (draw, 1, *depth, *event), where the last of depth are experiment and time.
    """
    count, number = len(failed), looks.times.shape[-1]
    value = value.detach().reshape(*(1,) * (2 + depth - value.dim()), *value.shape).double()
    value = value.expand(count, *value.shape[1:])
    axis = 1 + depth  # that of time
    over_time = value.shape[axis] == number > 1
    if over_time:
        value = value.expand(*value.shape[: axis - 1], looks.count, *value.shape[axis:])
    known = {axis - 1: "experiment"} if over_time or value.shape[axis - 1] == looks.count > 1 else {}
    known |= {axis: "time"} if over_time else {}
    bad = failed if known else failed.any(-1, keepdim=True)
    bad = bad.reshape(count, *(1,) * (axis - 2), -1, *(1,) * (value.dim() - axis))
    kept = [k for k in range(1, value.dim()) if k in known or value.shape[k] > 1]
    dims = tuple(known.get(k, f"{name}_dim_{k}") for k in kept)
    return dims, torch.where(bad, torch.nan, value).reshape(count, *(value.shape[k] for k in kept))


def _joined(parts: list[Predicted]) -> Predicted:
    """Chunks of draws end to end."""
    first = parts[0]

    def of(which: str) -> dict[str, Tensor]:
        return {name: torch.cat([getattr(p, which)[name] for p in parts]) for name in getattr(first, which)}

    return replace(
        first,
        channels=of("channels"),
        noiseless=of("noiseless"),
        states=of("states"),
        deterministic={
            name: (dims, torch.cat([p.deterministic[name][1] for p in parts]))
            for name, (dims, _) in first.deterministic.items()
        },
        failed=torch.cat([p.failed for p in parts]),
        reasons=sum((p.reasons for p in parts), Counter()),
    )


# ---------------------------------------------------------------------------------------- the tree


def _tree(model: Model, looks: Experiments, told: Predicted, draws: dict[str, Any]) -> xr.DataTree:
    units = {**looks.units, **model.units}
    times = looks.times
    unit = {"units": units["time"]} if "time" in units else {}
    places: dict[str, Any] = {
        "experiment": list(looks.names[0]),
        "times": (("experiment", "time"), times.numpy(), unit),
    }
    if bool((times == times[:1]).all()):
        places["time"] = ("time", times[0].numpy(), unit)
    sizes = tuple(len(axis) for axis in draws.values())

    def variable(name: str, dims: tuple[str, ...], values: Tensor) -> xr.Variable:
        folded = values.numpy().reshape(*sizes, *values.shape[1:])
        return xr.Variable(("chain", "draw", *dims), folded, {"units": units[name]} if name in units else {})

    def group(variables: Mapping[str, xr.Variable]) -> xr.Dataset:
        dims = {dim for v in variables.values() for dim in v.dims}
        here = {k: v for k, v in places.items() if {"times": "time"}.get(k, k) in dims}
        return xr.Dataset(variables, coords={**draws, **here})

    grid = ("experiment", "time")
    states = {}
    for name, value in told.states.items():
        dims = ("experiment", f"{name}_time") if name in told.own_times else grid
        if value.shape[1] == 1:
            states[name] = variable(name, dims, value[:, 0])
        else:
            states[name] = variable(name, (f"{name}_member", *dims), value)
    other = {f"{n}_times": (("experiment", f"{n}_time"), v.numpy(), unit) for n, v in told.own_times.items()}
    return xr.DataTree.from_dict(
        {
            "predictions": group(
                {name: variable(name, grid, value) for name, value in told.channels.items()}
                | {name: variable(name, dims, value) for name, (dims, value) in told.deterministic.items()}
            ),
            "predictions_noiseless": group({n: variable(n, grid, v) for n, v in told.noiseless.items()}),
            "predictions_states": group(states).assign_coords(other),
            "predictions_stats": group({"failed": variable("failed", ("experiment",), told.failed)}),
            "predictions_constant_data": _constant(looks, units),
        }
    )


def _constant(looks: Experiments, units: Mapping[str, str]) -> xr.Dataset:
    """Conditions by experiment; doses and inputs by experiment and number, padded by NaN."""
    doses = looks.doses
    into = {units.get(target) for target in doses.targets}  # one array can have one unit
    same = doses.targets[0] if len(into) == 1 else ""
    parts: list[tuple[str, Tensor, tuple[str, ...], str]] = []
    parts += [(name, value[:, 0], (), name) for name, value in looks.conditions.items()]
    if doses.any:
        for name, unit in (("time", "time"), ("amount", same), ("duration", "time")):
            known = torch.where(doses.mask, getattr(doses, name), torch.nan)
            parts.append((f"dose_{name}", known, ("dose",), unit))
    for name, signal in looks.inputs.items():
        for part, value, unit in (("time", signal.time, "time"), ("value", signal.value, name)):
            known = torch.where(signal.mask, value, torch.nan)
            parts.append((f"{name}_{part}", known, (f"{name}_breakpoint",), unit))
    found = {
        name: xr.Variable(("experiment", *dims), value.numpy(), {"units": units[unit]} if unit in units else {})
        for name, value, dims, unit in parts
    }
    if doses.any:
        place = torch.where(doses.mask, doses.target, len(doses.targets)).numpy()
        found["dose_target"] = xr.Variable(("experiment", "dose"), np.array([*doses.targets, ""])[place])
    return xr.Dataset(found, coords={"experiment": list(looks.names[0])})
