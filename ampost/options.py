"""What commands are given: a model, tables, options, and how these are read. Nothing heavy is loaded here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ampost.errors import TableError

if TYPE_CHECKING:
    from ampost.experiments import Experiments
    from ampost.model import Model
    from ampost.programs import Source

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE.py DATA.csv", help="The model (this runs the file), and the data."),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", help="In place of FILE.py: a zoo model, or path/to/file.py:name (which runs it)."),
]
Conditions = Annotated[str | None, typer.Option(help="Table of conditions: experiment, then one column each.")]
DosesTable = Annotated[str | None, typer.Option("--doses", help="Table: experiment, time, amount, target.")]
InputsTable = Annotated[str | None, typer.Option("--inputs", help="Table: experiment, input, time, value.")]
By = Annotated[list[str] | None, typer.Option(help="A column whose values are separate data sets.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="HEADER=NAME", help="A header of the table and what it means: 'Zeit=time'."
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=LOW:HIGH", help="Limits of detection, as in P=0.05 or P=0.05:20."),
]
# what the reader of tables calls by its arguments, in the words of the command line
SPOKEN = (
    (r"columns=\{(['\"])(.+?)\1: None\}", r"--column '\2='"),
    (r"columns=\{(['\"])(.+?)\1: (['\"])(.+?)\3\}", r"--column '\2=\4'"),
    (r"limits=\{(['\"])(.+?)\1: \(None, (.+?)\)\}", r"--limit '\2=:\3'"),
    (r"limits=\{(['\"])(.+?)\1: (.+?)\}", r"--limit '\2=\3'"),
    (r"experiments=(['\"])(.+?)\1", r"--column '\2=experiment'"),
    (r"\bcolumns=", "--column"),
    (r"\blimits=", "--limit"),
    (r"\bby=", "--by"),
    (r"None in place of a name leaves it aside", "nothing after the = leaves it aside"),
    (r"None in place of one that there is not", "nothing in place of one that there is not"),
)
ELSEWHERE = re.compile(r"\b(observables|experiments|start)=")
Out = Annotated[Path | None, typer.Option(help="Folder for the results (default: MODEL-results).")]
Seed = Annotated[int, typer.Option(help="Same seed, same machine, same result.")]


@dataclass(frozen=True)
class Given:
    """What a command was given: the model's name, a table of data, and a result."""

    model: str
    data: str | None = None
    result: str | None = None


@dataclass(frozen=True)
class Tables:
    """Further tables beside the data, and how the columns are meant."""

    conditions: str | None
    doses: str | None
    inputs: str | None
    by: list[str] | None
    columns: list[str] | None
    limits: list[str] | None


def given(files: list[str] | None, model: str | None, result: bool = False) -> Given:
    """The files by what they are: .py the model, .nc the result, the other one the data."""
    named = files or []
    programs = [file for file in named if re.search(r"\.py(:\w+)?$", file)]
    results = [file for file in named if file.endswith(".nc")]
    tables = [file for file in named if file not in (*programs, *results)]
    programs += [model] if model else []
    if len(programs) != 1:
        had = f"there are {len(programs)}: {', '.join(programs)}" if programs else "there is none"
        raise typer.BadParameter(f"give one model, as FILE.py or by --model; {had}")
    if len(results) != int(result):
        raise typer.BadParameter(f"expected {int(result)} result (posterior.nc), there are {len(results)}")
    if len(tables) > 1:
        raise typer.BadParameter(f"expected one table of data, there are {len(tables)}: {', '.join(tables)}")
    return Given(programs[0], tables[0] if tables else None, results[0] if results else None)


def ready(given: Given, tables: Tables) -> tuple[Source, Model, Experiments]:
    """The source, the data of the table (else the source's own) as they are, and the model."""
    from ampost import programs

    source = programs.load(given.model)
    data = read(given, tables) if given.data else programs.data_of(source)
    return source, programs.model_of(source, data), data


def read(given: Given, tables: Tables) -> Experiments:
    """The data of the table that was given."""
    from ampost import asking
    from ampost.progress import tell
    from ampost.tables import read_table

    assert given.data is not None
    columns, limits = asking.columns(tables.columns or []), asking.limits(tables.limits or [])
    further = (tables.conditions, tables.doses, tables.inputs)
    try:
        return read_table(
            given.data,
            *further,
            tables.by,
            lambda account: tell(spoken(account)),
            columns=columns,
            limits=limits,
        )
    except TableError as error:
        raise TableError(spoken(str(error))) from error


def spoken(text: str) -> str:
    """What the reader of tables says, with the options of the command line in place of its arguments."""
    for written, said in SPOKEN:
        text = re.sub(written, said, text)
    left = list(dict.fromkeys(ELSEWHERE.findall(text)))
    if not left:
        return text
    names = " and ".join(f"{name}=" for name in left)
    return f"{text} ({names}: of ampost.read_table, in a function data() of the model's file)"


def in_units(data: Experiments, built: Model) -> Experiments:
    """The data in the model's units."""
    from ampost.units import converted

    return converted(data, built.units)


def folder_of(out: Path | None, source: Source) -> Path:
    """Where results go."""
    return Path(f"{source.label}-results") if out is None else out
