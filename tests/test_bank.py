"""The bank: shards that are functions of (seed, k), their dense output, and what goes wrong on the way."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from filelock import FileLock
from scipy.interpolate import CubicHermiteSpline
from typer.testing import CliRunner

from ampost import Design, Experiments, Model, between, observe, odeint
from ampost import bank as banks
from ampost.accuracy import located, noise_units
from ampost.banking import account
from ampost.cli import app
from ampost.errors import ArgumentError, BankError, FileError, FormatError, TrainingError, UnsupportedError
from ampost.experiments import Input
from ampost.knots import drawn, enough
from ampost.ode.compiled import Compiled
from ampost.ode.problem import OdeProblem, Trajectory
from ampost.plans import DosePlan, InputPlan, Looks
from ampost.shards import Track, interpolate
from ampost.zoo import lotka_volterra, michaelis_menten, monod_batch

LOOKS = Looks(tuple(0.1 * k for k in range(11)), (8, 11))


def decay(t, y, p) -> dict[str, torch.Tensor]:
    return {"A": -p.k * y.A}


def falling(experiments: Experiments) -> None:
    k = pyro.sample("k", between(0.1, 2.0))
    sigma = pyro.sample("sigma", between(0.01, 0.1))
    y = odeint(decay, {"A": 1.0}, {"k": k}, experiments)
    observe("A", dist.Normal(y.A, sigma), experiments)


def exploding(experiments: Experiments) -> None:
    k = pyro.sample("k", between(0.05, 2.0))
    sigma = pyro.sample("sigma", between(0.01, 0.1))
    y = odeint(lambda t, y, p: {"A": p.k * y.A**2}, {"A": 1.0}, {"k": k}, experiments)
    observe("A", dist.Normal(y.A, sigma), experiments)


def model_of(program, **design: Any) -> Model:
    settings = {"channels": {"A": LOOKS}, "conditions": {}, "experiments": (1, 1), "horizon": 1.0} | design
    return Model(program, Design(**settings), {"k": "1/h", "time": "h"})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of a hundred rows."""
    monkeypatch.setattr(banks, "ROWS", 100)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.ampost"))}


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x15
    path.write_bytes(raw)


# --------------------------------------------------------------------------------------- dense output


@pytest.mark.parametrize("zoo", [michaelis_menten, lotka_volterra, monod_batch], ids=lambda z: z.__name__[11:])
def test_what_the_bank_answers_is_the_exact_solution_within_a_fiftieth_of_the_noise(zoo) -> None:
    model = zoo.model()
    bank = banks.build(model, 400, seed=5, show=False)
    shard, rows = bank.window(0, 0), torch.arange(len(bank))
    looks = model.design.draw_looks(shard.protocols, seed=6)
    off = noise_units(model, shard.z, looks, Compiled(), shard.rows(rows))
    worst = torch.stack([v.nan_to_num(0.0).abs().amax(-1) for v in off.values()]).amax(0).flatten()
    assert float(worst.quantile(0.98)) < 0.02


def test_interpolation_is_a_cubic_hermite() -> None:
    random_numbers = np.random.default_rng(0)
    knots = np.sort(random_numbers.uniform(0.0, 1.0, (3, 2, 9)))
    states, slopes = (random_numbers.normal(5.0, 1.0, (3, 2, 9, 2)).astype(np.float32) for _ in range(2))
    track = Track(*map(torch.from_numpy, (knots, states, slopes)), names=("A", "B"))
    index = torch.tensor([2, 0, 2])
    times = np.sort(random_numbers.uniform(knots[index, :, :1], knots[index, :, -1:], (3, 2, 20)))
    found = interpolate(track, index, torch.from_numpy(times), torch.zeros(3, 2, 20).bool())
    for place, row in enumerate(index.tolist()):
        for e in range(2):
            exact = CubicHermiteSpline(knots[row, e], states[row, e], slopes[row, e])(times[place, e])
            np.testing.assert_allclose(found[place, e], exact, rtol=1e-6)


