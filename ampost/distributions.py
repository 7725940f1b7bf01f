"""Distributions that torch and Pyro lack, by formulas that hold in both tails of float64.

A probability near 1 has no digits left in float64: 1 - 1e-17 is 1. So everything here is written
by pairs of logs, `log p` of the lower tail and `log q` of the upper one (q = 1 - p), and each
step uses the smaller of the two. Nothing is ever the difference of two nearly equal numbers.
"""

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms
from torch.distributions.utils import broadcast_all

from ampost.errors import ModelError

LOG_2 = math.log(2.0)
LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def between(low: float | Tensor, high: float | Tensor, mass: float = 0.95) -> dist.LogNormal:
    """The LogNormal with `mass` of its probability between `low` and `high`, half outside each.

    Its median is sqrt(low high). `between(0.05, 20.0)` reads "surely positive, probably within a
    factor of 20 of 1". Tensors broadcast and become the batch shape.
    """
    if not 0.0 < mass < 1.0:
        raise ModelError(f"between(mass={mass}): mass is a probability strictly between 0 and 1.")
    if not bool(torch.as_tensor(low > 0).all()):
        raise ModelError(
            f"between(low={low}, high={high}): low must be above 0, since a LogNormal is. "
            "For a parameter that may be 0 or negative use Normal, Uniform or TruncatedNormal."
        )
    if not bool(torch.as_tensor(low < high).all()):
        raise ModelError(f"between(low={low}, high={high}): low must be below high.")
    if not bool(torch.as_tensor(high < math.inf).all()):
        raise ModelError(f"between(low={low}, high={high}): high must be finite.")
    log_low, log_high = (x.log() if isinstance(x, Tensor) else math.log(x) for x in (low, high))
    width = 2.0 * NormalDist().inv_cdf(0.5 + 0.5 * mass)
    return dist.LogNormal((log_low + log_high) / 2.0, (log_high - log_low) / width)


# ------------------------------------------------------------------------- the standard normal


def log_phi(x: Tensor) -> Tensor:
    """Log density of N(0, 1)."""
    return -0.5 * x.square() - LOG_SQRT_2PI


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x >= 0, the log of the other tail; relatively exact for small x."""
    return torch.log(-torch.expm1(-x))


def log_tails(z: Tensor) -> tuple[Tensor, Tensor]:
    """(log Phi(z), log Phi(-z)): the logs of both tails of N(0, 1)."""
    return torch.special.log_ndtr(z), torch.special.log_ndtr(-z)


def quantile_of_logs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The z with log Phi(z) = log_p and log Phi(-z) = log_q, from the smaller of the two.

    Down to log p = -600 by torch's `ndtri`; beyond, where exp underflows, by Newton's steps on
    log Phi(z) = log p from the asymptote -sqrt(-2 log p) (DLMF 7.12.1).
    """
    lower = log_p <= log_q
    small = torch.where(lower, log_p, log_q)
    far = small < -600.0
    near_z = torch.special.ndtri(torch.where(far, -1.0, small).exp())
    log_far = torch.where(far & (small > -math.inf), small, -1000.0)
    far_z = -torch.sqrt(-2.0 * (log_far + LOG_SQRT_2PI + 0.5 * torch.log(-2.0 * log_far)))
    for _ in range(3):  # the slope, phi / Phi, is -z - 1/z up to 2/z^3
        far_z = far_z + (torch.special.log_ndtr(far_z) - log_far) / (far_z + 1.0 / far_z)
    z = torch.where(far & (small > -math.inf), far_z, near_z)
    z = torch.where(small == -math.inf, -math.inf, z)
    return torch.where(lower, z, -z)


# Gauss-Legendre on [-1, 1]: the positive half of 10 nodes, exact to 1e-16 for what we ask of it.
_NODES, _WEIGHTS = (tuple(a[5:].tolist()) for a in np.polynomial.legendre.leggauss(10))


