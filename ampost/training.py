"""The one training loop: fresh batches by number, one-cycle schedule, validation, early stop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ampost.errors import TrainingError
from ampost.progress import progress


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: steps, peak learning rate, clipping, how often to validate.

    Training stops early after `patience` validations without a gain, and when `seconds` are over
    (the schedule is then shortened as it goes, so that the rate still falls to zero).
    """

    steps: int = 4_000
    rate: float = 2e-3
    clip: float = 2.0
    validate_every: int = 250
    patience: int = 12
    seconds: float = math.inf


@dataclass(frozen=True)
class FitReport:
    """What happened: losses by step, the best validation loss, and whether it was interrupted."""

    steps: int
    seconds: float
    training: tuple[float, ...]
    validation: tuple[float, ...]
    best: float
    interrupted: bool


def fit(
    module: nn.Module,
    loss: Callable[[Any, float], Tensor],
    batch_at: Callable[[int], Any],
    validation: Callable[[], float],
    schedule: Schedule,
    show: bool | None = None,
) -> FitReport:
    """Minimise `loss(batch_at(k), progress)` over the module; its best weights are kept.

    `batch_at(k)` must be a function of k alone. An interrupt (Ctrl-C) ends training early and
    keeps the best weights so far. A batch whose loss or gradient is not finite is skipped. Half of the cores
    are used: threads that wait for each other crawl on a busy machine.

    Raises:
        TrainingError: the loss was never finite.
    """
    with half_of_the_cores():
        return _fit(module, loss, batch_at, validation, schedule, show)


@contextmanager
def half_of_the_cores() -> Iterator[None]:
    """Run a block on at most half of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, (os.cpu_count() or 2) // 2)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    module: nn.Module,
    loss: Callable[[Any, float], Tensor],
    batch_at: Callable[[int], Any],
    validation: Callable[[], float],
    schedule: Schedule,
    show: bool | None,
) -> FitReport:
    optimiser = torch.optim.AdamW(module.parameters(), lr=schedule.rate, weight_decay=1e-4)
    began = time.monotonic()
    losses: list[float] = []
    checks: list[float] = []
    best, kept, stale, interrupted = math.inf, _copy(module), 0, False
    step, skipped = 0, 0
    with progress("training", schedule.steps, show) as bar:
        try:
            while step < schedule.steps:
                done = max(step / schedule.steps, (time.monotonic() - began) / schedule.seconds)
                if done >= 1.0:
                    break
                for group in optimiser.param_groups:
                    group["lr"] = schedule.rate * _one_cycle(done)
                module.train()
                value = loss(batch_at(step), done)
                optimiser.zero_grad()
                value.backward()
                norm = nn.utils.clip_grad_norm_(module.parameters(), schedule.clip)
                if bool(torch.isfinite(norm)) and bool(torch.isfinite(value)):
                    optimiser.step()
                    losses.append(float(value.detach()))
                else:
                    skipped += 1
                    if skipped > 50 and skipped > len(losses):
                        raise TrainingError(f"the loss was not finite in {skipped} of {step + 1} batches")
                step += 1
                bar.advance()
                if step % schedule.validate_every == 0:
                    checks.append(_validated(module, validation))
                    bar.say(f"validation loss {checks[-1]:.3f}")
                    stale = 0 if checks[-1] < best else stale + 1
                    if checks[-1] < best:
                        best, kept = checks[-1], _copy(module)
                    if stale >= schedule.patience:
                        break
        except KeyboardInterrupt:
            interrupted = True
    if step % schedule.validate_every and not interrupted:
        checks.append(_validated(module, validation))
        if checks[-1] < best:
            best, kept = checks[-1], _copy(module)
    if not losses:
        raise TrainingError("training made no step; allow more steps or seconds")
    module.load_state_dict(kept)
    module.eval()
    seconds = time.monotonic() - began
    return FitReport(
        step,
        seconds,
        tuple(losses[:: max(1, len(losses) // 500)]),
        tuple(checks),
        best,
        interrupted,
    )


def _one_cycle(done: float) -> float:
    """Up over the first tenth, then down along a cosine to 1 %."""
    if done < 0.1:
        return 0.1 + 0.9 * done / 0.1
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def _validated(module: nn.Module, validation: Callable[[], float]) -> float:
    module.eval()
    with torch.no_grad():
        return validation()


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