def test_a_look_at_a_dose_is_on_its_side_of_the_jump() -> None:
    def dosed(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.5, 2.0))
        y = odeint(decay, {"A": 0.0}, {"k": k}, experiments)
        observe("A", dist.Normal(y.A, 0.01), experiments)

    plans = tuple(DosePlan("A", (at - 0.2, at + 0.2), (10.0, 20.0)) for at in (1.0, 2.0, 2.1))
    model = model_of(dosed, horizon=4.0, doses=plans)
    shard = banks.build(model, 100, seed=1, show=False).window(0, 0)
    doses = shard.protocols.doses
    assert bool((shard.tracks["trajectory"].times.diff(dim=-1) >= 0).all())
    times = doses.time.sort(-1).values.repeat_interleave(2, -1)
    after = torch.tensor([False, True] * 3).expand(times.shape)
    looks = replace(shard.protocols, times=times, after_dose=after)
    looks = replace(looks, channels={"A": replace(model.design.draw(1, 0).channels["A"], mask=after | True)})
    mine, theirs = (
        model.simulate_at(shard.z, looks, 0, solver).experiments.channels["A"].values
        for solver in (shard.rows(torch.arange(100)), None)
    )
    assert mine is not None
    assert theirs is not None
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert bool((theirs[..., 1::2] - theirs[..., ::2] > 9.0).all())


def test_knots_are_as_many_as_the_noise_asks_for() -> None:
    smooth, swinging = model_of(falling), lotka_volterra.model()
    assert 3 * enough(smooth, 0) < enough(swinging, 0)
    errors = drawn(swinging, 200, 7, enough(swinging, 0)).errors
    assert float((errors < 0.02).double().mean()) >= 0.97
    assert float((drawn(swinging, 200, 7, 20).errors < 0.02).double().mean()) < 0.5


def test_programs_with_two_odes_plates_inputs_or_none_are_stored() -> None:
    def phases(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.5, 2.0))
        early = replace(
            experiments,
            times=torch.tensor([[0.0, 3.0]], dtype=torch.float64),
            after_dose=torch.zeros(1, 2).bool(),
        )
        before = odeint(decay, {"A": 5.0}, {"k": k}, early, name="before")
        y = odeint(decay, {"A": before.final.A}, {"k": 2 * k}, experiments)
        observe("A", dist.Normal(y.A, 0.01), experiments)

    def plated(experiments: Experiments) -> None:
        with pyro.plate("member", 3, dim=-3):
            k = pyro.sample("k", between(0.5, 2.0))
        y = odeint(decay, {"A": 5.0}, {"k": k}, experiments)
        observe("A", dist.Normal(y.A.sum(-3, keepdim=True), 0.01), experiments)

    def driven(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.5, 2.0))
        given = {"k": k, "F": experiments.inputs["feed"]}
        y = odeint(lambda t, y, p: {"A": p.F - p.k * y.A}, {"A": 5.0}, given, experiments)
        observe("A", dist.Normal(y.A, 0.01), experiments)

    def static(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.5, 2.0))
        observe("A", dist.Normal(k + 0 * experiments.times, 0.01), experiments)

    feed = InputPlan(((0.0, 0.3, 0.6), (0.0, 0.5)), ((1.0, 9.0, 0.0), (4.0, 2.0)), linear=False)
    models = [model_of(phases), model_of(plated), model_of(driven, inputs={"feed": feed}), model_of(static)]
    for model in models:
        shard = banks.build(model, 60, seed=2, show=False).window(0, 0)
        index = torch.randint(0, 60, (40,), generator=torch.Generator().manual_seed(0))
        looks = model.design.draw_looks(shard.protocols.at(index), seed=3)
        off = noise_units(model, shard.z[index], looks, model.solver, shard.rows(index))["A"]
        assert int(torch.isfinite(off).sum()) > 200, model.name
        assert float(off.nan_to_num(0.0).abs().max()) < 0.2, model.name
    with pytest.raises(ArgumentError, match=r"40 rows of a bank are asked for 60 trajectories .* expected 1"):
        models[0].simulate_at(
            shard.z, model.design.draw(60, 0), 0, banks.build(models[0], 60, 2).shard(0).rows(index)
        )


