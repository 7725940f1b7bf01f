"""The models of public benchmarks: exact priors and noise, the reference data, scipy as the truth."""

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from engine import by_scipy

from ampost import Compiled, Experiments, Model, answering, odeint
from ampost.program import is_observation
from ampost.units import refuse_meaningless

NAMES = (
    "lotka_volterra_sbibm",
    "one_compartment_mm_elimination",
    "robertson",
    "sir_binomial",
    "soil_carbon",
)
WITH_DATA = {"lotka_volterra_sbibm": 3, "sir_binomial": 2}


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """Imports a module of benchmarks/models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield lambda name: import_module(f"models.{name}")


@pytest.fixture(scope="module")
def built() -> Callable[[ModuleType], Model]:
    """The model of a module, made once."""
    return cache(lambda module: module.model())


@pytest.fixture
def module(request, load) -> ModuleType:
    if request.param == "soil_carbon":
        request.getfixturevalue("reference")
    return load(request.param)


every_model = pytest.mark.parametrize("module", NAMES, indirect=True, ids=NAMES)


@every_model
def test_a_model_simulates_without_failures(module: ModuleType, built) -> None:
    drawn = built(module).simulate(200, seed=1)
    # a half-Cauchy width of a logarithm leads beyond float64
    assert all("narrow the prior of its width" in str(failure) for failure in drawn.failures)
    assert float(drawn.failed.double().mean()) <= 0.05
    assert all(not bool(torch.isnan(c.values[c.mask]).any()) for c in drawn.experiments.channels.values())


@every_model
def test_everything_has_a_unit(module: ModuleType, built) -> None:
    model = built(module)
    refuse_meaningless(module.UNITS)
    named = {"time", *model.channels, *model.design.conditions, *(site.name for site in model.sites())}
    assert named <= set(module.UNITS)


@every_model
def test_the_program_is_plain_pyro(module: ModuleType, built) -> None:
    model = built(module)
    torch.set_default_dtype(torch.float64)
    try:
        trace = pyro.poutine.trace(model.program).get_trace(model.design.draw(1, 0).at(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {site.name for site in model.sites()} <= set(trace.nodes)


# ------------------------------------------------------------------------------- the specification


def densities(program: Any, looks: Experiments) -> dict[str, float]:
    """The prior density of each latent at 1/2."""
    torch.set_default_dtype(torch.float64)
    try:
        trace = pyro.poutine.trace(program).get_trace(looks)
        return {
            name: float(site["fn"].log_prob(torch.tensor(0.5)).exp())
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not is_observation(site)
        }
    finally:
        torch.set_default_dtype(torch.float32)


def log_normal(at: float, mean: float, sd: float) -> float:
    return float(np.exp(-0.5 * ((np.log(at) - mean) / sd) ** 2) / (at * sd * np.sqrt(2 * np.pi)))


HALF_NORMAL = float(2 * np.exp(-0.125) / np.sqrt(2 * np.pi))
HALF_CAUCHY = float(2 / (np.pi * 1.25))
PRIORS = {
    "lotka_volterra_sbibm": {
        **dict.fromkeys(("alpha", "gamma"), log_normal(0.5, -0.125, 0.5)),
        **dict.fromkeys(("beta", "delta"), log_normal(0.5, -3.0, 0.5)),
    },
    "one_compartment_mm_elimination": dict.fromkeys(("ka", "Km", "Vm", "sigma"), HALF_CAUCHY),
    "sir_binomial": {
        "beta": log_normal(0.5, np.log(0.4), 0.5),
        "gamma": log_normal(0.5, np.log(0.125), 0.2),
    },
    "soil_carbon": {
        **dict.fromkeys(("k1", "k2", "a21", "a12"), HALF_NORMAL),
        "gamma": 10 * 0.5**9,
        "sigma": HALF_CAUCHY,
    },
}


@pytest.mark.parametrize("module", PRIORS, indirect=True, ids=PRIORS)
def test_priors_are_those_of_the_source(module: ModuleType, built) -> None:
    model = built(module)
    found = densities(model.program, model.design.draw(1, 0).at(0))
    assert found == pytest.approx(PRIORS[module.__name__.split(".")[1]], rel=1e-9)


@pytest.mark.parametrize("module", WITH_DATA, indirect=True, ids=WITH_DATA)
def test_observations_of_sbibm_are_read_and_scored(module: ModuleType, built, reference: Path) -> None:
    model = built(module)
    for number in range(1, WITH_DATA[module.__name__.split(".")[1]] + 1):
        record = module.data(number)
        model.check_data(record)
        assert model.design.outside(record) == []
        assert bool(torch.isfinite(model.log_joint(torch.zeros(1, 1, model.z_size()).double(), record)))


def test_sbibm_prey_come_first(load, reference: Path) -> None:
    record = load("lotka_volterra_sbibm").data(1)
    assert float(record.channels["prey"].values[0, 0]) == pytest.approx(31.783262)
    assert float(record.channels["predator"].values[0, 0]) == pytest.approx(0.8910395)


def test_sbibm_truth_explains_its_observation(load, reference: Path) -> None:
    """The log likelihood at the true parameters is that of data from the model: within four sds of its mean."""
    module = load("lotka_volterra_sbibm")
    path = reference / "sbibm" / "lotka_volterra" / "num_observation_1" / "true_parameters.csv"
    values = [float(v) for v in path.read_text().splitlines()[1].split(",")]
    fixed = dict(zip(("alpha", "beta", "gamma", "delta"), values, strict=True))
    record = module.data(1)
    y = odeint(module.predation, {"prey": 30.0, "predator": 1.0}, fixed, record)
    both = [record.channels[n].values.log() - getattr(y, n).log() for n in ("prey", "predator")]
    misfit = float(torch.cat(both).square().sum() / 0.1**2)  # chi-square, 20
    assert 20 - 4 * np.sqrt(40) < misfit < 20 + 4 * np.sqrt(40)


def test_soil_data_are_read_and_scored(load, built, reference: Path) -> None:
    module = load("soil_carbon")
    model, record = built(module), module.data()
    assert int(record.channels["eCO2"].mask.sum()) == 25
    assert float(record["total"]) == 7.7
    assert model.design.outside(record) == []
    assert bool(torch.isfinite(model.log_joint(torch.zeros(1, 1, model.z_size()).double(), record)))


def test_a_missing_reference_is_named_with_the_fix(load, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMPOST_REFERENCE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set AMPOST_REFERENCE"):
        load("sir_binomial").data(1)


# ---------------------------------------------------------------------------------- trajectories


def close_to_scipy(rhs: Any, start: dict[str, float], p: dict[str, float], times: Any) -> torch.Tensor:
    """States (time, state) of ours, after comparing them with scipy's."""
    looks = Experiments.on([times], list(start))
    with answering(Compiled(rtol=1e-10, atol=1e-14)):
        y = odeint(rhs, start, p, looks)
    known = by_scipy(rhs, start, p, times)
    assert np.abs(y.states[0].numpy() - known).max() < 1e-6 * np.abs(known).max()
    assert np.allclose(y.states[0].numpy(), known, rtol=1e-5, atol=1e-12)
    return y.states[0]


