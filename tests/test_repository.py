"""What the repository promises about itself: its commands, its pins, its imports, its files."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "ampost").rglob("*.py"))
MAX_LINES = 500
FOREIGN = (
    "arviz",
    "arviz_base",
    "arviz_plots",
    "arviz_stats",
    "matplotlib",
    "numba",
    "sbi",
    "torch",
)
PICKLING_MODULES = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}
PICKLING_CALLS = {
    *("torch.load", "torch.save", "joblib.load", "joblib.dump", "numpy.load"),
    *("pandas.read_pickle", "pandas.to_pickle"),
}
PICKLING_METHODS = {"to_pickle", "read_pickle"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    """Name to version, from constraints.txt; every line is `name==version`."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt holds exact pins only"
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    """Every requirement of ampost and its extras that applies here, except to itself."""
    tables = project()
    lines = [*tables["dependencies"], *chain(*tables["optional-dependencies"].values())]
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if r.name != "ampost" and (r.marker is None or r.marker.evaluate())]


# ------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(("name", "ending"), [("demo", "ampost demo"), ("test", "-m pytest")])
def test_ci_finds_the_commands_of_the_readme(name: str, ending: str) -> None:
    shown = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--show", name],
        capture_output=True, text=True, check=True, cwd=ROOT.parent,
    )  # fmt: skip
    (command,) = shown.stdout.splitlines()
    assert command.endswith(ending)
    assert "-c constraints.txt" in command


def test_ci_says_which_command_the_readme_lacks() -> None:
    shown = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--show", "nothing"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode != 0
    assert "<!-- command: nothing -->" in shown.stderr


# ----------------------------------------------------------------------------------------- pins


def test_every_pin_lies_in_its_range() -> None:
    versions = pins()
    unpinned = [r.name for r in requirements() if canonicalize_name(r.name) not in versions]
    outside = [
        f"{r.name}{r.specifier}, pinned at {versions[canonicalize_name(r.name)]}"
        for r in requirements()
        if not r.specifier.contains(versions.get(canonicalize_name(r.name), "0"))
    ]
    assert not unpinned
    assert not outside


def test_pins_hold_on_every_machine() -> None:
    """No build tags such as +cpu: they exist on one index only."""
    assert [f"{name}=={v}" for name, v in pins().items() if Version(v).local] == []


def test_one_version_everywhere() -> None:
    version = project()["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: {re.escape(version)}$", citation, flags=re.MULTILINE)


# -------------------------------------------------------------------------------------- imports


def test_importing_ampost_loads_no_heavy_library() -> None:
    code = f"import sys, ampost; print([m for m in {FOREIGN!r} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------- files


def test_no_file_is_too_long() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES} == {}


def pickling(source: str) -> Iterator[str]:
    """Every place of a module that pickles or unpickles, as `line: what`.

    Names are followed through `import x as y` and `from x import y`, so that docstrings and
    unrelated methods called `load` are left alone.
    """
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] in PICKLING_MODULES:
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if node.module.split(".")[0] in PICKLING_MODULES:
                yield f"{node.lineno}: from {node.module} import"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, _, rest = ast.unparse(node.func).partition(".")
            called = f"{names.get(head, head)}.{rest}".rstrip(".")
            if called in PICKLING_CALLS or called.rsplit(".", 1)[-1] in PICKLING_METHODS:
                yield f"{node.lineno}: {called}"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import pickle", 1),
        ("from pickle import loads", 1),
        ("import torch as t\nt.load('x')", 1),
        ("from joblib import load as get\nget('x')", 1),
        ("frame.to_pickle('x')", 1),
        ("import numpy as np\nnp.load('x')", 1),
        ("'''Never torch.load or pickle.'''\nfrom ampost.files import load\nload('x')", 0),
    ],
)
def test_the_search_for_pickling_finds_it(source: str, count: int) -> None:
    assert len(list(pickling(source))) == count


def test_nothing_is_pickled() -> None:
    found = {
        str(p.relative_to(ROOT)): places
        for p in SOURCES
        if (places := list(pickling(p.read_text(encoding="utf-8"))))
    }
    assert found == {}