# ---------------------------------------------------------------------------------------------- noise


def test_units_of_the_noise_are_those_of_each_family() -> None:
    shape = (2, 1, 3)
    a, b = torch.full(shape, 2.0), torch.full(shape, 3.0)
    shift = [torch.distributions.AffineTransform(b, 2 * a)]
    known = {
        dist.Normal(a, b): (2.0, 3.0),
        dist.LogNormal(a, b): (2.0, 3.0),
        dist.Poisson(a): (2.0, 2.0**0.5),
        dist.Cauchy(a, b): (2.0, 3.0),
        dist.StudentT(1.5, a, b): (2.0, 3.0),
        dist.TransformedDistribution(dist.Normal(a, b), shift): (11.0, 12.0),
        dist.Normal(a, b).mask(torch.zeros(shape).bool()): (2.0, 3.0),
    }
    for noise, (centre, sd) in known.items():
        found = located(noise, shape)
        assert [v.shape for v in found] == [shape, shape]
        assert [float(v.flatten()[0]) for v in found] == pytest.approx([centre, sd]), noise

    class Odd(dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012

    with pytest.raises(UnsupportedError, match=r"noise Odd has no mean and sd"):
        located(Odd(shape), shape)


def test_units_are_nan_where_nothing_is_measured_or_a_solver_failed() -> None:
    model = model_of(exploding)
    sites = {site.name: site.start for site in model.sites()}
    z = torch.zeros(2, model.z_size(), dtype=torch.float64)
    z[1, sites["k"]] = 5.0
    looks = model.design.draw(2, seed=0)

    def half(problem: OdeProblem) -> Trajectory:
        answer = Compiled()(problem)
        return replace(answer, states=answer.states + 0.5)

    off = noise_units(model, z, looks, Compiled(), half)["A"]
    mask = looks.channels["A"].mask
    assert torch.equal(torch.isfinite(off[0]), mask[0])
    assert not bool(torch.isfinite(off[1]).any())
    sigma = model.parameters(z[:, None], looks)["sigma"].flatten()[0]
    torch.testing.assert_close(off[0][mask[0]], (0.5 / sigma).expand(int(mask[0].sum())))


# --------------------------------------------------------------------------------------------- shards


@pytest.mark.usefixtures("small")
def test_a_bank_that_grows_is_the_bank_that_was_large_at_once(tmp_path: Path) -> None:
    model = model_of(falling)
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    first = banks.build(model, 200, 3, grown, show=False)
    bank = banks.build(model, 400, 3, grown, show=False)
    banks.build(model, 400, 3, whole, show=False)
    assert shards(grown) == shards(whole)
    assert (len(first), len(bank), bank.solves, bank.failures) == (200, 400, 400, 0)
    again = banks.open_bank(grown)
    assert (again.origin, again.headers) == (bank.origin, bank.headers)
    assert len(banks.build(model, 200, 3, grown, show=False)) == 400
    other = banks.build(model, 200, 4, tmp_path / "other", show=False)
    assert not torch.equal(other.shard(0).z, bank.shard(0).z)
    with pytest.raises(ArgumentError, match="shard 4 of a bank of 4: expected 0 to 3"):
        bank.shard(4)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("backend", ["threading", "dask"])
def test_other_workers_make_the_same_shards(backend: str, tmp_path: Path) -> None:
    model = michaelis_menten.model()
    banks.build(model, 400, 3, tmp_path / "here", show=False)
    with _workers(backend):
        banks.build(model, 400, 3, tmp_path / "there", show=False)
    assert shards(tmp_path / "there") == shards(tmp_path / "here")


@contextmanager
def _workers(backend: str) -> Iterator[None]:
    """joblib set to two workers; those of Dask are processes of their own."""
    if backend != "dask":
        with joblib.parallel_config(backend, n_jobs=2):
            yield
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield


SCRIPT = """
import sys, joblib, torch
import pyro, pyro.distributions as dist
from ampost import Design, Model, bank, between, observe, odeint
from ampost.plans import Looks

torch.set_num_threads(1)

def decay(t, y, p):
    return {"A": -p.k * y.A}

def program(experiments):
    k, sigma = pyro.sample("k", between(0.1, 2.0)), pyro.sample("sigma", between(0.01, 0.1))
    y = odeint(decay, {"A": 1.0}, {"k": k}, experiments)
    observe("A", dist.Normal(y.A, sigma), experiments)

if __name__ == "__main__":
    bank.ROWS = 50
    looks = Looks(tuple(0.1 * k for k in range(11)), (8, 11))
    model = Model(program, Design({"A": looks}, {}, (1, 1), 1.0))
    print("ready", flush=True)
    with joblib.parallel_config(sys.argv[3], n_jobs=2):
        print(len(bank.build(model, int(sys.argv[2]), 3, sys.argv[1], show=False)), flush=True)
"""


def scripted(tmp_path: Path, folder: Path, rows: int, backend: str = "sequential") -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", str(script), str(folder), str(rows), backend]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_program_of_a_script_travels_to_other_processes(tmp_path: Path) -> None:
    runs = [scripted(tmp_path, tmp_path / name, 200, name) for name in ("sequential", "loky")]
    assert [run.communicate(timeout=120)[0].split() for run in runs] == [["ready", "200"]] * 2
    assert len(shards(tmp_path / "loky")) == 4
    assert shards(tmp_path / "loky") == shards(tmp_path / "sequential")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_bank_that_is_killed_goes_on_to_the_same_shards(kills: int, tmp_path: Path) -> None:
    whole, killed, moments = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    run = scripted(tmp_path, whole, 3_000)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    ready = time.perf_counter()
    assert run.communicate(timeout=120)[0] == "3000\n"
    taken = time.perf_counter() - ready
    for _ in range(kills):
        run = scripted(tmp_path, killed, 3_000)
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.0, taken / 2))
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
    (killed / ".shard-00001.ampost.left.ampost").write_bytes(b"half of a shard")
    assert scripted(tmp_path, killed, 3_000).communicate(timeout=120)[0] == "ready\n3000\n"
    assert shards(killed) == shards(whole)
    assert not list(killed.glob(".shard*"))


