"""How far one solver is from another as the data would show it: in units of the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution
from torch.distributions.transforms import ExpTransform

from ampost.errors import UnsupportedError
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.ode.problem import Solver
from ampost.passes import Holding, noise_of


def noise_units(
    model: Model, z: Tensor, looks: Experiments, solver_a: Solver, solver_b: Solver
) -> dict[str, Tensor]:
    """(centre by `solver_b` - centre by `solver_a`) / sd by `solver_a`, of the noise of each channel.

    z is (draw, z), `looks` and the answers are (draw, experiment, time); NaN where nothing is measured or a
    solver failed.
    """
    noises, failed = [], torch.zeros(len(z), dtype=torch.bool)
    with torch.no_grad():
        for solver in (solver_a, solver_b):
            holding = Holding(solver, hold=False)
            noises.append(model.noises(z, looks, holding))
            failed = failed | holding.failed((len(z), 1))[:, 0]
        found = apart(looks, *noises)
    return {name: value.masked_fill(failed[:, None, None], torch.nan) for name, value in found.items()}


def apart(looks: Experiments, noises: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Tensor]:
    """How far the centres of `others` are from those of `noises`, by channel, in units of the latter's sd."""
    units = {}
    for name, noise in noises.items():
        (centre, sd), (other, wide) = (located(n, tuple(looks.times.shape)) for n in (noise, others[name]))
        off = other - centre
        width = torch.where(sd > 0, sd, wide)  # counts of which none are expected have none
        found = torch.where(off == 0, 0.0, off / width)
        units[name] = torch.where(looks.channels[name].mask & torch.isfinite(off), found, torch.nan)
    return units


def located(noise: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - a distribution
    """Centre and sd of a noise, both of `shape` (..., experiment, time); those of a LogNormal are of the log.

    Raises:
        UnsupportedError: the noise has no known mean and sd.
    """
    base, transforms, _ = _parts(noise)
    centre, sd = _moments(base)
    for transform in transforms:
        onward = transform(centre)
        sd = sd * transform.log_abs_det_jacobian(centre, onward).exp()
        centre = onward
    full = torch.broadcast_shapes(noise.batch_shape, centre.shape)
    return centre.expand(full).reshape(shape), sd.expand(full).reshape(shape)


def standardised(noise: Any, values: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ANN401 - a distribution
    """(value - centre) / sd of values of `shape` (..., experiment, time), as `located` has centre and sd.

    Raises:
        UnsupportedError: the noise has no known mean and sd.
    """
    centre, sd = located(noise, shape)
    for _ in range(_parts(noise)[2]):
        values = values.log()
    off = values - centre
    return torch.where(off == 0, 0.0, off / sd)  # of counts of which none are expected none may be seen


def _parts(noise: Any) -> tuple[Any, list[Any], int]:  # noqa: ANN401 - a distribution
    """The innermost distribution, the transforms that follow it, and of how many logs both are told."""
    base, transforms = noise_of(noise), list[Any]()
    while isinstance(base, TransformedDistribution):
        transforms = [*base.transforms, *transforms]
        base = base.base_dist
    logs = 0
    if all(isinstance(t, ExpTransform) for t in transforms[1:]):  # the log has no parameter
        logs = sum(isinstance(t, ExpTransform) for t in transforms)
        transforms = [t for t in transforms[:1] if not isinstance(t, ExpTransform)]
    return base, transforms, logs


def _moments(base: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - a distribution
    """Mean and sd; place and scale where they are not finite."""
    try:
        mean, sd = base.mean, base.stddev
    except (NotImplementedError, AttributeError) as error:
        raise UnsupportedError(
            f"the noise {type(base).__name__} has no mean and sd, which errors are measured in; give the class "
            f"the properties mean and variance, or use another noise"
        ) from error
    if hasattr(base, "loc") and hasattr(base, "scale"):
        heavy = ~torch.isfinite(mean + sd)
        mean, sd = torch.where(heavy, base.loc, mean), torch.where(heavy, base.scale, sd)
    return mean, sd
