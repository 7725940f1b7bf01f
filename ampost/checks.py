"""Checks of model and data: arrays in, statistics and p-values out. They say nothing about the computation.

Residuals are (dataset, experiment, time), in units of the noise, NaN where nothing is known exactly. A
statistic (dataset,) is large where something is wrong, and NaN where there is too little to say.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def p_value(observed: Tensor, replicated: Tensor) -> float:
    """(1 + #{replicated (replicate,) >= observed ()}) / (n + 1) over the n replicates that are known.

    Uniform where the data are one more replicate. NaN where the statistic of the data, or every other, is.
    """
    known = replicated[~torch.isnan(replicated)]
    if not len(known) or bool(torch.isnan(observed)):
        return float("nan")
    return float((1 + (known >= observed).sum()) / (len(known) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm, Scand. J. Statist. 6 (1979) 65); NaN stay and do not count.

    Example:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    order = sorted((k for k, p in enumerate(p_values) if p == p), key=lambda k: p_values[k])
    adjusted, floor = [float("nan")] * len(p_values), 0.0
    for rank, k in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = floor
    return adjusted


def distances(context: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Distance () of a context (context,) from those of simulated data (dataset, context), and theirs.

    The first half of them says what distance is, the second is what the context is compared with: on what the
    scale was fitted to, distances are smaller than on anything new.
    """
    scale, known = known.tensor_split(2)
    mean = scale.mean(0)
    cov = torch.cov(scale.T) + 1e-6 * torch.eye(scale.shape[1], dtype=scale.dtype)
    factor = torch.linalg.cholesky(cov + 1e-4 * torch.diag(torch.diag(cov)))

    def distance(x: Tensor) -> Tensor:
        white: Tensor = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
        return white.square().sum(0)

    return distance(context[None])[0], distance(known)


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
