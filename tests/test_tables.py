"""Tables: a round trip of every field, and errors that name the thing."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from ampost import Design, read_table
from ampost.errors import TableError
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="value"), "no column 'value'"),
        (lambda t: t.assign(value=["x", *t["value"][1:]]), r"row 2: value is 'x'"),
        (lambda t: t.assign(value=[None, *t["value"][1:]]), "row 2: value is"),
        (lambda t: t.assign(time=[-1.0, *t["time"][1:]]), "time is -1"),
        (lambda t: t.assign(time=[float("nan"), *t["time"][1:]]), "row 2: time is 'nan'"),
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
        "1.0",
        "2.0",
        "3.0",
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
