"""The command line from outside: quick answers without heavy imports, errors in one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ampost import __version__

HEAVY = ("torch", "sbi", "pyro", "arviz_base", "numba", "pandas", "pint", "matplotlib")
QUICK = {
    "version": (["--version"], f"ampost {__version__}"),
    "help": (["--help"], "Usage"),
    "help of a command": (["infer", "--help"], "Usage"),
    "info": (["info"], "torch 2"),
    "models": (["models"], "michaelis_menten"),
    "new": (["new", "my_first"], "wrote my_first.py"),
}
RUN = "import sys; sys.argv[0] = 'ampost'; from ampost.cli import main; main()"


def run(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.mark.parametrize(("arguments", "shown"), QUICK.values(), ids=QUICK)
def test_quick_commands_answer_and_load_nothing_heavy(arguments: list[str], shown: str, tmp_path: Path) -> None:
    code = (
        f"import atexit, sys; atexit.register(lambda: print('loaded', [m for m in {HEAVY!r} "
        f"if m in sys.modules], file=sys.stderr)); {RUN}"
    )
    ran = run(code, *arguments, cwd=tmp_path)
    assert ran.returncode == 0
    assert shown in ran.stdout
    assert ran.stderr.strip() == "loaded []"


def test_version_is_one_line_and_help_names_every_command() -> None:
    assert run(RUN, "--version").stdout.strip() == f"ampost {__version__}"
    shown = run(RUN, "--help").stdout
    for name in ("info", "models", "new", "check", "infer", "predict", "simulate", "demo"):
        assert re.search(rf"\b{name}\b", shown), name
    assert "Exit codes: 0 done, 1 bad input, 2 wrong usage" in " ".join(shown.split())


def test_info_names_the_library_versions_that_are_installed() -> None:
    lines = run(RUN, "info").stdout.splitlines()
    assert lines[0] == f"ampost {__version__}, Python {sys.version.split()[0]}"
    assert any(line.startswith("  sbi 0.27") for line in lines)
    assert not any("not installed" in line for line in lines)


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).with_name("ampost")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"ampost {__version__}"


def test_an_error_of_ampost_is_one_line_and_exit_code_1() -> None:
    code = (
        "import ampost.cli as cli\n"
        "from ampost.errors import TableError\n"
        "@cli.app.command()\n"
        "def broken() -> None:\n"
        "    raise TableError('row 2: value is \\'x\\', expected a number')\n"
        "cli.main()"
    )
    ran = run(code, "broken")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr == "ampost: row 2: value is 'x', expected a number\n"


def test_an_unknown_command_or_option_is_refused_with_exit_code_2() -> None:
    for arguments in (["demon"], ["demo", "--sims", "3"]):
        ran = run(RUN, *arguments)
        assert ran.returncode == 2
        assert "No such" in ran.stderr
        assert "Traceback" not in ran.stderr
