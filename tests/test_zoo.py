"""The zoo: every model simulates, has units and runs as plain Pyro; trajectories and balances are true."""

import ast
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
from pyro.infer import Predictive
from torch import Tensor

from ampost import Compiled, Doses, Experiments, Input, Model, answering, odeint, recording, zoo
from ampost.program import is_observation
from ampost.tables import read_table, to_tables
from ampost.units import refuse_meaningless
from ampost.zoo import (
    ecoli_fed_batch,
    lotka_volterra,
    michaelis_menten,
    monod_batch,
    one_compartment_oral,
    product_inhibition,
    sir_influenza,
    two_compartment_iv,
)

MODULES = (
    ecoli_fed_batch,
    lotka_volterra,
    michaelis_menten,
    monod_batch,
    one_compartment_oral,
    product_inhibition,
    sir_influenza,
    two_compartment_iv,
)
NAMES = [module.__name__.rsplit(".", 1)[1] for module in MODULES]
WITH_DATA = (ecoli_fed_batch, lotka_volterra, one_compartment_oral, sir_influenza)
every_module = pytest.mark.parametrize("module", MODULES, ids=NAMES)
every_data = pytest.mark.parametrize("module", WITH_DATA, ids=[m.__name__.rsplit(".", 1)[1] for m in WITH_DATA])


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {module.__name__: module.model() for module in MODULES}


