"""The one training loop: fresh batches by number, one-cycle schedule, validation, early stop, resume.

A batch comes in parts. Each part has its own thread and replica of the module, which shares its weights; their
gradients are averaged in order, so that the result does not depend on which thread is faster.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ampost import files
from ampost.errors import CheckpointError, FileError, TrainingError
from ampost.progress import Bar, progress

Weights = dict[str, Tensor]
RETURNS = 8  # to the last good checkpoint, before training gives up
REMEDY = (
    "look for values of the data or of the states that are huge or not finite (ampost check), or train at a "
    "lower rate (Schedule(rate=...))"
)
CURVE = 500  # points kept of the training losses


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

    def __post_init__(self) -> None:
        for name in ("validate_every", "patience"):
            if getattr(self, name) < 1:
                raise TrainingError(f"Schedule({name}={getattr(self, name)}): expected at least 1")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"Schedule({name}={getattr(self, name)}): expected a positive number")


@dataclass(frozen=True)
class FitReport:
    """What happened: losses, the best validation loss, returns to a good checkpoint, whether interrupted.

    A value of `training` is the mean over `training_every` steps; `validation` has one per `validation_every`
    steps and one at the end.
    """

    steps: int
    seconds: float
    training: tuple[float, ...]
    validation: tuple[float, ...]
    best: float
    interrupted: bool
    training_every: int = 1
    validation_every: int = 1
    returns: int = 0


@dataclass(frozen=True)
class _State:
    """All that the loop knows after a step; with it training goes on as if it had never stopped."""

    weights: Weights
    moments: Weights
    kept: Weights
    step: int = 0
    stale: int = 0
    returns: int = 0
    finished: bool = False
    seconds: float = 0.0
    best: float = math.inf
    losses: tuple[float, ...] = ()
    checks: tuple[float, ...] = ()


@dataclass
class _Loop:
    """The moving parts: the module, its replicas and optimiser, and the losses so far."""

    module: nn.Module
    replicas: list[nn.Module]
    optimiser: torch.optim.Optimizer
    state: _State
    losses: list[float] = field(default_factory=list)

    def snapshot(self, **changes: Any) -> _State:
        """The state now."""
        changes |= {"weights": _copy(self.module), "moments": _moments(self.module, self.optimiser)}
        return replace(self.state, losses=tuple(self.losses), **changes)

    def back_to(self, state: _State) -> None:
        """Weights and moments as they were in `state`."""
        self.module.load_state_dict(state.weights)
        _set_moments(self.module, self.optimiser, state.moments)


def fit(
    module: nn.Module,
    loss: Callable[[Any, Any, float], Tensor],
    batch_at: Callable[[int, float], Sequence[Any]],
    validation: Callable[[], float],
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    identity: str = "",
    what: str = "training",
    show: bool | None = None,
) -> FitReport:
    """Minimise the mean over parts of `loss(module, part, progress)`; the best weights are kept.

    `batch_at(k, progress)` must be a function of its arguments alone, and so must the loss. A loss or gradient
    that is not finite takes the module back to its last good state, and the rate is halved. An interrupt
    (Ctrl-C) ends training early and keeps the best weights so far.

    Args:
        module: what is trained.
        loss: of the module (or a replica), one part of a batch, and the share of the schedule that is done.
        batch_at: the parts of batch k, equally large, where a share of the schedule is done.
        validation: a loss to choose weights by.
        schedule: how long and how fast.
        checkpoint: a file that is written at each validation and at the end, and gone on from where it is
            there. After a kill at any moment the result is the same as without, unless the schedule goes by
            seconds.
        identity: what, beside module and schedule, must be the same to go on from a checkpoint.
        what: is being done, for the progress bar.
        show: a progress bar, or not; by default on a terminal.

    Raises:
        TrainingError: the loss is not finite time and again, or the checkpoint is of another training.
    """
    if schedule.steps < 1 or not schedule.seconds > 0:
        raise TrainingError(
            f"a schedule of {schedule.steps} steps and {schedule.seconds:g} seconds makes no step; allow more"
        )
    optimiser = torch.optim.AdamW(module.parameters(), lr=schedule.rate, weight_decay=1e-4, fused=True)
    start = _State(_copy(module), _moments(module, optimiser), _copy(module))
    mark = _mark(module, schedule, identity)
    if checkpoint is not None and checkpoint.exists():
        start = _read(checkpoint, mark)
    with half_of_the_cores():
        first = min(start.step, schedule.steps - 1)
        parts = len(batch_at(first, first / schedule.steps))
        loop = _Loop(module, [_replica(module) for _ in range(parts)], optimiser, start, list(start.losses))
        loop.back_to(start)
        with progress(what, schedule.steps, show) as bar, ThreadPoolExecutor(parts) as pool:
            bar.advance(start.step)
            save = None if checkpoint is None else lambda state: _write(checkpoint, mark, state)
            interrupted = not start.finished and _run(
                loop, loss, batch_at, validation, schedule, pool, bar, save
            )
    state = loop.state
    module.load_state_dict(state.kept)
    module.eval()
    every = max(1, len(state.losses) // CURVE)
    return FitReport(
        state.step,
        state.seconds,
        tuple(_means(state.losses, every)),
        state.checks,
        state.best,
        interrupted,
        every,
        schedule.validate_every,
        state.returns,
    )


@contextmanager
def half_of_the_cores() -> Iterator[None]:
    """Run a block on at most half of the cores: threads that wait for each other crawl on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, (os.cpu_count() or 2) // 2)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(
    loop: _Loop,
    loss: Callable[[Any, Any, float], Tensor],
    batch_at: Callable[[int, float], Sequence[Any]],
    validation: Callable[[], float],
    schedule: Schedule,
    pool: ThreadPoolExecutor,
    bar: Bar,
    save: Callable[[_State], None] | None,
) -> bool:
    """Steps to the end of the schedule; whether it was interrupted. The state is left in the loop."""
    began = time.monotonic() - loop.state.seconds
    good, unseen = loop.state, bool(loop.state.step % schedule.validate_every)
    try:
        while loop.state.step < schedule.steps and loop.state.stale < schedule.patience:
            state = loop.state
            done = max(state.step / schedule.steps, (time.monotonic() - began) / schedule.seconds)
            if done >= 1.0:
                break
            for group in loop.optimiser.param_groups:
                group["lr"] = schedule.rate * 0.5**state.returns * _one_cycle(done)
            value = _step(loop, loss, batch_at(state.step, done), done, schedule.clip, pool)
            loop.losses.append(value)
            loop.state = replace(state, step=state.step + 1, seconds=time.monotonic() - began)
            bar.advance()
            if not math.isfinite(value):
                loop.losses.pop()
                _refuse_often(loop.state, value)
                loop.back_to(good)
                loop.state = replace(loop.state, returns=state.returns + 1)
                unseen = good.best == math.inf
            elif loop.state.step % schedule.validate_every:
                unseen = True
            else:
                loop.state = _validated(loop, validation, bar)
                unseen = False
                if not math.isfinite(loop.state.checks[-1]):
                    _refuse_often(loop.state, loop.state.checks[-1])
                    loop.back_to(good)
                    loop.state = replace(loop.state, returns=loop.state.returns + 1)
                    continue
                good = loop.state
                if save is not None:
                    save(good)
    except KeyboardInterrupt:
        if save is not None:
            save(good)
        kept = _copy(loop.module) if loop.state.best == math.inf else loop.state.kept
        loop.state = replace(loop.state, losses=tuple(loop.losses), kept=kept)
        return True
    if loop.losses and unseen:
        loop.state = _validated(loop, validation, bar)
    if not loop.losses and loop.state.returns:
        raise TrainingError(f"the loss was not finite in any of {loop.state.step} steps; {REMEDY}")
    if not loop.losses:
        raise TrainingError(f"training made no step in {schedule.seconds:g} seconds; allow more")
    if loop.state.best == math.inf:
        raise TrainingError(f"the validation loss was never finite in {loop.state.step} steps; {REMEDY}")
    loop.state = replace(loop.state, finished=True)
    if save is not None:
        save(loop.state)
    return False


