"""What a page of docs/ shows, runs: its tables are written to files, its snippets print what it says."""

import doctest
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs"
SHOWING = [page for page in sorted(FOLDER.glob("*.md")) if ">>> " in page.read_text(encoding="utf-8")]


def blocks(text: str, info: str) -> list[tuple[str, str]]:
    """The fenced blocks whose info string begins with `info`: what follows it, and their text."""
    return re.findall(rf"^```{info}[ ]*(.*)\n((?:(?!```).*\n)*)```$", text, re.MULTILINE)


def test_there_is_a_page_that_shows_something() -> None:
    assert "data.md" in [page.name for page in SHOWING]


@pytest.mark.parametrize("page", SHOWING, ids=lambda p: p.stem)
def test_page_shows_what_happens(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, table in blocks(text, "csv"):
        (tmp_path / name).write_text(table, encoding="utf-8")
    snippets = [snippet for _, snippet in blocks(text, "python") if ">>> " in snippet]
    assert sum(snippet.count(">>> ") for snippet in snippets) == text.count(">>> ")
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    names: dict[str, object] = {}
    for k, snippet in enumerate(snippets):
        test = parser.get_doctest(snippet, names, f"{page.name}, snippet {k + 1}", page.name, 0)
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda p: p.stem)
def test_pages_are_listed_and_lead_somewhere(page: Path) -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert page.name == "README.md" or f"]({page.name})" in index
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (FOLDER / link).exists(), link
