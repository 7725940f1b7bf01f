"""Predictions: the program run again at posterior draws, under other conditions, doses, inputs or times."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ampost import outside
from ampost.carried import chosen_draws, refuse_other, taken_for_known
from ampost.design import Design
from ampost.errors import ArgumentError
from ampost.experiments import Channel, Doses, Experiments
from ampost.labels import constant, laid
from ampost.likeness import centre, changed
from ampost.model import Model
from ampost.ode.failures import reasons
from ampost.ode.problem import OdeProblem, Trajectory
from ampost.passes import Holding, noise_of
from ampost.program import is_observation, recording
from ampost.results import model_of
from ampost.seeds import derive
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
    experiment named as one of the fit has that one's parameters of `experiments.plate()`, with a warning if
    its conditions, doses or inputs are others; one of another name gets fresh ones from the population.
    Limits of detection are not applied. What stands beside a measurement (`sd`, covariates) is that of the
    measurement nearest in time.

    Args:
        result: a posterior, of `infer`, `baselines.nuts` or `baselines.fit`.
        experiments: what to predict, (experiment, time).
        times: in place of their times, (time,) or (experiment, time), rising, in the model's unit; at the
            time of a dose they come after it.
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
        ArgumentError: the model is not known, or not that of the result (its priors, ODE or noise are others);
            times that do not rise or fit; several data sets.
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
    refuse_other(result, model)
    if taken := taken_for_known(result, model, looks):
        warnings.warn(taken, stacklevel=2)
    if otherwise := changed(result, model):
        raise ArgumentError(
            f"the program {model.name!r} changed since the result was made: {'; '.join(otherwise)}; give the "
            f"program that the result came from, or infer anew with this one"
        )
    chosen, z = chosen_draws(result, model, looks, draws, seed)
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
    nothing = Channel(torch.zeros_like(experiments.times, dtype=torch.bool))
    channels = {
        name: _beside(experiments.channels.get(name, nothing), experiments.times, grid)
        for name in model.channels
    }
    after = experiments.after_dose if times is None else _at_a_dose(grid, experiments.doses)
    live = torch.ones_like(experiments.live)
    return replace(experiments, times=grid, channels=channels, after_dose=after, live=live)


def _at_a_dose(grid: Tensor, doses: Doses) -> Tensor:
    """Which times (experiment, time) are those of a dose: a curve shows what it does, so it comes first."""
    same = (grid[:, :, None] == doses.time[:, None, :]) & doses.mask[:, None, :]
    return same.any(-1)


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
            name: _masked(laid(name, value, len(z), depth, looks), failed)
            for name, value in seen.deterministic.items()
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


def _masked(laid: tuple[tuple[str, ...], Tensor], failed: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """A `pyro.deterministic` site (draw, ...) with its axes; NaN where its experiment (or any) failed."""
    dims, value = laid
    if "experiment" in dims:
        before, bad = dims.index("experiment"), failed
    else:
        before, bad = 0, failed.any(-1, keepdim=True)
    after = max(0, len(dims) - before - 1)
    bad = bad.reshape(len(failed), *(1,) * before, -1, *(1,) * after) if dims else bad[:, 0]
    return dims, torch.where(bad, torch.nan, value)


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
            "predictions_constant_data": constant(looks, units),
        }
    )
