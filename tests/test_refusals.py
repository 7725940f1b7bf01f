"""Bad input gets a clear error: each names the thing, the value, what was expected and the fix."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import Budget, Design, Estimator, Experiments, Model, infer, observe, odeint, read_table
from ampost import files as storage
from ampost.errors import (
    AmpostError,
    EstimatorError,
    ExperimentError,
    FileError,
    ModelError,
    OdeError,
    TableError,
    UnsupportedError,
)
from ampost.plans import Looks

ROWS = pd.DataFrame(
    {
        "experiment": ["a"] * 4 + ["b"] * 4,
        "observable": "P",
        "time": [0.0, 1.0, 2.0, 3.0] * 2,
        "value": [0.0, 0.1, 0.2, 0.3] * 2,
        "S0": [1.0] * 4 + [2.0] * 4,
    }
)
DOSES = pd.DataFrame({"experiment": ["a"], "time": [0.0], "amount": [1.0], "target": ["S"]})
INPUTS = pd.DataFrame({"experiment": ["a"], "input": ["feed"], "time": [0.0], "value": [1.0]})
CONDITIONS = pd.DataFrame({"experiment": ["a", "b"], "pH": [6.5, 7.0]})
DESIGN = Design({"P": Looks((0.0, 1.0, 2.0, 3.0), (4, 4))}, {"S0": (1.0, 2.0)}, (2, 2), 3.0)


def read(table: Any = ROWS, **further: Any) -> Experiments:
    return read_table(table, say=False, **further)


def first(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """`table` with these values in its first row."""
    changed = table.astype(dict.fromkeys(values, object))
    for name, value in values.items():
        changed.loc[0, name] = value
    return changed


# ---------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", ["observable", "time", "value"])
def test_a_missing_column_is_named_with_those_that_are_there(name: str) -> None:
    with pytest.raises(TableError, match=rf"no column '{name}'; it has .*S0; expected observable, time, value"):
        read(ROWS.drop(columns=name))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        *((name, word) for name in ("time", "value") for word in ("x", float("inf"))),
        *(("time", word) for word in ("", None, float("nan"))),
    ],
)
def test_what_is_no_number_is_named_by_row_and_value(name: str, word: object) -> None:
    with pytest.raises(TableError, match=rf"row 2: {name} is '.*', expected a number; correct it, or leave"):
        read(first(ROWS, **{name: word}))


def test_a_negative_time_is_named_by_row_and_value() -> None:
    with pytest.raises(TableError, match=r"row 2: time is -1, expected 0 or later; count time from the start"):
        read(first(ROWS, time=-1.0))


def test_an_empty_table_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no rows; expected one row per measurement"):
        read(ROWS.iloc[:0])
    (tmp_path / "head.csv").write_text("observable,time,value\n")
    with pytest.raises(TableError, match=r"head\.csv has no rows"):
        read(tmp_path / "head.csv")


def test_a_thing_that_is_no_table_is_named_by_its_type() -> None:
    with pytest.raises(TableError, match="of type list, expected a DataFrame or the path of a CSV"):
        read([1.0, 2.0])


@pytest.mark.parametrize("name", ["observable", "experiment"])
def test_an_empty_name_is_named_by_row(name: str) -> None:
    with pytest.raises(TableError, match=f"row 2: {name} is empty, expected a name; fill it in"):
        read(first(ROWS, **{name: None}))


def test_rows_equal_in_every_column_are_a_warning_that_names_them() -> None:
    twice = pd.concat([ROWS, ROWS.iloc[[1, 5]]], ignore_index=True)
    with pytest.warns(UserWarning, match=r"rows 10, 11\); they are used as replicates: remove them if"):
        record = read(twice)
    assert int(record.channels["P"].mask.sum()) == len(twice)


def test_rows_that_differ_in_a_replicate_number_are_no_warning(recwarn: Any) -> None:
    both = pd.concat([ROWS.assign(replicate=1), ROWS.assign(replicate=2)], ignore_index=True)
    assert int(read(both).channels["P"].mask.sum()) == 2 * len(ROWS)
    assert not recwarn.list


def test_flags_and_spreads_of_a_row_are_checked() -> None:
    with pytest.raises(TableError, match="row 2: after_dose is 'maybe', expected true or false"):
        read(first(ROWS.assign(after_dose=False), after_dose="maybe"))
    assert read(ROWS.assign(after_dose="False")).after_dose.any().item() is False
    with pytest.raises(TableError, match="row 2: sd is -1, expected above 0; correct it"):
        read(first(ROWS.assign(sd=1.0), sd=-1.0))
    with pytest.raises(TableError, match="row 2: sd is empty, but other rows of 'P' have one; fill it in"):
        read(first(ROWS.assign(sd=1.0), sd=None))
    with pytest.raises(TableError, match="row 2: replicate is 'A', expected a number"):
        read(first(ROWS.assign(replicate=1), replicate="A"))
    with pytest.raises(TableError, match="row 2: censoring is 'below', expected one of none, left, right"):
        read(first(ROWS.assign(censoring="none"), censoring="below"))
    with pytest.raises(TableError, match="row 2: censoring is 'interval', but upper is empty"):
        read(first(ROWS.assign(censoring="none"), censoring="interval"))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"doses": DOSES.drop(columns="amount")}, r"no column 'amount'; it has experiment, time, target"),
        ({"doses": DOSES.assign(duratoin=1.0)}, r"unknown column 'duratoin'; .*dataset, duration: rename it"),
        ({"doses": DOSES.assign(time=-1.0)}, "doses, row 2: time is -1, expected 0 or later"),
        ({"doses": DOSES.assign(duration=-1.0)}, "doses, row 2: duration is -1, expected 0 or later"),
        ({"doses": DOSES.assign(amount="much")}, "doses, row 2: amount is 'much', expected a number"),
        ({"doses": DOSES.assign(target=None)}, "doses, row 2: target is empty, expected a name"),
        ({"doses": DOSES.assign(experiment="z")}, r"doses name experiment 'z', .*experiments a, b: correct"),
        ({"inputs": INPUTS.assign(experiment="z")}, r"inputs name experiment 'z', which has no measurements"),
        ({"inputs": INPUTS.assign(linear="perhaps")}, "linear is 'perhaps', expected true or false"),
        ({"conditions": CONDITIONS.iloc[:1]}, r"have 0 rows for experiment 'b' .*; add its row"),
        ({"conditions": CONDITIONS.iloc[[0, 0, 1]]}, "have 2 rows for experiment 'a' .* keep one row"),
        ({"conditions": CONDITIONS.assign(experiment=["a", "c"])}, "conditions name experiment 'c'"),
        ({"conditions": CONDITIONS.assign(pH="acid")}, "conditions, row 2: pH is 'acid', expected a number"),
    ],
)
def test_further_tables_are_checked_as_the_first_one_is(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(**tables)


def test_doses_of_all_data_sets_may_stand_in_one_table() -> None:
    both = pd.concat([ROWS.assign(dataset="1"), ROWS.iloc[:4].assign(dataset="2")], ignore_index=True)
    record = read(both, doses=DOSES.assign(experiment="b", dataset="1"))
    assert record.doses.mask.sum().item() == 1
    with pytest.raises(TableError, match="doses name experiment 'b'"):
        read(both, doses=DOSES.assign(experiment="b", dataset="2"))


# ------------------------------------------------------------------------------- data and program


def test_an_unknown_observable_is_named_with_those_of_the_program(kinetics: Model) -> None:
    with pytest.raises(ExperimentError, match="channel 'Q', the program observes P; rename the observable"):
        kinetics.check_data(read(ROWS.assign(observable="Q")))


def test_an_unknown_condition_is_named_with_those_that_are_there(kinetics: Model) -> None:
    other = ROWS.rename(columns={"S0": "start"})
    with pytest.raises(ExperimentError, match=r"condition 'S0', .* conditions: start; add the column 'S0'"):
        kinetics.check_data(read(other))


def test_a_condition_that_changes_within_an_experiment_is_told_apart(kinetics: Model) -> None:
    with pytest.raises(ExperimentError, match="column 'S0' changes or is empty within an experiment; give it"):
        kinetics.check_data(read(first(ROWS, S0=9.0).astype({"S0": float})))


def test_an_unknown_column_is_named_with_those_that_are_there() -> None:
    def weighted(experiments: Experiments) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        observe("P", dist.Normal(level, experiments.column("spread", "P")), experiments)

    data = read(ROWS.assign(humidity=range(8)))
    with pytest.raises(
        ExperimentError, match=r"column 'spread' of channel 'P'; .* humidity, S0; add the column"
    ):
        weighted(data)


@pytest.mark.parametrize(
    ("noise", "value", "name"),
    [
        (lambda level, e: dist.LogNormal(level + 0 * e.times, 1.0), 0.0, "LogNormal"),
        (lambda level, e: dist.Poisson(level.exp() + 0 * e.times), 1.5, "Poisson"),
        (lambda level, e: dist.Beta(level.exp() + 0 * e.times, 1.0), 2.0, "Beta"),
    ],
    ids=["log_normal", "poisson", "beta"],
)
def test_a_value_outside_the_noise_is_named_by_place(noise: Any, value: float, name: str) -> None:
    def program(experiments: Experiments) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        observe("P", noise(level, experiments), experiments)

    inside = ROWS.assign(value=0.5 if name == "Beta" else 1.0)
    model = Model(program, DESIGN)
    model.check_data(read(inside))
    inside.loc[6, "value"] = value
    message = rf"'P' has the value {value:g} at time 2 of experiment 'b', outside .* {name}; leave the row out"
    with pytest.raises(ExperimentError, match=message):
        model.check_data(read(inside))


def test_data_without_values_are_refused(kinetics: Model) -> None:
    with pytest.raises(ExperimentError, match=r"'P' of the data holds no values.*with_values"):
        kinetics.check_data(read().without_values())


def test_data_outside_the_design_are_not_trained_for(kinetics: Model) -> None:
    far = read(ROWS.assign(S0=50.0, time=ROWS["time"] * 9))
    message = r"condition 'S0' is 50, the design spans 0.5 to 5; train for .*'P' is measured at 27, the design"
    with pytest.raises(EstimatorError, match=message):
        infer(kinetics, far, progress=False)


def test_data_outside_the_design_are_named_in_the_verdict(kinetics: Model, trained: Estimator) -> None:
    far = kinetics.simulate(1, 4).experiments.at(0)
    far = replace(far, conditions={"S0": far["S0"] + 5.0})
    result = infer(kinetics, far, trained, budget=Budget(500, 500, 20_000), progress=False, optimum=False)
    assert result["fit"]["data"].item() == "outside the design"
    assert "condition 'S0'" in result["fit"]["verdict"].item()
    assert "the design spans 0.5 to 5" in result["fit"]["verdict"].item()


# --------------------------------------------------------------------------------------- programs


def level(experiments: Experiments) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    observe("P", dist.Normal(mean, 1.0), experiments)


def discrete(experiments: Experiments) -> None:
    pyro.sample("kind", dist.Bernoulli(0.5))
    level(experiments)


def silent(experiments: Experiments) -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))


def certain(experiments: Experiments) -> None:
    observe("P", dist.Normal(0.0, 1.0), experiments)


def bare(experiments: Experiments) -> None:
    level(experiments)
    pyro.sample("Q", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def elsewhere(experiments: Experiments) -> None:
    observe("Q", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), experiments)


def twice(experiments: Experiments) -> None:
    level(experiments)
    observe("P", dist.Normal(0.0, 1.0), experiments)


def plate_without_dim(experiments: Experiments) -> None:
    with pyro.plate("tanks", 3):
        pyro.sample("volume", dist.Normal(0.0, 1.0))
    level(experiments)


def plate_on_experiments(experiments: Experiments) -> None:
    with pyro.plate("tanks", 2, dim=-2):
        pyro.sample("volume", dist.Normal(0.0, 1.0))
    level(experiments)


def wrong_width(experiments: Experiments) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    observe("P", dist.Normal(mean + torch.zeros(7), 1.0), experiments)


def joint_noise(experiments: Experiments) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    observe("P", dist.MultivariateNormal(mean + torch.zeros(4), torch.eye(4)), experiments)


def no_noise(experiments: Experiments) -> None:
    observe("P", pyro.sample("mean", dist.Normal(0.0, 1.0)), experiments)  # type: ignore[arg-type]


def same_name(experiments: Experiments) -> None:
    level(experiments)
    for _ in range(2):
        odeint(lambda t, y, p: {"A": -y.A}, {"A": 1.0}, {}, experiments)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (discrete, r"latent site 'kind' is discrete \(Bernoulli\); sum it out .* or make it continuous"),
        (silent, r"program 'silent' observes nothing; add ampost\.observe"),
        (certain, r"program 'certain' has no latent site.*add a pyro\.sample"),
        (bare, r"site 'Q' is a bare pyro\.sample\(obs=\.\.\.\); use ampost\.observe"),
        (
            elsewhere,
            "program 'elsewhere' observes Q, the design .* has P; give both the same",
        ),
        (twice, "observes channel 'P' twice; observe it once"),
        (plate_without_dim, r"site 'volume' has batch shape \(3,\): .* time; .*experiments\.plate\(\).*dim=-3"),
        (plate_on_experiments, r"'volume' has batch shape \(2, 1\) by plate 'tanks': .* experiments; .*dim=-3"),
        (wrong_width, r"noise of channel 'P' has batch shape \(7,\), expected .* \(2, 4\); compute it from"),
        (joint_noise, r"MultivariateNormal, has event shape \(4,\), expected one number .*univariate"),
        (no_noise, "noise of channel 'P' is a Tensor, expected a distribution such as dist.Normal"),
        (same_name, r"calls odeint 2 times under the name 'trajectory'; tell them apart by .*name="),
    ],
)
def test_a_program_that_cannot_be_a_model_is_told_why(program: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Model(program, DESIGN)


def solving(rhs: Callable[..., Any], start: Any = 1.0, rate: Any = None, **options: Any) -> Any:
    def program(experiments: Experiments) -> None:
        drawn = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        given = drawn if rate is None else rate
        y = odeint(rhs, {"P": start}, {"rate": given}, experiments, **options)
        observe("P", dist.Normal(y.P, 0.1), experiments)

    return program


def decay(t: Any, y: Any, p: Any) -> dict[str, Any]:
    return {"P": -p.rate * y.P}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (solving(lambda t, y, p: {"S": y.P}), r"returned \['S'\], expected .* each state: \['P'\]"),
        (solving(lambda t, y, p: {"P": y.P, "S": y.P}), r"returned \['P', 'S'\], expected"),
        (solving(lambda t, y, p: (y.P,)), r"returned tuple, expected a dict .*: \['P'\]"),
        (solving(lambda t, y, p: None), "returned NoneType, expected a dict"),
        (
            solving(lambda t, y, p: {"P": torch.ones(3)}),
            r"slope of 'P' .* shape \(3,\), .* use torch operations",
        ),
        (solving(lambda t, y, p: {"P": "fast"}), "slope of 'P' .* is 'fast', expected a number"),
        (solving(lambda t, y, p: {"P": -p.k * y.P}), "reads parameter 'k'; .* parameters rate: correct"),
        (solving(lambda t, y, p: {"P": -y.S}), "reads state 'S'; the states are P, .*: correct the name"),
        (solving(lambda t, y, p: {"P": -y.P if y.P > 0 else y.P}), r"branches on a value .* use torch\.where"),
        (solving(lambda t, y, p: {"P": y.P * float("nan")}), "gives NaN .* 5 prior draws, .* states P.*guard"),
        (solving(lambda t, y, p: {"P": (-p.rate).sqrt()}), "gives NaN from its start on"),
        (solving(decay, start="one"), "initial state 'P' is 'one', expected a number or a tensor"),
        (solving(decay, start=torch.ones(2, 4)), r"initial state 'P' .* shape \(2, 4\), expected .*plate\(\)"),
        (solving(decay, rate=torch.ones(4)), r"parameter 'rate' .* shape \(4,\), expected .*index a vector"),
    ],
)
def test_a_right_hand_side_or_its_start_is_told_what_is_wrong(program: Any, message: str) -> None:
    with pytest.raises(OdeError, match=message):
        Model(program, DESIGN)


def test_an_error_inside_the_users_own_code_stays_as_it_is() -> None:
    with pytest.raises(AttributeError, match="'dict' object has no attribute 'k'"):
        Model(solving(lambda t, y, p: {"P": {}.k}), DESIGN)  # type: ignore[attr-defined]


def test_a_model_that_fails_for_some_draws_only_is_accepted() -> None:
    # y' = rate y^2 from 1 explodes at t = 1 / rate: within the horizon for some rates, not for all
    model = Model(solving(lambda t, y, p: {"P": p.rate * y.P**2}), DESIGN)
    failed = model.simulate(50, 0).failed
    assert bool(failed.any())
    assert not bool(failed.all())


# ------------------------------------------------------------------------------ not supported yet


def test_doses_into_no_event_are_refused_by_name() -> None:
    target = read(doses=DOSES.assign(target="pulse"))
    with pytest.raises(OdeError, match=r"doses go into 'pulse', which is no state .*its events none"):
        odeint(decay, {"P": 1.0}, {"rate": 1.0}, target)
    with pytest.raises(OdeError, match=r"'pulse' of odeint .* is 1.0, expected a function jump"):
        odeint(decay, {"P": 1.0}, {"rate": 1.0}, target, events={"pulse": 1.0})  # type: ignore[dict-item]


def test_what_is_no_input_is_refused_by_name() -> None:
    data = read(inputs=INPUTS)
    with pytest.raises(OdeError, match=r"'rate' .*, expected .* write a function of t into the right-hand"):
        odeint(decay, {"P": 1.0}, {"rate": lambda t: 2 * t}, data)
    with pytest.raises(OdeError, match=r"'rate' .* has no breakpoint in some experiment; give every"):
        odeint(decay, {"P": 1.0}, {"rate": data.inputs["feed"]}, data)


# ------------------------------------------------------------------------------------------ files


def test_an_estimator_of_another_model_is_refused_by_what_differs(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, 4).experiments.at(0)
    with pytest.raises(
        EstimatorError, match=r"another model: its sites are .*'km'.*train again for this model"
    ):
        infer(kinetics.fix(km=1.0), data, trained, progress=False)

    def slower(experiments: Experiments) -> None:
        kinetics.program(replace(experiments, conditions={"S0": 0.5 * experiments["S0"]}))

    with pytest.raises(EstimatorError, match=r"another model: its behaviour .* 'slower'"):
        trained.belongs_to(Model(slower, kinetics.design))


@pytest.fixture
def stored(trained: Estimator, tmp_path: Path) -> Path:
    path = tmp_path / "kinetics.ampost"
    trained.save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_file_damaged_anywhere_is_refused_by_name(stored: Path, share: float) -> None:
    raw = bytearray(stored.read_bytes())
    raw[int(share * len(raw))] ^= 0x15
    stored.write_bytes(raw)
    with pytest.raises(FileError, match=r"kinetics\.ampost' (is damaged|cannot be read).*make it again"):
        Estimator.load(stored)


@pytest.mark.parametrize("kept", [0, 7, 1_000, -1])
def test_a_file_cut_short_is_refused_by_name(stored: Path, kept: int) -> None:
    stored.write_bytes(stored.read_bytes()[:kept])
    with pytest.raises(FileError, match=r"kinetics\.ampost' cannot be read as an ampost file .*make it again"):
        Estimator.load(stored)


def with_metadata(path: Path, **changes: str) -> None:
    """Rewrite the metadata of a safetensors file: 8 bytes of length, a JSON header, the tensors."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"].update(changes)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_a_newer_format_is_refused_with_both_versions(stored: Path) -> None:
    known = storage.version_of("estimator")
    newer = str(known + 1)
    with_metadata(stored, version=newer)
    message = f"format version {newer}; this ampost reads up to {known}: upgrade ampost"
    with pytest.raises(FileError, match=message):
        Estimator.load(stored)


def test_a_file_of_another_kind_or_maker_is_refused(stored: Path) -> None:
    with pytest.raises(FileError, match="is of kind 'estimator', expected 'bank'"):
        storage.load(stored, "bank")
    with_metadata(stored, version="one")
    with pytest.raises(FileError, match="is damaged"):
        Estimator.load(stored)
    with_metadata(stored, format="other")
    with pytest.raises(FileError, match="but ampost did not write it"):
        Estimator.load(stored)


def test_saving_into_a_missing_folder_says_so(trained: Estimator, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"folder '.*nowhere' does not exist; create it first"):
        trained.save(tmp_path / "nowhere" / "x.ampost")
    assert list(tmp_path.iterdir()) == []


def test_every_error_is_an_ampost_error_and_none_a_value_error() -> None:
    # Pyro rebuilds a ValueError raised inside a program and loses its class
    kinds = [EstimatorError, ExperimentError, FileError, ModelError, OdeError, TableError, UnsupportedError]
    assert all(issubclass(kind, AmpostError) and not issubclass(kind, ValueError) for kind in kinds)
