"""The loop: resume, recovery, parts, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ampost import training
from ampost.errors import TrainingError
from ampost.training import FitReport, Schedule, fit

SCHEDULE = Schedule(steps=60, validate_every=7)


class Cut(Exception):
    """Stands for a kill."""


def batch(k: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(k))
    return x, x.prod(-1, keepdim=True)


def run(
    schedule: Schedule = SCHEDULE,
    checkpoint: Path | None = None,
    stop: dict[int, BaseException] | None = None,
    spoilt: tuple[int, ...] = (),
    parts: int = 2,
    identity: str = "",
) -> tuple[FitReport, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))
    started = False

    def batch_at(k: int, done: float) -> list[tuple[Tensor, Tensor]]:
        nonlocal started
        if started and k in (stop or {}):
            raise (stop or {})[k]
        started = True
        x, y = batch(k)
        y = y * torch.nan if k in spoilt else y
        return list(zip(x.chunk(parts), y.chunk(parts), strict=True))

    def loss(module: Any, part: tuple[Tensor, Tensor], done: float) -> Tensor:
        return (module(part[0]) - part[1]).square().mean()

    x, y = batch(10**6)

    def validation() -> float:
        return float((net(x) - y).square().mean())

    report = fit(net, loss, batch_at, validation, schedule, checkpoint=checkpoint, identity=identity)
    return report, torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("at", [3, 7, 33, 59])
def test_a_training_that_was_cut_off_gives_the_same(tmp_path: Path, at: int) -> None:
    whole, weights = run()
    with pytest.raises(Cut):
        run(checkpoint=tmp_path / "x.part", stop={at: Cut()})
    again, same = run(checkpoint=tmp_path / "x.part")
    assert torch.equal(weights, same)
    assert again.training == whole.training
    assert again.validation == whole.validation


def test_another_trainings_checkpoint_is_refused(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    run(checkpoint=part)
    for other in ({"schedule": Schedule(steps=61, validate_every=7)}, {"identity": "another"}):
        with pytest.raises(TrainingError, match=r"x\.part' is of another training.*delete it"):
            run(checkpoint=part, **other)  # type: ignore[arg-type]
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(TrainingError, match=r"cannot go on: .*damaged.*delete the checkpoint to start anew"):
        run(checkpoint=part)


def test_a_loss_that_is_not_finite_once_is_got_over() -> None:
    report, weights = run(spoilt=(20,))
    assert report.returns == 1
    assert report.steps == 60
    assert bool(torch.isfinite(weights).all())
    assert report.best < report.validation[0]


def test_a_validation_that_is_not_finite_goes_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that overflow between two validations are left behind, and never become a checkpoint."""
    step, count = training._step, 0

    def spoiling(loop: Any, *rest: Any) -> float:
        nonlocal count
        count += 1
        value = step(loop, *rest)
        if count == 13:  # the step before the second validation
            with torch.no_grad():
                next(iter(loop.module.parameters())).fill_(3e38)
        return value

    monkeypatch.setattr(training, "_step", spoiling)
    report, weights = run(Schedule(steps=60, validate_every=7), checkpoint=tmp_path / "x.part")
    assert report.returns >= 1
    assert bool(torch.isfinite(weights).all())
    assert report.best < report.validation[0]


def test_an_interrupt_before_the_first_validation_can_go_on(tmp_path: Path) -> None:
    whole, weights = run()
    run(checkpoint=tmp_path / "x.part", stop={3: KeyboardInterrupt()})
    assert (tmp_path / "x.part").exists()
    again, same = run(checkpoint=tmp_path / "x.part")
    assert torch.equal(weights, same)
    assert again.validation == whole.validation


@pytest.mark.parametrize("wrong", [{"validate_every": 0}, {"patience": 0}, {"rate": -1.0}, {"clip": 0.0}])
def test_a_schedule_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=rf"Schedule\({next(iter(wrong))}="):
        Schedule(**wrong)


def test_a_bad_step_where_a_validation_was_due_does_not_lose_it() -> None:
    report, _ = run(Schedule(steps=7, validate_every=7), spoilt=(6,))
    assert report.returns == 1
    assert math.isfinite(report.best)


@pytest.mark.parametrize("steps", [5, 60])
def test_a_loss_that_is_never_finite_is_refused(steps: int) -> None:
    with pytest.raises(TrainingError, match=r"not finite.*lower rate"):
        run(Schedule(steps=steps, validate_every=7), spoilt=tuple(range(100)))


def test_parts_give_the_gradient_of_the_whole() -> None:
    halves, one = run(Schedule(steps=5))[1], run(Schedule(steps=5), parts=1)[1]
    torch.testing.assert_close(halves, one, rtol=1e-3, atol=1e-4)


def test_an_interrupt_keeps_the_best_weights() -> None:
    report, weights = run(stop={30: KeyboardInterrupt()})
    assert report.interrupted
    assert report.steps == 30
    early, before = run(stop={3: KeyboardInterrupt()})
    assert early.interrupted
    assert not torch.equal(before, weights)


def test_training_stops_where_nothing_is_gained() -> None:
    report, _ = run(Schedule(steps=5_000, rate=1e-9, validate_every=2, patience=3))
    assert report.steps < 200


def test_a_schedule_without_a_step_is_refused() -> None:
    with pytest.raises(TrainingError, match="makes no step"):
        run(Schedule(steps=0))
