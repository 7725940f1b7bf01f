"""What a result keeps of the program it came from: what its channels show, by numbers at fixed parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ampost.design import Design
from ampost.errors import ModelError
from ampost.model import Model
from ampost.passes import Holding, noise_of

POINTS = 3
CLOSE = 1e-3  # by how much numbers may differ by the error of a solver, of one more than their size


def kept(model: Model) -> xr.DataTree:
    """The group `program` of a result: one text, which `changed` reads."""
    told = {"design": model.design.to_json(), "channels": _channels(model)}
    return xr.DataTree(xr.Dataset({"observed": json.dumps(told)}))


def changed(result: xr.DataTree, model: Model) -> list[str]:
    """What channels of the model show otherwise than when the result was made, in words.

    Empty where nothing is, or where the result does not say.
    """
    if "program" not in result.children:
        return []
    told = json.loads(result["program/observed"].item())
    now = _channels(replace(model, design=Design.from_json(told["design"]), _layouts={}, _channels=[]))
    before = told["channels"]
    said = [f"channel {name!r} is observed no more" for name in before if name not in now]
    said += [f"channel {name!r} was not observed" for name in now if name not in before]
    for name in (name for name in before if name in now):
        old, new = before[name], now[name]
        if not _close(old["noiseless"], new["noiseless"]):
            said.append(f"channel {name!r} shows other values without noise")
        elif old["noise"] != new["noise"]:
            said.append(f"the noise of channel {name!r} was {old['noise']} and is {new['noise']}")
        elif not _close(old["scored"], new["scored"]):
            said.append(f"the noise of channel {name!r}, {new['noise']}, has another width or shape")
    return said


def _channels(model: Model) -> dict[str, dict[str, Any]]:
    """The noise of each channel by name, its middle, and its log density there, at fixed points."""
    generator = torch.Generator().manual_seed(0)
    z = 0.5 * torch.randn(POINTS, model.z_size(), generator=generator, dtype=torch.float64)
    looks = model.design.draw(POINTS, seed=0)
    with torch.no_grad():
        noises = model.noises(z, looks, Holding(model.solver)).items()
        return {name: _numbers(noise_of(noise), looks.channels[name].mask) for name, noise in noises}


def _numbers(noise: Any, seen: Tensor) -> dict[str, Any]:  # noqa: ANN401 - a distribution
    """Numbers of one noise where `seen` (point, experiment, time)."""
    middle = _middle(noise)

    def told(value: Tensor) -> list[float]:
        full = value.expand(POINTS, *value.shape[1:]).reshape(POINTS, -1, *value.shape[-2:])[:, 0]
        return [float(f"{number:.6g}") for number in full.expand(seen.shape)[seen].double().tolist()]

    return {
        "noise": type(noise).__name__,
        "noiseless": [] if middle is None else told(middle),
        "scored": [] if middle is None else told(noise.log_prob(middle)),
    }


def _close(old: list[float], new: list[float]) -> bool:
    pairs = zip(old, new, strict=False)
    near = (a == b or abs(a - b) <= CLOSE * (1 + abs(b)) or (a != a and b != b) for a, b in pairs)
    return len(old) == len(new) and all(near)


def centre(channel: str, noise: Any) -> Tensor:  # noqa: ANN401 - a distribution
    """The median of a noise, or its mean where no formula gives the median (counts, say)."""
    found = _middle(noise)
    if found is None:
        raise ModelError(
            f"the noise of channel {channel!r}, {type(noise).__name__}, has neither quantiles nor a mean, so "
            f"there is no prediction without noise; use another noise"
        )
    return found


def _middle(noise: Any) -> Tensor | None:  # noqa: ANN401 - a distribution
    if isinstance(noise, torch.distributions.StudentT):
        loc: Tensor = noise.loc
        return loc
    half = torch.full(noise.batch_shape, 0.5, dtype=torch.float64)
    known = (_or_none(lambda: noise.icdf(half)), _or_none(lambda: noise.mean))
    return next((value for value in known if value is not None), None)


def _or_none(formula: Callable[[], Tensor]) -> Tensor | None:
    """What `formula` gives, None where a distribution has no such formula."""
    try:
        return formula()
    except NotImplementedError:
        return None
