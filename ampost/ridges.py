"""Coordinates that follow a posterior's ridge, about its mode.

Where data fix some combinations of the parameters sharply and others hardly, the posterior is a thin sheet, and
it bends: along the loose directions the sharp ones move by many of their own widths. They are shifted back by
quadratic functions of the loose ones, fitted to what the model says at draws of the normal approximation. A
shift leaves volumes as they are. What the quadratic functions miss widens the sharp directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ampost.experiments import Experiments
from ampost.laplace import Laplace, Slopes, at_once, evaluated, slopes
from ampost.model import Model
from ampost.seeds import seeded

SHARP = 4  # one in so many directions, rounded up, is shifted
DRAWS = 3.5  # per coefficient of a fit
FEWEST = 32  # draws
LOOSEST = 24  # directions, at most, along which a shift bends
FAR = 3.0  # beyond so many sd of a loose direction the shift stays as it is
MOST = 1e3  # sd that a draw is off at most
PENALTY = 1e-3  # of a fit, per draw
TURNED = 1e-6  # by which axes may fail to be orthogonal, from rounding
FAILED = 0.1  # share of draws at which the model may fail


@dataclass(frozen=True)
class Ridge:
    """Coordinates about a mode, in which the posterior is nearly standard normal.

    z is `mode + axes @ c`, the columns of `axes` (dataset, z, z) being one standard deviation long each, from
    the loosest direction to the sharpest. To the sharp ones of c `bend` (dataset, sharp, coefficient) adds a
    quadratic function of the loose ones, and divides them by `width` (dataset, sharp). `turn` (dataset, z, z)
    takes c to the axes of the Cholesky factor, of which each belongs to a parameter.
    """

    laplace: Laplace
    axes: Tensor
    turn: Tensor
    bend: Tensor
    width: Tensor
    solves: int

    @property
    def log_scale(self) -> Tensor:
        """Log determinant (dataset,) of the map from z to standard coordinates."""
        return self.laplace.log_scale - self.width.log().sum(-1)

    def standard(self, z: Tensor) -> Tensor:
        """Standard coordinates of z, both (..., dataset, z)."""
        loose, sharp = self._split(_times(self.turn.mT, self.laplace.standard(z)))
        sharp = (sharp + self._shift(loose)) / self.width
        return _times(self.turn, torch.cat([loose, sharp], -1))

    def back(self, u: Tensor) -> Tensor:
        """z of standard coordinates, both (..., dataset, z)."""
        loose, sharp = self._split(_times(self.turn.mT, u))
        sharp = sharp * self.width - self._shift(loose)
        return self.laplace.mode + _times(self.axes, torch.cat([loose, sharp], -1))

    def _split(self, c: Tensor) -> tuple[Tensor, Tensor]:
        loose = c.shape[-1] - self.width.shape[-1]
        return c[..., :loose], c[..., loose:]

    def _shift(self, loose: Tensor) -> Tensor:
        return _times(self.bend, _terms(loose))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.einsum("nij,...nj->...ni", matrix, vector)


def _terms(loose: Tensor) -> Tensor:
    """One, the loosest coordinates and their products."""
    loose = loose[..., :LOOSEST].clamp(-FAR, FAR)
    first, second = torch.triu_indices(loose.shape[-1], loose.shape[-1])
    return torch.cat([torch.ones_like(loose[..., :1]), loose, loose[..., first] * loose[..., second]], -1)


def sharp_of(size: int) -> int:
    """How many of so many directions are shifted."""
    return -(-size // SHARP)


def ridge(model: Model, data: Experiments, found: Laplace) -> Ridge:
    """The coordinates about modes; straight where no mode was found, and where the model fails about it."""
    data = data if data.batch else data.unsqueezed(1)
    count, size = found.mode.shape
    loose = size - sharp_of(size)
    spread, directions = torch.linalg.eigh(found.factor @ found.factor.mT)
    axes = directions / spread.sqrt()[:, None]
    turn = found.factor.mT @ axes
    one = torch.eye(size, dtype=turn.dtype)
    round_off = ~((turn.mT @ turn - one).abs().amax((1, 2)) < TURNED)
    upper = torch.linalg.solve_triangular(found.factor.mT, one.expand_as(turn), upper=True)
    axes = torch.where(round_off[:, None, None], upper, axes)
    turn = torch.where(round_off[:, None, None], one, turn)
    draws, weigh, terms = _plan(size, loose)
    slope = slopes(model, data, size)
    rows = torch.arange(count).split(at_once(data, len(draws)))
    off = torch.cat(
        [_off(slope, data.at(part), found.mode[part], axes[part], draws, loose) for part in rows], 1
    )
    straight = round_off | ~torch.isfinite(found.decrement) | (torch.isnan(off).float().mean((0, 2)) > FAILED)
    off = torch.where(straight[:, None], 0.0, off.nan_to_num(0.0).clamp(-MOST, MOST))
    bend = torch.einsum("ks,sni->nik", weigh, off)
    left = (off - torch.einsum("sk,nik->sni", terms, bend)).square().sum(0)
    width = (1 + left / (len(draws) - (weigh @ terms).trace())).sqrt()
    solves = found.solves + count * (slope.solves + len(draws))
    return Ridge(found, axes, turn, bend, width, solves)


def _plan(size: int, loose: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (draw, z), what turns their values into coefficients (coefficient, draw), their terms."""
    bent = min(loose, LOOSEST)
    coefficients = 1 + bent + bent * (bent + 1) // 2
    with seeded(0):
        half = torch.randn(max(FEWEST, int(DRAWS * coefficients)) // 2, size, dtype=torch.float64)
    draws = torch.cat([half, -half])
    terms = _terms(draws[:, :loose])
    penalty = PENALTY * len(draws) * torch.eye(coefficients, dtype=terms.dtype)
    return draws, torch.linalg.solve(terms.mT @ terms + penalty, terms.mT), terms


def _off(slope: Slopes, data: Experiments, mode: Tensor, axes: Tensor, draws: Tensor, loose: int) -> Tensor:
    """By how much sharp coordinates (draw, dataset, sharp) are not what the normal approximation says.

    They are what the residuals say along a sharp direction: to first order the coordinate itself.
    """
    here, slopes_there, unit = slope.features(mode, data)
    apart = torch.einsum("nij,sj->sni", axes, draws)
    found = evaluated(slope.model, mode + apart, data, slope.model.solver)
    sharp = axes[..., loose:]
    said = torch.einsum("nfi,snf->sni", slopes_there @ sharp, found.features(unit) - here)
    off = said + torch.einsum("nji,snj->sni", sharp, apart) - draws[:, None, loose:]
    return torch.where(torch.isfinite(found.joint)[..., None], off, torch.nan)
