"""Checks of model and data: arrays in, p-values out. They say nothing about the computation."""

from __future__ import annotations

import torch
from torch import Tensor


def misfit(observed: Tensor, replicated: Tensor) -> float:
    """Posterior predictive p-value of a discrepancy: the share of replicates at least as large.

    `observed` and `replicated` (draw,) hold the discrepancy of data and of replicate per draw;
    p = (1 + #{replicated >= observed}) / (n + 1).
    """
    good = ~(torch.isnan(observed) | torch.isnan(replicated))  # what is impossible is infinitely large
    number = int(good.sum())
    return float((1 + (replicated[good] >= observed[good]).sum()) / (number + 1))


def unlike(context: Tensor, known: Tensor) -> float:
    """p-value of a context (context,) against those of simulated data (dataset, context), by distance.

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

    mine = distance(context[None])
    return float((1 + (distance(known) >= mine).sum()) / (len(known) + 1))
