"""One prior's map between z and the parameter, safe in both tails.

Where a numerically safe map exists the prior in z is exactly N(0, 1); every other prior goes
through torch's `biject_to(support)` and a fixed shift and scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import biject_to
from torch.special import erfinv, log_ndtr, ndtri

from ampost.distributions import TruncatedNormal, log_tails, quantile_of_logs
from ampost.errors import ModelError


class Bijection(Protocol):
    """A prior's map; batch axes broadcast, event axes are rightmost."""

    @property
    def exact(self) -> bool:
        """Whether z is exactly N(0, 1) under the prior."""

    def z_shape(self) -> torch.Size:
        """Event shape of z for one draw of the site."""

    def forward(self, z: Tensor) -> Tensor:
        """z (..., *z_event) -> parameter (..., *event)."""

    def inverse(self, theta: Tensor) -> Tensor:
        """Parameter -> z."""

    def log_prior(self, z: Tensor, theta: Tensor) -> Tensor:
        """log p(theta) + log |d theta / dz|, event axes summed."""


@dataclass(frozen=True)
class Standard:
    """Shift and scale of an unconstrained prior, each of shape (*z_event,)."""

    shift: Tensor
    scale: Tensor


@dataclass(frozen=True)
class _Exact:
    event: torch.Size
    to_theta: Callable[[Tensor], Tensor]
    to_z: Callable[[Tensor], Tensor]
    exact: bool = True

    def z_shape(self) -> torch.Size:
        return self.event

    def forward(self, z: Tensor) -> Tensor:
        return self.to_theta(z)

    def inverse(self, theta: Tensor) -> Tensor:
        return self.to_z(theta)

    def log_prior(self, z: Tensor, theta: Tensor) -> Tensor:
        density = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        return density.flatten(z.dim() - len(self.event)).sum(-1) if len(self.event) else density


@dataclass(frozen=True)
class _Unconstrained:
    distribution: Any
    standard: Standard | None
    exact: bool = False

    def z_shape(self) -> torch.Size:
        shape = biject_to(self.distribution.support).inverse_shape(self.distribution.shape())
        return torch.Size(shape[len(self.distribution.batch_shape) :])

    def _scale(self) -> Tensor:
        return torch.ones(self.z_shape()) if self.standard is None else self.standard.scale

    def _shift(self) -> Tensor:
        return torch.zeros(self.z_shape()) if self.standard is None else self.standard.shift

    def forward(self, z: Tensor) -> Tensor:
        theta: Tensor = biject_to(self.distribution.support)(self._shift().to(z) + self._scale().to(z) * z)
        return theta

    def inverse(self, theta: Tensor) -> Tensor:
        raw: Tensor = biject_to(self.distribution.support).inv(theta)
        return (raw - self._shift().to(raw)) / self._scale().to(raw)

    def log_prior(self, z: Tensor, theta: Tensor) -> Tensor:
        transform = biject_to(self.distribution.support)
        raw = self._shift().to(z) + self._scale().to(z) * z
        jacobian = transform.log_abs_det_jacobian(raw, theta)
        extra = len(self.distribution.event_shape) - transform.codomain.event_dim
        if extra > 0:
            jacobian = jacobian.flatten(jacobian.dim() - extra).sum(-1)
        density: Tensor = self.distribution.log_prob(theta) + jacobian + self._scale().log().sum()
        return density


def bijection(distribution: Any, standard: Standard | None = None) -> Bijection:  # noqa: ANN401
    """The map of a Pyro or torch distribution; `standard` serves those without an exact one.

    Raises:
        ModelError: the distribution is discrete.
    """
    event = torch.Size(distribution.event_shape)
    base = distribution
    while isinstance(base, td.Independent):
        base = base.base_dist
    if getattr(base.support, "is_discrete", False):
        raise ModelError(f"{type(base).__name__} is discrete and has no map from z; make it continuous")
    for kind, build in _EXACT:
        if isinstance(base, kind):
            return _Exact(event, *build(base))
    return _Unconstrained(distribution, standard)


def standardise(distribution: Any, draws: Tensor) -> Standard:  # noqa: ANN401
    """Shift and scale (3 digits) of prior draws (draw, *batch, *event) in unconstrained space."""
    raw = biject_to(distribution.support).inv(draws)
    size = _Unconstrained(distribution, None).z_shape()
    flat = raw.reshape(-1, *size)
    good = torch.isfinite(flat.reshape(len(flat), -1)).all(1)
    flat = flat[good]
    return Standard(_rounded(flat.mean(0)), _rounded(flat.std(0)).clamp(min=1e-6))