def _log_mass(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for finite a <= b; `width` is b - a without the rounding of a and b.

    A narrow interval by quadrature of phi(m + h t) = phi(m) exp(-m h t - h^2 t^2 / 2) around the
    middle m, a wide one by the logs of the two tails, on the side where they are small.
    """
    middle, half = 0.5 * (a + b), 0.5 * width
    narrow = half * (middle.abs() + half) < 1.0
    m, h = torch.where(narrow, middle, 0.0), torch.where(narrow, half, 1.0)
    quadrature = torch.zeros_like(h)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        even = torch.exp(-0.5 * (h * node).square()) * torch.cosh(m * h * node)
        quadrature = quadrature + 2.0 * weight * even
    by_quadrature = log_phi(m) + h.log() + quadrature.log()
    flip = middle > 0.0
    log_high = torch.special.log_ndtr(torch.where(flip, -a, b))
    log_low = torch.special.log_ndtr(torch.where(flip, -b, a))
    by_tails = log_high + log1mexp(torch.where(narrow, 1.0, log_high - log_low))
    return torch.where(narrow, by_quadrature, by_tails)


def _small_step(a: Tensor, w: Tensor) -> Tensor:
    """The d with Phi(a + d) - Phi(a) = w phi(a), to 4 terms of its power series in w.

    The derivatives of the normal quantile: 1, a, 1 + 2 a^2, 7 a + 6 a^3 (Steinbrecher and Shaw
    2008). Relative error below 1e-12 for w (1 + |a|) < 1e-3.
    """
    a2 = a.square()
    return w * (1.0 + w * (a / 2.0 + w * ((1.0 + 2.0 * a2) / 6.0 + w * a * (7.0 + 6.0 * a2) / 24)))


# ------------------------------------------------------------------------------ TruncatedNormal


class _LessThanEq(constraints.less_than):
    """{x <= upper_bound}, which torch lacks."""

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = value <= self.upper_bound
        return inside


@biject_to.register(_LessThanEq)  # type: ignore[untyped-decorator]
def _to_less_than_eq(constraint: _LessThanEq) -> transforms.Transform:
    affine = transforms.AffineTransform(constraint.upper_bound, -1)
    return transforms.ComposeTransform([transforms.ExpTransform(), affine])


def _bounded(bound: float | Tensor, name: str) -> bool:
    """Whether a bound is there: finite everywhere, not infinite everywhere."""
    if not isinstance(bound, Tensor):
        return math.isfinite(bound)
    finite = bound.isfinite()
    if bool(finite.any()) and not bool(finite.all()):
        raise ModelError(
            f"TruncatedNormal({name}=...): some of its values are finite and some are not. "
            f"Use a large finite {name} in place of the infinite ones, or two sites."
        )
    return bool(finite.all())


class TruncatedNormal(TorchDistribution):
    """Normal(loc, scale) between low and high; either, both or none may be infinite.

    The arguments broadcast to the batch shape; loc and scale are those of the Normal that is cut,
    not mean and deviation of the result. Holds wherever the cut is, also thousands of scales
    away from loc, where the absolute error of log probabilities grows as 1e-16 (low - loc)^2.
    Draws and quantiles keep their relative distance to a bound at 0, and are differentiable.
    """

    # Constraint has no stubs: the values are constraints.
    arg_constraints = {  # noqa: RUF012  (torch reads a class attribute)
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.real,
        "high": constraints.real,
    }
    has_rsample = True

    def __init__(
        self,
        loc: float | Tensor,
        scale: float | Tensor,
        low: float | Tensor = -math.inf,
        high: float | Tensor = math.inf,
        validate_args: bool | None = None,
    ) -> None:
        self.has_low, self.has_high = _bounded(low, "low"), _bounded(high, "high")
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)
        if self._validate_args and not bool((self.low < self.high).all()):
            raise ModelError(f"TruncatedNormal(low={low}, high={high}): low must be below high.")

    def expand(
        self, batch_shape: Iterable[int], _instance: "TruncatedNormal | None" = None
    ) -> "TruncatedNormal":
        new: TruncatedNormal = self._get_checked_instance(  # type: ignore[no-untyped-call]
            TruncatedNormal, _instance
        )
        shape = torch.Size(batch_shape)
        new.has_low, new.has_high = self.has_low, self.has_high
        for name in ("loc", "scale", "low", "high"):
            setattr(new, name, getattr(self, name).expand(shape))
        super(TruncatedNormal, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:  # noqa: ANN401 - torch's constraints share no type
        if self.has_low and self.has_high:
            return constraints.interval(self.low, self.high)
        if self.has_low:
            return constraints.greater_than_eq(self.low)
        if not self.has_high:
            return constraints.real
        return _LessThanEq(self.high)  # type: ignore[no-untyped-call]

    @property
    def _alpha(self) -> Tensor:
        return (self.low - self.loc) / self.scale

    @property
    def _beta(self) -> Tensor:
        return (self.high - self.loc) / self.scale

    def _log_below(self, x: Tensor, width: Tensor) -> Tensor:
        """Log mass of N(0, 1) from the lower bound to x, which lies `width` above it."""
        return _log_mass(self._alpha, x, width) if self.has_low else torch.special.log_ndtr(x)

    def _log_above(self, x: Tensor, width: Tensor) -> Tensor:
        """Log mass of N(0, 1) from x to the upper bound, which lies `width` above it."""
        return _log_mass(x, self._beta, width) if self.has_high else torch.special.log_ndtr(-x)

    @property
    def _log_total(self) -> Tensor:
        if self.has_high:
            return self._log_below(self._beta, (self.high - self.low) / self.scale)
        return torch.special.log_ndtr(-self._alpha) if self.has_low else torch.zeros_like(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = (value - self.loc) / self.scale
        log_p = log_phi(x) - self.scale.log() - self._log_total
        return torch.where((value >= self.low) & (value <= self.high), log_p, -math.inf)

    def tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(log P(X <= value), log P(X >= value)), each relatively exact where it is small."""
        if self.has_low:
            value = torch.maximum(value, self.low)
        if self.has_high:
            value = torch.minimum(value, self.high)
        x, log_total = (value - self.loc) / self.scale, self._log_total
        below = self._log_below(x, (value - self.low) / self.scale) - log_total
        above = self._log_above(x, (self.high - value) / self.scale) - log_total
        return below.clamp(max=0.0), above.clamp(max=0.0)

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The value with lower tail exp(log_p) and upper tail exp(log_q); the two sum to 1.

        Phi(x) = q Phi(alpha) + p Phi(beta), a sum of positive terms, and the same for Phi(-x):
        no cancellation. Next to a bound the distance to the bound itself is solved for.
        """
        log_lower, log_upper = log_p, log_q
        if self.has_low and self.has_high:
            (a_lower, a_upper), (b_lower, b_upper) = log_tails(self._alpha), log_tails(self._beta)
            log_lower = torch.logaddexp(a_lower + log_q, b_lower + log_p)
            log_upper = torch.logaddexp(a_upper + log_q, b_upper + log_p)
        elif self.has_low:
            a_lower, a_upper = log_tails(self._alpha)
            log_lower, log_upper = torch.logaddexp(a_lower + log_q, log_p), a_upper + log_q
        elif self.has_high:
            b_lower, b_upper = log_tails(self._beta)
            log_lower, log_upper = b_lower + log_p, torch.logaddexp(log_q, b_upper + log_p)
        value = self.loc + self.scale * quantile_of_logs(log_lower, log_upper)
        if self.has_low:
            step, close = self._step(self._alpha, log_p)
            value = torch.where(close, self.low + self.scale * step, value)
            value = torch.where(value < self.low, self.low, value)  # maximum halves a tie's slope
        if self.has_high:
            step, close = self._step(-self._beta, log_q)
            value = torch.where(close, self.high - self.scale * step, value)
            value = torch.where(value > self.high, self.high, value)
        return value

    def _step(self, bound: Tensor, log_mass: Tensor) -> tuple[Tensor, Tensor]:
        """Distance from a bound, inwards, that holds `log_mass`; and where that formula serves."""
        log_w = log_mass + self._log_total - log_phi(bound)
        close = log_w < math.log(1e-3) - torch.log1p(bound.abs())
        return _small_step(bound, torch.where(close, log_w, -50.0).exp()), close

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.tails(value)[0].exp()

    def icdf(self, value: Tensor) -> Tensor:
        return self.quantile(value.log(), torch.log1p(-value))

    def rsample(self, sample_shape: Iterable[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        z = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.quantile(*log_tails(z))

    def _density_ratios(self) -> tuple[Tensor, Tensor]:
        """phi / mass at the lower and at the upper bound; 0 where there is none."""
        none, log_total = torch.zeros_like(self.loc), self._log_total
        low = torch.exp(log_phi(self._alpha) - log_total) if self.has_low else none
        high = torch.exp(log_phi(self._beta) - log_total) if self.has_high else none
        return low, high

    @property
    def mean(self) -> Tensor:
        low, high = self._density_ratios()
        return self.loc + self.scale * (low - high)

    @property
    def variance(self) -> Tensor:
        """Loses digits by cancellation where the cut is beyond about 100 scales, or narrow."""
        low, high = self._density_ratios()
        edges = torch.zeros_like(self.loc)
        edges = edges + self._alpha * low if self.has_low else edges
        edges = edges - self._beta * high if self.has_high else edges
        return self.scale.square() * (1.0 + edges - (low - high).square()).clamp(min=0.0)
