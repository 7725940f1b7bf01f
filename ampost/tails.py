"""The logs of both tails of a distribution, P(X < x) and P(X > x), for censored values.

`tails(noise, value) -> (log_below, log_above)` and `log_cumulative(noise, value)` hold far out, where
neither probability has digits in float64, and have gradients in the noise's parameters and in the value.
torch lacks most of this: it has no cdf of StudentT, Binomial, NegativeBinomial and Beta, and no
gradient of that of Gamma in its concentration.

The incomplete gamma and beta functions and Student's tail come by quadrature. In the right variable their
integrand is smooth and log-concave. It is integrated from the point that is asked for away from its mode,
so only positive numbers are added. The nodes are those of the double-exponential rule
s = exp(v - exp(-v)) (Takahasi and Mori 1974), in units of the length on which the integrand falls. All
of it is torch operations without a branch on values, so a program that uses it can be recorded.
"""

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td
from torch.special import log_ndtr

from ampost.distributions import TruncatedNormal
from ampost.errors import UnsupportedError

LOG_2 = math.log(2.0)
LOG_2PI = math.log(2.0 * math.pi)
Logs = tuple[Tensor, Tensor]


def tails(noise: td.Distribution, value: Tensor) -> Logs:
    """(log P(X < value), log P(X > value)), in float64; of counts both are strict.

    `value` broadcasts with the noise's batch shape. A count below 5 is at most 4, one below 4.5 too.

    Raises:
        UnsupportedError: the tails of this distribution are not known here.
    """
    return log_cumulative(noise, before(noise, value))[0], log_cumulative(noise, value)[1]


def before(noise: td.Distribution, value: Tensor) -> Tensor:
    """The point x with P(X <= x) = P(X < value): of counts the next whole number below."""
    return value.ceil() - 1.0 if counts(noise) else value


def counts(noise: td.Distribution) -> bool:
    """Whether the values of `noise` are whole numbers."""
    support: Any = noise.support
    return bool(support.is_discrete)


def anywhere(noise: td.Distribution) -> Tensor:
    """A number inside the noise's support, per entry of its batch; of counts 0."""
    zero = torch.zeros(noise.batch_shape, dtype=torch.float64)
    inside: Tensor = zero if counts(noise) else td.biject_to(noise.support)(zero)
    return inside.detach()


@singledispatch
def log_cumulative(noise: td.Distribution, value: Tensor) -> Logs:
    """(log P(X <= value), log P(X > value)), in float64; a mask of the noise changes nothing.

    Raises:
        UnsupportedError: the tails of this distribution are not known here.
    """
    raise UnsupportedError(
        f"the probability of a censored value is not known under {type(noise).__name__}, but under "
        f"{', '.join(supported())}; use one of these as noise, or leave the censored rows out"
    )


def supported() -> list[str]:
    """Names of the distributions whose tails are known, sorted."""
    wrappers = {object, dist.MaskedDistribution, td.Independent, dist.ExpandedDistribution}
    return sorted(kind.__name__ for kind in log_cumulative.registry if kind not in wrappers)


# ------------------------------------------------------------------------------------- wrappers


@log_cumulative.register
def _(noise: dist.MaskedDistribution, value: Tensor) -> Logs:
    return log_cumulative(noise.base_dist, value)


@log_cumulative.register
def _(noise: dist.ExpandedDistribution, value: Tensor) -> Logs:
    shape = torch.broadcast_shapes(noise.batch_shape, value.shape)
    below, above = log_cumulative(noise.base_dist, value)
    return below.expand(shape), above.expand(shape)


@log_cumulative.register(td.Independent)
def _(noise: td.Independent[Any], value: Tensor) -> Logs:
    if noise.reinterpreted_batch_ndims:
        raise UnsupportedError(
            f"the probability of a censored value is known for one number, and {type(noise).__name__} of "
            f"{type(noise.base_dist).__name__} has events of shape {tuple(noise.event_shape)}; leave "
            f"to_event({noise.reinterpreted_batch_ndims}) out"
        )
    return log_cumulative(noise.base_dist, value)