@pytest.mark.usefixtures("small")
def test_windows_are_functions_of_seed_and_step_and_meet_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = banks.build(model_of(falling), 700, 3, tmp_path, show=False)
    every = bank.window(0, seed=1)
    assert bank.window(12_345, seed=9) is every
    assert len(every) == 700
    torch.testing.assert_close(
        every.tracks["trajectory"].states[300:400], bank.shard(3).tracks["trajectory"].states
    )
    monkeypatch.setattr(banks, "WINDOW", 2.5 * (tmp_path / "shard-00000.ampost").stat().st_size)
    bank = banks.open_bank(tmp_path)
    epochs = [
        [bank.window(step, seed=1).z[:, 0] for step in range(start, start + 400, 100)] for start in (0, 400)
    ]
    for epoch in epochs:
        assert {len(z) for z in epoch} == {100, 200}
        torch.testing.assert_close(torch.cat(epoch).sort().values, every.z[:, 0].sort().values)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    assert bank.window(99, seed=1) is bank.window(0, seed=1)
    assert torch.equal(bank.window(299, seed=1).z[:, 0], epochs[0][2])
    assert not torch.equal(bank.window(299, seed=2).z, bank.window(299, seed=1).z)


def test_a_bank_without_a_folder_is_removed_with_it() -> None:
    bank = banks.build(model_of(falling), 50, 3, show=False)
    folder = bank.folder
    assert (folder / "shard-00000.ampost").is_file()
    del bank
    gc.collect()
    assert not folder.exists()


