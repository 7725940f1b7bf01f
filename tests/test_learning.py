"""How an estimator learns: who makes a batch, what is recorded, what a resumed training gives."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ampost import Estimator, Model, ProxySettings, Refining, Schedule, Settings, plots, refining, train
from ampost import bank as banks
from ampost.architecture import Architecture
from ampost.errors import BankError, EstimatorError, FileError, TrainingError
from ampost.learning import EXACT, Batches, train_estimator
from ampost.ode.problem import OdeProblem, Trajectory
from ampost.proxy import Proxy, train_proxy
from ampost.tokens import scaling_of
from ampost.zoo import monod_batch

SMALL = Architecture(width=16, context=8, transforms=1, hidden=16)
REFINING = Refining(1_000, Schedule(steps=30, validate_every=10), batch=64)
TINY = Settings(600, Schedule(steps=40, validate_every=10), 64, SMALL, REFINING)
BRIEF = ProxySettings(width=16, trunk=8, batch=16, schedule=Schedule(20, validate_every=10))


@pytest.fixture(scope="module")
def stored(kinetics: Model) -> banks.Bank:
    return banks.build(kinetics, 600, 0, show=False)


@pytest.fixture(scope="module")
def proxy(kinetics: Model, stored: banks.Bank) -> Proxy:
    return train_proxy(kinetics, stored, BRIEF, 0, show=False)


def test_the_last_part_of_training_is_exact(kinetics: Model, stored: banks.Bank, proxy: Proxy) -> None:
    settings = replace(TINY, proxy=BRIEF, proxy_share=1.0)
    scaling = scaling_of(kinetics.channels, kinetics.design, kinetics.simulate(300, 1).experiments)
    batches = Batches(kinetics, stored, settings, scaling, proxy, seed=0)
    assert batches.by_proxy(0, 0.0)
    assert batches.by_proxy(2, 16 / 40)
    assert not batches.by_proxy(3, 24 / 40)  # it would end at 32 of 40 steps
    assert not batches.by_proxy(3, EXACT)
    known = {tuple(row) for row in stored.window(0, 0).z.float().tolist()}

    def of_the_bank(k: int, done: float) -> float:
        rows = torch.cat([part.z for part in batches(k, done)]).tolist()
        return sum(tuple(row) in known for row in rows) / len(rows)

    assert of_the_bank(0, 0.0) == 0.0
    assert of_the_bank(38, 0.95) == 1.0


def test_a_batch_is_a_function_of_its_number(kinetics: Model, stored: banks.Bank) -> None:
    scaling = scaling_of(kinetics.channels, kinetics.design, kinetics.simulate(300, 1).experiments)
    one, two = (Batches(kinetics, stored, TINY, scaling, None, seed=0) for _ in range(2))
    for k in (0, 1, 9, 2):
        one(k, 0.0)
    for left, right in zip(one(5, 0.1), two(5, 0.1), strict=True):
        assert torch.equal(left.z, right.z)
        assert all(torch.equal(a, b) for a, b in zip(left.seen, right.seen, strict=True))
    assert not torch.equal(one(5, 0.1)[0].z, one(6, 0.1)[0].z)


def test_reconstruction_and_the_proxy_are_recorded(kinetics: Model, tmp_path: Path) -> None:
    settings = replace(TINY, proxy=BRIEF, proxy_share=1.0, reconstruction=True)
    made = train(kinetics, settings, seed=0, progress=False)
    assert made.teaching.proxy_share == pytest.approx(0.6)  # three of five passes of eight batches
    assert made.teaching.proxy_error > 0
    made.save(tmp_path / "x.ampost")
    data = kinetics.simulate(3, 1).experiments
    near = made.nearest(data)
    assert near.shape == (3, 3)
    assert torch.equal(Estimator.load(tmp_path / "x.ampost").nearest(data), near)


def test_without_reconstruction_there_is_no_nearest(kinetics: Model, trained: Estimator) -> None:
    with pytest.raises(EstimatorError, match="without a reconstruction loss"):
        trained.nearest(kinetics.simulate(1, 1).experiments)
    with pytest.raises(EstimatorError, match="there is none; add proxy"):
        replace(TINY, reconstruction=True)


def test_the_density_about_the_mode_is_sharper(trained: Estimator) -> None:
    assert trained.refining is not None
    assert trained.refining.best < trained.report.best - 1.0
    assert math.isfinite(trained.teaching.overfitting)
    assert trained.solves > 4_000


class Cut(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [3, 25, 47])
def test_a_training_that_was_cut_off_gives_the_same(
    kinetics: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Cut at a step of the first density, or (after its 40) of the one about the mode."""
    from ampost import training

    whole = train(kinetics, TINY, seed=0, progress=False)
    step, count = training._step, 0

    def counted(*given: object) -> float:
        nonlocal count
        count += 1
        if count == at:
            raise Cut
        return step(*given)  # type: ignore[arg-type]

    part = tmp_path / "x.part"
    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", counted)
        with pytest.raises(Cut):
            train(kinetics, TINY, seed=0, progress=False, bank=tmp_path / "bank", checkpoint=part)
    again = train(kinetics, TINY, seed=0, progress=False, bank=tmp_path / "bank", checkpoint=part)
    assert again.report.validation == whole.report.validation
    mine, theirs = again.networks.state_dict(), whole.networks.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("at", [25, 42, 55])
