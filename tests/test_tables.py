"""Tables: a round trip of every field, and errors that name the thing."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ampost import Design, read_table
from ampost.errors import TableError
from ampost.experiments import Channel, Doses, Experiments, Input, Signals, no_doses
from ampost.tables import to_tables

ROWS = pd.DataFrame(
    {
        "dataset": ["a", "a", "a", "a", "b", "b"],
        "experiment": ["1", "1", "1", "2", "1", "1"],
        "observable": ["P", "P", "S", "P", "P", "S"],
        "time": [0.0, 1.0, 1.0, 2.0, 0.0, 3.0],
        "value": [0.1, 0.2, 1.0, 0.3, 0.4, 2.0],
        "sd": [0.1, 0.1, 0.2, 0.1, 0.1, 0.3],
        "censoring": ["none", "left", "none", "none", "none", "right"],
        "upper": [0.0, 0.5, 0.0, 0.0, 0.0, 0.0],
        "replicate": [1, 1, 1, 1, 1, 1],
        "after_dose": [False, True, False, False, False, False],
        "S0": [1.0, 1.0, 1.0, 2.0, 3.0, 3.0],
        "humidity": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    }
)
DOSES = pd.DataFrame(
    {
        "dataset": ["a", "b"],
        "experiment": ["1", "1"],
        "time": [0.5, 0.0],
        "amount": [2.0, 1.0],
        "duration": [0.0, 1.0],
        "target": ["P", "S"],
    }
)
INPUTS = pd.DataFrame(
    {
        "dataset": ["a"],
        "experiment": ["1"],
        "input": ["feed"],
        "time": [0.0],
        "value": [1.0],
        "linear": [True],
    }
)


def test_every_field_survives_the_round_trip() -> None:
    record = read_table(ROWS, doses=DOSES, inputs=INPUTS, say=False)
    tables = to_tables(record)
    again = read_table(tables.measurements, tables.conditions, tables.doses, tables.inputs, say=False)
    assert again.datasets == record.datasets == ("a", "b")
    assert again.names == record.names
    torch.testing.assert_close(again.times, record.times)
    for name, channel in record.channels.items():
        other = again.channels[name]
        assert torch.equal(other.mask, channel.mask)
        for part in ("values", "sd", "censoring", "upper", "replicate"):
            mine, theirs = getattr(channel, part), getattr(other, part)
            torch.testing.assert_close(torch.where(channel.mask, mine, 0), torch.where(channel.mask, theirs, 0))
        torch.testing.assert_close(channel.columns["humidity"], other.columns["humidity"])
    torch.testing.assert_close(again["S0"], record["S0"])
    assert torch.equal(again.after_dose, record.after_dose)
    for part in ("time", "amount", "duration", "target", "mask"):
        assert torch.equal(getattr(again.doses, part), getattr(record.doses, part))
    torch.testing.assert_close(again.inputs["feed"].value, record.inputs["feed"].value)


def test_a_copy_with_replicates_is_read_without_a_warning(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {"well": ["A", "A", "A", "B"], "time": [0, 1, 1, 1], "P": [1, 2, 2.0, 3], "Q": [1, 2, 3, 4]}
    )
    with pytest.warns(UserWarning, match="rows 4"):
        record = read_table(rows.assign(Q=[1, 2, 2, 4]), by="well", say=False)
    tables = to_tables(record)
    tables.measurements.to_csv(tmp_path / "copy.csv", index=False)
    again = read_table(tmp_path / "copy.csv", say=False)  # a warning is an error here
    (one, other), (same, _) = record.split(), again.split()
    assert same.times.tolist() == one.times.tolist() == [[0.0, 1.0, 1.0]]
    for name in ("P", "Q"):
        number = same.channels[name].replicate
        assert number is not None
        assert number.tolist() == [[1, 1, 2]]
    assert "replicate" not in to_tables(other).measurements


def test_replicates_before_and_after_a_dose_are_numbered_apart() -> None:
    rows = pd.DataFrame({"time": [1, 1, 1], "P": [1.0, 2.0, 2.5], "after_dose": [False, True, True]})
    table = to_tables(read_table(rows, observables=["P"], say=False)).measurements
    assert table["replicate"].tolist() == [1, 1, 2]


UNITS = {
    "time": "h",
    "P": "mM",
    "S": "g/L",
    "pH": "1",
    "V (total)": "L",
    "dose S": "mg",
    "dose X": "g",
    "F": "L/h",
}


def numbers(low: float = -50.0, high: float = 50.0) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def channels(draw: st.DrawFn, times: list[list[float]], covariates: list[str]) -> Channel:
    """A channel with at least one measurement in each experiment, and any of its optional parts."""
    shape = (len(times), len(times[0]))

    def some(entry: st.SearchStrategy[float]) -> torch.Tensor:
        rows = st.lists(entry, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
        return torch.tensor(draw(rows), dtype=torch.float64).reshape(shape)

    mask = some(st.sampled_from([0.0, 1.0])).bool()
    mask[:, draw(st.integers(0, shape[1] - 1))] = True
    code = some(st.sampled_from([0.0, 1.0, 2.0, 3.0])).long() if draw(st.booleans()) else None
    values = some(numbers())

    def beside(entry: st.SearchStrategy[float]) -> torch.Tensor | None:
        return some(entry) if draw(st.booleans()) else None

    return Channel(
        mask=mask,
        values=values,
        sd=beside(numbers(0.1, 2.0)),
        censoring=code,
        upper=None if code is None else values + some(numbers(0.5, 2.0)),
        replicate=None if draw(st.booleans()) else some(st.integers(1, 3).map(float)).long(),
        columns={name: some(numbers()) for name in covariates},
        lowest=beside(st.sampled_from([-torch.inf, -60.0, -55.5])),
        highest=beside(st.sampled_from([torch.inf, 60.0, 55.5])),
        width=beside(st.sampled_from([0.0, 0.5])),
    )


@st.composite
def records(draw: st.DrawFn, dataset: str = "1") -> Experiments:
    """One data set with any of the record's fields filled."""
    count = draw(st.integers(1, 3))
    moments = st.lists(st.integers(2, 40), min_size=3, max_size=3, unique=True).map(sorted)
    times = [[float(t) for t in draw(moments)] for _ in range(count)]
    after = draw(st.lists(st.booleans(), min_size=3 * count, max_size=3 * count))
    targets = ("S", "X")
    doses = Doses(
        time=torch.tensor([[0.0, 1.0 + draw(numbers(0.0, 5.0))] for _ in range(count)], dtype=torch.float64),
        amount=torch.tensor([[1.5, draw(numbers(0.1, 9.0))] for _ in range(count)], dtype=torch.float64),
        duration=torch.tensor([[0.0, draw(numbers(0.0, 2.0))] for _ in range(count)], dtype=torch.float64),
        target=torch.tensor([[0, 1]] * count),
        mask=torch.tensor([[True, True]] * count),
        targets=targets,
    )
    signal = Input(
        torch.tensor([[0.0, 1.25]] * count, dtype=torch.float64),
        torch.tensor([[draw(numbers()), 2.0] for _ in range(count)], dtype=torch.float64),
        torch.ones(count, 2).bool(),
        linear=draw(st.booleans()),
    )
    covariates = draw(st.sampled_from([[], ["pH"], ["pH", "lowest level"]]))
    conditions = draw(st.sampled_from([(), ("S0",), ("S0", "V (total)")]))
    record = Experiments(
        times=torch.tensor(times, dtype=torch.float64),
        channels={name: draw(channels(times, covariates)) for name in ("P", "S (all)")},
        conditions={
            name: torch.tensor([[draw(numbers())] for _ in range(count)], dtype=torch.float64)
            for name in conditions
        },
        doses=doses if draw(st.booleans()) else no_doses(count),
        inputs=Signals({"F": signal} if draw(st.booleans()) else {}),
        live=torch.ones(count).bool(),
        after_dose=torch.tensor(after).reshape(count, 3),
        names=(tuple(f"e{k}" for k in range(count)),),
        datasets=(dataset,),
        start=draw(st.sampled_from([0.0, 0.0, -1.5])),
    )
    return replace(record, units=draw(st.sampled_from([{}, _units_of(record)])))