# -------------------------------------------------------------------------------------------- trouble


@pytest.mark.usefixtures("small")
def test_a_damaged_or_missing_shard_is_named_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(falling)
    banks.build(model, 400, 3, tmp_path, show=False)
    before = shards(tmp_path)
    damage(tmp_path / "shard-00002.ampost")
    bank = banks.open_bank(tmp_path)
    assert len(bank.shard(1)) == 100
    for read in (lambda: bank.shard(2), lambda: bank.window(0, 0)):
        with pytest.raises(FileError, match=r"shard-00002\.ampost' is damaged.*build\(.*same model and seed"):
            read()
    (tmp_path / "shard-00003.ampost").unlink()
    with pytest.raises(FileError, match=r"lacks 1 of 4 shards \(the first is 'shard-00003\.ampost'\)"):
        banks.open_bank(tmp_path)
    told = account(tmp_path)
    assert "200 rows in 2 of 4 shards" in told
    assert "shard-00002.ampost' is damaged" in told
    assert "there is no file" in told
    assert "to mend it" in told
    banks.build(model, 400, 3, tmp_path)
    assert "makes a shard again" in capsys.readouterr().err
    assert shards(tmp_path) == before
    assert "all shards are whole" in account(tmp_path)


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_named_and_what_is_finished_stays(tmp_path: Path) -> None:
    model = model_of(falling)
    banks.build(model, 100, 3, tmp_path, show=False)
    before = shards(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # writing fails in the middle of a file
    try:
        with pytest.raises(
            FileError, match=r"shard-00001\.ampost' cannot be written .* takes 0\.\d+ MB.* MB free"
        ):
            banks.build(model, 300, 3, tmp_path, show=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert shards(tmp_path) == before
    assert len(banks.build(model, 300, 3, tmp_path, show=False)) == 300


def test_a_bank_of_something_else_is_refused_by_what_differs(tmp_path: Path) -> None:
    model = model_of(falling)
    bank = banks.build(model, 50, 3, tmp_path / "bank", show=False)
    bank.belongs_to(model)
    faster = replace(model, design=replace(model.design, horizon=2.0))
    renamed = Model(exploding, model.design)
    refused = {
        r"another design: its horizon are 1\.0, those of 'falling' are 2\.0; give another folder": (faster, 3),
        r"another model, 'falling': its behaviour are .*; give another folder": (renamed, 3),
        r"another model, 'falling': 'michaelis_menten' cannot run": (michaelis_menten.model(), 3),
        r"with seed 3, this one is asked for seed 4; give the same seed": (model, 4),
    }
    for words, (other, seed) in refused.items():
        with pytest.raises(BankError, match=words):
            banks.build(other, 50, seed, bank.folder, show=False)
    with pytest.raises(BankError, match="another design"):
        bank.belongs_to(faster)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BankError, match=r"is to hold a bank, but holds '\w+.*' and no bank\.ampost"):
        banks.build(model, 50, 3, tmp_path, show=False)
    with pytest.raises(FileError, match=r"there is no bank in .*nowhere"):
        banks.open_bank(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="a bank of 0 rows"):
        banks.build(model, 0, 3)
    with (
        FileLock(str(bank.folder / ".lock")),
        pytest.raises(BankError, match="another process builds the bank"),
    ):
        banks.build(model, 50, 3, bank.folder, show=False)
    stranger = banks.build(model, 50, 4, tmp_path / "stranger", show=False)
    (bank.folder / "shard-00000.ampost").write_bytes((stranger.folder / "shard-00000.ampost").read_bytes())
    with pytest.raises(FileError, match=r"shard-00000\.ampost' is a shard of another bank"):
        banks.open_bank(bank.folder).shard(0)
    other = banks.build(michaelis_menten.model(), 50, 4, tmp_path / "other", show=False)
    (bank.folder / "shard-00000.ampost").write_bytes((other.folder / "shard-00000.ampost").read_bytes())
    told = account(bank.folder)  # its rows are not counted
    assert "0 rows in 0 of 1 shards, 0 simulations failed" in told
    assert "'shard-00000.ampost' is of another bank" in told


def test_a_bank_in_which_every_simulation_fails_is_no_bank(tmp_path: Path) -> None:
    def hopeless(experiments: Experiments) -> None:
        k = pyro.sample("k", between(1.5, 2.0))
        reach = torch.where(k > 0.0, 20.0, 1.0) if k.dim() > 1 else torch.tensor(1.0).double()
        y = odeint(lambda t, y, p: {"A": p.r * p.k * y.A**2}, {"A": 1.0}, {"k": k, "r": reach}, experiments)
        observe("A", dist.Normal(y.A, 0.1), experiments)

    model = model_of(hopeless, horizon=0.4, channels={"A": Looks((0.0, 0.2, 0.4), (3, 3))})
    for folder in (None, tmp_path / "bank"):
        with pytest.raises(TrainingError, match=r"all 50 simulations of 'hopeless' failed; narrow the prior"):
            banks.build(model, 50, 0, folder, show=False)
    with pytest.raises(FileError, match="there is no bank"):
        banks.open_bank(tmp_path / "bank")
    with pytest.raises(TrainingError, match=r"all 5000 simulations .*; narrow the prior. .*EXPLODED at time"):
        banks.build(model, 20_000, 0, tmp_path / "large", show=False)
    assert not list(tmp_path.glob("large/*.ampost"))


def test_a_model_that_fails_at_some_places_knows_its_bank_again(tmp_path: Path) -> None:
    def steep(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.5, 4.0))
        y = odeint(lambda t, y, p: {"A": p.k * y.A**2}, {"A": 1.0}, {"k": k}, experiments)
        observe("A", dist.Normal(y.A, 0.1), experiments)

    model = model_of(steep)
    assert "-inf" in model.fingerprint()["behaviour"]
    banks.build(model, 200, 0, tmp_path / "bank", show=False)
    assert len(banks.build(model, 200, 0, tmp_path / "bank", show=False)) > 50


