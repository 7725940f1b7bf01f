"""What one would do without a network: Pyro's NUTS, and multi-start fitting; the same DataTree."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ampost import mcmc, results
from ampost.errors import ArgumentError
from ampost.experiments import Experiments
from ampost.impossible import culprits
from ampost.likeness import kept
from ampost.model import Model
from ampost.optimize import laplace, maximise
from ampost.potential import Potential
from ampost.progress import progress as progress_bar
from ampost.seeds import derive, seeded

TRIES = 20  # draws of the prior for each chain, of which the model may fail at some


def fit(
    model: Model, data: Experiments, starts: int = 10, seed: int = 0, progress: bool | None = None
) -> xr.DataTree:
    """Multi-start BFGS on the exact log joint in z from prior draws; all optima kept, best first.

    `posterior` holds 1,000 draws of the normal approximation at the best optimum (Laplace), or the
    optimum alone, repeated, where its Hessian is singular. Group `optima` (optimum, z) holds every end,
    whether it converged, and whether the model fails there (`failed`); `plots.waterfall` draws them. Where it
    fails at every start `computation` is "failed", `verdict` says why, with a warning, and `posterior` means
    nothing.
    """
    if starts < 1:
        raise ArgumentError(f"fit(starts={starts}): expected at least 1")
    data = model.prepare(data)
    began = time.monotonic()

    def joint(z: Tensor) -> Tensor:
        return model.log_joint(z[:, None], data)[:, 0]

    begin = model.simulate(starts, derive(seed, "starts"), data.without_values()).z
    with progress_bar("fitting", starts, progress) as bar:
        found = maximise(joint, begin, finished=bar.advance)
    best = found[0].z
    covariance = laplace(joint, best)
    with seeded(derive(seed, "laplace")):
        noise = torch.randn(1_000, len(best), dtype=torch.float64)
    factor = torch.zeros_like(torch.diag(best)) if covariance is None else torch.linalg.cholesky(covariance)
    label = "laplace" if covariance is not None else "optimum only: singular Hessian"
    failed = _nothing(model, data, begin, "the fit") if found[0].failed else {}
    tree = _tree(
        model,
        data,
        best + noise @ factor.T,
        {
            "seconds": time.monotonic() - began,
            "gradients": (gradients := sum(f.gradients for f in found) + 2 * len(best)),
            "solves": gradients * (1 + len(best)),
            "best_log_joint": found[0].log_joint,
            "map_z": results.by_label(model.parameters(best[None, None], data)),
            "computation": label,
            **failed,
        },
        seed,
    )
    ends = torch.stack([f.z for f in found]).numpy()
    tree["optima"] = xr.DataTree(
        xr.Dataset(
            {
                "z": (("optimum", "z_dim"), ends),
                "log_joint": (("optimum",), [f.log_joint for f in found]),
                "converged": (("optimum",), [f.converged for f in found]),
                "failed": (("optimum",), [f.failed for f in found]),
            }
        )
    )
    return tree


def nuts(
    model: Model,
    data: Experiments,
    draws: int = 500,
    warmup: int = 500,
    chains: int = 1,
    seed: int = 0,
    progress: bool | None = None,
    start: xr.DataTree | None = None,
) -> xr.DataTree:
    """Pyro's NUTS in z on the exact log joint (`Potential`), which runs no Pyro; chains one after another.

    Chains begin at draws of the prior or, warm, at draws of the posterior of a result `start`. `fit` has the
    largest R-hat (rank-normalised, NaN of short chains) and ArviZ's effective sizes. Where the log joint is not
    finite at any draw of the prior there is nothing to sample: `computation` is "failed", `verdict` says why,
    with a warning, and `posterior` means nothing.

    Raises:
        ArgumentError: a number below 1, or a result `start` of a model with other parameters.
    """
    for name, value in (("draws", draws), ("warmup", warmup), ("chains", chains)):
        if value < 1:
            raise ArgumentError(f"nuts({name}={value}): expected at least 1")
    data = model.prepare(data)
    began = time.monotonic()
    starts = _begin(model, data, chains, seed) if start is None else _drawn(start, chains)
    size = model.z_size(data.count)
    if starts.shape[1] != size:
        raise ArgumentError(
            f"nuts(start=...): its posterior has {starts.shape[1]} coordinates in z, this model and data have "
            f"{size}; give a result of this model and these data"
        )
    if not bool(torch.isfinite(_log_joint(model, data, starts)).any()):
        said: dict[str, Any] = {"seconds": time.monotonic() - began, "gradients": 0, "solves": len(starts)}
        said |= {"rhat": float("nan"), **_nothing(model, data, starts, "NUTS")}
        return _tree(model, data, starts.repeat(draws, 1)[: chains * draws], said, seed, chains)
    with progress_bar("NUTS", chains * (warmup + draws), progress) as bar:
        z, gradients = mcmc.nuts(Potential(model, data), starts[:chains], warmup, draws, seed, bar.advance)
    said = {
        "seconds": time.monotonic() - began,
        "gradients": gradients,
        "solves": gradients * (1 + size),
        "computation": "nuts",
        "rhat": _rhat(z),
    }
    tree = _tree(model, data, z.flatten(0, 1), said, seed, chains)
    return results.with_effective_size(tree)


def _rhat(z: Tensor) -> float:
    """The largest R-hat of the halves of chains (chain, draw, z), so that one chain has one too."""
    half = z.shape[1] // 2
    if half < 4:
        return float("nan")
    return float(mcmc.convergence(torch.cat([z[:, :half], z[:, -half:]]))[0].max())


def _begin(model: Model, data: Experiments, chains: int, seed: int) -> Tensor:
    """A draw of the prior for each chain; all that were tried where the log joint is finite at none."""
    drawn = model.simulate(TRIES * chains, derive(seed, "nuts"), data.without_values())
    good = torch.isfinite(_log_joint(model, data, drawn.z)).nonzero()[:, 0]
    return drawn.z[good[torch.arange(chains) % len(good)]] if len(good) else drawn.z


def _log_joint(model: Model, data: Experiments, z: Tensor) -> Tensor:
    """The log joint (draw,) at z (draw, z)."""
    with torch.no_grad():
        return model.log_joint(z[:, None], data)[:, 0]


def _nothing(model: Model, data: Experiments, z: Tensor, what: str) -> dict[str, str]:
    """Label and verdict where the log joint is finite at none of z (draw, z), after a warning."""
    why = f"{what} has nowhere to begin, and its draws mean nothing: {culprits(model, data, z)}"
    warnings.warn(why, stacklevel=3)
    return {"computation": "failed", "verdict": f"Computation: failed.\n  - {why[0].upper()}{why[1:]}."}


def _drawn(result: xr.DataTree, chains: int) -> Tensor:
    """A draw (chain, z) of a posterior for each chain, spread over it."""
    z = torch.as_tensor(results.values(result, "unconstrained_posterior", "z")).flatten(0, 1)
    return z[torch.linspace(0, len(z) - 1, chains).long()].contiguous()


def _tree(
    model: Model, data: Experiments, z: Tensor, said: dict[str, Any], seed: int, chains: int = 1
) -> xr.DataTree:
    reported = results.report(model, data, z, seed)
    prior = results.prior_draws(model, data, 500, derive(seed, "prior"))
    said.setdefault("best_log_joint", float(reported.scores.log_joint.max()))
    tree = results.build(model, data, z, reported, prior, said, chains=chains)
    tree["program"] = kept(model)
    return tree
