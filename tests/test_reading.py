"""Reading what laboratories bring: dialects, workbooks, cells with limits, and what is wrong."""

import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from texts import TIDY, WIDE, Reader, reader, values

from ampost.errors import TableError
from ampost.experiments import LEFT, RIGHT
from ampost.reading import sheets
from ampost.reading.cells import measured, number
from ampost.tables import read_table

WELLS = """# plate of 1 March
Well;Time [min];P [mM];S0 [mM];Note

A1;0;0;1;
A1;1;0,5;1;fresh tip
A1;1;0,52;1;
A1;2;;1;
A2;0;0;2;
A2;1;<0,05;2;
A2;2;1,2;2;
"""


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


# ---------------------------------------------------------------------------------------- dialects


def test_the_semicolon_table_of_a_newcomer_is_read_and_told(read: Reader) -> None:
    said: list[str] = []
    record = read(WELLS, said=said)
    assert record.names == (("A1", "A2"),)
    assert values(record) == [0.0, 0.5, 0.52, 0.0, 0.05, 1.2]
    assert record.channels["P"].censoring is not None
    assert record.channels["P"].censoring[1].tolist() == [0, LEFT, 0]
    assert record["S0"].tolist() == [[1.0], [2.0]]
    assert record.units == {"time": "min", "P": "mM", "S0": "mM"}
    (account,) = said
    for words in (
        "assay.csv: 7 rows (one column per observable, semicolons, decimal commas), 6 measurements used",
        "experiments are told apart by 'Well'",
        "it is a condition: S0; measured: P",
        "left aside, as it holds text: 'Note'",
        "missing: 1 (row 7)",
        "2 experiments (A1, A2) of 1 data set, times 0 to 2 min",
        "P [mM]: 6 measurements, 1 below a limit (0.05), 1 replicate",
        "condition S0 [mM]: 1 to 2",
    ):
        assert words in account


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (WIDE, "utf-8-sig"),
        (WIDE, "utf-16"),
        (WIDE.replace(",", "\t"), "utf-8"),
        (WIDE.replace(",", ";").replace("0.", "0,"), "utf-8"),
        ("sep=;\r\n" + WIDE.replace(",", ";").replace("\n", "\r\n"), "utf-8"),
        (WIDE.replace(",", ", "), "utf-8"),
        (WIDE.replace("0.5", '"0,5"').replace("0.7", '"0,7"'), "utf-8"),
        (WIDE.replace("P", '"P"').replace("\nB", "\n# later\n\nB") + ",,,\n", "utf-8"),
        (WIDE.replace("well,time", "WELL, TIME "), "utf-8"),
        (WIDE.replace("0.5", "+5e-1"), "utf-8"),
    ],
    ids=["bom", "utf16", "tab", "semicolon", "sep", "blanks", "quoted", "comments", "case", "exponent"],
)
def test_dialects_give_the_same_record(read: Reader, text: str, encoding: str) -> None:
    record = read(text, encoding)
    assert values(record) == [0.0, 0.5, 0.0, 0.7]
    assert record["S0"].tolist() == [[1.0], [2.0]]


def test_latin_1_is_read_where_utf_8_is_not(read: Reader) -> None:
    record = read("time,Temp (°C)\n0,30\n1,31\n", "latin-1")
    assert record.units["Temp"] == "°C"


def test_workbooks_and_parquet_are_read_as_csv_is(read: Reader, tmp_path: Path) -> None:
    frame = pd.DataFrame({"well": ["A", "A", "B"], "time [h]": [0, 1, 1], "P": [0.1, "<0.05", None]})
    frame.to_excel(tmp_path / "assay.xlsx", index=False)
    frame.astype({"P": str}).to_parquet(tmp_path / "assay.parquet")
    for name in ("assay.xlsx", "assay.parquet"):
        record = read_table(tmp_path / name, say=False)
        assert values(record) == [0.1, 0.05]
        assert record.units == {"time": "h"}


