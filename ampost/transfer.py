"""An estimator of one model as a proposal for another: other priors or noise, the same parameters.

Parameters mean the same in both models, z does not: it is standard normal under each model's own prior. So
the network's draws go from its z to parameters and on to the other z, and their density by the volumes of both
maps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ampost.errors import EstimatorError
from ampost.experiments import Experiments
from ampost.importance import Component
from ampost.model import Model

FAR = 30.0  # in z, for parameters that the other prior excludes: their weight is zero


def refuse_other_sites(old: Model, new: Model, count: int) -> None:
    """Refuse models whose parameters differ by name or shape.

    Raises:
        EstimatorError: with the names of both.
    """
    mine, theirs = ([(s.name, s.batch, s.event) for s in m.sites(count)] for m in (new, old))
    if mine != theirs:
        said = [", ".join(name for name, _, _ in sites) for sites in (theirs, mine)]
        raise EstimatorError(
            f"the estimator was trained for parameters {said[0]}, this model has {said[1]} (or of other "
            f"shapes); priors and noise may differ, parameters may not: train for this model"
        )


def transferred(part: Component, old: Model, new: Model, data: Experiments) -> Component:
    """A component over z of `old` as one over z of `new`, for one data set."""

    def across(z: Tensor, source: Model, target: Model) -> Tensor:
        """z (draw, 1, z) of the same parameters in the other model."""
        found = target.coordinates(source.parameters(z, data), data)
        return found.nan_to_num(FAR, FAR, -FAR).clamp(-FAR, FAR)

    def sample(count: int, seed: int) -> Tensor:
        return across(part.sample(count, seed), old, new)

    def log_density(z: Tensor) -> Tensor:
        before = across(z, new, old)
        value = part.log_density(before) + new.log_volume(z, data) - old.log_volume(before, data)
        return torch.where(torch.isfinite(value), value, -torch.inf)

    return replace(part, sample=sample, log_density=log_density)