def _step(
    loop: _Loop,
    loss: Callable[[Any, Any, float], Tensor],
    parts: Sequence[Any],
    done: float,
    clip: float,
    pool: ThreadPoolExecutor,
) -> float:
    """One step on a batch; its loss, which is not finite where the weights were left alone."""

    def one(replica: nn.Module, part: Any) -> float:  # noqa: ANN401
        replica.train()
        replica.zero_grad()
        value = loss(replica, part, done)
        value.backward()
        return float(value.detach())

    if len(parts) != len(loop.replicas):
        raise TrainingError(f"a batch has {len(parts)} parts, the first one had {len(loop.replicas)}")
    values = list(pool.map(one, loop.replicas, parts))
    mine = list(loop.module.parameters())
    theirs = [list(replica.parameters()) for replica in loop.replicas]
    for k, parameter in enumerate(mine):
        found = [other[k].grad for other in theirs]
        gradients = [gradient for gradient in found if gradient is not None]
        parameter.grad = torch.stack(gradients).sum(0) / len(theirs) if gradients else None
    norm = nn.utils.clip_grad_norm_(mine, clip)
    if not bool(torch.isfinite(norm)):
        return math.nan
    value = sum(values) / len(values)
    if math.isfinite(value):
        loop.optimiser.step()
    return value