@pytest.fixture
def double() -> Any:
    """float64 by default, as a model runs its program."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def units_of(program: Any) -> dict[str, str]:
    return (
        one_compartment_oral.POPULATION_UNITS
        if program is one_compartment_oral.population
        else import_module(program.__module__).UNITS
    )


def test_every_file_of_the_zoo_is_tested() -> None:
    files = {path.stem for path in Path(zoo.__path__[0]).glob("*.py")} - {"__init__"}
    assert files == set(NAMES)


@every_module
def test_the_docstring_begins_with_one_line(module: ModuleType) -> None:
    first, blank, *_ = [*module.__doc__.splitlines(), "", ""]
    assert 20 < len(first) <= 110
    assert first.endswith(".")
    assert blank == ""


@every_module
def test_a_model_simulates_finite_values(module: ModuleType, models: dict[str, Model]) -> None:
    drawn = models[module.__name__].simulate(50, seed=1)
    assert int(drawn.failed.sum()) <= 2  # fewer than 5 %
    for channel in drawn.experiments.channels.values():
        assert bool(torch.isfinite(channel.values[channel.mask]).all())
    assert all(bool(torch.isfinite(v).all()) for v in drawn.parameters.values())


@pytest.mark.parametrize("program", [*NAMES, "population"])
def test_everything_has_a_unit(program: str, models: dict[str, Model], double: None) -> None:
    """Time, states, channels, conditions, dose targets, latent and deterministic sites."""
    model = one_compartment_oral.population_model() if program == "population" else None
    model = model or models[f"ampost.zoo.{program}"]
    units = units_of(model.program)
    refuse_meaningless(units)
    assert model.units == units
    with recording() as record:
        trace = pyro.poutine.trace(model.program).get_trace(model.design.draw(1, 0).at(0))
    sites = {name for name, site in trace.nodes.items() if site["type"] == "sample"}
    states = {name for problem, _ in record.solved for name in problem.initial}
    targets = {plan.target for plan in model.design.doses}
    named = {"time", *states, *sites, *model.channels, *model.design.conditions, *targets}
    assert named - set(units) == set()


@every_module
def test_a_program_runs_under_plain_pyro(module: ModuleType, models: dict[str, Model], double: None) -> None:
    model = models[module.__name__]
    looks = model.design.draw(1, 0).at(0)
    drawn = Predictive(model.program, num_samples=2)(looks)
    for name in model.channels:
        assert drawn[name].shape == (2, *looks.times.shape)
    trace = pyro.poutine.trace(model.program).get_trace(looks)
    assert np.isfinite(float(trace.log_prob_sum()))


@every_data
def test_data_lie_in_the_design_and_are_scored(module: ModuleType, models: dict[str, Model]) -> None:
    model, data = models[module.__name__], module.data()
    model.check_data(data)
    assert model.design.outside(data) == []
    median = torch.zeros(1, len(data.datasets), model.z_size(), dtype=torch.float64)
    assert bool(torch.isfinite(model.log_joint(median, data)).all())


@every_data
def test_data_survive_the_way_through_tables(module: ModuleType) -> None:
    data = module.data()
    tables = to_tables(data)
    doses = tables.doses if len(tables.doses) else None
    back = read_table(tables.measurements, doses=doses, say=False)
    assert back.datasets == data.datasets
    for name, channel in data.channels.items():
        assert torch.equal(back.channels[name].values[back.channels[name].mask], channel.values[channel.mask])
        times = back.times[back.channels[name].mask]
        assert torch.allclose(times, data.times[channel.mask], rtol=1e-6)
    assert torch.equal(
        back.doses.amount[back.doses.mask].sort()[0], data.doses.amount[data.doses.mask].sort()[0]
    )


# --------------------------------------------------------------------------------------- the data


def test_theophylline_has_twelve_subjects_with_a_dose_and_a_first_sample_at_it() -> None:
    data = one_compartment_oral.data()
    assert data.datasets == tuple(str(k) for k in range(1, 13))
    channel = data.channels["concentration"]
    assert channel.values.shape == (12, 1, 11)
    assert bool(channel.mask.all())
    assert bool((data.times[..., 0] == 0).all())
    assert int((channel.values[..., 0] == 0).sum()) == 9
    assert data.doses.targets == ("depot",)
    assert bool((data.doses.time == 0).all())
    assert float(data.doses.amount[4, 0, 0]) == 5.86
    everyone = one_compartment_oral.population_data()
    assert torch.equal(everyone.channels["concentration"].values, channel.values[:, 0])
    assert torch.equal(everyone.doses.amount, data.doses.amount[:, 0])


def test_a_subject_alone_scores_as_in_the_population() -> None:
    """With all subjects alike, the population's likelihood is the sum of the subjects'."""
    single, everyone = one_compartment_oral.model(), one_compartment_oral.population_model()
    values = {"ka": 1.4, "CL": 0.04, "V": 0.48}
    data = one_compartment_oral.data()
    median = torch.zeros(1, 12, 1, dtype=torch.float64)  # of sigma
    apart = single.fix(**values).score(median, data).log_likelihood
    alike = everyone.fix(**values)
    z = torch.zeros(1, 1, alike.z_size(), dtype=torch.float64)
    together = alike.score(z, one_compartment_oral.population_data()).log_likelihood
    assert float(together) == pytest.approx(float(apart.sum()), rel=1e-9)


def test_influenza_counts_are_fourteen_days() -> None:
    data = sir_influenza.data()
    assert data.times[0].tolist() == [float(day) for day in range(1, 15)]
    assert data.channels["in_bed"].values[0, :5].tolist() == [3, 8, 26, 76, 225]


def test_influenza_counts_have_the_infected_as_mean_and_scatter_more() -> None:
    model = sir_influenza.model().fix(transmission=1.7, recovery=0.45)
    looks = sir_influenza.data().without_values().expand((20_000,))
    median = torch.zeros(20_000, 1, dtype=torch.float64)  # of the overdispersion: 0.1
    counts = model.simulate_at(median, looks, seed=1).experiments.channels["in_bed"].values[:, 0]
    start, p = {"S": 762.0, "I": 1.0, "R": 0.0}, {"transmission": 1.7, "recovery": 0.45}
    mean = by_scipy(sir_influenza.epidemic, start, p, looks.times[0, 0].numpy())[:, 1]
    variance = mean + 0.1 * mean**2
    assert np.abs(counts.mean(0).numpy() - mean).max() < 5 * np.sqrt(variance.max() / 20_000)
    assert counts.var(0).numpy() == pytest.approx(variance, rel=0.1)


def test_ecoli_data_are_simulated_at_few_and_at_many_times() -> None:
    data = ecoli_fed_batch.data()
    number = {name: int(channel.mask.sum()) for name, channel in data.channels.items()}
    assert number == {"X": 29, "S": 29, "A": 29, "DOTm": 421}
    again = ecoli_fed_batch.data()
    assert all(torch.equal(again.channels[n].values, c.values) for n, c in data.channels.items())
    assert not ecoli_fed_batch.model().design.together


# -------------------------------------------------------------------------------- trajectories

START = {"depot": 0.0, "central": 0.0}
CURVES = {
    "monod_batch": (
        monod_batch.growth,
        {"X": 0.1, "S": 10.0},
        {"mu_max": 0.8, "Ks": 0.05, "biomass_yield": 0.4},
        None,
    ),
    "product_inhibition": (
        product_inhibition.kinetics,
        {"S": 5.0, "P": 1.0},
        {"vmax": 0.6, "km": 0.4, "ki": 0.3},
        None,
    ),
    "one_compartment_oral": (
        one_compartment_oral.absorption,
        START,
        {"ka": 1.5, "CL": 0.04, "V": 0.5},
        Doses.at([0.0], 4.4, "depot"),
    ),
    "two_compartment_iv": (
        two_compartment_iv.distribution,
        {"central": 0.0, "peripheral": 0.0},
        {"CL": 5.0, "V1": 12.0, "Q": 8.0, "V2": 40.0},
        Doses.at([0.0, 3.0], [100.0, 50.0], "central"),
    ),
    "sir_influenza": (
        sir_influenza.epidemic,
        {"S": 762.0, "I": 1.0, "R": 0.0},
        {"transmission": 1.7, "recovery": 0.45},
        None,
    ),
}


def solved(rhs: Any, start: Any, p: Any, times: Any, doses: Doses | None = None, events: Any = None) -> Any:
    looks = Experiments.on(torch.as_tensor(times, dtype=torch.float64)[None], list(start), doses=doses)
    with answering(Compiled(rtol=1e-10, atol=1e-13)):
        return odeint(rhs, start, p, looks, events=events)


@pytest.mark.parametrize("name", CURVES)
def test_trajectories_equal_scipys(name: str) -> None:
    rhs, start, p, doses = CURVES[name]
    times = np.linspace(0.0, 14.0, 29)[1:]
    ours = solved(rhs, start, p, times, doses).states[0].numpy()
    known = by_scipy(rhs, start, p, times, doses)
    assert np.abs(ours - known).max() < 1e-7 * np.abs(known).max()


def test_oral_absorption_is_the_closed_form() -> None:
    """Bateman's function: D ka / (ka - ke) (exp(-ke t) - exp(-ka t))."""
    rhs, start, p, doses = CURVES["one_compartment_oral"]
    t = torch.linspace(0.0, 24.0, 25, dtype=torch.float64)
    ke = p["CL"] / p["V"]
    known = 4.4 * p["ka"] / (p["ka"] - ke) * (torch.exp(-ke * t) - torch.exp(-p["ka"] * t))
    assert torch.allclose(solved(rhs, start, p, t, doses).central[0], known, atol=1e-8)


