"""What the tests of reading share: a text read as the file assay.csv, and small tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ampost.experiments import Experiments
from ampost.tables import read_table

WIDE = "well,time,P,S0\nA,0,0,1\nA,1,0.5,1\nB,0,0,2\nB,1,0.7,2\n"
TIDY = "experiment,observable,time,value\na,P,0,0.1\na,P,1,0.5\nb,P,0,0.2\nb,P,1,0.7\n"

Reader = Callable[..., Experiments]


def reader(folder: Path) -> Reader:
    """Reads a text as `folder`/assay.csv; `said` collects the account."""

    def read(text: str, encoding: str = "utf-8", said: list[str] | None = None, **how: Any) -> Experiments:
        path = folder / "assay.csv"
        path.write_bytes(text.encode(encoding))
        return read_table(path, say=False if said is None else said.append, **how)

    return read


def values(record: Experiments, channel: str = "P") -> list[float]:
    held = record.channels[channel]
    assert held.values is not None
    return held.values[held.mask].tolist()