def test_robertson_is_scipys_and_keeps_its_mass(load) -> None:
    module = load("robertson")
    states = close_to_scipy(module.kinetics, {"A": 1.0, "B": 0.0, "C": 0.0}, module.KNOWN, [0.0, *module.TIMES])
    assert torch.allclose(states.sum(-1), torch.ones(len(states), dtype=torch.float64), atol=1e-9)


def test_sir_is_scipys_and_keeps_its_people(load) -> None:
    module = load("sir_binomial")
    start = {"S": 1e6 - 1, "I": 1.0, "R": 0.0}
    states = close_to_scipy(module.epidemic, start, {"beta": 0.6, "gamma": 0.19}, module.TIMES)
    assert torch.allclose(states.sum(-1), torch.full((len(states),), 1e6, dtype=torch.float64))


def test_soil_is_scipys(load, reference: Path) -> None:
    module = load("soil_carbon")
    rates = {"k1": 0.4, "k2": 0.02, "a21": 0.3, "a12": 0.1}
    close_to_scipy(module.decay, {"C1": 7.0, "C2": 0.7}, rates, [0.0, 1.0, 5.0, 20.0, 40.0])


def test_mm_elimination_conserves_the_dose(load) -> None:
    """What is in the body is what left the gut less what the enzyme turned over."""
    module = load("one_compartment_mm_elimination")
    given = {"ka": 0.6, "Km": 1.5, "Vm": 4.0, "D": 30.0, "V": 2.0}

    def with_sum(t: Any, y: Any, p: Any) -> dict[str, Any]:
        slope = module.elimination(t, y, p)["C"]
        return {"C": slope, "out": p.Vm * y.C / (p.Km + y.C)}

    times = torch.linspace(0.0, 10.0, 21, dtype=torch.float64)
    with answering(Compiled(rtol=1e-10, atol=1e-12)):
        y = odeint(with_sum, {"C": 0.0, "out": 0.0}, given, Experiments.on(times[None], ["C"]))
    absorbed = 30.0 * (1 - torch.exp(-0.6 * times))
    assert torch.allclose(2.0 * y.C[0] + y.out[0], absorbed, atol=1e-7)
    assert float(y.C.max()) > 3 * given["Km"]  # far into saturation
