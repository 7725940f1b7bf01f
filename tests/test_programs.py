"""Models by name: what a user's file may define, what goes wrong in it, and what `ampost new` writes."""

import sys
from pathlib import Path

import pytest

from ampost import Experiments, Model, programs, read_table
from ampost.errors import ArgumentError, FileError, ModelError
from ampost.spelling import nearest
from ampost.starting import start

FILE = """
import pyro
import pyro.distributions as dist
import ampost

def decay(t, y, p):
    return {"A": -p.k * y.A}

def program(experiments):
    k = pyro.sample("k", ampost.between(0.1, 2.0))
    y = ampost.odeint(decay, {"A": 1.0}, {"k": k}, experiments)
    ampost.observe("A", dist.Normal(y.A, 0.1), experiments)

def like(data):
    return ampost.Model(program, ampost.Design.like(data))

def data():
    return ampost.read_table(DATA, say=False)
"""
TABLE = "experiment,observable,time,value\n1,A,0,1.0\n1,A,1,0.6\n1,A,2,0.4\n"


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a file opens its folder to imports, for the process."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    table = tmp_path / "decay.csv"
    table.write_text(TABLE)
    path = tmp_path / "decay.py"
    path.write_text(FILE.replace("DATA", repr(str(table))))
    return path


def extended(path: Path, text: str) -> Path:
    path.write_text(path.read_text() + text)
    return path


def loaded(path: Path, text: str) -> programs.Source:
    return programs.load(str(extended(path, text)))


@pytest.mark.parametrize(
    "text",
    [
        "def model(data): return like(data)",
        "def model(data, widen=0.5): return like(data)",
        "def model(): return like(data())",
        "model = like(data())",
    ],
)
def test_a_file_gives_its_model_in_three_ways(written: Path, text: str) -> None:
    source = loaded(written, text)
    model = programs.model_of(source, programs.data_of(source))
    assert isinstance(model, Model)
    assert model.channels == ("A",)
    assert source.label == "decay"


def test_a_name_after_the_colon_is_another_model_with_data_of_its_own(written: Path) -> None:
    extended(written, "def slow(data): return like(data)\ndef slow_data(): return data()\nmodel = like")
    source = programs.load(f"{written}:slow")
    assert source.label == "decay-slow"
    assert source.own is not None
    assert source.own.__name__ == "slow_data"
    assert isinstance(programs.model_of(source, programs.data_of(source)), Model)


@pytest.mark.parametrize("given", ["slow", "slow_model"])
def test_a_further_model_may_be_named_with_or_without_model(written: Path, given: str) -> None:
    extended(written, "slow = program\ndef slow_model(): return like(data())\ndef slow_data(): return data()")
    source = programs.load(f"{written}:{given}")
    assert source.label == "decay-slow"
    assert programs.model_of(source, None).channels == ("A",)
    assert programs.data_of(source).count == 1


def test_a_model_of_the_zoo_goes_by_its_name() -> None:
    source = programs.load("lotka_volterra")
    assert programs.model_of(source, None).channels == ("hare", "lynx")
    assert programs.data_of(source).count == 1


def test_the_zoo_is_listed_with_first_lines_and_data() -> None:
    listed = {model.name: model for model in programs.listed()}
    assert listed["lotka_volterra"].has_data
    assert not listed["michaelis_menten"].has_data
    assert listed["michaelis_menten"].words.startswith("Michaelis-Menten kinetics")
    assert all(model.words for model in listed.values())
    assert listed["one_compartment_oral:population"].has_data
    assert programs.load("one_compartment_oral:population").name == "population_model"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modell = like", r"no 'model'; did you mean decay.py:modell\?"),
        ("", r"no 'model'; define it, for example def model\(data\)"),
        ("model = 3", "'model' of decay.py is a int; expected a Model"),
        ("model = program", "returns a NoneType; expected a Model"),
        ("def model(a, b): return like(a)", "takes 2 arguments; expected a Model"),
    ],
)
def test_what_is_no_model_is_named_with_the_fix(written: Path, text: str, said: str) -> None:
    data = read_table(written.with_suffix(".csv"), say=False)
    with pytest.raises(ModelError, match=said):
        programs.model_of(loaded(written, text), data)


def test_a_model_made_from_data_asks_for_them(written: Path) -> None:
    with pytest.raises(ModelError, match="makes its model from data: give a table"):
        programs.model_of(loaded(written, "model = like"), None)