def test_a_workbook_may_have_comments_other_sheets_and_clock_cells(tmp_path: Path) -> None:
    said: list[str] = []
    stamps = [datetime.datetime(2026, 3, 1, 9), datetime.datetime(2026, 3, 1, 10, 30)]
    rows = [["# plate 3", None], [None, None], ["time", "P"], [stamps[0], 1.0], [stamps[1], "x2"]]
    with pd.ExcelWriter(tmp_path / "assay.xlsx") as book:
        pd.DataFrame(rows).to_excel(book, sheet_name="data", index=False, header=False)
        pd.DataFrame({"a": [1]}).to_excel(book, sheet_name="plan")
    with pytest.raises(TableError, match=r"assay\.xlsx, row 5: P is 'x2', expected a number"):
        read_table(tmp_path / "assay.xlsx", observables=["P"])
    rows[-1][1] = 2.0
    with pd.ExcelWriter(tmp_path / "assay.xlsx") as book:
        pd.DataFrame(rows).to_excel(book, sheet_name="data", index=False, header=False)
        pd.DataFrame({"a": [1]}).to_excel(book, sheet_name="plan")
    record = read_table(tmp_path / "assay.xlsx", say=said.append)
    assert record.times.tolist() == [[0.0, 1.5]]
    assert "the sheet 'data' is read; left aside: plan" in said[0]


