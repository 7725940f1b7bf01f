"""What the reader of tables says on the command line: options in place of arguments."""

from pathlib import Path

import pytest

from ampost.errors import TableError
from ampost.options import Given, Tables, read, spoken

TIDY = "experiment,observable,time,value\n1,A,0,1\n1,A,1,0.5\n"


def refused(tmp_path: Path, table: str, **options: list[str]) -> str:
    """What is said of a table that cannot be read as it is."""
    path = tmp_path / "table.csv"
    path.write_text(table)
    named = {"conditions": None, "doses": None, "inputs": None, "by": None, "columns": None, "limits": None}
    with pytest.raises(TableError) as error:
        read(Given("model.py", str(path)), Tables(**{**named, **options}))
    return str(error.value)


def test_errors_name_options(tmp_path: Path) -> None:
    misspelt = TIDY.replace("time", "tme")
    assert "or say --column 'tme=time'" in refused(tmp_path, misspelt)
    twice = TIDY.replace("value", "value,Value").replace(",1\n", ",1,1\n").replace("0.5", "0.5,0.5")
    assert "drop all but one, as by --column 'Value='" in refused(tmp_path, twice)
    assert "--column names 'Zeit', which no table has" in refused(tmp_path, TIDY, columns=["Zeit=time"])
    assert "no column 'well' for --by;" in refused(tmp_path, TIDY, by=["well"])
    assert "--limit names 'B', which the table does not" in refused(tmp_path, TIDY, limits=["B=0.1"])
    assert "say --limit 'A=0.05' with the limit" in refused(tmp_path, TIDY.replace("0.5", "n.d."))
    assert "say --limit 'A=:100.0' with the limit" in refused(tmp_path, TIDY.replace("0.5", "ALQ"))


def test_the_account_names_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("experiment,time,S0,A,note\n1,0,2,1,a\n1,1,2,0.5,b\n2,0,3,1,a\n2,1,3,0.5,b\n")
    read(Given("model.py", str(path)), Tables(None, None, None, None, ["note="], None))
    said = capsys.readouterr().err
    assert "left aside by --column: note" in said
    assert "(observables=[...] says otherwise)" in said  # the command line has no option for these
    assert said.rstrip().endswith(
        "(observables=: of ampost.read_table, in a function data() of the model's file)"
    )


def test_what_names_no_argument_stays_as_it_is() -> None:
    text = "table.csv has no rows; expected one row per measurement, such as a = 1"
    assert spoken(text) == text
    assert spoken("say experiments='Well' or by=") == "say --column 'Well=experiment' or --by"