# --------------------------------------------------------------------------- by elementary formulas


@log_cumulative.register
def _(noise: td.Normal, value: Tensor) -> Logs:
    z = (value.double() - noise.loc) / noise.scale
    return log_ndtr(z), log_ndtr(-z)


@log_cumulative.register
def _(noise: td.LogNormal, value: Tensor) -> Logs:
    x, inside = _positive(value)
    z = (x.log() - noise.loc) / noise.scale
    return _from_zero((log_ndtr(z), log_ndtr(-z)), inside)


@log_cumulative.register
def _(noise: TruncatedNormal, value: Tensor) -> Logs:
    value = value.double()
    inside = (value > noise.low) & (value < noise.high)
    return _edged(noise.tails(torch.where(inside, value, anywhere(noise))), inside, value <= noise.low)


@log_cumulative.register
def _(noise: td.HalfNormal, value: Tensor) -> Logs:
    x, inside = _positive(value)
    z = x / noise.scale
    near, log_above = z < 1.0, LOG_2 + log_ndtr(-z)
    p = torch.erf(torch.where(near, z, 1.0) / math.sqrt(2.0))
    log_below = torch.where(near, p.log(), other(torch.where(near, -1.0, log_above)))
    return _from_zero((log_below, log_above), inside)


@log_cumulative.register
def _(noise: td.Laplace, value: Tensor) -> Logs:
    z = (value.double() - noise.loc) / noise.scale
    lower = z < 0.0
    small = torch.where(lower, z, -z) - LOG_2  # not of abs(z), which has no slope at 0
    return _sided(lower, small, torch.log1p(-small.exp()))


@log_cumulative.register
def _(noise: td.Cauchy, value: Tensor) -> Logs:
    z = (value.double() - noise.loc) / noise.scale
    one = torch.ones_like(z)
    return _logs(torch.atan2(one, -z) / math.pi, torch.atan2(one, z) / math.pi)


@log_cumulative.register
def _(noise: td.HalfCauchy, value: Tensor) -> Logs:
    x, inside = _positive(value)
    z = x / noise.scale
    one = torch.ones_like(z)
    return _from_zero(_logs(torch.atan2(z, one) * (2 / math.pi), torch.atan2(one, z) * (2 / math.pi)), inside)


@log_cumulative.register
def _(noise: dist.Logistic, value: Tensor) -> Logs:
    z = (value.double() - noise.loc) / noise.scale
    return torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)


@log_cumulative.register
def _(noise: td.Gumbel, value: Tensor) -> Logs:
    z = (value.double() - noise.loc) / noise.scale
    return -torch.exp(-z), _log1mexp_of_exp(-z)


@log_cumulative.register
def _(noise: td.Exponential, value: Tensor) -> Logs:
    x, inside = _positive(value)
    return _from_zero((_log1mexp_of_exp(x.log() + noise.rate.log()), -noise.rate * x), inside)


@log_cumulative.register
def _(noise: td.Weibull, value: Tensor) -> Logs:
    x, inside = _positive(value)
    log_hazard = noise.concentration * (x.log() - noise.scale.log())
    return _from_zero((_log1mexp_of_exp(log_hazard), -log_hazard.exp()), inside)


@log_cumulative.register
def _(noise: td.Uniform, value: Tensor) -> Logs:
    value = value.double()
    inside = (value > noise.low) & (value < noise.high)
    x = torch.where(inside, value, anywhere(noise))
    width = noise.high - noise.low
    return _edged(_logs((x - noise.low) / width, (noise.high - x) / width), inside, value <= noise.low)


@log_cumulative.register
def _(noise: td.Geometric, value: Tensor) -> Logs:
    k, inside = _count(value)
    given = "probs" in vars(noise)
    log_fail = torch.log1p(-noise.probs) if given else torch.nn.functional.logsigmoid(-noise.logits)
    log_above = (k + 1.0) * log_fail
    return _from_zero((other(log_above), log_above), inside)