@pytest.mark.parametrize("extra", ["xlsx", "parquet"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setattr(sheets, "find_spec", lambda _: None)
    (tmp_path / f"assay.{extra}").write_bytes(b"")
    with pytest.raises(TableError, match=rf"pip install 'ampost\[{extra}\]'"):
        read_table(tmp_path / f"assay.{extra}")


@pytest.mark.parametrize("extra", ["xlsx", "parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, extra: str) -> None:
    (tmp_path / f"assay.{extra}").write_bytes(b"nothing of the kind")
    with pytest.raises(TableError, match=rf"assay\.{extra} cannot be read as"):
        read_table(tmp_path / f"assay.{extra}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,P\n0,1,5\n", r"row 2: it has 3 cells, the header 2; put cells with commas in quotes"),
        ("time P\n0 1\n", "has one column, 'time P'; separate columns by"),
        ("0,1\n1,2\n", "the first row of assay.csv holds numbers"),
        ("# nothing\n\n", "assay.csv is empty"),
        ("time;P\n0;0,5\n1;1.5\n", r"row 3: P is '1\.5', .*decimal commas elsewhere"),
        ('time,P\n0,"1,234"\n1,2\n2,3\n', r"row 2: P is '1,234', .*without separators of thousands"),
        ("time,P\n0,0.5 mM\n1,1\n2,2\n", r"row 2: P is '0\.5 mM', .*a unit belongs in the header"),
        ("time,P\n0,0.5\n1,0.3x\n2,1\n", r"assay\.csv, row 3: P is '0\.3x', expected a number"),
        ("time,P\n\n# later\n0,0.5\n1,0.3x\n2,1\n", r"row 5: P is '0\.3x'"),
        ("tme,P\n0,0.5\n", "no column 'time'; .* did you mean 'tme'"),
        ("observabel,time,value\nP,0,1\n", "no column 'observable'; .* did you mean 'observabel'"),
        (TIDY.replace("value", "vlaue"), "no column 'value'; .* did you mean 'vlaue'"),
        (TIDY.replace("experiment", "experimnt"), "unknown column 'experimnt'; did you mean 'experiment'"),
        ("time,P [mM],P [g/L]\n0,1,1\n1,2,2\n", r"2 columns for 'P': 'P \[mM\]', 'P \[g/L\]'"),
        ("time,P,unit\n0,1,mM\n1,2,mM\n", "write units into the headers"),
        ("time,P,Q,sd\n0,1,1,1\n1,2,2,1\n", "column 'sd' and several observables; name it after"),
        (
            "time,P [mM],P sd [g/L]\n0,1,1\n1,2,1\n",
            "'P sd .g/L.' is in 'g/L' and 'P' in 'mM'; give both in 'mM'",
        ),
        ("time,P,P sd\n0,1,0\n1,2,1\n", r"row 2: 'P sd' is 0, expected above 0"),
        ("time,S0\n0,1\n1,1\n", "no column that changes within an experiment"),
        ("time,P\n0,\n1,NA\n2,1\n-1,2\n", "row 5: time is -1, expected 0 or later"),
        ("well,time,P\nA,0,1\n,1,2\n,2,3\n", "row 3: well is empty, expected a name; fill it in"),
    ],
)
def test_what_is_wrong_is_named_by_file_row_and_column(read: Reader, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(text)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_points_that_may_separate_thousands_are_told(read: Reader, separator: str) -> None:
    def account(*numbers: str) -> str:
        said: list[str] = []
        rows = (f"{t}{separator}{number}\n" for t, number in enumerate(numbers))
        read(f"time{separator}P\n" + "".join(rows), said=said)
        return said[0]

    words = "points are read as decimal points, {} as {}; if they separate thousands, write the numbers without"
    assert words.format("1.000", "1") in account("1.000", "2.500")
    assert words.format("12.500", "12.5") in account("<12.500", "40", "120.750")
    for told in (("1.000", "2.5"), ("1.000", "0.500"), ("1000", "2000"), ("1,000", "2,500")):
        assert "points are read" not in account(*told)


def test_points_between_commas_are_decimal_points(read: Reader) -> None:
    said: list[str] = []
    read("time,P\n0,1.000\n1,2.000\n", said=said)
    assert "points are read" not in said[0]


def test_a_file_that_is_not_there_is_told_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "assay.csv").write_text(WIDE)
    with pytest.raises(TableError, match=r"no file .*asay\.csv'; did you mean 'assay\.csv'"):
        read_table(tmp_path / "asay.csv")
    (tmp_path / "old.xls").write_bytes(b"")
    with pytest.raises(TableError, match=r"old\.xls is an \.xls file, which is not read; save it as \.xlsx"):
        read_table(tmp_path / "old.xls")


# ------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("word", ["", " ", "NA", "n/a", "NaN", "nan", ".", "-", "#N/A", "null", "n.a."])
def test_words_for_nothing_are_missing(read: Reader, word: str) -> None:
    record = read(f"time,P\n0,1\n1,{word}\n2,3\n")
    assert values(record) == [1.0, 3.0]
    assert record.times.tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("word", ["n.d.", "nd", "N.D.", "BLQ", "bql", "LOD", "<LLOQ", "< LOD"])
def test_words_below_a_limit_need_that_limit(read: Reader, word: str) -> None:
    text = f"time,P\n0,1\n1,{word}\n2,3\n"
    with pytest.raises(TableError, match=rf"row 3: P is '{word}', below a limit .* limits=\{{'P': 0\.05\}}"):
        read(text)
    channel = read(text, limits={"P": 0.05}).channels["P"]
    assert channel.values is not None
    assert channel.values.tolist() == [[1.0, 0.05, 3.0]]
    assert channel.censoring is not None
    assert channel.censoring.tolist() == [[0, LEFT, 0]]
    assert channel.lowest is not None
    assert channel.lowest.tolist() == [[0.05, 0.05, 0.05]]


@pytest.mark.parametrize(
    ("cell", "comma", "number", "kind"),
    [
        ("<0.05", False, 0.05, LEFT),
        ("< 0,05", True, 0.05, LEFT),
        ("≤1", False, 1.0, LEFT),
        ("<= 1", False, 1.0, LEFT),
        (">100", False, 100.0, RIGHT),
        (" > 1e2 ", False, 100.0, RIGHT),
        ("−0.5", False, -0.5, 0),
        (7, False, 7.0, 0),
        ("1.", False, 1.0, 0),
        (".5", False, 0.5, 0),
    ],
)
def test_cells_are_numbers_or_limits(cell: object, comma: bool, number: float, kind: int) -> None:
    found = measured(cell, comma)
    assert found is not None
    assert (found.number, found.censoring) == (number, kind)


@pytest.mark.parametrize("cell", ["1_000", "0x1", "1.2.3", "five", "1 2", "<", "<x", "1,5", "12:30", "e5"])
def test_other_cells_are_no_numbers(cell: str) -> None:
    assert number(cell) is None
    assert measured(cell) is None


def test_limits_hold_for_all_rows_and_a_row_knows_its_own(read: Reader) -> None:
    said: list[str] = []
    record = read("time,P\n0,0\n1,<0.2\n2,0.3\n3,>9\n4,7\n", limits={"P": (0.1, 8.0)}, said=said)
    channel = record.channels["P"]
    assert channel.values is not None
    assert channel.censoring is not None
    assert channel.lowest is not None
    assert channel.highest is not None
    assert channel.values.tolist() == [[0.1, 0.2, 0.3, 9.0, 7.0]]
    assert channel.censoring.tolist() == [[LEFT, LEFT, 0, RIGHT, 0]]
    assert channel.lowest.tolist() == [[0.1, 0.2, 0.1, 0.1, 0.1]]
    assert channel.highest.tolist() == [[8.0, 8.0, 8.0, 9.0, 8.0]]
    assert "1 number below the limit 0.1 of 'P', taken as censored there" in said[0]


def test_without_a_stated_limit_only_the_censored_rows_know_one(read: Reader) -> None:
    channel = read("time,P\n0,0\n1,<0.2\n2,0.3\n").channels["P"]
    assert channel.lowest is None
    assert channel.unseen().lowest is not None
    assert values(read("time,P\n0,0\n1,<0.2\n2,0.3\n")) == [0.0, 0.2, 0.3]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            ("0", "<0.05", "0.3"),
            "1 number lies below the limit that other rows of 'P' tell (0.05) and is taken as exact; "
            "limits={'P': 0.05} says otherwise",
        ),
        (
            ("0.01", "0.02", "<0.05", "<0.2", "0.1"),
            "2 numbers lie below the limit that other rows of 'P' tell (0.05) and are taken as exact",
        ),
        (
            ("25", ">20", "3"),
            "1 number lies above the limit that other rows of 'P' tell (20) and is taken as exact; "
            "limits={'P': (None, 20)} says otherwise",
        ),
    ],
)
def test_exact_numbers_beyond_the_limits_of_other_rows_are_told(
    read: Reader, cells: tuple[str, ...], words: str
) -> None:
    def account(limits: dict[str, float] | None = None) -> str:
        said: list[str] = []
        read("time,P\n" + "".join(f"{t},{cell}\n" for t, cell in enumerate(cells)), said=said, limits=limits)
        return said[0]

    assert words in account()
    if "below" in words:
        assert "other rows" not in account({"P": 0.05})