def _refuse_often(state: _State, value: float) -> None:
    if state.returns >= RETURNS:
        raise TrainingError(
            f"the loss is {value:g} at step {state.step}, and was not finite {state.returns} times before, "
            f"at a rate halved each time; {REMEDY}"
        )


def _validated(loop: _Loop, validation: Callable[[], float], bar: Bar) -> _State:
    """The state after a validation, with the better weights kept."""
    loop.module.eval()
    with torch.no_grad():
        value = validation()
    bar.say(f"validation loss {value:.3f}")
    state = loop.snapshot(checks=(*loop.state.checks, value))
    if value < state.best:
        return replace(state, best=value, stale=0, kept=_copy(loop.module))
    return replace(state, stale=state.stale + 1)


def _one_cycle(done: float) -> float:
    """Up over the first tenth, then down along a cosine to 1 %."""
    if done < 0.1:
        return 0.1 + 0.9 * done / 0.1
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def _replica(module: nn.Module) -> nn.Module:
    """A copy that shares the module's weights but has gradients of its own."""
    twin = copy.deepcopy(module)
    for mine, theirs in zip(twin.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return twin


def _copy(module: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _moments(module: nn.Module, optimiser: torch.optim.Optimizer) -> Weights:
    """The optimiser's memory by "parameter/quantity"."""
    return {
        f"{name}/{key}": value.detach().clone()
        for name, parameter in module.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _set_moments(module: nn.Module, optimiser: torch.optim.Optimizer, moments: Weights) -> None:
    optimiser.state.clear()
    named = dict(module.named_parameters())
    for name, value in moments.items():
        parameter, key = name.rsplit("/", 1)
        optimiser.state[named[parameter]][key] = value.clone()


def _means(losses: Sequence[float], every: int) -> list[float]:
    return [sum(part) / len(part) for k in range(0, len(losses), every) if (part := losses[k : k + every])]


def digest(module: nn.Module) -> str:
    """What tells a trained module from others: the SHA-256 of its weights."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def _mark(module: nn.Module, schedule: Schedule, identity: str) -> str:
    """What tells one training from another."""
    shapes = [(name, tuple(value.shape)) for name, value in module.state_dict().items()]
    plan = {**asdict(schedule), "seconds": None}  # what is left of them changes where training goes on
    return hashlib.sha256(json.dumps([shapes, plan, identity]).encode()).hexdigest()


def _write(path: Path, mark: str, state: _State) -> None:
    header = {name: value for name, value in vars(state).items() if name not in ("weights", "moments", "kept")}
    header |= {"mark": mark, "best": state.best if math.isfinite(state.best) else None}
    parts = {"weights": state.weights, "moments": state.moments, "kept": state.kept}
    tensors = {f"{part} {name}": value for part, held in parts.items() for name, value in held.items()}
    files.save(path, "checkpoint", header, tensors)


def _read(path: Path, mark: str) -> _State:
    try:
        header, tensors = files.load(path, "checkpoint")
    except FileError as error:
        raise CheckpointError(f"training cannot go on: {error}; delete the checkpoint to start anew") from error
    if header.pop("mark") != mark:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} is of another training: its model, design, seed, networks or "
            f"schedule differ; delete it to start anew, or train as before to go on from it"
        )
    parts: dict[str, Weights] = {"weights": {}, "moments": {}, "kept": {}}
    for name, value in tensors.items():
        part, rest = name.split(" ", 1)
        parts[part][rest] = value
    best = math.inf if header["best"] is None else header["best"]
    lists = {"losses": tuple(header["losses"]), "checks": tuple(header["checks"])}
    return _State(**{**header, **parts, **lists, "best": best})