# -------------------------------------------------------------------------------------- balances


def constant(values: Tensor, rtol: float = 1e-8) -> bool:
    return bool(torch.allclose(values, values[..., :1], rtol=rtol, atol=0.0))


def test_people_are_neither_made_nor_lost() -> None:
    y = solved(*CURVES["sir_influenza"][:3], np.linspace(0.0, 14.0, 29))
    assert float(y.R[0, -1]) > 500
    assert constant(y.S + y.I + y.R)


def test_biomass_is_the_yield_of_what_was_eaten() -> None:
    y = solved(*CURVES["monod_batch"][:3], np.linspace(0.0, 12.0, 25))
    assert float(y.S[0, -1]) < 1e-3
    assert constant(y.X + 0.4 * y.S)


def test_substrate_becomes_product_and_product_slows() -> None:
    rhs, start, p, _ = CURVES["product_inhibition"]
    y = solved(rhs, start, p, np.linspace(0.0, 20.0, 21))
    free = solved(rhs, start, {**p, "ki": 1e9}, np.linspace(0.0, 20.0, 21))
    assert constant(y.S + y.P)
    assert float(y.S[0, 5]) > 1.2 * float(free.S[0, 5])


def test_a_drug_leaves_by_its_clearance_alone() -> None:
    """Amounts in the body plus clearance times the area under the concentration are the doses."""

    def with_area(t: Any, y: Any, p: Any) -> dict[str, Any]:
        return {**two_compartment_iv.distribution(t, y, p), "area": y.central / p.V1}

    _, start, p, _ = CURVES["two_compartment_iv"]
    doses = Doses.at([0.0, 24.0], [100.0, 150.0], "central", durations=[0.0, 1.5])
    y = solved(with_area, {**start, "area": 0.0}, p, [0.01, 12.0, 23.9, 25.5, 48.0], doses)
    body = y.central + y.peripheral + 5.0 * y.area
    assert body[0].tolist() == pytest.approx([100.0, 100.0, 100.0, 250.0, 250.0])


