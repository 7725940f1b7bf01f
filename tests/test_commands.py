"""The commands in one process, on a small model of one parameter: what they write, say and refuse."""

import csv
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ampost import Estimator, asking, cli, reporting
from ampost.design import Design, Looks
from ampost.errors import ArgumentError, FileError, TableError
from ampost.experiments import Experiments
from ampost.tables import read_table
from ampost.zoo import michaelis_menten

FILE = """
import pyro
import pyro.distributions as dist
import ampost

def decay(t, y, p):
    return {"A": -p.k * y.A}

def program(experiments):
    k = pyro.sample("k", ampost.between(0.1, 2.0))
    y = ampost.odeint(decay, {"A": experiments["A0"]}, {"k": k}, experiments)
    ampost.observe("A", dist.Normal(y.A, 0.1), experiments)

UNITS = {"time": "h", "A": "mM", "A0": "mM", "k": "1/h"}

def model(data):
    return ampost.Model(program, ampost.Design.like(data), UNITS)
"""
ROWS = ["well,experiment,observable,time,value,unit,A0"]
for well, rate in (("B 1", 0.5), ("B 2", 1.0)):
    for t in range(6):
        value = round(2.0 * torch.tensor(-rate * t).exp().item() + 0.05 * (-1) ** t, 3)
        ROWS.append(f"{well},1,A,{t},{1000 * value:g},uM,2")