# ------------------------------------------------------------------------------- by quadrature


@log_cumulative.register
def _(noise: td.Gamma, value: Tensor) -> Logs:
    x, inside = _positive(value)
    return _from_zero(log_incomplete_gamma(noise.concentration, noise.rate * x), inside)


@log_cumulative.register
def _(noise: td.Poisson, value: Tensor) -> Logs:
    k, inside = _count(value)
    above, below = log_incomplete_gamma(k + 1.0, noise.rate)
    return _from_zero((below, above), inside)


@log_cumulative.register
def _(noise: td.Beta, value: Tensor) -> Logs:
    value = value.double()
    a, b = noise.concentration1, noise.concentration0
    return log_incomplete_beta(a, b, value.clamp(0.0, 1.0), (1.0 - value).clamp(0.0, 1.0))


@log_cumulative.register
def _(noise: td.Binomial, value: Tensor) -> Logs:
    k, inside = _count(value)
    total = noise.total_count
    some = k < total
    k = torch.where(some, k, 0.0)
    above, below = log_incomplete_beta(k + 1.0, torch.where(some, total - k, 1.0), *_chances(noise))
    return _edged((below, above), inside & some, ~inside)


@log_cumulative.register
def _(noise: td.NegativeBinomial, value: Tensor) -> Logs:
    k, inside = _count(value)
    above, below = log_incomplete_beta(k + 1.0, noise.total_count, *_chances(noise))
    return _from_zero((below, above), inside)


@log_cumulative.register
def _(noise: dist.GammaPoisson, value: Tensor) -> Logs:
    k, inside = _count(value)
    a, rate = noise.concentration, noise.rate
    above, below = log_incomplete_beta(k + 1.0, a, 1.0 / (1.0 + rate), rate / (1.0 + rate))
    return _from_zero((below, above), inside)


@log_cumulative.register
def _(noise: td.StudentT, value: Tensor) -> Logs:
    """With t = sqrt(df) sinh(w) the density is a constant times cosh(w)^-df dw."""
    z, df = torch.broadcast_tensors((value.double() - noise.loc) / noise.scale, noise.df.double())
    lower = z < 0.0
    t = torch.where(lower, -z, z)
    radius = torch.sqrt(df + t.square())
    slope, rest = t / radius, df / radius.square()  # tanh w and 1 - tanh(w)^2
    part = 0.5 * rest / (1.0 + slope)  # (1 - tanh w) / 2

    def log_ratio(s: Tensor) -> Tensor:
        fallen: Tensor = df[..., None] * (s + torch.log1p(part[..., None] * torch.expm1(-2.0 * s)))
        return -fallen

    half = 0.5 * df
    log_constant = half * torch.log1p(1.0 / df) + 0.5 * half.log() - 0.5
    log_constant = log_constant + _stirling(half + 0.5) - _stirling(half) - 0.5 * math.log(math.pi)
    log_density = log_constant - half * torch.log1p(t.square() / df)
    small = log_density + _log_integral(log_ratio, df * slope, df * rest, df)
    return _sided(lower, small, other(small))


