"""Is an estimator calibrated? Simulation-based calibration on fresh data sets, before correction."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from ampost.errors import ArgumentError
from ampost.estimator import Estimator
from ampost.model import Model
from ampost.progress import progress as progress_bar
from ampost.results import calibration_tree
from ampost.seeds import derive, seeded

Array = NDArray[np.float64]


def calibrate(
    model: Model,
    estimator: Estimator,
    datasets: int = 1_000,
    draws: int = 500,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.DataTree:
    """Ranks, randomised PIT, coverage and contraction of the network on data sets drawn afresh.

    Data sets come from the prior and the design, by the exact solver. The PIT of each coordinate of
    z is (rank + u) / (draws + 1) with u uniform; for a calibrated posterior it is uniform (Talts et
    al., arXiv 1804.06788); it lies in group `prior_sbc`, where ArviZ's `plot_ecdf_pit` looks for it,
    beside `ranks`, `contraction` and `coverage`. `fit/sentence` says whether every coordinate stays inside its
    simultaneous 95 % band, alpha divided over the coordinates.
    """
    for name, value in (("datasets", datasets), ("draws", draws)):
        if value < 20:
            raise ArgumentError(f"calibrate({name}={value}): expected at least 20")
    estimator.belongs_to(model)
    simulated = model.simulate(datasets, derive(seed, "data"))
    good = (~simulated.failed).nonzero()[:, 0]
    z, data = simulated.z[good], simulated.experiments.at(good)
    ranks, spread = [], []
    with progress_bar("calibrating", len(good), progress) as bar:
        for k, part in enumerate(torch.arange(len(good)).split(100)):
            reading = estimator.reading(model, data.at(part))
            drawn = estimator.sample(reading, draws, derive(seed, "draws", k))
            ranks.append((drawn < z[part]).sum(0))
            spread.append(drawn.var(0))
            bar.advance(len(part))
    rank = torch.cat(ranks)
    with seeded(derive(seed, "ties")):
        pit = (rank + torch.rand(rank.shape, dtype=torch.float64)) / (draws + 1)
    contraction = 1 - torch.cat(spread) / z.var(0)
    names = [
        site.name if site.size == 1 else f"{site.name}[{k}]" for site in model.sites() for k in range(site.size)
    ]
    outside = [name for k, name in enumerate(names) if not inside_band(pit[:, k], 0.05 / len(names))]
    sentence = (
        f"Calibrated: every PIT stays inside the 95 % band over {len(good)} data sets."
        if not outside
        else f"Not calibrated over {len(good)} data sets: {', '.join(outside)} leave the 95 % band."
    )
    levels = torch.tensor([0.5, 0.8, 0.9, 0.95], dtype=torch.float64)
    covered = (((pit - 0.5).abs()[None] <= levels[:, None, None] / 2).double()).mean(1)
    return calibration_tree(
        names, rank, pit, contraction, levels, covered, not outside, sentence, int(simulated.failed.sum())
    )


GRID = np.arange(1, 100) / 100


def inside_band(pit: Tensor, alpha: float) -> bool:
    """Whether the ECDF of `pit` (dataset,) stays inside the simultaneous band of level 1 - alpha."""
    below = _below(np.sort(pit.numpy())[None])
    return bool(_smallest_tail(below, len(pit))[0] >= pointwise(len(pit), alpha))


def band(count: int, alpha: float) -> tuple[Array, Array]:
    """Lower and upper edge of the band of the ECDF on `GRID`, for `count` uniform values."""
    tail = pointwise(count, alpha)
    return binom.ppf(tail, count, GRID) / count, binom.isf(tail, count, GRID) / count


@cache
def pointwise(count: int, alpha: float, repeats: int = 4_000) -> float:
    """The pointwise tail probability whose band holds `count` uniform values with probability 1 - alpha.

    Tuned by simulation (Säilynoja, Bürkner and Vehtari, Statistics and Computing 32 (2022) 32).
    """
    shares = np.diff(GRID, prepend=0.0, append=1.0)
    counts = np.random.default_rng(0).multinomial(count, shares, repeats)
    smallest = np.sort(_smallest_tail(counts[:, :-1].cumsum(1), count))
    return float(smallest[int(alpha * repeats)])


def _below(ordered: Array) -> NDArray[np.int64]:
    return np.stack([np.searchsorted(row, GRID, side="right") for row in ordered])


def _smallest_tail(below: NDArray[np.int64], count: int) -> Array:
    """Smallest binomial tail of the numbers `below` (row, grid) each grid point."""
    low, high = binom.cdf(below, count, GRID), binom.sf(below - 1, count, GRID)
    return np.asarray(np.minimum(low, high).min(1))
