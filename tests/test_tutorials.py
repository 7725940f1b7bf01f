"""Every tutorial is stored as it ran, and runs."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
import typer.main
from nbclient import NotebookClient
from typer.testing import CliRunner

import ampost
from ampost.cli import app

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OWN = FOLDER / "02_own_model.ipynb"
TRUTH = {"vmax": 0.6, "km": 1.0, "ki": 6.0, "sigma": 0.06, "best_S": 6.0**0.5}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_with_its_outputs_in_order(path: Path) -> None:
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr" and "Warning" in o["text"]]
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_tutorials_are_numbered_without_gaps() -> None:
    titles = [nbformat.read(path, as_version=4).cells[0].source for path in NOTEBOOKS]
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))
    assert all(title.startswith(f"# {k + 1}. ") for k, title in enumerate(titles))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    for csv in FOLDER.glob("*.csv"):
        shutil.copy(csv, tmp_path)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1000, resources={"metadata": {"path": tmp_path}}).execute()


# ------------------------------------------------------------------------------ 02, your own model


def printed(begin: str, path: Path = OWN) -> str:
    """What the cell of a tutorial that has the line `begin` printed and showed."""
    cells = nbformat.read(path, as_version=4).cells
    cell = next(c for c in cells if c.cell_type == "code" and begin in c.source)
    return "".join(o["text"] if "text" in o else o["data"].get("text/plain", "") for o in cell.outputs)


def told(language: str) -> list[str]:
    """The fenced blocks of tutorial 02 in a language."""
    cells = nbformat.read(OWN, as_version=4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_table_of_the_first_tutorial_is_read_as_it_says() -> None:
    said: list[str] = []
    ampost.read_table(FOLDER / "assay.csv", say=said.append)
    assert said[0] in printed('read_table("assay.csv")', FOLDER / "01_first_model.ipynb")


@pytest.mark.parametrize(("name", "limit"), [("plate.csv", 0.05), ("plate_next.csv", 50.0)])
def test_plates_are_read_as_the_tutorial_says(name: str, limit: float) -> None:
    said: list[str] = []
    ampost.read_table(FOLDER / name, limits={"P": limit}, say=said.append)
    assert said[0] in printed(f'read_table("{name}", limits={{"P": {limit}}})')


def test_posterior_of_the_plate_holds_the_truth() -> None:
    rows = [line.split() for line in printed("ampost.summary(result)").splitlines()]
    found = {row[0]: (float(row[3]), float(row[4])) for row in rows if row and row[0] in TRUTH}
    assert found.keys() == TRUTH.keys()
    assert all(abs(mean - TRUTH[name]) < 3 * sd for name, (mean, sd) in found.items())


def test_wrong_unit_is_named_in_the_first_sentence() -> None:
    first = printed(".concerns").splitlines()[0]
    assert first.startswith("P: the data are about 1,000 times larger than the model expects")


def test_commands_of_the_tutorial_are_those_of_the_command_line() -> None:
    group = typer.main.get_command(app)
    lines = [line for block in told("bash") for line in block.splitlines()]
    assert {line.split()[1] for line in lines} == {"new", "check", "infer", "predict"}
    for line in lines:
        program, name, *arguments = line.split()
        assert program == "ampost"
        group.commands[name].make_context(name, arguments)  # raises for what the command does not take


def test_file_of_the_tutorial_is_its_program_and_checks_the_plate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listing,) = told("python")
    code = "\n".join(c.source for c in nbformat.read(OWN, as_version=4).cells if c.cell_type == "code")
    functions = re.findall(r"^def (?:kinetics|inhibited)\(.*?(?=^\S)", listing, re.MULTILINE | re.DOTALL)
    assert len(functions) == 2
    assert all(function.strip() in code for function in functions)
    monkeypatch.chdir(tmp_path)
    Path("inhibition.py").write_text(listing, encoding="utf-8")
    shutil.copy(FOLDER / "plate.csv", tmp_path)
    result = CliRunner().invoke(app, ["check", "inhibition.py", "plate.csv", "--limit", "P=0.05"])
    assert result.exit_code == 0, result.output
    assert "Model 'inhibited'" in result.output
    assert Path("inhibition-results/check.png").exists()