def _units_of(record: Experiments) -> dict[str, str]:
    """A unit for whatever the record has, by the names it may have one under."""
    dosed = [f"dose {target}" for target in record.doses.targets]
    columns = [name for channel in record.channels.values() for name in channel.columns]
    names = {"time", *record.channels, *record.conditions, *columns, *record.inputs, *dosed}
    return {name: unit for name, unit in UNITS.items() if name in names}


def looks(record: Experiments, e: int, channel: Channel) -> list[tuple[Any, ...]]:
    """All that is known of one channel's measurements of one experiment, in order; what is not held is None."""
    parts = ("values", "sd", "censoring", "upper", "replicate", "lowest", "highest", "width")
    held = {name: getattr(channel, name) for name in parts} | dict(channel.columns)
    rows = []
    for t in channel.mask[e].nonzero()[:, 0].tolist():
        told = [None if v is None else v[e, t].item() for v in held.values()]
        rows.append(
            (record.times[e, t].item(), record.after_dose[e, t].item(), dict(zip(held, told, strict=True)))
        )
    return sorted(rows, key=lambda row: row[:2])


def assert_same(one: Experiments, other: Experiments) -> None:
    assert (one.names, one.datasets, one.start) == (other.names, other.datasets, other.start)
    assert dict(one.units) == dict(other.units)
    assert sorted(one.channels) == sorted(other.channels)
    assert sorted(one.conditions) == sorted(other.conditions)
    assert sorted(one.inputs) == sorted(other.inputs)
    for name, value in one.conditions.items():
        assert torch.equal(value, other.conditions[name])
    for name, signal in one.inputs.items():
        assert signal.linear == other.inputs[name].linear
        for part in ("time", "value", "mask"):
            assert torch.equal(getattr(signal, part), getattr(other.inputs[name], part))
    for part in ("time", "amount", "duration", "target", "mask", "targets"):
        mine, theirs = getattr(one.doses, part), getattr(other.doses, part)
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    for name, channel in one.channels.items():
        for e in range(one.count):
            mine, theirs = looks(one, e, channel), looks(other, e, other.channels[name])
            if channel.censoring is not None and not channel.censoring[channel.mask].any():
                mine = [(*row[:2], row[2] | {"censoring": None}) for row in mine]
            assert mine == theirs


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(record=records(), by_file=st.booleans())
def test_whatever_a_record_holds_survives(tmp_path_factory: Any, record: Experiments, by_file: bool) -> None:
    tables = to_tables(record)
    further: list[Any] = [t if len(t) else None for t in (tables.conditions, tables.doses, tables.inputs)]
    first: Any = tables.measurements
    if by_file:
        folder = tmp_path_factory.mktemp("record")
        for k, table in enumerate([first, *further]):
            if table is not None:
                table.to_csv(folder / f"{k}.csv", index=False)
        first = folder / "0.csv"
        further = [None if t is None else folder / f"{k + 1}.csv" for k, t in enumerate(further)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal rows may be drawn
        again = read_table(first, *further, say=False)
    assert_same(record, again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="value"), "no column 'value'"),
        (lambda t: t.assign(value=["x", *t["value"][1:]]), r"row 2: value is 'x'"),
        (lambda t: t.drop(columns="censoring").assign(value=None), "no value in any row"),
        (lambda t: t.assign(time=[-1.0, *t["time"][1:]]), "time is -1"),
        (lambda t: t.assign(time=[float("nan"), *t["time"][1:]]), "row 2: time is ''"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(censoring="below"), "'below', expected one of"),
    ],
)
def test_bad_tables_are_named(change: object, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_table(change(ROWS), say=False)  # type: ignore[operator]


def test_equal_rows_are_a_warning_and_replicates() -> None:
    twice = pd.concat([ROWS.iloc[:4], ROWS.iloc[:1]], ignore_index=True)
    with pytest.warns(UserWarning, match="rows 6"):
        record = read_table(twice, say=False)
    assert int(record.channels["P"].mask.sum()) == 4


def test_missing_files_and_columns(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no file"):
        read_table(tmp_path / "nothing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(TableError, match="empty"):
        read_table(tmp_path / "empty.csv")
    with pytest.raises(TableError, match="for by="):
        read_table(ROWS, by="well", say=False)
    with pytest.raises(TableError, match="no column 'amount'"):
        read_table(ROWS, doses=DOSES.drop(columns="amount"), say=False)
    assert read_table(ROWS.drop(columns="dataset"), by="S0", say=False).datasets == (
        "1",
        "2",
        "3",
    )


def test_data_lie_in_their_own_design() -> None:
    plain = ROWS.drop(columns=["sd", "censoring", "upper"])
    record = read_table(plain, say=False)
    design = Design.like(record)
    assert design.outside(record) == []
    far = read_table(plain.assign(time=plain["time"] * 10, S0=plain["S0"] * 9), say=False)
    words = " ".join(design.outside(far))
    assert "'S0'" in words
    assert "design ends at" in words
    assert Design.from_json(design.to_json()) == design