QUICK = ["--simulations", "1000", "--seconds", "1", "--draws", "200"]


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output of the command line."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ampost", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    said = capsys.readouterr()
    code = ended.value.code
    return code if isinstance(code, int) else 0, said.out, said.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("commands")
    (made / "decay.py").write_text(FILE)
    (made / "wells.csv").write_text("\n".join(ROWS) + "\n")
    one = [row.partition(",")[2] for row in ROWS if not row.startswith("B 2")]
    (made / "decay.csv").write_text("\n".join(one) + "\n")
    return made


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fitted(inside: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a result, made once."""
    results = inside / "decay-results"
    if not (results / "posterior.nc").exists():
        code, out, err = ran(capsys, "infer", "decay.py", "decay.csv", *QUICK)
        assert code == 0, err
        assert "Computation:" in out
    return results


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_infer_writes_draws_summary_verdict_pictures_and_the_estimator(fitted: Path) -> None:
    names = {path.name for path in fitted.iterdir()}
    wanted = {"posterior.nc", "summary.csv", "verdict.json", "predictive.png", "pairs.png", "estimator.ampost"}
    assert wanted <= names
    (row,) = table(fitted / "summary.csv")
    assert row["parameter"] == "k"
    assert float(row["mean"]) == pytest.approx(0.5, abs=0.1)  # so uM became mM
    assert row["unit"] == "1/h"
    verdict = json.loads((fitted / "verdict.json").read_text())
    assert verdict["computation"] in {"trusted", "corrected"}


def test_a_trained_estimator_is_used_again(
    fitted: Path, inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("ampost.inference.train", never)
    saved = str(fitted / "estimator.ampost")
    code, _, _ = ran(capsys, "infer", "decay.py", "decay.csv", "--out", "again", "--estimator", saved, *QUICK)
    assert code == 0
    assert not (inside / "again" / "estimator.ampost").exists()
    first, again = (table(f / "summary.csv")[0]["mean"] for f in (fitted, inside / "again"))
    assert first == again


def test_train_writes_an_estimator_once_and_plainly(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("train", "decay.py", "decay.csv", "--out", "plain.ampost", "--plain")
    code, _, _ = ran(capsys, *asked, "--simulations", "300", "--steps", "20")
    assert code == 0
    made = Estimator.load(inside / "plain.ampost")
    assert made.refining is None
    assert made.report.steps == 20
    assert not list(inside.glob("plain.ampost.part*"))
    code, _, said = ran(capsys, *asked)
    assert code != 0
    assert "is there already" in said


def test_a_refused_table_leaves_the_estimator_and_data_of_the_last_call(
    fitted: Path, inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = inside / "kept"
    kept.mkdir()
    (kept / "estimator.ampost").write_bytes((fitted / "estimator.ampost").read_bytes())

    def refused(*arguments: object) -> None:
        assert not Path(str(arguments[2])).exists()  # so it is not taken for that of this model
        raise ArgumentError("of the data")

    monkeypatch.setattr("ampost.inference.infer", refused)
    code, _, _ = ran(capsys, "infer", "decay.py", "decay.csv", "--out", "kept", *QUICK)
    assert code == 1
    assert [path.name for path in kept.iterdir()] == ["estimator.ampost"]
    assert (kept / "estimator.ampost").read_bytes() == (fitted / "estimator.ampost").read_bytes()

    def another(*arguments: object) -> None:  # a training that succeeds, after which all goes wrong
        Path(str(arguments[2])).write_text("new")
        raise ArgumentError("of what follows")

    monkeypatch.setattr("ampost.inference.infer", another)
    code, _, _ = ran(capsys, "infer", "decay.py", "decay.csv", "--out", "kept", *QUICK)
    assert code == 1
    assert [path.read_text() for path in kept.iterdir()] == ["new"]


def test_a_singular_matrix_is_one_line_and_a_bug_a_traceback(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def singular(*_: object) -> None:
        torch.linalg.cholesky(-torch.eye(2))

    monkeypatch.setattr("ampost.inference.infer", singular)
    code, _, err = ran(capsys, "infer", "decay.py", "decay.csv", "--out", "singular")
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("ampost: the")]
    assert "decay.py met a matrix that cannot be factorised" in line
    monkeypatch.setattr("ampost.inference.infer", lambda *_: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        ran(capsys, "infer", "decay.py", "decay.csv", "--out", "singular")


def test_predict_refuses_another_model_in_one_line(
    fitted: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inside / "other.py").write_text(
        FILE.replace('"k", ampost.between(0.1, 2.0)', '"k", ampost.between(0.1, 3.0)')
    )
    code, _, err = ran(capsys, "predict", "other.py", str(fitted / "posterior.nc"))
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("ampost: ")]
    assert "parameter 'k' is" in line
    assert "give the model that the result came from" in line


def test_several_data_sets_have_a_folder_each_and_share_one_estimator(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["infer", "decay.py", "wells.csv", "--by", "well", "--out", "wells", *QUICK]
    code, out, err = ran(capsys, *arguments)
    assert code == 0, err
    assert err.count("saved the estimator") == 1
    assert "Data set B 2" in out
    rows = table(inside / "wells" / "summaries.csv")
    assert [(row["dataset"], row["parameter"]) for row in rows] == [("B 1", "k"), ("B 2", "k")]
    slow, fast = (float(table(inside / "wells" / n / "summary.csv")[0]["mean"]) for n in ("B_1", "B_2"))
    assert slow == pytest.approx(0.5, abs=0.1)
    assert fast == pytest.approx(1.0, abs=0.2)
    _, mine = reporting.data_of(inside / "wells" / "B_2" / "posterior.nc")
    assert mine.datasets == ("B 2",)


def test_a_failed_computation_is_written_and_has_its_own_exit_code(
    fitted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = reporting.read(fitted / "posterior.nc")
    result["fit"]["computation"] = "failed"
    monkeypatch.setattr("ampost.inference.infer", lambda *_: result)
    code, _, _ = ran(capsys, "infer", "decay.py", "decay.csv", "--out", "failed")
    assert code == 3
    assert (fitted.parent / "failed" / "verdict.json").exists()


def test_predict_without_tables_is_about_the_experiments_of_the_data(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ran(capsys, "predict", "decay.py", "decay-results/posterior.nc", "--draws", "50")
    assert code == 0, err
    assert out.splitlines() == [f"wrote decay-results/predictions{s}" for s in (".nc", ".csv", ".png")]
    rows = table(fitted / "predictions.csv")
    assert {row["experiment"] for row in rows} == {"1"}
    assert len(rows) == 101
    assert float(rows[0]["50 % without noise"]) == pytest.approx(2.0)
    assert float(rows[50]["5 %"]) < float(rows[50]["5 % without noise"])


def test_predict_takes_new_conditions_in_units_of_their_own_and_warns_outside_the_design(
    fitted: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inside / "new.csv").write_text("experiment,A0\nlow,1\nhigh,9\n")
    result = "decay-results/posterior.nc"
    arguments = ["--conditions", "new.csv", "--times", "0:4:2", "--draws", "50", "--name", "new"]
    with pytest.warns(UserWarning, match="outside its design.*'A0' is"):
        code, _, err = ran(capsys, "predict", "decay.py", result, *arguments)
    assert code == 0, err
    rows = table(fitted / "new.csv")
    assert {row["unit"] for row in rows} == {"mM"}
    assert [(row["experiment"], row["time [h]"]) for row in rows] == [
        *(("low", t) for t in ("0.0", "2.0", "4.0")),
        *(("high", t) for t in ("0.0", "2.0", "4.0")),
    ]
    assert float(rows[3]["50 % without noise"]) == pytest.approx(9.0)


def test_predict_needs_the_data_only_where_the_model_or_the_question_does(
    fitted: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    design = "ampost.Design({'A': ampost.Looks((0.0, 1.0), (2, 2))}, {'A0': (1.0, 9.0)}, (1, 1), 8.0)"
    made = f"model = ampost.Model(program, {design}, UNITS)"
    (inside / "fixed.py").write_text(FILE.replace("def model(data)", "def like(data)") + made)
    (inside / "alone").mkdir()
    (inside / "alone/posterior.nc").write_bytes((fitted / "posterior.nc").read_bytes())
    (inside / "four.csv").write_text("experiment,A0\n4,4\n")
    asked = ["alone/posterior.nc", "--conditions", "four.csv", "--draws", "20"]
    code, _, err = ran(capsys, "predict", "fixed.py", *asked)
    assert code == 0, err
    assert float(table(inside / "alone/predictions.csv")[0]["50 % without noise"]) == pytest.approx(4.0)
    for arguments in (["decay.py", *asked], ["fixed.py", "alone/posterior.nc"]):
        code, _, err = ran(capsys, "predict", *arguments)
        assert code == 1
        assert "no folder data" in err


def test_simulate_writes_tables_that_read_back_with_their_truth(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "simulate", "decay.py", "decay.csv", "--count", "3", "--out", "sim")
    assert code == 0, err
    made = inside / "sim" / "simulated"
    again = read_table(made / "measurements.csv", made / "conditions.csv", say=False)
    truth = table(made / "parameters.csv")
    assert again.datasets == ("1", "2", "3") == tuple(row["dataset"] for row in truth)
    assert again.units == {"time": "h", "A": "mM", "A0": "mM"}
    values = again.channels["A"].values
    assert values is not None
    for k, row in enumerate(truth):
        expected = 2.0 * (-float(row["k"]) * again.times[k]).exp()
        assert torch.allclose(values[k], expected, atol=0.6)
    assert (made / "simulated.png").exists()
    second = ran(capsys, "simulate", "decay.py", "decay.csv", "--count", "3", "--out", "sim2")
    assert second[0] == 0
    assert (inside / "sim2/simulated/measurements.csv").read_text() == (made / "measurements.csv").read_text()


def test_simulate_of_a_zoo_model_draws_from_its_design(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "simulate", "--model", "michaelis_menten", "--count", "2")
    assert code == 0, err
    rows = table(inside / "michaelis_menten-results/simulated/measurements.csv")
    assert {row["dataset"] for row in rows} == {"1", "2"}
    assert {row["observable"] for row in rows} == {"P"}


def test_check_prints_its_account_and_writes_the_picture(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ran(capsys, "check", "decay.py", "decay.csv", "--out", "checked")
    assert code == 0, err
    assert "wrote checked/check.png" in out
    assert "20,000 simulations" in out
    assert "are made for 200 s" in out or "4,000 steps" in out
    assert len(out.splitlines()) > 5
    assert (inside / "checked/check.png").exists()


def test_headers_and_limits_are_told_on_the_command_line(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["1;A;0;2,05;2", "1;A;1;1,2;2", "1;A;2;0,71;2", "1;A;5;n.d.;2"]
    (inside / "german.csv").write_text("\n".join(["experiment;observable;Zeit;value;A0", *rows]))
    code, _, err = ran(capsys, "check", "decay.py", "german.csv", "--column", "Zeit=time", "--limit", "A=0.15")
    assert code == 0, err
    assert "1 below a limit (0.15)" in err


def test_columns_and_limits_have_their_forms() -> None:
    assert asking.columns(["Zeit=time [min]", " Notiz ="]) == {"Zeit": "time [min]", "Notiz": None}
    assert asking.limits(["P=0.05", "S=0.1:20", "T=:3"]) == {
        "P": (0.05, None),
        "S": (0.1, 20.0),
        "T": (None, 3.0),
    }
    with pytest.raises(ArgumentError, match="form HEADER=NAME"):
        asking.columns(["Zeit"])
    with pytest.raises(ArgumentError, match="expected numbers"):
        asking.limits(["P=low"])


def test_new_check_and_models_need_no_more_than_their_words(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, "new", "my_first")
    assert code == 0
    assert out.splitlines() == [
        *("wrote my_first.py", "wrote my_first.csv", "next: ampost check my_first.py my_first.csv")
    ]
    code, out, _ = ran(capsys, "models")
    assert code == 0
    assert any(line.startswith("michaelis_menten ") and "enzyme" in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--simulations", "20", "--out", "few"], "simulations"),
        (["new", "my-model"], "expected that of a Python file"),
        (["infer", "decay.py", "nothing.csv"], "nothing.csv"),
        (["infer", "decay.py"], "brings no data along"),
        (["infer", "--model", "michaelis_mentens"], "did you mean michaelis_menten?"),
        (["check", "decai.py", "decay.csv"], "did you mean decay.py?"),
        (["simulate", "decay.py"], "makes its model from data"),
        (["predict", "decay.py", "nothing.nc"], "give the posterior.nc"),
        (["predict", "decay.py", "notes.nc"], "cannot be read as NetCDF"),
        (["infer", "decay.py", "decay.csv", "--out", "decay.csv"], "cannot be made"),
        (["infer", "broken.py", "decay.csv"], "broken.py, line 1: NameError"),
        (["check", "decay.py", "litres.csv"], "'A' is in 'g/L' in the data and in 'mM' in the model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    inside: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (inside / "notes.nc").write_text("not NetCDF")
    (inside / "broken.py").write_text("model = x\n")
    (inside / "litres.csv").write_text((inside / "decay.csv").read_text().replace("uM", "g/L"))
    code, _, err = ran(capsys, *arguments)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("ampost: ")]
    assert said in line
    assert "Traceback" not in err
    assert not (inside / "few").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["infer", "decay.csv"], "there is none"),
        (["infer", "a.py", "--model", "b"], "there are 2: a.py, b"),
        (["infer", "a.py", "one.csv", "two.csv"], "expected one table of data, there are 2"),
        (["predict", "a.py"], "expected 1 result"),
        (["infer", "a.py", "b.nc"], "expected 0 result"),
        (["infer", "a.py", "b.csv", "--simulations", "0"], "simulations"),
    ],
)
def test_wrong_usage_has_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, err = ran(capsys, *arguments)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())


def test_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("info", "models", "new", "check", "infer", "predict", "simulate", "demo"):
        code, out, _ = ran(capsys, name, "--help")
        assert code == 0, err
        assert f"ampost {name}" in " ".join(out.split()), name
    _, out, _ = ran(capsys, "infer", "--help")
    assert "runs the file" in " ".join(out.replace("│", " ").split())


DESIGN = Design({"A": Looks((0.0, 1.0), (2, 2))}, {}, (1, 1), horizon=8.0, start=-2.0)


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("0:1:0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0:1:0.3", [0.0, 0.3, 0.6, 0.9]),
        ("-1, 0,2.5", [-1.0, 0.0, 2.5]),
        ("3", [3.0]),
    ],
)
def test_times_are_a_range_or_a_list(text: str, times: list[float]) -> None:
    assert asking.grid(text, DESIGN).tolist() == pytest.approx(times)


def test_times_left_out_reach_from_the_start_to_the_end_of_the_design() -> None:
    grid = asking.grid(None, DESIGN)
    assert (float(grid[0]), float(grid[-1]), len(grid)) == (-2.0, 8.0, 101)


@pytest.mark.parametrize("text", ["0:1", "0:1:0", "1:0:0.1", "a,b", "", "2,1", "1,1", "0:1e9:1e-3", "0,nan"])
def test_other_times_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(ArgumentError, match="expected start:stop:step"):
        asking.grid(text, DESIGN)


def test_looks_need_experiments(inside: Path) -> None:
    model = michaelis_menten.model()
    (inside / "none.csv").write_text("S0\n1\n")
    with pytest.raises(TableError, match="no column 'experiment'"):
        asking.looks(inside / "none.csv", None, None, model)


def test_data_sets_whose_names_make_the_same_folder_are_numbered() -> None:
    one = Experiments.on([[0.0]], ["P"]).expand((3,))
    named = replace(one, datasets=("a/b", "a b", "c"), names=(("1",),) * 3)
    assert list(reporting.folders(named)) == ["a_b_1", "a_b_2", "c"]
    assert list(reporting.folders(one.at(slice(0, 1)))) == [""]


def test_a_result_without_its_data_or_of_another_kind_is_refused(fitted: Path, tmp_path: Path) -> None:
    alone = tmp_path / "posterior.nc"
    alone.write_bytes((fitted / "posterior.nc").read_bytes())
    with pytest.raises(FileError, match="no folder data"):
        reporting.data_of(alone)
    other = tmp_path / "other.nc"
    reporting.read(fitted / "posterior.nc")["fit"].to_netcdf(other, engine="h5netcdf")
    with pytest.raises(FileError, match="holds no posterior"):
        reporting.read(other)


def test_compare_prints_costs_and_writes_tables_and_pictures(
    capsys: pytest.CaptureFixture[str], folder: Path, trained: Estimator, tmp_path: Path
) -> None:
    trained.save(tmp_path / "mm.ampost")
    brief = ["--draws", "20", "--chains", "2", "--starts", "2"]
    code, out, _ = ran(
        capsys,
        *("compare", "--model", "michaelis_menten", "--estimator", str(tmp_path / "mm.ampost"), *brief),
        *("--out", str(tmp_path / "told")),
    )
    assert code == 0
    assert "the data set is simulated from michaelis_menten, seed 0" in out
    for words in ("below_best", "corrected", "nuts", "km", "s of training"):
        assert words in out
    methods = list(csv.DictReader((tmp_path / "told" / "methods.csv").read_text().splitlines()))
    assert [row["result"] for row in methods] == ["nuts", "fit", "point", "network", "optimum", "corrected"]
    for name in ("parameters.csv", "marginals.png", "waterfall.png"):
        assert (tmp_path / "told" / name).stat().st_size > 100
    assert not (tmp_path / "told" / "estimator.ampost").exists()
