"""Three optima of one data set, and which directions of the parameters its data do not determine.

`map_z` is the most probable point in z, where priors are normal; `map` that of the density on the user's scale;
`mle` is where the likelihood is highest. They differ: a density changes with its scale, a likelihood does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ampost.experiments import Experiments
from ampost.model import Model
from ampost.optimize import Optimum, hessian, maximise

STARTS = 4
ADDED = 1.0  # a direction is left to the prior where the data add less than so many times what the prior says
PART = 0.3  # of a direction, from which on a parameter is named
FAR = 8.0  # in z: a likelihood that still rises there has no maximum


@dataclass(frozen=True)
class Direction:
    """A combination of parameters in z (z,), of length one, and what the data add there over the prior's say.

    `parts` are the names of its largest parameters, each with its share.
    """

    vector: Tensor
    added: float
    parts: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        if len(self.parts) == 1:
            return self.parts[0][0]
        return " with ".join(f"{'' if share > 0 else '-'}{name}" for name, share in self.parts)


@dataclass(frozen=True)
class Optima:
    """The three optima, the information (z, z) at `map_z` (minus the Hessian of the log joint), its condition.

    `left` are the directions that the data leave to the prior, the least determined first.
    """

    map_z: Optimum
    map: Optimum
    mle: Optimum
    information: Tensor
    condition: float
    left: tuple[Direction, ...]
    gradients: int

    @property
    def bounded(self) -> bool:
        """Whether the likelihood has a maximum within the prior's reach: else `mle` is where a search ended."""
        return self.mle.converged and float(self.mle.z.abs().max()) < FAR

    def __str__(self) -> str:
        if not bool(torch.isfinite(self.information).all()):
            return "Which parameters the data determine is not known: the model fails about the optimum."
        said = f"The data determine all parameters (condition number {self.condition:.2g})."
        if self.left:
            told = "; ".join(f"{way} (they add {max(way.added, 0.0):.2g} of what it says)" for way in self.left)
            said = f"The data leave to the prior: {told}."
        return (
            said if self.bounded else f"{said} The likelihood alone has no maximum within reach of the prior."
        )


def optima(model: Model, data: Experiments, starts: Tensor) -> Optima:
    """The optima of one data set, by BFGS with exact gradients from each of `starts` (start, z)."""

    def joint(z: Tensor) -> Tensor:
        return model.log_joint(z[:, None], data)[:, 0]

    def density(z: Tensor) -> Tensor:
        scores = model.score(z[:, None], data)
        return (scores.log_likelihood + sum(scores.site_log_prior.values()))[:, 0]

    def likelihood(z: Tensor) -> Tensor:
        value = model.score(z[:, None], data).log_likelihood[:, 0]
        # beyond the prior's reach a flat likelihood would be followed for ever
        return value - 50 * (z.abs() - FAR).clamp(min=0.0).square().sum(-1)

    found = maximise(joint, starts)
    best = found[0].z
    others = [maximise(of, best[None]) for of in (density, likelihood)]
    spent = sum(end.gradients for ends in (found, *others) for end in ends)
    information = hessian(joint, best)
    prior = hessian(lambda z: model.score(z[:, None], data).log_prior[:, 0], best)
    condition, left = _read(information, prior, names(model, data))
    spent += 4 * len(best)
    return Optima(found[0], others[0][0], others[1][0], information, condition, left, spent)


def names(model: Model, data: Experiments) -> list[str]:
    """The name of each coordinate of z: that of its parameter, `name[k]` where that has several."""
    out = []
    for site in model.sites(data.count):
        out += [site.name] if site.size == 1 else [f"{site.name}[{k}]" for k in range(site.size)]
    return out


def _read(information: Tensor, prior: Tensor, named: Sequence[str]) -> tuple[float, tuple[Direction, ...]]:
    """The condition number, and the directions in which the data add less than the prior says."""
    if not bool(torch.isfinite(information).all()):
        return float("nan"), ()
    values = torch.linalg.eigvalsh(information)
    condition = float(values.max() / values.min()) if float(values.min()) > 0 else float("inf")
    # in coordinates where the prior's own information is one
    scale, axes = torch.linalg.eigh(prior)
    root = axes @ torch.diag(scale.clamp(min=1e-6).rsqrt()) @ axes.T
    added, ways = torch.linalg.eigh(root @ (information - prior) @ root)
    gains = zip(ways.T, added.tolist(), strict=True)
    return condition, tuple(_direction(way, gain, named) for way, gain in gains if gain < ADDED)


def _direction(way: Tensor, added: float, named: Sequence[str]) -> Direction:
    order = way.abs().argsort(descending=True).tolist()
    way = way * way[order[0]].sign()
    parts = [(named[k], float(way[k])) for k in order if abs(float(way[k])) >= PART]
    return Direction(way, added, tuple(parts) or ((named[order[0]], float(way[order[0]])),))