def log_incomplete_gamma(a: Tensor, x: Tensor) -> Logs:
    """(log P(a, x), log Q(a, x)), the regularised incomplete gamma functions, for a > 0 and x >= 0.

    P by t = x exp(-s), where x is below a; otherwise Q by t = x + s.
    """
    a, x = torch.broadcast_tensors(a.double(), x.double())
    x, inside = _positive(x)
    left = x < a.clamp(min=1.0)
    x_left, x_right = torch.where(left, x, 1.0), torch.where(left, 1.0, x)
    shape = torch.where(left, 1.0, a)

    def log_ratio(s: Tensor) -> Tensor:
        by_p = -a[..., None] * s - x_left[..., None] * torch.expm1(-s)
        by_q = (shape[..., None] - 1.0) * torch.log1p(s / x_right[..., None]) - s
        return torch.where(left[..., None], by_p, by_q)

    slope = torch.where(left, a - x_left, 1.0 - (shape - 1.0) / x_right)
    bend = torch.where(left, x_left, (shape - 1.0).clamp(min=0.0) / x_right.square())
    integral = _log_integral(log_ratio, slope, bend, torch.where(left, a, 1.0))
    excess = x - a
    log_density = a * _log_of_ratio(x, a, excess) - excess - _stirling(a) + 0.5 * (a.log() - LOG_2PI)
    small = log_density + integral - torch.where(left, 0.0, x.log())
    return _from_zero(_sided(left, small, other(small)), inside)


