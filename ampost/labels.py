"""Names and axes of what results and predictions hold: derived sites, experiments and their conditions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ampost.experiments import Experiments


def laid(
    name: str, value: Tensor, count: int, depth: int, record: Experiments
) -> tuple[tuple[str, ...], Tensor]:
    """A `pyro.deterministic` site as (draw, ...) with the names of its axes; axes of size 1 are dropped.

    `value` broadcasts to (count, 1, *depth, *event), where the last of depth are experiment and time.
    """
    number = record.times.shape[-1]
    value = value.detach().reshape(*(1,) * (2 + depth - value.dim()), *value.shape).double()
    value = value.expand(count, *value.shape[1:])
    axis = 1 + depth  # that of time
    over_time = value.shape[axis] == number > 1
    if over_time:
        value = value.expand(*value.shape[: axis - 1], record.count, *value.shape[axis:])
    known = {axis - 1: "experiment"} if over_time or value.shape[axis - 1] == record.count > 1 else {}
    known |= {axis: "time"} if over_time else {}
    kept = [k for k in range(1, value.dim()) if k in known or value.shape[k] > 1]
    return tuple(known.get(k, f"{name}_dim_{k}") for k in kept), value.reshape(
        count, *(value.shape[k] for k in kept)
    )


def entries(variable: xr.DataArray) -> list[str]:
    """Labels of the entries of a variable beside chain and draw: `k`, or `k[A1]` by the coordinates."""
    axes = [axis for axis in variable.dims if axis not in ("chain", "draw")]
    name = str(variable.name)
    if all(variable.sizes[axis] == 1 for axis in axes):
        return [name]
    places = [
        [f"{v:g}" if isinstance(v, float) else str(v) for v in variable[axis].to_numpy().tolist()]
        for axis in axes
    ]
    return [f"{name}[{', '.join(place)}]" for place in product(*places)]


def constant(record: Experiments, units: Mapping[str, str]) -> xr.Dataset:
    """Conditions by experiment; doses and inputs by experiment and number, padded by NaN."""
    doses = record.doses
    into = {units.get(target) for target in doses.targets}  # one array can have one unit
    same = doses.targets[0] if len(into) == 1 else ""
    parts: list[tuple[str, Tensor, tuple[str, ...], str]] = []
    parts += [(name, value[:, 0], (), name) for name, value in record.conditions.items()]
    if doses.any:
        for name, unit in (("time", "time"), ("amount", same), ("duration", "time")):
            known = torch.where(doses.mask, getattr(doses, name), torch.nan)
            parts.append((f"dose_{name}", known, ("dose",), unit))
    for name, signal in record.inputs.items():
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
    return xr.Dataset(found, coords={"experiment": list(record.names[0])})


def arranged(dataset: xr.Dataset, experiment: str) -> dict[str, list[float | str]]:
    """What `constant` holds of one experiment by name, without its padding; doses by time."""
    found = {}
    for name, variable in dataset.data_vars.items():
        values = np.atleast_1d(variable.sel(experiment=experiment).to_numpy()).tolist()
        found[str(name)] = [v for v in values if v == v and v != ""]
    rows = zip(*(found[f"dose_{part}"] for part in DOSE), strict=True) if "dose_time" in found else ()
    columns = list(zip(*sorted(rows), strict=True)) or [()] * len(DOSE)
    return {**found, **{f"dose_{part}": list(column) for part, column in zip(DOSE, columns, strict=True)}}


DOSE = ("time", "amount", "duration", "target")
