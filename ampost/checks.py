"""Checks of model and data: arrays in, statistics and p-values out. They say nothing about the computation.

Residuals are (dataset, experiment, time), in units of the noise, NaN where nothing is known exactly. A
statistic (dataset,) is large where something is wrong, and NaN where there is too little to say.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 4  # residuals of a channel, from which on their order says something


def chi_square(residual: Tensor) -> Tensor:
    """The sum of squares: large where residuals are larger than the noise."""
    return _known(residual, residual.square().nansum((-1, -2)), 1)


def largest(residual: Tensor) -> Tensor:
    """The largest size: an outlier."""
    return _known(residual, residual.abs().nan_to_num(0.0).amax((-1, -2)), 1)


def autocorrelation(residual: Tensor, times: Tensor) -> Tensor:
    """How residuals go with the next ones in time, within experiments: a drift, or a curve of another shape."""
    value, pairs = _in_order(residual, times)
    product = torch.where(pairs, value[..., :-1] * value[..., 1:], 0.0).sum((-1, -2))
    return _known(residual, product / value.square().sum((-1, -2)).clamp(min=1e-300), FEW)


def runs(residual: Tensor, times: Tensor) -> Tensor:
    """How often neighbours have the same sign less how often they have not, where size tells nothing."""
    value, pairs = _in_order(residual, times)
    same = torch.where(pairs, value[..., :-1].sign() * value[..., 1:].sign(), 0.0).sum((-1, -2))
    return _known(residual, same, FEW)


def trend(residual: Tensor, times: Tensor) -> Tensor:
    """The share of the sum of squares that a parabola in time through each experiment takes away."""
    known = ~torch.isnan(residual)
    end = torch.where(known, times, -torch.inf).amax(-1, keepdim=True)
    start = torch.where(known, times, torch.inf).amin(-1, keepdim=True)
    place = ((times - start) / (end - start).clamp(min=1e-300)).nan_to_num(0.0, 0.0, 0.0).to(residual.dtype)
    powers = torch.stack([torch.ones_like(place), place, place.square()], -1)
    powers = torch.where(known[..., None], powers, 0.0)
    value = residual.nan_to_num(0.0)[..., None]
    one = torch.eye(3, dtype=residual.dtype)
    solved = torch.linalg.solve(powers.mT @ powers + 1e-6 * one, powers.mT @ value)
    total = value.square().sum((-1, -2, -3)).clamp(min=1e-300)
    return _known(residual, (powers @ solved).square().sum((-1, -2, -3)) / total, FEW)


def p_values(observed: Tensor, replicated: Tensor) -> tuple[Tensor, Tensor]:
    """p-values (statistic,) of data, and these adjusted for their number.

    `observed` (statistic,), `replicated` (replicate, statistic) are large where something is wrong. A p-value
    is (1 + #{replicated >= observed}) / (n + 1): uniform where the data are one more replicate. Adjusted is the
    share of data and replicates, each in its turn the data, whose smallest p-value is as small (Westfall and
    Young, Resampling-based multiple testing, 1993): where statistics go together, as here, that loses less than
    Holm's method does, and the smallest adjusted p-value is uniform. NaN where a statistic of the data is; such
    a one does not count, and a NaN of a replicate is small.
    """
    known = ~torch.isnan(observed)
    every = torch.cat([observed[None], replicated])[:, known].nan_to_num(-torch.inf, torch.inf, -torch.inf)
    ordered = every.sort(0).values
    below = torch.searchsorted(ordered.T.contiguous(), every.T.contiguous()).T
    each = (len(every) - below) / len(every)
    smallest = each.amin(1) if each.shape[1] else each.new_ones(len(every))
    p, adjusted = (torch.full_like(observed, torch.nan) for _ in range(2))
    p[known] = each[0].to(p.dtype)
    adjusted[known] = (smallest[:, None] <= each[:1]).double().mean(0).to(p.dtype)
    return p, adjusted


def distances(context: Tensor, scale: Tensor) -> Tensor:
    """Distances (dataset,) of contexts (dataset, context) from those of other data sets, `scale`.

    On what the scale is fitted to distances are smaller than on anything new, so both are apart.
    """
    mean = scale.mean(0)
    cov = torch.cov(scale.T) + 1e-6 * torch.eye(scale.shape[1], dtype=scale.dtype)
    factor = torch.linalg.cholesky(cov + 1e-4 * torch.diag(torch.diag(cov)))

    white: Tensor = torch.linalg.solve_triangular(factor, (context - mean).T, upper=False)
    return white.square().sum(0)


def _in_order(residual: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Known residuals in the order of `times`, zeros behind; which of them have a next one."""
    known = ~torch.isnan(residual)
    order = torch.where(known, times, torch.inf).sort(dim=-1, stable=True).indices
    here = known.gather(-1, order)
    return residual.nan_to_num(0.0).gather(-1, order), here[..., 1:]


def _known(residual: Tensor, statistic: Tensor, least: int) -> Tensor:
    """The statistic where a data set has so many known residuals."""
    count = (~torch.isnan(residual)).sum((-1, -2))
    return torch.where(count >= least, statistic, torch.nan)