def log_incomplete_beta(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Logs:
    """(log I_x(a, b), log I_y(b, a)), the regularised incomplete beta functions; y is 1 - x.

    Below the mean a / (a + b) by t = x exp(-s), above it the same with a and b, x and y exchanged.
    """
    a, b, x, y = torch.broadcast_tensors(a.double(), b.double(), x.double(), y.double())
    inside = (x > 0.0) & (y > 0.0)
    beneath = x <= 0.0
    x, y = torch.where(inside, x, 0.5), torch.where(inside, y, 0.5)
    excess = x * b - y * a
    left = excess <= 0.0
    power, rest = torch.where(left, a, b), torch.where(left, b, a)
    odds = torch.where(left, x, y) / torch.where(left, y, x)

    def log_ratio(s: Tensor) -> Tensor:
        grown = torch.log1p(-odds[..., None] * torch.expm1(-s))
        return -power[..., None] * s + (rest[..., None] - 1.0) * grown

    slope = power - (rest - 1.0) * odds
    bend = (rest - 1.0).clamp(min=0.0) * odds * (1.0 + odds)
    integral = _log_integral(log_ratio, slope, bend, power) - torch.where(left, y, x).log()
    total = a + b
    log_density = a * _log_of_ratio(x * total, a, excess) + b * _log_of_ratio(y * total, b, -excess)
    log_density = log_density + _stirling(total) - _stirling(a) - _stirling(b)
    small = log_density + 0.5 * (a.log() + b.log() - total.log() - LOG_2PI) + integral
    return _edged(_sided(left, small, other(small)), inside, beneath)


IN_CACHE = 2**16  # numbers that an operation of the quadrature handles at once
# The rule of the integral over s > 0. Its relative error is below 2e-14 for shapes (a, b, df) from 0.1 to 1e5,
# below 1e-9 from 0.01, since nodes at small s are few; with steps of 0.15 it would be 3e-12.
_POINTS = tuple(-3.4 + 0.12 * k for k in range(59))
_NODES = tuple(math.exp(v - math.exp(-v)) for v in _POINTS)
_WEIGHTS = tuple(0.12 * s * (1.0 + math.exp(-v)) for s, v in zip(_NODES, _POINTS, strict=True))


def _log_integral(
    log_ratio: Callable[[Tensor], Tensor], slope: Tensor, bend: Tensor, last_slope: Tensor
) -> Tensor:
    """log of the integral over s > 0 of exp(log_ratio(s)), which falls from 1 to 0.

    -log_ratio has slope `slope` and second derivative `bend` at 0 and slope `last_slope` far out; `s` has
    one axis more, on the right. The lengths decide only where the nodes lie, so no gradient is theirs.
    """
    length = 2.0 / (slope + torch.sqrt(slope.square() + 2.0 * bend)) + 1.0 / last_slope
    length = length.detach()
    nodes = torch.tensor(_NODES, dtype=torch.float64, device=length.device)
    weights = torch.tensor(_WEIGHTS, dtype=torch.float64, device=length.device)
    together = max(1, IN_CACHE // max(1, length.numel()))
    summed = torch.zeros_like(length)
    for some, weight in zip(nodes.split(together), weights.split(together), strict=True):
        summed = summed + (log_ratio(length[..., None] * some).exp() * weight).sum(-1)
    return length.log() + summed.log()


def _stirling(a: Tensor) -> Tensor:
    """log Gamma(a) - (a - 1/2) log a + a - log(2 pi)/2: what Stirling's formula lacks (DLMF 5.11.1)."""
    large = a > 10.0
    far = 1.0 / torch.where(large, a, 10.0)
    square = far.square()
    series = torch.zeros_like(far)
    for coefficient in (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * square + coefficient
    near = torch.where(large, 1.0, a)
    direct = torch.lgamma(near) - (near - 0.5) * near.log() + near - 0.5 * LOG_2PI
    return torch.where(large, series * far, direct)


def _log_of_ratio(top: Tensor, bottom: Tensor, excess: Tensor) -> Tensor:
    """log(top / bottom), where `excess` is top - bottom without its cancellation."""
    ratio = excess / bottom
    near = ratio.abs() < 0.5
    close = torch.log1p(torch.where(near, ratio, 0.0))
    return torch.where(near, close, torch.where(near, 1.0, top).log() - bottom.log())


# --------------------------------------------------------------------------------------- pieces


def _positive(value: Tensor) -> tuple[Tensor, Tensor]:
    """A value above 0 for each entry, and where it is the value itself."""
    value = value.double()
    inside = value > 0.0
    return torch.where(inside, value, 1.0), inside


def _count(value: Tensor) -> tuple[Tensor, Tensor]:
    """The largest count not above each value (0 where there is none), and where there is one."""
    k = value.double().floor()
    return k.clamp(min=0.0), k >= 0.0


def _chances(noise: td.Binomial | td.NegativeBinomial) -> Logs:
    """(p, 1 - p) from what the distribution was given: probs or logits."""
    if noise._param is vars(noise).get("probs"):
        return noise.probs, 1.0 - noise.probs
    return torch.sigmoid(noise.logits), torch.sigmoid(-noise.logits)


def _logs(p: Tensor, q: Tensor) -> Logs:
    """(log p, log q) of p + q = 1, each by the smaller of the two."""
    lower = p < q
    small = torch.where(lower, p, q)
    return _sided(lower, small.log(), torch.log1p(-small))


def _sided(lower: Tensor, small: Tensor, large: Tensor) -> Logs:
    """(log_below, log_above) from the smaller tail, the lower one where `lower` says so, and the other."""
    return torch.where(lower, small, large), torch.where(lower, large, small)


def other(small: Tensor) -> Tensor:
    """log(1 - p) from log p, relatively exact for p near 0 and near 1; rounding may have put p above 1."""
    rare = small < -LOG_2
    p = torch.where(rare, small, -1.0).exp()
    rest = -torch.expm1(torch.where(rare, -1.0, small).clamp(max=-1e-18))
    return torch.where(rare, torch.log1p(-p), rest.log())


def _log1mexp_of_exp(log_x: Tensor) -> Tensor:
    """log(1 - exp(-x)) from log x, also where x underflows."""
    tiny = log_x < -17.0
    large = torch.where(tiny, 0.0, log_x).exp()
    return torch.where(tiny, log_x - 0.5 * torch.where(tiny, log_x, 0.0).exp(), other(-large))


def _from_zero(logs: Logs, inside: Tensor) -> Logs:
    """`logs` where inside the support, which has no upper end; nothing is below it."""
    return _edged(logs, inside, ~inside)


def _edged(logs: Logs, inside: Tensor, beneath: Tensor) -> Logs:
    """`logs` where inside the support; elsewhere all mass is above a value `beneath` it, or below."""
    below = torch.where(inside, logs[0], torch.where(beneath, -math.inf, 0.0))
    return below, torch.where(inside, logs[1], torch.where(beneath, 0.0, -math.inf))