def test_a_training_that_was_interrupted_goes_on_to_the_same(
    kinetics: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Modes that were sought with the networks of an interrupted training are not those of the whole one."""
    from ampost import training

    whole = train(kinetics, TINY, seed=0, progress=False)
    step, count, part = training._step, 0, tmp_path / "x.part"

    def counted(*given: object) -> float:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return step(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", counted)
        stopped = train(kinetics, TINY, seed=0, progress=False, checkpoint=part)
    assert stopped.interrupted
    assert (stopped.refining is None) == (at < 44)  # the density about the mode is validated three steps on
    assert math.isfinite(stopped.loss)
    assert part.exists()
    longer = replace(TINY, schedule=replace(TINY.schedule, seconds=1e6))
    again = train(kinetics, longer, seed=0, progress=False, checkpoint=part)
    assert not again.interrupted
    mine, theirs = again.networks.state_dict(), whole.networks.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not list(tmp_path.glob("x.*"))


def test_an_interrupt_while_modes_are_sought_keeps_the_first_density(
    kinetics: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(kinetics, TINY, seed=0, progress=False)
    part = tmp_path / "x.part"
    with monkeypatch.context() as patch:
        patch.setattr(refining, "about_mode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        stopped = train(kinetics, TINY, seed=0, progress=False, checkpoint=part)
    assert stopped.interrupted
    assert stopped.refining is None
    data = kinetics.simulate(3, 0).experiments
    assert stopped.sample(stopped.reading(kinetics, data), 5, 0).shape == (5, 3, 3)
    again = train(kinetics, TINY, seed=0, progress=False, checkpoint=part)
    mine, theirs = again.networks.state_dict(), whole.networks.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_an_interrupted_proxy_teaches_nobody_and_goes_on(
    kinetics: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ampost import training

    settings = replace(TINY, proxy=BRIEF)
    whole = train(kinetics, settings, seed=0, progress=False)
    step, count, part = training._step, 0, tmp_path / "x.part"

    def counted(*given: object) -> float:
        nonlocal count
        count += 1
        if count == 15:
            raise KeyboardInterrupt
        return step(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", counted)
        with pytest.raises(KeyboardInterrupt):
            train(kinetics, settings, seed=0, progress=False, checkpoint=part)
    assert (tmp_path / "x.proxy").exists()
    out = tmp_path / "x.ampost"
    again = train(kinetics, settings, seed=0, progress=False, checkpoint=part, out=out)
    assert {path.name for path in tmp_path.iterdir()} == {"x.ampost", "x.proxy.ampost"}
    Proxy.load(tmp_path / "x.proxy.ampost").belongs_to(kinetics)
    assert again.teaching.proxy_error == whole.teaching.proxy_error
    assert again.report.validation == whole.report.validation


def test_an_estimator_is_written_before_its_checkpoint_goes(
    kinetics: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, out = tmp_path / "x.part", tmp_path / "x.ampost"

    def full(*_: object) -> None:
        raise FileError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Estimator, "save", full)
        with pytest.raises(FileError, match="no room"):
            train(kinetics, TINY, seed=0, progress=False, checkpoint=part, out=out)
    assert part.exists()
    train(kinetics, TINY, seed=0, progress=False, checkpoint=part, out=out)
    assert Estimator.load(out).loss < 10
    assert [path.name for path in tmp_path.iterdir()] == ["x.ampost"]
    with pytest.raises(FileError, match="a folder that is not there"):
        train(kinetics, TINY, seed=0, progress=False, out=tmp_path / "none" / "x.ampost")


def test_what_belongs_to_another_model_teaches_nothing(kinetics: Model, tmp_path: Path) -> None:
    other = monod_batch.model()
    bank = banks.build(other, 100, 0, tmp_path / "bank", show=False)
    with pytest.raises(BankError, match="simulated for another model"):
        train_proxy(kinetics, bank, BRIEF)
    with pytest.raises(BankError, match="simulated for another model"):
        train_estimator(kinetics, bank, TINY, 0)
    own = banks.build(kinetics, 600, 0, show=False)
    proxy = train_proxy(other, bank, BRIEF, show=False)
    with pytest.raises(EstimatorError, match="proxy was trained for another model"):
        train_estimator(kinetics, own, replace(TINY, proxy=BRIEF), 0, proxy=proxy)


def test_rows_at_which_the_proxy_fails_teach_nothing(
    kinetics: Model, stored: banks.Bank, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, proxy=BRIEF, proxy_share=1.0)
    scaling = scaling_of(kinetics.channels, kinetics.design, kinetics.simulate(300, 1).experiments)
    answer = Proxy.__call__
    seen = list[torch.Tensor]()

    def fails(self: Proxy, problem: OdeProblem) -> Trajectory:
        given = answer(self, problem)
        status = torch.zeros_like(given.status)
        status[::2] = 1
        seen.append(status)
        return replace(given, status=status)

    with monkeypatch.context() as patch:
        patch.setattr(Proxy, "__call__", fails)
        taken = Batches(kinetics, stored, settings, scaling, proxy, seed=0)._drawn(0, True)
    assert len(seen) == 1
    assert len(taken.z) == len(seen[0]) == taken.data.batch[0]
    assert 2 * len(taken.z.unique(dim=0)) == len(taken.z)
    with monkeypatch.context() as patch:
        patch.setattr(Proxy, "__call__", lambda self, p: replace(answer(self, p), status=1 + 0 * seen[0]))
        with pytest.raises(TrainingError, match="all 512 data sets drawn by the proxy failed"):
            Batches(kinetics, stored, settings, scaling, proxy, seed=0)(0, 0.0)


def test_too_few_data_sets_to_refine_are_refused() -> None:
    for kind, refused in ((Settings, EstimatorError), (Refining, TrainingError)):
        with pytest.raises(refused, match=f"{kind.__name__}\\(batch=65\\): expected an even number"):
            kind(batch=65)
    with pytest.raises(TrainingError, match="expected at least 1024 data sets"):
        Refining(datasets=500)


def test_learning_curves_are_drawn(trained: Estimator) -> None:
    figure = plots.learning(trained)
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["given the context", "about the mode"]