def _rounded(values: Tensor) -> Tensor:
    numbers = [float(f"{v:.2e}") for v in values.flatten().tolist()]
    return torch.tensor(numbers, dtype=torch.float64).reshape(values.shape)


Maps = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
_ROOT2 = math.sqrt(2.0)


def ndtr(z: Tensor) -> Tensor:
    """Phi(z), relatively exact in the lower tail; torch's own, (1 + erf) / 2, is 0 below z = -8.3."""
    return 0.5 * torch.erfc(-z / _ROOT2)


def _normal(d: Any) -> Maps:  # noqa: ANN401
    return (lambda z: d.loc + d.scale * z), (lambda x: (x - d.loc) / d.scale)


def _log_normal(d: Any) -> Maps:  # noqa: ANN401
    return (lambda z: torch.exp(d.loc + d.scale * z)), (lambda x: (x.log() - d.loc) / d.scale)


def _uniform(d: Any) -> Maps:  # noqa: ANN401
    span = d.high - d.low

    def to_theta(z: Tensor) -> Tensor:
        return torch.where(z < 0, d.low + span * ndtr(z), d.high - span * ndtr(-z))

    def to_z(x: Tensor) -> Tensor:
        low, high = (x - d.low) / span, (d.high - x) / span
        z: Tensor = torch.where(low < 0.5, ndtri(low.clamp(max=0.5)), -ndtri(high.clamp(max=0.5)))
        return z

    return to_theta, to_z


def _half_normal(d: Any) -> Maps:  # noqa: ANN401
    def to_theta(z: Tensor) -> Tensor:
        near = _ROOT2 * erfinv(ndtr(z.clamp(max=0.0)))
        far = -ndtri(ndtr(-z.clamp(min=0.0)) / 2)
        theta: Tensor = d.scale * torch.where(z < 0, near, far)
        return theta

    def to_z(x: Tensor) -> Tensor:
        u = x / d.scale
        near = ndtri(torch.erf(u.clamp(max=0.6745) / _ROOT2))
        far = -ndtri(2 * ndtr(-u.clamp(min=0.6744)))
        z: Tensor = torch.where(u < 0.6745, near, far)
        return z

    return to_theta, to_z


def _half_cauchy(d: Any) -> Maps:  # noqa: ANN401
    quarter = math.pi / 2

    def to_theta(z: Tensor) -> Tensor:
        near = torch.tan(quarter * ndtr(z.clamp(max=0.0)))
        far = 1 / torch.tan(quarter * ndtr(-z.clamp(min=0.0)))
        theta: Tensor = d.scale * torch.where(z < 0, near, far)
        return theta

    def to_z(x: Tensor) -> Tensor:
        u = x / d.scale
        near = ndtri(torch.atan(u.clamp(max=1.0)) / quarter)
        far = -ndtri(torch.atan(1 / u.clamp(min=1.0)) / quarter)
        z: Tensor = torch.where(u < 1, near, far)
        return z

    return to_theta, to_z


def _exponential(d: Any) -> Maps:  # noqa: ANN401
    def to_z(x: Tensor) -> Tensor:
        u = d.rate * x
        near = ndtri(-torch.expm1(-u.clamp(max=math.log(2.0))))
        far = -ndtri(torch.exp(-u.clamp(min=math.log(2.0))))
        z: Tensor = torch.where(u < math.log(2.0), near, far)
        return z

    return (lambda z: -log_ndtr(-z) / d.rate), to_z


def _truncated(d: Any) -> Maps:  # noqa: ANN401
    """By the logs of both tails, so that a cut far out or a narrow one keeps its digits."""
    return (lambda z: d.quantile(*log_tails(z))), (lambda x: quantile_of_logs(*d.tails(x)))


def _multivariate(d: Any) -> Maps:  # noqa: ANN401
    def to_theta(z: Tensor) -> Tensor:
        theta: Tensor = d.loc + (d.scale_tril @ z[..., None])[..., 0]
        return theta

    def to_z(x: Tensor) -> Tensor:
        centred = (x - d.loc)[..., None]
        factor = d.scale_tril.expand(*centred.shape[:-2], *d.scale_tril.shape[-2:])
        z: Tensor = torch.linalg.solve_triangular(factor, centred, upper=False)[..., 0]
        return z

    return to_theta, to_z


_EXACT: list[tuple[type, Callable[[Any], Maps]]] = [
    (TruncatedNormal, _truncated),
    (td.Normal, _normal),
    (td.LogNormal, _log_normal),
    (td.Uniform, _uniform),
    (td.HalfNormal, _half_normal),
    (td.HalfCauchy, _half_cauchy),
    (td.Exponential, _exponential),
    (td.MultivariateNormal, _multivariate),
]