def test_exact_numbers_below_a_column_of_limits_with_gaps_are_told(read: Reader) -> None:
    said: list[str] = []
    read("time,P,limit\n0,0.02,\n1,0.5,0.1\n", said=said)
    assert "1 number lies below the limit that other rows of 'P' tell (0.1)" in said[0]
    read("time,P,limit\n0,0.2,\n1,0.5,0.1\n", said=said)
    assert "other rows" not in said[1]


@pytest.mark.parametrize("header", ["limit", "LOD", "lowest", "P limit", "P_LLOQ"])
def test_a_column_of_limits_tells_each_row(read: Reader, header: str) -> None:
    channel = read(f"time,P,{header}\n0,nd,0.1\n1,0.5,\n2,nd,0.3\n").channels["P"]
    assert channel.lowest is not None
    assert channel.values is not None
    assert channel.values.tolist() == [[0.1, 0.5, 0.3]]
    assert channel.lowest.tolist() == [[0.1, -torch.inf, 0.3]]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"p1": 0.1}, "limits= names 'p1', which the table does not measure; did you mean 'P'"),
        ({"P": (2.0, 1.0)}, "limits= of 'P' is .* that rise"),
        ({"P": float("nan")}, "limits= of 'P' is nan"),
    ],
)
def test_limits_that_make_no_sense_are_refused(read: Reader, limits: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read("time,P\n0,1\n1,2\n", limits=limits)


def test_cells_and_the_column_of_censoring_must_agree(read: Reader) -> None:
    text = "observable,time,value,censoring,upper\nP,0,<1,{},\nP,1,2,interval,{}\nP,2,,none,\n"
    with pytest.raises(TableError, match="row 2: value is '<1', but censoring is 'right'"):
        read(text.format("right", 3))
    with pytest.raises(TableError, match="row 3: upper is 1, expected above the value 2"):
        read(text.format("left", 1))
    with pytest.raises(TableError, match=r"censoring is 'lefd', expected one of .*; did you mean 'left'"):
        read(text.format("lefd", 1))
    channel = read(text.format("", 3)).channels["P"]
    assert channel.censoring is not None
    assert channel.upper is not None
    assert channel.censoring.tolist() == [[LEFT, 3]]
    assert channel.upper.tolist() == [[0.0, 3.0]]
