"""Is an estimator calibrated? Simulation-based calibration on fresh data sets, before correction."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from scipy.stats import binom
from torch import Tensor

from ampost.estimator import Estimator
from ampost.model import Model
from ampost.progress import progress as progress_bar
from ampost.results import calibration_tree
from ampost.seeds import derive, seeded


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
    al., arXiv 1804.06788). `fit/sentence` says whether every coordinate stays inside its
    simultaneous 95 % band, alpha divided over the coordinates.
    """
    estimator.belongs_to(model)
    simulated = model.simulate(datasets, derive(seed, "data"))
    good = (~simulated.failed).nonzero()[:, 0]
    z, data = simulated.z[good], simulated.experiments.at(good)
    ranks, spread = [], []
    with progress_bar("calibrating", len(good), progress) as bar:
        for k, part in enumerate(torch.arange(len(good)).split(100)):
            context = estimator.context(data.at(part))
            drawn = estimator.sample(context, draws, derive(seed, "draws", k))
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
        names, rank, pit, contraction, levels, covered, sentence, int(simulated.failed.sum())
    )


def inside_band(pit: Tensor, alpha: float, repeats: int = 2_000) -> bool:
    """Whether the ECDF of `pit` stays inside the simultaneous band of level 1 - alpha.

    The pointwise level is tuned by simulation of uniform samples (Säilynoja, Bürkner and Vehtari,
    Statistics and Computing 32 (2022) 32).
    """
    count = len(pit)
    grid = np.arange(1, 100) / 100
    uniform = np.sort(np.random.default_rng(0).random((repeats, count)), axis=1)
    smallest = np.sort([_smallest_tail(row, grid, count) for row in uniform])
    threshold = smallest[int(alpha * repeats)]
    return bool(_smallest_tail(np.sort(pit.numpy()), grid, count) >= threshold)


def _smallest_tail(ordered: np.ndarray, grid: np.ndarray, count: int) -> float:
    below = np.searchsorted(ordered, grid, side="right")
    low, high = binom.cdf(below, count, grid), binom.sf(below - 1, count, grid)
    return float(np.minimum(low, high).min())
