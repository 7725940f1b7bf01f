"""NONMEM-style tables: events become doses and measurements; what is not supported is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ampost.errors import TableError
from ampost.experiments import INTERVAL, LEFT, RIGHT, Experiments
from ampost.nonmem import read_nonmem

HEAD = "ID,TIME,AMT,RATE,EVID,CMT,ADDL,II,MDV,CENS,LIMIT,DV,WT,SEX\n"
TABLE = (
    HEAD
    + """1,0,100,.,1,1,2,12,1,0,.,.,70,M
1,0,.,.,0,2,.,.,0,0,.,0,70,M
1,1,.,.,0,2,.,.,0,0,.,5.2,70,M
1,12,.,.,0,2,.,.,0,1,.,0.1,70,M
1,13,.,.,2,2,.,.,1,0,.,.,70,M
1,14,.,.,0,2,.,.,1,0,.,9.9,70,M
2,0,100,50,1,2,0,0,1,0,.,.,80,F
2,1,.,.,0,2,.,.,0,1,0.05,0.1,80,F
2,2,.,.,0,2,.,.,0,-1,.,9,80,F
2,3,.,.,0,2,.,.,0,0,.,.,80,F
"""
)

Reader = Callable[..., Experiments]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    def from_text(text: str, said: list[str] | None = None, **how: Any) -> Experiments:
        (tmp_path / "pk.csv").write_text(text)
        return read_nonmem(tmp_path / "pk.csv", say=False if said is None else said.append, **how)

    return from_text


def test_doses_are_expanded_and_rates_become_durations(read: Reader) -> None:
    doses = read(TABLE).doses
    assert doses.targets == ("depot", "central")
    assert doses.time.tolist() == [[0.0, 12.0, 24.0], [0.0, 0.0, 0.0]]
    assert doses.mask.tolist() == [[True, True, True], [True, False, False]]
    assert doses.duration[1, 0].item() == 2.0
    assert doses.target[:, 0].tolist() == [0, 1]


def test_observations_are_those_with_a_value_that_mdv_does_not_hide(read: Reader) -> None:
    said: list[str] = []
    record = read(TABLE, said=said)
    channel = record.channels["concentration"]
    assert channel.values is not None
    assert record.times.tolist() == [[0.0, 1.0, 12.0], [1.0, 2.0, 2.0]]
    assert channel.values[channel.mask].tolist() == [0.0, 5.2, 0.1, 0.05, 9.0]
    for words in (
        "pk.csv: 10 rows, 5 observations used",
        "missing: 1 (row 11)",
        "excluded by MDV: 1",
        "excluded, as EVID is 2: 1",
        "left aside, as it holds text: 'SEX'",
        "1 measurement falls on a dose time",
    ):
        assert words in said[0]


def test_censored_observations(read: Reader) -> None:
    channel = read(TABLE).channels["concentration"]
    assert channel.censoring is not None
    assert channel.upper is not None
    assert channel.censoring[channel.mask].tolist() == [0, 0, LEFT, INTERVAL, RIGHT]
    assert channel.upper[1, 0].item() == 0.1
    with pytest.raises(TableError, match="row 2: CENS is 1 and LIMIT 2, expected below DV 1"):
        read("ID,TIME,CENS,LIMIT,DV\n1,0,1,2,1\n")


def test_an_observation_below_a_dose_in_the_table_comes_after_it(read: Reader) -> None:
    record = read(TABLE)
    assert record.after_dose.tolist() == [[True, False, False], [False, False, False]]
    swapped = read("ID,TIME,AMT,DV\n1,0,.,0\n1,0,5,.\n1,1,.,3\n")
    assert not swapped.after_dose.any()


def test_each_id_is_an_experiment_and_may_be_a_data_set(read: Reader) -> None:
    together = read(TABLE)
    assert together.names == (("1", "2"),)
    assert together["WT"].tolist() == [[70.0], [80.0]]
    for by in (True, "ID"):
        apart = read(TABLE, by=by)
        assert apart.datasets == ("1", "2")
        assert apart.doses.mask.sum((-2, -1)).tolist() == [3, 1]
    assert read(TABLE, by="SEX").datasets == ("M", "F")


def test_a_covariate_that_changes_stands_beside_each_observation(read: Reader) -> None:
    record = read("ID,TIME,AMT,DV,CRP [mg/L]\n1,0,5,.,1\n1,1,.,3,1\n1,2,.,2,4\n")
    assert record.column("CRP", "concentration").tolist() == [[1.0, 4.0]]
    assert record.units == {"CRP": "mg/L"}


def test_observables_by_dvid(read: Reader) -> None:
    text = "ID,TIME [h],AMT [mg],DVID,DV [mg/L]\n1,0,5,.,.\n1,1,.,1,3\n1,1,.,2,70\n"
    record = read(text, observable={1: "cp", 2: "effect"})
    assert list(record.channels) == ["cp", "effect"]
    assert record.units == {"time": "h", "cp": "mg/L", "effect": "mg/L", "dose depot": "mg"}
    with pytest.raises(TableError, match=r"several DVID; name what each is, as in observable=\{1: 'name', 2:"):
        read(text)
    with pytest.raises(TableError, match=r"row 4: DVID is 2, but the observables are \{1: 'cp'\}"):
        read(text.replace(" [h]", ""), observable={1: "cp"})


def test_clock_times_and_other_headers(read: Reader) -> None:
    record = read("Subject,TIME,AMT,DV\n7,08:00,5,.\n7,09:30,.,3\n", columns={"Subject": "ID"})
    assert record.times.tolist() == [[1.5]]
    assert record.names == (("7",),)


def test_a_data_frame_serves_too() -> None:
    frame = pd.DataFrame({"id": [1, 1], "time": [0.0, 1.0], "amt": [5.0, None], "dv": [None, 3.0]})
    record = read_nonmem(frame, "cp", {1: "gut"}, say=False)
    assert record.doses.targets == ("gut",)
    assert torch.equal(record.doses.amount, torch.tensor([[5.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,TIME,AMT,SS,DV\n1,0,9,1,.\n1,1,.,.,2\n", r"row 2: SS=1 \(steady state\) is not supported; give"),
        (
            "ID,TIME,AMT,RATE,DV\n1,0,9,-1,.\n",
            r"row 2: RATE=-1 \(a rate that is a parameter\) is not supported",
        ),
        ("ID,TIME,AMT,RATE,DV\n1,0,9,-2,.\n", r"row 2: RATE=-2 \(a duration that is a parameter\) is not supp"),
        ("ID,TIME,AMT,RATE,DV\n1,0,9,-3,.\n", "row 2: RATE is -3, expected 0"),
        ("ID,TIME,AMT,EVID,DV\n1,0,0,3,.\n", r"row 2: EVID=3 \(a reset\) is not supported"),
        ("ID,TIME,AMT,EVID,DV\n1,0,9,4,.\n", r"row 2: EVID=4 \(a reset with a dose\) is not supported"),
        ("ID,TIME,AMT,EVID,DV\n1,0,9,7,.\n", "row 2: EVID is 7, expected 0, 1 or 2"),
        ("ID,TIME,AMT,EVID,DV\n1,0,9,0,1\n", "row 2: EVID is 0, an observation, but AMT is 9"),
        ("ID,TIME,AMT,EVID,DV\n1,0,.,1,.\n", "row 2: EVID is 1, a dose, but AMT is empty"),
        ("ID,TIME,AMT,CMT,DV\n1,0,9,5,.\n", r"row 2: CMT is 5, but the compartments are \{1: 'depot'"),
        ("ID,TIME,AMT,ADDL,DV\n1,0,9,2,.\n", "row 2: ADDL is 2, but II is 0; add the time between doses"),
        ("ID,TIME,AMT,ADDL,II,DV\n1,0,9,-2,1,.\n", "row 2: ADDL is -2, expected a number of further doses"),
        ("ID,TIME,CENS,DV\n1,0,2,1\n", "row 2: CENS is 2, expected 0, 1"),
        ("ID,TIME,DV\n1,0,x\n1,1,2\n", "row 2: DV is 'x', expected a number"),
        ("ID,TIME,DV\n1,,3\n1,1,2\n", "row 2: TIME is '', expected a number"),
        ("ID,TIM,DV\n1,0,3\n", "no column 'time'; .*did you mean 'TIM'"),
        (
            "ID,TIME,AMT,DV\n1,0,9,.\n1,2,.,3\n1,0,9,.\n1,2,.,2\n",
            "row 4: TIME is 0, but 2 in a row of ID '1' above, .*; sort the rows, or give a second",
        ),
        ("ID,TIME,EVID,DV\n1,2,0,1\n1,,2,.\n1,1,0,2\n", "row 4: TIME is 1, but 2 in a row of ID '1' above"),
        (
            "ID,TIME [min],AMT,II [h],ADDL,DV\n1,0,9,1,1,.\n",
            "'II .h.' is in 'h', but by the units of TIME it is 'min'",
        ),
        (
            "ID,TIME,AMT,II [h],ADDL,DV\n1,0,9,1,1,.\n",
            "by the units of TIME there is none; write them there too",
        ),
        (
            "ID,TIME,CENS,LIMIT [ug/L],DV [mg/L]\n1,0,1,1,2\n",
            "'LIMIT .ug/L.' .* units of DV it is 'mg/L'; convert",
        ),
        (
            "ID,TIME [h],AMT [mg],RATE [g/h],DV\n1,0,9,1,.\n",
            "'RATE .g/h.' .* units of AMT and TIME it is 'mg/h'",
        ),
        ("ID,TIME [h],AMT,RATE [mg/h],DV\n1,0,9,1,.\n", "'RATE .mg/h.' .* units of AMT and TIME there is none"),
        ("ID,TIME,AMT,DV\n1,0,9,.\n", "no observation; expected rows with EVID 0"),
        ("ID,TIME,AMT,DV\n1,0,9,.\n2,0,.,3\n", "ID '1' has doses, but no observation; leave its rows out"),
    ],
)
def test_what_is_wrong_or_not_supported_is_named(read: Reader, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(text)


def test_units_of_intervals_limits_and_rates_that_agree_are_no_matter(read: Reader) -> None:
    head = "ID,TIME [h],AMT [mg],RATE [mg / h],ADDL,II [h],CENS,LIMIT [mg/L],DV [mg/L]\n"
    record = read(head + "1,0,100,50,1,12,.,.,.\n1,1,.,.,.,.,1,1,2\n")
    assert record.doses.time.tolist() == [[0.0, 12.0]]
    assert record.units == {"time": "h", "concentration": "mg/L", "dose depot": "mg"}
    assert read("ID,TIME,AMT,ADDL,II [h],DV\n1,08:00,5,1,12,.\n1,09:30,.,.,.,3\n").units["time"] == "h"


@pytest.mark.parametrize("interval", [k / 10 for k in range(1, 30)] + [12.0, 24.0])
def test_an_observation_at_a_further_dose_is_a_trough(read: Reader, interval: float) -> None:
    troughs = [f"{k * interval:.1f}" for k in range(1, 11)]
    rows = "".join(f"1,{time},.,.,.,3\n" for time in troughs)
    said: list[str] = []
    record = read(f"ID,TIME,AMT,II,ADDL,DV\n1,0,100,{interval},10,.\n{rows}", said=said)
    assert record.doses.time[0, 1:].tolist() == record.times[0].tolist() == [float(time) for time in troughs]
    assert "10 measurements fall on a dose time and are taken as before it" in said[0]


def test_an_observation_beside_a_further_dose_is_left_where_it_is(read: Reader) -> None:
    record = read("ID,TIME,AMT,II,ADDL,DV\n1,0,100,12,1,.\n1,11.9999,.,.,.,3\n2,12.0,.,.,.,3\n")
    assert record.doses.time[0].tolist() == [0.0, 12.0]
    assert record.times[0].tolist() == [11.9999]


def test_each_id_begins_anew(read: Reader) -> None:
    text = "ID,OCC,TIME,AMT,DV\n1,1,0,9,.\n1,1,2,.,3\n1,2,0,9,.\n1,2,2,.,2\n"
    assert read(text, by="OCC").datasets == ("1", "2")
    assert read(text.replace("\n1,2,", "\n2,2,")).times.tolist() == [[2.0], [2.0]]