def test_a_bank_with_a_damaged_shard_does_not_shrink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banks, "ROWS", 50)
    model = model_of(falling)
    bank = banks.build(model, 200, 0, tmp_path / "bank", show=False)
    (bank.folder / "shard-00000.ampost").write_bytes(b"")
    assert len(banks.build(model, 50, 0, bank.folder, show=False)) == len(bank) == 200


def test_a_bank_whose_own_file_is_lost_keeps_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banks, "ROWS", 50)
    model = model_of(falling)
    bank = banks.build(model, 150, 0, tmp_path / "bank", show=False)
    before = {path.name: path.read_bytes() for path in bank.folder.glob("*.ampost")}
    for damage in (lambda path: path.write_bytes(b"half"), Path.unlink):
        damage(bank.folder / banks.TOP)
        with pytest.raises(
            BankError, match=r"damaged or lost, and its shards are not those of 'falling' with seed 1"
        ):
            banks.build(model, 150, 1, bank.folder, show=False)
        again = banks.build(model, 50, 0, bank.folder, show=False)
        assert len(again) == 150
        assert {path.name: path.read_bytes() for path in bank.folder.glob("*.ampost")} == before


def test_a_shard_in_which_all_fails_does_not_stop_a_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banks, "ROWS", 2)
    model = model_of(exploding)
    bank = banks.build(model, 200, 1, tmp_path / "bank", show=False)
    empty = [k for k, header in enumerate(bank.headers) if not header["rows"]]
    assert empty
    assert len(bank.window(0, 0)) == len(bank) == 200 - bank.failures
    with pytest.raises(ArgumentError, match="has no rows: all of its simulations failed"):
        bank.shard(empty[0])
    assert "all shards are whole" in account(bank.folder)


