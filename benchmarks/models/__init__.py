"""Models of public benchmarks, with their own priors: for comparison, not for copying."""

from __future__ import annotations

import csv
import os
from pathlib import Path


def reference(*parts: str) -> Path:
    """A file or folder of the reference cases: below AMPOST_REFERENCE, or ../shared/reference.

    Raises:
        FileNotFoundError: the cases are not there.
    """
    default = Path(__file__).resolve().parents[3] / "shared" / "reference"
    path = Path(os.environ.get("AMPOST_REFERENCE", default)).joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}; the reference cases are not part of this repository: set AMPOST_REFERENCE "
            f"to the folder that holds sbibm/ and posteriordb/"
        )
    return path


def observation(task: str, number: int) -> list[float]:
    """The data of one observation of an sbibm task, in the task's order."""
    path = reference("sbibm", task, f"num_observation_{number}", "observation.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return [float(value) for value in list(csv.reader(file))[1]]
