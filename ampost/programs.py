"""Models by name: one of the zoo, or one in a Python file of the user's, which is thereby executed.

A file (and a zoo module) defines `model`: a `Model`, or a function of the data or of nothing that returns
one. It may define `data`, a function that returns the data to use where none are given. Further models go
by `file.py:name`, which means `name_model`, or `name` where there is none, with data by `name_data`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ampost.errors import AmpostError, FileError, ModelError
from ampost.spelling import nearest

if TYPE_CHECKING:  # the zoo is listed without torch
    from ampost.experiments import Experiments
    from ampost.model import Model

EXAMPLE = "def model(data): return ampost.Model(program, ampost.Design.like(data), units=UNITS)"


@dataclass(frozen=True)
class Source:
    """Where a model comes from: the file, the name in it, what that is, and the data beside it."""

    path: Path
    name: str
    made: Any
    own: Callable[[], Any] | None

    @property
    def label(self) -> str:
        """The name of the file, with that of the model where it is not `model`."""
        own = self.name.removesuffix("model").removesuffix("_")
        return f"{self.path.stem}-{own}" if own else self.path.stem


@dataclass(frozen=True)
class Listed:
    """A model of the zoo: its name, its first line, and whether data come with it."""

    name: str
    words: str
    has_data: bool


def listed() -> list[Listed]:
    """The zoo's models, read without importing them."""
    return [entry for name, path in sorted(_zoo().items()) for entry in _described(name, path)]


def load(given: str) -> Source:
    """The source that `given` names: `path/to/file.py[:name]`, or `zoo_model[:name]`.

    Raises:
        FileError: there is no such file or zoo model.
        ModelError: the file does not run, or has no such name in it.
    """
    where, name = split(given)
    if where.endswith(".py"):
        path = Path(where)
        module = _executed(path)
    else:
        path = _zoo_file(where)
        module = importlib.import_module(f"ampost.zoo.{where}")
    prefix = "" if name == "model" else f"{name.removesuffix('_model')}_"
    found = next((n for n in (f"{prefix}model", name) if hasattr(module, n)), None)
    if found is None:
        near = nearest(name, _candidates(module))
        hint = f"did you mean {path.name}:{near[0]}?" if near else f"define it, for example {EXAMPLE}"
        raise ModelError(f"{path} has no {name!r}; {hint}")
    return Source(path, found, getattr(module, found), getattr(module, f"{prefix}data", None))


def split(given: str) -> tuple[str, str]:
    """`file.py:name` as ("file.py", "name"); without a name it is "model"."""
    where, colon, name = given.rpartition(":")
    return (where, name) if colon and name.isidentifier() else (given, "model")


def model_of(source: Source, data: Experiments | None) -> Model:
    """The model, made from `data` where the file asks for them.

    Raises:
        ModelError: the name is neither a model nor a function that returns one, or it needs data.
    """
    from ampost.model import Model

    if isinstance(source.made, Model):
        return source.made
    if not callable(source.made):
        raise ModelError(_wrong(source, f"is a {type(source.made).__name__}"))
    needs = _needed(source.made)
    if needs > 1:
        raise ModelError(_wrong(source, f"takes {needs} arguments"))
    if needs and data is None:
        raise ModelError(
            f"{source.path.name} makes its model from data: give a table of data, or define data() in the file"
        )
    with telling(source.path):
        made = source.made(data) if needs else source.made()
    if not isinstance(made, Model):
        raise ModelError(_wrong(source, f"returns a {type(made).__name__}"))
    return made


def needs_data(source: Source) -> bool:
    """Whether the model is made from data."""
    return inspect.isfunction(source.made) and _needed(source.made) > 0


def data_of(source: Source) -> Experiments:
    """The data that the file or the zoo model brings along.

    Raises:
        ModelError: it brings none, or something else.
    """
    from ampost.experiments import Experiments

    if source.own is None:
        raise ModelError(
            f"{source.path.name} brings no data along; give a table of data, or define data() in it"
        )
    with telling(source.path):
        data = source.own()
    if not isinstance(data, Experiments):
        raise ModelError(
            f"data() of {source.path.name} returns a {type(data).__name__}, expected Experiments: return "
            f"ampost.read_table(...)"
        )
    return data


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """An error that arises in the user's file as a `ModelError` that names the file and the line.

    So is a matrix that cannot be factorised, wherever that is.
    """
    try:
        yield
    except AmpostError:
        raise
    except Exception as error:
        from torch import linalg

        line = _line_in(path, error)
        singular: type[Exception] = linalg.LinAlgError  # type: ignore[attr-defined]
        if line is None and not isinstance(error, singular):
            raise
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        if line is None:
            raise ModelError(
                f"the computation for {path.name} met a matrix that cannot be factorised ({said.strip()}): the "
                f"data hardly bound some parameter, or two do the same; tighten their priors, or take another "
                f"seed"
            ) from error
        raise ModelError(f"{path.name}, line {line}: {type(error).__name__}: {said}") from error


def _line_in(path: Path, error: Exception) -> int | None:
    """The line of the file where the error arose, or None if it came from elsewhere."""
    file = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return lines[-1] if lines else None


def _executed(path: Path) -> ModuleType:
    """The file as a module, with its folder open to its own imports, as `python file.py` has it."""
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")]) if path.parent.is_dir() else []
        hint = f"did you mean {near[0]}?" if near else "write one with: ampost new NAME"
        raise FileError(f"there is no file {str(path)!r}; {hint}")
    file = path.resolve()
    spec = importlib.util.spec_from_file_location(path.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    with telling(path):
        spec.loader.exec_module(module)
    return module


def _zoo() -> dict[str, Path]:
    spec = importlib.util.find_spec("ampost.zoo")
    assert spec is not None
    folders = list(spec.submodule_search_locations or ())
    return {m.name: Path(folders[0]) / f"{m.name}.py" for m in pkgutil.iter_modules(folders) if not m.ispkg}


def _zoo_file(name: str) -> Path:
    zoo = _zoo()
    if name in zoo:
        return zoo[name]
    near = nearest(name, zoo)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the zoo has {', '.join(sorted(zoo))}"
    if Path(f"{name}.py").is_file():
        hint = f"for the file write {name}.py"
    raise FileError(f"there is no zoo model {name!r}; {hint}")


def _described(name: str, path: Path) -> list[Listed]:
    """The model of a file, and its further ones."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    told = [Listed(name, _first_line(tree), "data" in functions)]
    for function, node in functions.items():
        short = function.removesuffix("_model")
        if short != function:
            told.append(Listed(f"{name}:{short}", _first_line(node), f"{short}_data" in functions))
    return told


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _candidates(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]


def _needed(made: Callable[..., Any]) -> int:
    """How many arguments must be given."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(made).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def _wrong(source: Source, what: str) -> str:
    return (
        f"{source.name!r} of {source.path.name} {what}; expected a Model, or a function of the data or of "
        f"nothing that returns one: {EXAMPLE}"
    )