def test_other_files_beside_shards_are_left_alone_and_a_file_is_no_folder(tmp_path: Path) -> None:
    model = model_of(falling)
    bank = banks.build(model, 20, 0, tmp_path / "bank", show=False)
    (bank.folder / "shard-extra.ampost").write_text("notes")
    assert len(banks.build(model, 20, 0, bank.folder, show=False)) == 20
    with pytest.raises(BankError, match="is to be the folder of a bank, but it is a file"):
        banks.build(model, 20, 0, bank.folder / "shard-extra.ampost", show=False)


def test_a_look_where_the_bank_knows_nothing_is_refused() -> None:
    """A program that asks for the last two looks only stores those; batches look elsewhere."""

    def late(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.1, 2.0))
        times, after = experiments.times[..., -2:], experiments.after_dose[..., -2:]
        y = odeint(decay, {"A": 1.0}, {"k": k}, replace(experiments, times=times, after_dose=after))
        observe("A", dist.Normal(y.A[..., -1:] + 0 * experiments.times, 0.1), experiments)

    model = model_of(late)
    shard = banks.build(model, 20, 0, show=False).shard(0)
    looks = model.design.draw_looks(shard.protocols, 1)
    with pytest.raises(BankError, match=r"looked at at time .*, and the bank knows .* for all of exp"):
        model.simulate_at(shard.z, looks, 0, solver=shard.rows(torch.arange(len(shard))))


def test_info_says_what_failed_and_where(tmp_path: Path) -> None:
    bank = banks.build(model_of(exploding), 600, 0, tmp_path / "bank", show=False)
    assert bank.failures > 20
    assert bank.reasons == {"EXPLODED": bank.failures}
    assert "ended as EXPLODED" in str(bank.examples[0])
    ran = CliRunner().invoke(app, ["bank", "info", str(bank.folder)])
    assert ran.exit_code == 0
    assert f"{len(bank):,} rows in 1 of 1 shards, {bank.failures} simulations failed" in ran.output
    assert f"{bank.failures} EXPLODED" in ran.output
    words = " ".join(ran.output.split())
    assert "at k " in words
    assert "1/h: the 9" in words
    assert "at sigma" not in words
    assert "all shards are whole" in words


def test_inputs_that_all_rows_share_are_stored_once(tmp_path: Path) -> None:
    def driven(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.5, 2.0))
        given = {"k": k, "F": experiments.inputs["feed"]}
        y = odeint(lambda t, y, p: {"A": p.F - p.k * y.A}, {"A": 5.0}, given, experiments)
        observe("A", dist.Normal(y.A, 0.01), experiments)

    times = tuple(k / 300 for k in range(300))
    plan = InputPlan((times,), (tuple(1.0 + t for t in times),), linear=True)
    model = model_of(driven, inputs={"feed": plan})
    bank = banks.build(model, 200, 0, tmp_path, show=False)
    signal = bank.window(0, 0).protocols.inputs["feed"]
    assert isinstance(signal, Input)
    assert signal.linear
    assert signal.value.shape == (200, 1, 300)
    stored = bank.headers[0]["rows"] * (bank.origin.knots + 600) * 16
    assert (tmp_path / "shard-00000.ampost").stat().st_size < 1.1 * stored + 50_000


def test_a_bank_of_another_format_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    banks.build(model_of(falling), 100, 3, tmp_path, show=False)
    monkeypatch.setattr("ampost.files.FORMAT_VERSION", 99)
    with pytest.raises(FormatError, match="of an earlier ampost; this one reads 99"):
        banks.build(model_of(falling), 100, 3, tmp_path, show=False)