def test_missing_and_wrong_data_functions_are_named(written: Path) -> None:
    with pytest.raises(ModelError, match="brings no data along"):
        programs.data_of(loaded(written, "model = like\ndel data"))
    with pytest.raises(ModelError, match=r"data\(\) of decay.py returns a str, expected Experiments"):
        programs.data_of(loaded(written, "\ndef data(): return 'decay.csv'"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = lkie", "decay.py, line {line}: NameError: name 'lkie' is not defined"),
        ("def model(data:", "decay.py, line {line}: SyntaxError"),
        ("import not_there", "decay.py, line {line}: ModuleNotFoundError"),
    ],
)
def test_an_error_in_the_file_names_file_and_line(written: Path, text: str, said: str) -> None:
    line = written.read_text().count("\n") + 1
    with pytest.raises(ModelError) as refused:
        loaded(written, text)
    assert said.format(line=line) in str(refused.value)


def test_an_error_in_the_program_names_the_line_there(written: Path) -> None:
    written.write_text(FILE.replace("p.k * y.A", "p.k * y.A / none").replace("DATA", "'x'"))
    source = loaded(written, "model = like")
    with pytest.raises(ModelError, match=r"decay.py, line 7: NameError: name 'none' is not defined"):
        programs.model_of(source, read_table(written.with_suffix(".csv"), say=False))


def test_an_error_from_elsewhere_stays_what_it_is(written: Path) -> None:
    with pytest.raises(ZeroDivisionError), programs.telling(written):
        1 / 0  # noqa: B018


def test_a_file_may_import_what_lies_beside_it(written: Path) -> None:
    (written.parent / "beside_decay.py").write_text("HALF = 0.5\n")
    assert loaded(written, "from beside_decay import HALF as model").made == 0.5


def test_a_missing_file_and_zoo_model_name_near_ones(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"did you mean decay.py\?"):
        programs.load(str(written.with_name("decai.py")))
    with pytest.raises(FileError, match="ampost new NAME"):
        programs.load(str(written.parent / "nowhere" / "decay.py"))
    with pytest.raises(FileError, match=r"did you mean michaelis_menten\?"):
        programs.load("michaelis_mentens")
    with pytest.raises(FileError, match="the zoo has"):
        programs.load("xyz")
    monkeypatch.chdir(written.parent)
    with pytest.raises(FileError, match=r"for the file write decay.py"):
        programs.load("decay")


def test_nearest_ignores_case_and_keeps_the_spelling() -> None:
    assert nearest("GLUCOSE", ["Glucose", "Acetate"]) == ["Glucose"]
    assert nearest("xyz", ["Glucose", "Acetate"]) == []


def test_a_start_is_a_model_and_data_that_fit_each_other(tmp_path: Path) -> None:
    paths = start("first", tmp_path)
    assert [path.name for path in paths] == ["first.py", "first.csv"]
    source = programs.load(str(paths[0]))
    data = read_table(paths[1], say=False)
    model = programs.model_of(source, data)
    assert isinstance(data, Experiments)
    assert model.z_size() <= 5
    assert set(model.channels) == set(data.channels)
    assert model.design.outside(data) == []
    states = {"X", "S"}
    assert states | set(model.channels) | set(data.conditions) <= set(model.units)
    assert {site.name for site in model.sites()} <= set(model.units)
    assert "$" not in paths[0].read_text()
    assert "ampost infer first.py first.csv" in paths[0].read_text()


def test_a_start_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "first.csv").write_text("mine")
    with pytest.raises(FileError, match="is not overwritten"):
        start("first", tmp_path)
    assert not (tmp_path / "first.py").exists()
    assert (tmp_path / "first.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["2x", "my-model", "class", "first.py", "", "größe"])
def test_a_start_needs_the_name_of_a_python_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="expected that of a Python file"):
        start(name, tmp_path)


def test_a_start_hides_no_module_and_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="installed Python module"):
        start("torch", tmp_path)
    with pytest.raises(FileError, match="there is no folder"):
        start("first", tmp_path / "nowhere")


def test_the_estimator_of_a_new_model_takes_tables_of_one_to_four_experiments(tmp_path: Path) -> None:
    start("growth", tmp_path)
    data = read_table(tmp_path / "growth.csv", say=False)
    model = programs.model_of(programs.load(str(tmp_path / "growth.py")), data)
    assert model.design.experiments == (1, 4)
    assert not model.design.outside(data)
    assert data.count == 2
    rows = (tmp_path / "growth.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(row for row in rows if not row.startswith("high")))
    one = read_table(tmp_path / "one.csv", say=False)
    assert not any("experiments" in said for said in model.design.outside(one))
