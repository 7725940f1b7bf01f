"""What `ampost new` writes: a commented model file and a table that run as they are."""

from __future__ import annotations

import importlib.util
import keyword
from importlib.resources import files
from pathlib import Path
from string import Template

from ampost.errors import ArgumentError, FileError


def start(name: str, folder: Path) -> list[Path]:
    """Write `name.py` and `name.csv` into `folder`, and return their paths; nothing is overwritten.

    Raises:
        ArgumentError: the name cannot be that of a Python file, or hides an installed module.
        FileError: a file is there already, or the folder is not.
    """
    _refuse_name(name)
    if not folder.is_dir():
        raise FileError(f"there is no folder {str(folder)!r}; create it first")
    written = {folder / f"{name}.py": "model.txt", folder / f"{name}.csv": "data.txt"}
    for path in written:
        if path.exists():
            raise FileError(f"{str(path)!r} is there already and is not overwritten; choose another name")
    for path, template in written.items():
        text = (files("ampost") / "templates" / template).read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(name=name), encoding="utf-8")
    return list(written)


def _refuse_name(name: str) -> None:
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise ArgumentError(
            f"the name is {name!r}, expected that of a Python file without .py: letters, digits and _, such "
            f"as my_model"
        )
    if importlib.util.find_spec(name) is not None:
        raise ArgumentError(
            f"the name {name!r} is that of an installed Python module, which {name}.py would hide; choose "
            f"another"
        )
