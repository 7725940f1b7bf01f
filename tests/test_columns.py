"""Columns of tables: names and units of headers, what is measured, experiments and further tables."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from texts import TIDY, WIDE, Reader, reader, values

from ampost.errors import TableError
from ampost.experiments import Channel, Doses, Experiments
from ampost.reading.accounts import repeats, ties
from ampost.reading.headings import headed, parsed
from ampost.tables import read_table


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


# ----------------------------------------------------------------------------------- columns, keys


@pytest.mark.parametrize(
    ("header", "name", "unit"),
    [
        ("time [h]", "time", "h"),
        ("Glucose (g/L)", "Glucose", "g/L"),
        ("P[mM]", "P", "mM"),
        ("rate (mol/(L h))", "rate", "mol/(L h)"),
        ("t / min", "t", "min"),
        ("Glucose (total) [g/L]", "Glucose (total)", "g/L"),
        ("P [mM] sd", "P sd", "mM"),
        ("log(OD)", "log(OD)", None),
        ("a/b", "a/b", None),
        ("P []", "P", None),
    ],
)
def test_headers_give_name_and_unit(header: str, name: str, unit: str | None) -> None:
    assert parsed(header) == (name, unit)
    assert parsed(headed(name, unit)) == (name, unit)


def test_the_column_map_gives_names_units_and_drops(read: Reader) -> None:
    text = "Zeit,Glucose (enzymatic),Probe,junk\n0,1,a,7\n1,2,a,8\n"
    how = {"Zeit": "time [min]", "Glucose (enzymatic)": "S [g/L]", "probe": "experiment", "junk": None}
    said: list[str] = []
    record = read(text, columns=how, said=said)
    assert record.names == (("a",),)
    assert list(record.channels) == ["S"]
    assert record.units == {"time": "min", "S": "g/L"}
    assert "left aside by columns=: junk" in said[0]
    with pytest.raises(TableError, match="columns= names 'Zeitt', which no table has; did you mean 'Zeit'"):
        read(text, columns={"Zeitt": "time"})


def test_replicates_in_columns_are_joined_by_the_map(read: Reader) -> None:
    record = read("time,P 1,P 2\n0,1,2\n1,3,4\n", columns={"P 1": "P", "P 2": "P"})
    assert record.times.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert values(record) == [1.0, 2.0, 3.0, 4.0]


def test_what_is_measured_may_be_named(read: Reader) -> None:
    text = "time,P,pH,T\n0,1,7,30\n1,2,7.1,30\n"
    assert list(read(text).channels) == ["P", "pH"]
    record = read(text, observables=["P"])
    assert list(record.channels) == ["P"]
    assert record.column("pH", "P").tolist() == [[7.0, 7.1]]
    assert record["T"].item() == 30.0
    with pytest.raises(TableError, match="no column 'ph2' for observables=; did you mean 'pH'"):
        read(text, observables=["ph2"])
    with pytest.raises(TableError, match="leave observables= out"):
        read(TIDY, observables=["P"])


def test_what_stands_beside_a_wide_column_is_of_it(read: Reader) -> None:
    record = read("time,P,P sd,Q,Q_sd\n0,1,0.1,5,0.5\n1,2,0.2,6,0.6\n")
    assert list(record.channels) == ["P", "Q"]
    assert record.column("sd", "P").tolist() == [[0.1, 0.2]]
    assert record.column("sd", "Q").tolist() == [[0.5, 0.6]]
    assert read("time,P,sd\n0,1,0.1\n1,2,0.2\n").column("sd", "P").tolist() == [[0.1, 0.2]]


def test_a_condition_is_one_where_an_experiment_has_a_single_row_too(read: Reader) -> None:
    said: list[str] = []
    text = "well,time,P,S0\nA,0,1,1\nA,1,2,1\nB,1,3,2\n"
    record = read(text, said=said)
    assert list(record.channels) == ["P"]
    assert record["S0"].tolist() == [[1.0], [2.0]]
    assert "it is a condition: S0; measured: P" in said[0]
    assert list(read(text.replace("A,1,2,1", "A,1,2,1.5")).channels) == ["P", "S0"]


def test_where_each_experiment_has_one_row_the_account_says_what_is_measured(read: Reader) -> None:
    said: list[str] = []
    text = "well,time,P,S0\nA,0,1,1\nB,1,3,2\n"
    assert list(read(text, experiments="well", said=said).channels) == ["P", "S0"]
    words = "each experiment has one row, so nothing tells conditions from what is measured"
    assert f"{words}; all are taken as measured: P, S0 (observables=[...] says otherwise)" in said[0]
    record = read(text, experiments="well", observables=["P"], said=said)
    assert record["S0"].tolist() == [[1.0], [2.0]]
    read("well,time,P\nA,0,1\nB,1,3\n", experiments="well", said=said)
    assert words not in said[1] + said[2]


@pytest.mark.parametrize("name", ["well", "Run", "ID", "Subject", "sample"])
def test_columns_like_experiment_are_taken_for_it(read: Reader, name: str) -> None:
    said: list[str] = []
    record = read(WIDE.replace("well", name), said=said)
    assert record.names == (("A", "B"),)
    assert f"experiments are told apart by {name!r}" in said[0]


def test_a_number_in_every_row_is_no_experiment(read: Reader) -> None:
    said: list[str] = []
    record = read("id,time,P\n1,0,1\n2,1,2\n3,2,3\n", said=said)
    assert record.names == (("1",),)
    assert list(record.channels) == ["P"]
    assert "'id' differs in every row and is left aside; if each row is an experiment, say" in said[0]


def test_experiments_that_nothing_tells_apart_are_refused_with_the_fix(read: Reader) -> None:
    text = "time,S0,P\n0,1,0\n1,1,.1\n2,1,.2\n0,2,0\n1,2,.3\n2,2,.4\n"
    with pytest.raises(TableError, match=r"'S0' takes the values 1, 2 at the same times; .*experiments='S0'"):
        read(text)
    record = read(text, experiments="S0")
    assert record.names == (("1", "2"),)
    assert record["S0"].tolist() == [[1.0], [2.0]]
    assert read(text, experiments=[], observables=["P"]).names == (("1",),)
    assert read(text, by="S0").datasets == ("1", "2")
    with pytest.raises(TableError, match=r"no column 'S00' for experiments=; .*did you mean 'S0'"):
        read(text, experiments="S00")


def test_a_column_that_follows_another_is_not_named_with_it(read: Reader) -> None:
    rows = [(f"K{k}", t, k + t / 10, T) for k, T in ((1, 30), (2, 37), (3, 37)) for t in (0, 5)]

    def table(*order: int) -> str:
        header = ("flacon", "time", "P", "T")
        return "\n".join(",".join(str(row[k]) for k in order) for row in [header, *rows])

    for order in ((0, 1, 2, 3), (3, 0, 1, 2)):
        with pytest.raises(TableError, match=r"values K1, K2, K3 at .* say experiments='flacon' if"):
            read(table(*order), observables=["P"])
    both = "time,acid,salt,P\n" + "".join(f"{t},{a},{s},{t}\n" for a in "ab" for s in "xy" for t in (0, 1))
    with pytest.raises(TableError, match=r"say experiments=\['acid', 'salt'\] if"):
        read(both)
    same = "time,name,number,P\n" + "".join(f"{t},{n},{k},{t}\n" for n, k in ("a1", "b2") for t in (0, 1))
    with pytest.raises(TableError, match="say experiments='name' if"):
        read(same, observables=["P"])


def test_blanks_are_no_label(read: Reader) -> None:
    said: list[str] = []
    read("time,P,note\n0,1,\n1,2,bubble\n2,2,\n3,3,\n", said=said)
    assert "'note'" in said[0]
    assert "experiments='note'" not in said[0]
    read("time,P,plate\n0,1,p\n1,2,p\n2,2,q\n3,3,q\n", said=said)
    assert "say experiments='plate' or by=" in said[1]


def test_a_text_that_belongs_to_an_observable_tells_no_experiments_apart(read: Reader) -> None:
    rows = [f"{o},{t},{t + 1},{m}" for o, m in (("P", "HPLC"), ("X", "balance")) for t in range(3)]
    record = read("observable,time,value,method\n" + "\n".join(rows))
    assert record.count == 1


def test_data_sets_by_several_columns(read: Reader) -> None:
    text = "plate,well,time,P\n" + "".join(f"{p},{w},{t},{t}.5\n" for p in "12" for w in "AB" for t in (0, 1))
    assert read(text, by=["plate", "well"]).datasets == ("1, A", "1, B", "2, A", "2, B")
    record = read(text, by="plate")
    assert record.datasets == ("1", "2")
    assert record.names == (("A", "B"), ("A", "B"))


def test_a_condition_may_stand_in_the_first_row_alone_and_a_covariate_may_not_have_gaps(read: Reader) -> None:
    said: list[str] = []
    text = "experiment,observable,time,value,S0,pH\na,P,0,1,5,7\na,P,1,2,,\nb,P,0,1,6,7.1\nb,P,1,2,,7.2\n"
    record = read(text, said=said)
    assert record["S0"].tolist() == [[5.0], [6.0]]
    assert record.channels["P"].columns == {}
    assert "left aside for 'P', as it is empty in some of its rows (assay.csv, row 3): 'pH'" in said[0]


def test_an_experiment_without_any_value_is_left_out_and_told(read: Reader) -> None:
    said: list[str] = []
    record = read("well,time,P\nA,0,1\nA,1,2\nB,0,\nB,1,\n,,\n", said=said)
    assert record.names == (("A",),)
    assert "experiment(s) B" in said[0]


# ------------------------------------------------------------------------------------------- units


def test_units_of_tidy_tables_come_from_their_column(read: Reader) -> None:
    text = "observable,time [h],value,unit,pH [1]\nP,0,1,mM,7\nX,0,2,g/L,7\nP,1,2,,7\n"
    assert read(text).units == {"time": "h", "P": "mM", "X": "g/L", "pH": "1"}
    with pytest.raises(TableError, match="row 4: unit of 'P' is 'uM', in row 2 it is 'mM'"):
        read(text.replace("1,2,,7", "1,2,uM,7"))
    assert read("observable,time,value [mM]\nP,0,1\nP,1,2\n").units == {"P": "mM"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "observable,time,value [g/L],sd [mg/L]\nP,0,1,10\n",
            "'sd .mg/L.' is in 'mg/L' and 'P' in 'g/L'; give both",
        ),
        (
            "observable,time,value [g/L],limit [mg/L]\nP,0,1,10\n",
            "'limit .mg/L.' is in 'mg/L' and 'P' in 'g/L'",
        ),
        (
            "observable,time,value [g/L],upper [mg/L]\nP,0,1,10\n",
            "'upper .mg/L.' is in 'mg/L' and 'P' in 'g/L'",
        ),
        ("observable,time,value,unit,sd [mg/L]\nP,0,1,g/L,10\n", "'sd .mg/L.' is in 'mg/L' and 'P' in 'g/L'"),
        ("observable,time,value,sd [mg/L]\nP,0,1,10\n", "and 'P' in 'no unit'; give the unit of 'P' too"),
        ("time,P [g/L],sd [mg/L]\n0,1,10\n1,2,10\n", "'sd .mg/L.' is in 'mg/L' and 'P' in 'g/L'"),
    ],
)
def test_what_stands_beside_a_value_is_in_its_unit(read: Reader, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(text)
    assert read(text.replace("mg/L", "g/L").replace("time,value,sd", "time,value [g/L],sd")).units == {
        "P": "g/L"
    }


def test_a_limit_is_compared_with_the_observables_that_it_stands_beside(read: Reader) -> None:
    text = "observable,time,value,unit,limit [mg/L]\nP,0,1,g/L,\nX,0,2,mg/L,0.1\n"
    assert read(text).channels["X"].lowest is not None


def test_the_unit_of_a_duration_is_that_of_time(read: Reader) -> None:
    doses = pd.DataFrame({"time": [0.0], "amount": [1.0], "duration [min]": [30.0], "target": ["S"]})
    with pytest.raises(
        TableError, match=r"'duration \[min\]' is in 'min', but no table gives the unit of time"
    ):
        read("time,P\n0,1\n1,2\n", doses=doses)
    with pytest.raises(TableError, match="gives times in 'min', the measurements in 'h'"):
        read("time [h],P\n0,1\n1,2\n", doses=doses)
    assert read("time [min],P\n0,1\n1,2\n", doses=doses).doses.duration.tolist() == [[30.0]]


@pytest.mark.parametrize("what", ["doses", "inputs"])
def test_a_unit_of_time_that_only_a_further_table_gives_is_told(read: Reader, what: str) -> None:
    further = {
        "doses": pd.DataFrame({"time [min]": [0.0], "amount": [1.0], "target": ["S"]}),
        "inputs": pd.DataFrame({"time [min]": [0.0], "value": [1.0], "input": ["F"]}),
    }
    said: list[str] = []
    assert read("time,P\n0,1\n1,2\n", said=said, **{what: further[what]}).units["time"] == "min"
    words = "assay.csv gives no unit of time; it is taken to be min, as a further table says"
    assert words in said[0]
    read("time [min],P\n0,1\n1,2\n", said=said, **{what: further[what]})
    assert words not in said[1]


def test_units_of_further_tables_are_held_and_must_agree(read: Reader) -> None:
    doses = pd.DataFrame({"time [h]": [0, 1], "amount": [1, 2], "target": ["S", "X"], "unit": ["mg", "g"]})
    inputs = pd.DataFrame({"input": ["F"], "time": [0], "value [L/h]": [1.0]})
    conditions = pd.DataFrame({"experiment": ["1"], "V [L]": [2.0]})
    record = read("time [h],P\n0,1\n1,2\n", doses=doses, inputs=inputs, conditions=conditions)
    assert record.units == {"time": "h", "dose S": "mg", "dose X": "g", "F": "L/h", "V": "L"}
    with pytest.raises(TableError, match="the table of doses gives times in 'h', the measurements in 'min'"):
        read("time [min],P\n0,1\n1,2\n", doses=doses)
    with pytest.raises(TableError, match="'P' is in 'mM' in one table and in 'L' in another"):
        read("time,P [mM]\n0,1\n1,2\n", conditions=pd.DataFrame({"P [L]": [2.0]}))


# --------------------------------------------------------------------------------- further tables


def test_ties_with_doses_are_told(read: Reader) -> None:
    said: list[str] = []
    doses = pd.DataFrame({"time": [1.0], "amount": [2.0], "target": ["S"], "duration": [0.5]})
    record = read("time,P,Q\n0,1,1\n1,2,3\n", doses=doses, said=said)
    assert "into S: 1 dose of 2, 1 infusion among them" in said[0]
    assert "2 measurements fall on a dose time and are taken as before it; after_dose says otherwise" in said[0]
    said.clear()
    read("time,P,after_dose\n0,1,no\n1,2,yes\n", doses=doses, said=said)
    assert "dose time" not in said[0]
    assert record.doses.duration.tolist() == [[0.5]]


def test_ties_and_replicates_are_counted_by_measurement() -> None:
    doses = Doses.at([1.0], [2.0], target="S")
    mask = torch.tensor([[True, True, True]])
    record = replace(
        Experiments.on([[0.0, 1.0, 1.0]], ["P", "Q"], doses=doses),
        channels={"P": Channel(mask), "Q": Channel(mask & torch.tensor([[True, True, False]]))},
        after_dose=torch.tensor([[False, False, True]]),
    )
    assert ties(record) == 2
    assert repeats(record.times, record.after_dose, mask) == 0
    assert repeats(record.times, record.after_dose & False, mask) == 1


def test_further_tables_name_experiments_as_the_first_one_does(read: Reader) -> None:
    doses = pd.DataFrame({"Well": ["B"], "time": [0.0], "amount": [1.0], "target": ["S"]})
    assert read(WIDE, doses=doses).doses.mask.tolist() == [[False], [True]]
    by_well = read(WIDE, doses=doses, by="well")
    assert by_well.doses.mask[:, 0].tolist() == [[False], [True]]
    bad = doses.assign(Well="b7")
    with pytest.raises(TableError, match="name experiment 'b7', which has no measurements"):
        read(WIDE, doses=bad)
    with pytest.raises(TableError, match="name data set 'b7', which has no measurements"):
        read(WIDE, doses=bad, by="well")
    with pytest.raises(TableError, match="no column 'experiment'"):
        read(WIDE, doses=doses.drop(columns="Well"))
    text = TIDY.replace("a,", "first,").replace("b,", "second,")
    with pytest.raises(
        TableError, match=r"experiment 'frist', which has no measurements \(did you mean 'first'"
    ):
        read(text, doses=bad.rename(columns={"Well": "experiment"}).assign(experiment="frist"))


def test_a_condition_in_two_tables_must_agree(read: Reader) -> None:
    conditions = pd.DataFrame({"experiment": ["A", "B"], "S0": [1.0, 2.0], "V": [3.0, 4.0]})
    assert read(WIDE, conditions=conditions)["V"].tolist() == [[3.0], [4.0]]
    with pytest.raises(TableError, match="'S0' of experiment 'B' is 2 in the table and 5 in the conditions"):
        read(WIDE, conditions=conditions.assign(S0=[1.0, 5.0]))


def test_a_signal_is_linear_or_held_throughout(read: Reader) -> None:
    inputs = pd.DataFrame({"input": "F", "time": [0.0, 1.0], "value": [1.0, 2.0], "linear": [True, False]})
    with pytest.raises(TableError, match="row 3: linear is False, in row 2 of 'F' it is the opposite"):
        read("time,P\n0,1\n1,2\n", inputs=inputs)
    record = read("time,P\n0,1\n1,2\n", inputs=inputs.assign(linear="yes"))
    assert record.inputs["F"].linear
    assert record.inputs["F"].value.tolist() == [[1.0, 2.0]]


def test_a_data_frame_may_have_its_time_as_index() -> None:
    frame = pd.DataFrame({"P": [1.0, 2.0]}, index=pd.Index([0.0, 1.5], name="time"))
    assert read_table(frame, say=False).times.tolist() == [[0.0, 1.5]]
    elapsed = pd.DataFrame({"time": pd.to_timedelta([0, 90], unit="min"), "P": [1.0, 2.0]})
    record = read_table(elapsed, say=False)
    assert record.times.tolist() == [[0.0, 1.5]]
    assert record.units["time"] == "h"
