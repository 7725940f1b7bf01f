"""Bent densities fitted to draws: coordinates given those before, centres quadratic, widths log-linear.

A triangular map (Knothe and Rosenblatt; Marzouk et al., Handbook of Uncertainty Quantification (2016) 785) from
Student-t draws, by one weighted regression for each coordinate. The loosest coordinates come first, for sharp
ones bend along loose ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ampost import importance
from ampost.importance import Component
from ampost.seeds import derive

FAR = 3.5  # sd of a coordinate, beyond which it bends the later ones no further
PENALTY = 2.0  # of a coefficient of standard coordinates, in draws
PER_TERM = 2.5  # effective draws that a term takes
ROUNDS, STEPS = 3, 5  # regressions of the centre and, in each, Newton steps of the width
LONGEST = 0.5  # such step of a coefficient
MOST = 6_000  # draws that are fitted


@dataclass(frozen=True)
class Triangular:
    """Coordinates x (draw, z) from standard ones e: x_k = centre_k(x_<k) + exp(width_k(x_<k)) e_k.

    `bent` of the first coordinates go into quadratic terms. z is `mean + axes @ (scale * x)`.
    """

    mean: Tensor
    axes: Tensor
    scale: Tensor
    bent: int
    centre: tuple[Tensor, ...]
    width: tuple[Tensor, ...]
    degrees: float

    def sample(self, count: int, seed: int) -> Tensor:
        """Draws (draw, 1, z)."""
        size = len(self.mean)
        one = torch.eye(size, dtype=torch.float64)[None]
        round_one = importance.student(torch.zeros(1, size).double(), one, self.degrees, torch.ones(1).double())
        standard = round_one.sample(count, seed)[:, 0]
        x = torch.zeros_like(standard)
        for k in range(size):
            centre, width = self._terms(x, k)
            x[:, k] = centre + width.exp() * standard[:, k]
        return (self.mean + (x * self.scale) @ self.axes.T)[:, None]

    def log_density(self, z: Tensor) -> Tensor:
        """Log density (draw, 1) of z (draw, 1, z)."""
        x = ((z[:, 0] - self.mean) @ self.axes) / self.scale
        size, square = x.shape[1], torch.zeros_like(x[:, 0])
        log = torch.full_like(square, -float(self.scale.log().sum()))
        for k in range(size):
            centre, width = self._terms(x, k)
            square = square + ((x[:, k] - centre) * (-width).exp()).square()
            log = log - width
        degrees = self.degrees
        norm = (
            math.lgamma((degrees + size) / 2)
            - math.lgamma(degrees / 2)
            - 0.5 * size * math.log(degrees * math.pi)
        )
        found: Tensor = log + norm - 0.5 * (degrees + size) * torch.log1p(square / degrees)
        return found[:, None]

    def _terms(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        plain, bent = _features(x[:, :k], self.bent)
        return torch.cat([plain, bent], 1) @ self.centre[k], plain @ self.width[k]


def fitted(
    z: Tensor,
    log_weight: Tensor,
    degrees: float,
    seed: int,
    axes: Tensor | None = None,
    effective: float = math.inf,
) -> Component:
    """A component fitted to weighted draws z (draw, 1, z), of which so many are effective at most.

    The columns of `axes` (z, z), orthogonal, are its directions in their order; without them they are those of
    the draws' covariance, the loosest first.
    """
    effective = min(effective, float(importance.kish(log_weight).min()))
    index, _ = importance.resample(log_weight, min(len(z), MOST), derive(seed, "resample"))
    z = z[index[:, 0], 0]
    mean, size = z.mean(0), z.shape[1]
    if axes is None:
        axes = torch.linalg.eigh(torch.cov(z.T)).eigenvectors.flip(1)
    x = (z - mean) @ axes
    scale = x.std(0).clamp(min=1e-12)
    x = x / scale
    bent = max((b for b in range(size) if size + b * (b + 1) / 2 <= effective / PER_TERM), default=0)
    weight = min(1.0, effective / len(z))
    parts = [_regressed(x, k, bent, weight) for k in range(size)]
    centre, width = zip(*parts, strict=True)
    found = Triangular(mean, axes, scale, bent, centre, width, degrees)
    return Component("triangular", torch.ones(1, dtype=torch.float64), found.sample, found.log_density)


def _regressed(x: Tensor, k: int, bent: int, weight: float) -> tuple[Tensor, Tensor]:
    """Coefficients of the centre and of the log width of coordinate k, given those before it.

    `weight` is what a draw counts.
    """
    plain, quadratic = _features(x[:, :k], bent)
    terms = torch.cat([plain, quadratic], 1)
    loose, tight = (
        torch.diag(torch.tensor([1e-6] + [PENALTY] * (n - 1), dtype=x.dtype))
        for n in (terms.shape[1], plain.shape[1])
    )
    width = torch.zeros(plain.shape[1], dtype=x.dtype)
    for _ in range(ROUNDS):
        counts = weight * (-2 * (plain @ width)).exp()[:, None]
        centre = torch.linalg.solve((terms * counts).mT @ terms + loose, (terms * counts).mT @ x[:, k])
        square = (x[:, k] - terms @ centre).square()
        for _ in range(STEPS):  # of the normal log likelihood; its curvature bounded, as far draws are
            excess = square * (-2 * (plain @ width)).exp()
            slope = weight * plain.mT @ (1 - excess) + tight @ width
            curvature = (plain * (2 * weight * excess.clamp(max=4.0))[:, None]).mT @ plain + tight
            width = width - torch.linalg.solve(curvature, slope).clamp(-LONGEST, LONGEST)
    return centre, width


def _features(x: Tensor, bent: int) -> tuple[Tensor, Tensor]:
    """One and the coordinates x (draw, before), and products of the first `bent` of them."""
    x = x.clamp(-FAR, FAR)
    few = x[:, :bent]
    first, second = torch.triu_indices(few.shape[1], few.shape[1])
    return torch.cat([x.new_ones(len(x), 1), x], 1), few[:, first] * few[:, second]