@cache
def still() -> Any:
    """E. coli's equations without metabolism: only feed, pulses and samples change anything."""
    rates = {k: 0.0 if k.startswith(("q_", "p_")) else v for k, v in ecoli_fed_batch.FITTED.items()}
    looks = [0.0, 9.0, 10.5, 12.0, 14.0]
    feed = Input.at([0.0, 11.0], [0.0, 0.02])
    looked = Experiments.on([looks], ["X"], doses=ecoli_fed_batch.protocol(), inputs={"feed": feed})
    with answering(Compiled(rtol=1e-10, atol=1e-12)):
        y = odeint(
            ecoli_fed_batch.fed_batch,
            ecoli_fed_batch.START,
            {**rates, "F": looked.inputs["feed"]},
            looked,
            events=ecoli_fed_batch.EVENTS,
        )
    return y, looked


def test_ecoli_volume_is_what_came_less_what_was_taken() -> None:
    y, looked = still()
    doses, times = looked.doses, looked.times[0]
    sign = torch.tensor([1.0, -1.0]).double()[doses.target]
    moved = (sign * doses.amount * (doses.time < times[:, None])).sum(-1)
    fed = 0.02 * (times - 11.0).clamp(min=0.0)
    assert y.V[0].tolist() == pytest.approx((2.0 + moved + fed).tolist(), rel=1e-9)


def test_ecoli_biomass_and_acetate_are_diluted_alike_and_glucose_comes_with_the_feed() -> None:
    """Without metabolism X / X0 = A / A0 = d, and every litre that is not from the start is feed."""
    y, _ = still()
    diluted = y.X / 0.17
    assert float(diluted[0, -1]) < 0.97
    assert torch.allclose(y.A / 0.0129, diluted, rtol=1e-7)
    assert torch.allclose(y.S, 4.94 * diluted + ecoli_fed_batch.FEED_S * (1 - diluted), rtol=1e-7)


def test_ecoli_without_oxygen_uptake_shows_saturation_on_the_probe() -> None:
    y, _ = still()
    assert y.DOT[0, 1:].tolist() == pytest.approx([ecoli_fed_batch.DOT_MAX] * 4, rel=1e-6)
    assert y.DOTm[0, 1:].tolist() == pytest.approx(y.DOT[0, 1:].tolist(), rel=1e-6)


def test_ecoli_glucose_is_eaten_by_its_uptake() -> None:
    """In the batch: glucose lost is the area under uptake times biomass; oxygen follows quasi-steadily."""

    def with_eaten(t: Any, y: Any, p: Any) -> dict[str, Any]:
        slopes = ecoli_fed_batch.fed_batch(t, y, p)
        return {**slopes, "eaten": p.q_Smax / (1 + y.A / p.K_ia) * y.S / (y.S + p.K_s) * y.X}

    rates = {**ecoli_fed_batch.FITTED, "F": 0.0}
    y = solved(with_eaten, {**ecoli_fed_batch.START, "eaten": 0.0}, rates, [0.0, 3.0, 6.0, 8.0, 9.0])
    assert float(y.S[0, -1]) < 0.5
    assert (y.S + y.eaten)[0].tolist() == pytest.approx([4.94] * 5, rel=1e-6)
    assert bool((y.DOT[0] > 20).all())
    assert bool((y.DOT[0] < 99).all())


def test_a_logged_feed_reaches_the_program(double: None) -> None:
    """The same program with and without the input "feed": litres more of it dilute the biomass."""
    looks = Experiments.on([[9.0, 12.0]], ["X"])
    fed = Experiments.on([[9.0, 12.0]], ["X"], inputs={"feed": Input.at([0.0, 10.0], [0.0, 0.5])})
    volumes = []
    for experiments in (looks, fed):
        with recording() as record:
            pyro.poutine.trace(ecoli_fed_batch.ecoli).get_trace(experiments)
        volumes.append(record.solved[0][1].V[0].tolist())
    assert volumes[0] == pytest.approx([2.0, 2.0])
    assert volumes[1] == pytest.approx([2.0, 3.0])


# ------------------------------------------------------------------------------------- to be copied


@every_module
def test_a_file_reads_as_a_whole(module: ModuleType) -> None:
    """Units, program, design and model stand in one file, which imports nothing from another of the zoo."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name and name.startswith("ampost.zoo")}
    assert {"UNITS", "model"} <= set(vars(module))


def test_every_channel_of_a_model_is_in_its_design(models: dict[str, Model]) -> None:
    for model in models.values():
        assert set(model.channels) == set(model.design.channels)
        trace = pyro.poutine.trace(model.program).get_trace(model.design.draw(1, 0).at(0))
        assert {n for n, s in trace.nodes.items() if s["type"] == "sample" and is_observation(s)} == set(
            model.channels
        )
