"""Optima of the exact log joint in z by scipy's BFGS with exact gradients; the one door to scipy.optimize.

Starts run in lockstep: each BFGS lives in its own thread, and all gradients that they ask for at
the same moment are one batched call, made by the calling thread alone.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]

WALL = 1e10  # how far minus the log joint is above that at a search's start where it is not finite
FLAT = 1e-6  # curvature below which a direction has none, where that of the prior is about one


@dataclass(frozen=True)
class Optimum:
    """One end of a search: z, its log joint, whether BFGS converged, gradients spent.

    `failed` says that the log joint is not finite at z.
    """

    z: Tensor
    log_joint: float
    converged: bool
    gradients: int
    failed: bool = False


def maximise(
    log_joint: LogDensity, starts: Tensor, most: int = 200, finished: Callable[[], None] = lambda: None
) -> list[Optimum]:
    """BFGS from every row of `starts` (start, z) on `log_joint(z (draw, z)) -> (draw,)`; best first.

    `finished` is called as each search ends.
    """
    asked: queue.Queue[tuple[int, Array | None]] = queue.Queue()
    answers: list[queue.Queue[tuple[float, Array]]] = [queue.Queue() for _ in starts]
    found: list[Optimum | None] = [None] * len(starts)

    def search(k: int) -> None:
        begun: list[float] = []

        def objective(x: Array) -> tuple[float, Array]:
            asked.put((k, x.copy()))
            value, slope = answers[k].get()
            begun.append(value)
            return (value if np.isfinite(value) else _wall(begun[0])), slope

        try:
            end = minimize(
                objective,
                starts[k].numpy(),
                jac=True,
                method="BFGS",
                options={"maxiter": most, "gtol": 1e-4},
            )
            close = bool(np.linalg.norm(end.jac) < 1e-2 * (1 + abs(end.fun)))
            lost = not np.isfinite(begun[0])  # with a gradient of zero the search stays where it began
            found[k] = Optimum(
                torch.as_tensor(end.x),
                -torch.inf if lost else -float(end.fun),
                (bool(end.success) or close) and not lost,
                int(end.nfev),
                lost,
            )
        finally:
            asked.put((k, None))

    threads = [threading.Thread(target=search, args=(k,), daemon=True) for k in range(len(starts))]
    with warnings.catch_warnings():
        # a search that ends there is kept with `converged` false
        warnings.filterwarnings("ignore", "The line search algorithm did not converge")
        for thread in threads:
            thread.start()
        _serve(log_joint, asked, answers, finished)
    return sorted((f for f in found if f is not None), key=lambda f: -f.log_joint)


def _serve(
    log_joint: LogDensity,
    asked: queue.Queue[tuple[int, Array | None]],
    answers: list[queue.Queue[tuple[float, Array]]],
    finished: Callable[[], None],
) -> None:
    """Answer the searches until all have ended, one batched call whenever all of them wait."""
    running = len(answers)
    waiting: dict[int, Array] = {}
    while running:
        k, x = asked.get()
        if x is None:
            running -= 1
            finished()
        else:
            waiting[k] = x
        if waiting and len(waiting) == running:
            for one, answer in zip(waiting, _gradients(log_joint, list(waiting.values())), strict=True):
                answers[one].put(answer)
            waiting = {}


def _wall(begun: float) -> float:
    """What a search sees where the log joint is not finite; a likelihood far from the data is high itself."""
    return WALL + 2 * abs(begun) if np.isfinite(begun) else WALL


def _gradients(log_joint: LogDensity, points: list[Array]) -> list[tuple[float, Array]]:
    """Minus log joint and its gradient at every point; infinite, with gradient zero, where it is not finite."""
    z = torch.as_tensor(np.stack(points)).requires_grad_()
    value = log_joint(z)
    (slope,) = torch.autograd.grad(torch.where(torch.isfinite(value), value, 0.0).sum(), z)
    good = torch.isfinite(value.detach()) & torch.isfinite(slope).all(1)
    return [
        (-float(v), -g.numpy()) if ok else (np.inf, np.zeros(len(g)))
        for v, g, ok in zip(value.detach(), slope, good, strict=True)
    ]


def hessian(log_joint: LogDensity, z: Tensor, step: float = 1e-3) -> Tensor:
    """Minus the Hessian of the log joint at z (z,), by central differences of the gradient."""
    size = len(z)
    moves = torch.cat([torch.eye(size), -torch.eye(size)]).double() * step
    points = (z + moves).requires_grad_()
    (slope,) = torch.autograd.grad(log_joint(points).sum(), points)
    matrix = -(slope[:size] - slope[size:]) / (2 * step)
    return (matrix + matrix.T) / 2


def laplace(log_joint: LogDensity, z: Tensor) -> Tensor | None:
    """Covariance of the normal approximation at an optimum; None of a singular or indefinite Hessian."""
    matrix = hessian(log_joint, z)
    if not bool(torch.isfinite(matrix).all()):
        return None
    values, vectors = torch.linalg.eigh(matrix)
    if float(values.min()) <= FLAT:
        return None
    covariance: Tensor = vectors @ torch.diag(1 / values) @ vectors.T
    return covariance
