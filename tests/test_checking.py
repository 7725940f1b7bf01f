"""A model against data before any training: what is said of units, coverage, failures, data and cost."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure

from ampost import (
    Design,
    Doses,
    Experiments,
    Input,
    Model,
    Refining,
    Schedule,
    Settings,
    between,
    check,
    checking,
    observe,
    odeint,
)
from ampost.checking import Check, region, tokens_of
from ampost.errors import ExperimentError, UnitError
from ampost.experiments import INTERVAL, LEFT, RIGHT, Channel
from ampost.stacking import stack
from ampost.tokens import MOST
from ampost.wording import account, mistaken, number
from ampost.zoo import michaelis_menten


@pytest.fixture(scope="module")
def model() -> Model:
    return michaelis_menten.model()


@pytest.fixture(scope="module")
def data(model: Model) -> Experiments:
    return model.simulate(1, seed=3).experiments.at(0)


def scaled(data: Experiments, factor: float) -> Experiments:
    channel = data.channels["P"]
    assert channel.values is not None
    return replace(data, channels={"P": replace(channel, values=channel.values * factor)})


@pytest.fixture(scope="module")
def good(model: Model, data: Experiments) -> Check:
    return check(model, data)


# ------------------------------------------------------------------------------------ what is said


def test_data_from_the_model_raise_no_concern(good: Check) -> None:
    assert good.concerns == ()
    assert good.outside == ()
    assert good.inside == {"P": 1.0}
    assert good.failures == {}
    assert good.simulations == 1_000
    assert 0.1 < good.ratios["P"] < 10
    assert isinstance(good.figure, Figure)


def test_the_text_says_what_was_understood(good: Check, data: Experiments) -> None:
    text = str(good)
    low, middle, high = text.splitlines()[1].split("]")[1].split()
    assert float(low) == pytest.approx(0.5 * (0.05 / 0.5) ** (1.645 / 1.96), rel=0.2)
    assert float(middle) == pytest.approx(0.5, rel=0.1)
    assert float(high) == pytest.approx(0.5 * (5.0 / 0.5) ** (1.645 / 1.96), rel=0.2)
    for said in (
        "vmax [mM/min]",
        "P [mM] with Normal noise",
        "Condition S0 [mM]: 2.46 to 4.15 (design 0.5 to 5)",
        "Time [min] from 0; the design ends at 10.5",
        "P, experiment 2: 7 from 0.053 to 7.53",
        "Tokens per experiment: 7 to 18.",
        "20,000 simulations at",
        "4,000 steps of",
    ):
        assert said in text
    assert good.tokens == tuple(data.channels["P"].mask.sum(-1).tolist())
    assert 0 < good.seconds_of_training < math.inf


def test_a_unit_wrong_by_a_thousand_is_said_in_one_sentence(model: Model, data: Experiments) -> None:
    told = check(model, scaled(data, 1000.0))
    assert told.concerns[0].startswith("P: the data are about 1,000 times larger than the model expects")
    assert (
        "check the unit of P (the model takes mM); numbers in uM are 1,000 times as large" in told.concerns[0]
    )
    assert "or the header's unit is wrong" in told.concerns[0]
    assert told.inside["P"] == 0.0
    assert str(told).splitlines()[1] == f"  - {told.concerns[0]}"
    axis = told.figure.axes[0]
    assert axis.get_yscale() in {"log", "symlog"}
    told = check(model, scaled(data, 1e-3))
    assert "about 1,000 times smaller" in told.concerns[0]
    assert "numbers in M are 1,000 times as small" in told.concerns[0]


def test_times_in_another_unit_are_said(model: Model, data: Experiments) -> None:
    told = check(model, replace(data, times=data.times / 60.0))
    assert told.concerns[0].startswith("time: the times are about 60 times smaller than the design has")
    assert "numbers in h are 60 times as small" in told.concerns[0]
    told = check(model, replace(data, times=data.times * 60.0))
    assert "about 60 times larger" in told.concerns[0]
    assert "numbers in s are 60 times as large" in told.concerns[0]
    assert any("the design ends at 10.5" in said for said in told.outside)


def test_a_condition_in_another_unit_is_said(model: Model, data: Experiments) -> None:
    told = check(model, replace(data, conditions={"S0": data["S0"] * 1000.0}))
    assert told.concerns[0].startswith("S0: the values are about 1,000 times larger than the design has")
    assert any("condition 'S0'" in said for said in told.outside)


def lasting(S0: float = 1.0, time: float = 1.0, sd: float = 0.03) -> Experiments:
    """Two substrates used up at 0.8 mM/min with km 0.5 mM; units of S0 and time scaled."""
    at = Experiments.on([[0.0, 1, 2, 3, 4, 6, 8, 10]] * 2, ["P"], {"S0": [1.5, 3.0]})
    model = michaelis_menten.model()
    z = (
        torch.tensor(
            [
                [(math.log(v) - math.log(math.sqrt(a * b))) * 2 * 1.96 / math.log(b / a)]
                for v, a, b in ((0.8, 0.05, 5.0), (0.5, 0.1, 10.0), (sd, 0.01, 0.2))
            ]
        )
        .double()
        .T
    )
    drawn = model.simulate_at(z, at.expand((1,)), 0).experiments.at(0)
    return replace(drawn, times=time * drawn.times, conditions={"S0": S0 * drawn["S0"]})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"time": 1000.0}, "time: with the times divided by about "),
        ({"time": 1 / 60}, "time: with the times multiplied by about "),
        ({"S0": 1000.0}, "S0: with the values divided by about 1,000 the model explains the data far better"),
        ({"S0": 1e-3}, "S0: with the values multiplied by about 1,000"),
    ],
)
def test_a_wrong_unit_is_found_though_the_design_follows_the_data(wrong: dict[str, float], said: str) -> None:
    data = lasting(**wrong)
    told = check(Model(michaelis_menten.michaelis_menten, Design.like(data), michaelis_menten.UNITS), data)
    assert told.concerns[0].startswith(said)
    assert "check the unit of" in told.concerns[0]
    assert not any("check the unit of P" in each for each in told.concerns)


def test_right_units_of_the_same_data_are_no_concern() -> None:
    data = lasting()
    told = check(Model(michaelis_menten.michaelis_menten, Design.like(data), michaelis_menten.UNITS), data)
    assert told.concerns == ()


def test_the_cost_is_that_of_the_settings(model: Model, data: Experiments) -> None:
    settings = Settings(simulations=1_000, schedule=Schedule(steps=1_000_000, seconds=50.0))
    told = check(model, data, settings=settings)
    assert "1,000 simulations at" in str(told)
    assert "50 s are given to training, which would take " in str(told)
    assert "1,000,000 steps of " in str(told)
    assert 50.0 < told.seconds_of_training < 60.0


def test_the_density_about_the_mode_is_part_of_the_cost(model: Model, data: Experiments) -> None:
    plain, few, many = (
        check(model, data, settings=Settings(1_000, Schedule(steps=100), refining=refining))
        for refining in (
            None,
            Refining(1_000, Schedule(steps=100), 100),
            Refining(200_000, Schedule(steps=100), 100),
        )
    )
    assert "modes" not in str(plain)
    assert "1,000 modes at" in str(few)
    assert "200,000 modes at" in str(many)
    assert plain.seconds_of_training < few.seconds_of_training < many.seconds_of_training


def test_limits_of_detection_do_not_hide_a_wrong_unit(model: Model, data: Experiments) -> None:
    wrong = scaled(data, 1000.0).channels["P"]
    assert wrong.values is not None
    below = wrong.mask & (wrong.values < 300.0)
    values = torch.where(below, 300.0, wrong.values)
    channel = replace(wrong, values=values, censoring=torch.where(below, LEFT, 0))
    told = check(model, replace(data, channels={"P": channel}))
    assert told.concerns[0].startswith("P: the data are about 1,000 times larger")


def test_an_outlier_is_no_wrong_unit(model: Model, data: Experiments) -> None:
    channel = data.channels["P"]
    assert channel.values is not None
    values = channel.values.clone()
    values[0, 5] = 1_000.0
    told = check(model, replace(data, channels={"P": replace(channel, values=values)}))
    assert not any("check the unit" in said for said in told.concerns)
    assert told.inside["P"] == pytest.approx(24 / 25)


def test_units_that_are_stated_are_converted(model: Model, data: Experiments) -> None:
    told = check(model, replace(scaled(data, 1000.0), units={"P": "uM", "time": "min"}))
    assert told.concerns == ()
    assert "no unit for S0 in mM" in str(told)
    assert told.figure.axes[0].get_ylabel() == "P [mM]"
    with pytest.raises(UnitError, match="'P'"):
        check(model, replace(data, units={"P": "min"}))


def test_bad_data_are_refused_as_usual(model: Model, data: Experiments) -> None:
    with pytest.raises(ExperimentError, match="channel 'Q'"):
        check(model, replace(data, channels={"Q": data.channels["P"]}))


def test_several_data_sets_are_looked_at_together(model: Model, data: Experiments) -> None:
    other = replace(model.simulate(1, seed=5).experiments.at(0), datasets=("2",))
    told = check(model, stack([data, other]))
    assert "in 4 experiment(s) of 2 data sets" in str(told)
    assert len(told.tokens) == 4
    assert told.simulations == 2_000
    first, second = (check(model, one).inside["P"] for one in (data, other))
    numbers = [int(one.channels["P"].mask.sum()) for one in (data, other)]
    pooled = (first * numbers[0] + second * numbers[1]) / sum(numbers)
    assert told.inside["P"] == pytest.approx(pooled, abs=0.05)


def test_a_slow_solver_gets_fewer_draws(
    monkeypatch: pytest.MonkeyPatch, model: Model, data: Experiments
) -> None:
    monkeypatch.setattr(checking, "SECONDS", 0.0)
    told = check(model, data)
    assert told.simulations == checking.CHUNK
    assert f"({checking.CHUNK} draws)" in str(told)


def test_the_same_seed_says_the_same(model: Model, data: Experiments, good: Check) -> None:
    again = check(model, data)
    assert (again.inside, again.ratios) == (good.inside, good.ratios)
    assert again.ratios != check(model, data, seed=1).ratios


# ---------------------------------------------------------------------------------------- failures


def explosion(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"C": p.k * y.C**2}


def test_failures_are_counted_and_their_region_is_named() -> None:
    def exploding(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.05, 2.0))
        other = pyro.sample("other", dist.Normal(0.0, 1.0))
        y = odeint(explosion, {"C": 1.0}, {"k": k}, experiments)
        observe("C", dist.Normal(y.C + other, 0.1), experiments)

    at = Experiments.on([[0.5, 1.0]], ["C"]).with_values({"C": torch.ones(1, 2)})
    told = check(Model(exploding, Design.like(at), units={"k": "1/h"}), at)
    assert set(told.failures) == {"EXPLODED"}
    assert 20 < told.failures["EXPLODED"] < 200
    (said,) = told.regions
    assert said.startswith(f"All {told.failures['EXPLODED']} failures have k >= 1")
    assert said.endswith("1/h, and none of the simulations that were solved.")
    assert f"{told.failures['EXPLODED']} of 1,000 simulations failed" in str(told)
    assert "odeint 'trajectory' row" in str(told)
    assert told.inside["C"] == 1.0


def draws(count: int = 1_000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(count, generator=generator),
        "own": torch.randn(count, 3, generator=generator),
    }


def test_a_region_needs_more_than_chance() -> None:
    parameters = draws()
    scattered = torch.rand(1_000, generator=torch.Generator().manual_seed(1)) < 0.02
    assert region(parameters, scattered) == ()
    few = torch.zeros(1_000).bool()
    few[parameters["a"].argmax()] = True
    assert region(parameters, few) == ()


def test_a_region_may_hold_most_of_the_failures() -> None:
    parameters = draws()
    failed = parameters["own"][:, 1] < -1.5
    number_in = int(failed.sum())
    failed[parameters["own"][:, 1].argmax()] = True
    (said,) = region(parameters, failed, {"own": "mM"})
    assert said.startswith(f"{said.split()[0]} of the {number_in + 1} failures have own[1] <= -1.")
    assert "mM, and none of the simulations" in said
    assert region(parameters, torch.ones(1_000).bool()) == ("Every simulation failed.",)


# ----------------------------------------------------------------------------------------- account


def test_the_account_counts_every_kind_of_measurement() -> None:
    times = torch.tensor([[0.0, 1.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 3.0]]).double()
    at = Experiments.on(times, ["A", "B"])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]]).bool()
    code = torch.tensor([[LEFT, 0, 0, INTERVAL, RIGHT], [0, 0, 0, 0, 0]])
    ones = torch.ones(2, 5).double()
    full = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]]).bool()
    record = replace(
        at,
        channels={"A": Channel(mask, ones, censoring=code, upper=2 * ones), "B": Channel(full, ones)},
        names=(("x", "y"),),
    )
    lines = account([record])
    assert lines[0] == "Data: 16 measurements in 2 experiment(s)."
    assert lines[1] == (
        "  A, experiment x: 5 from 0 to 3, values 1, 1 below a limit, 1 above a limit, 1 in an interval, "
        "1 of them replicates"
    )
    assert lines[2] == "  A, experiment y: 3 from 0 to 3, values 1, 1 missing where all else was measured"


def test_long_accounts_are_cut() -> None:
    at = Experiments.on(torch.ones(30, 1), ["A"]).with_values({"A": torch.ones(30, 1)})
    lines = account([at])
    assert len(lines) == 14
    assert lines[-1] == "  A: and 18 further experiments"


def test_what_was_taken_for_granted() -> None:
    def dosed(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.1, 1.0))
        y = odeint(fed, {"C": 0.0}, {"k": k, "F": experiments.inputs["F"]}, experiments)
        observe("C", dist.Normal(y.C, 0.1), experiments)
        observe("D", dist.LogNormal(y.C.clamp(min=1e-3).log(), 0.1), experiments)

    def fed(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
        return {"C": p.F - p.k * y.C}

    doses = Doses.at([0.0, 2.0], [3.0, 4.0], target="C")
    signal = Input.at([0.0, 1.0, 2.0], [0.1, 0.3, 0.2])
    at = Experiments.on([[0.0, 1.0, 2.5]], ["C"], doses=doses, inputs={"F": signal})
    at = at.with_values({"C": torch.tensor([[0.0, 2.0, 3.0]]).double()})
    told = check(Model(dosed, Design.like(at), units={"time": "h"}), at)
    for said in (
        "Doses into C: up to 2 per experiment, 3 to 4",
        "Input F: held between breakpoints, 0.1 to 0.3",
        "1 measurement(s) at the time of a dose came before it",
        "D of the program was not measured",
        "no unit is known of C, F",
        "time in h, which are the model's",
    ):
        assert said in str(told)
    assert told.tokens == (3 + 2 + 3,)
    both = Experiments.on([[0.0, 1.0, 2.5]], ["C", "D"], doses=doses, inputs={"F": signal})
    both = both.with_values({name: torch.tensor([[0.5, 2.0, 3.0]]).double() for name in "CD"})
    told = check(Model(dosed, Design.like(both), units={"time": "h"}), both)
    assert "2 measurement(s) at the time of a dose came before it" in str(told)


def test_many_measurements_are_binned_tokens() -> None:
    at = Experiments.on(torch.arange(100.0)[None], ["A", "B"])
    assert tokens_of(at, 0) == 2 * MOST


@pytest.mark.parametrize(
    ("unit", "factor", "said"),
    [
        ("g/L", 1e3, "numbers in mg/L are 1,000 times as large"),
        ("h", 3600.0, "numbers in s are 3,600 times as large"),
        ("h", 1 / 24, "numbers in d are 24 times as small, or the header's unit is wrong"),
        ("g/L", 1e-3, "the header's unit may be wrong"),
        (None, 30.0, "about 30 times larger"),
    ],
)
def test_the_unit_that_a_factor_suggests(unit: str | None, factor: float, said: str) -> None:
    told = mistaken("time" if unit == "h" else "S", unit, 2.0 * factor, 2.0, "the model expects")
    assert said in told
    assert ("the model takes" in told) == (unit is not None)


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0.0, 0.012345, 1.0, 756.2, 12345.6, 3e9, math.inf)] == [
        "0",
        "0.0123",
        "1",
        "756",
        "12,346",
        "3e+09",
        "inf",
    ]
