"""What became of rows that could not be solved: counts, and a snippet that runs one of them again."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ampost.ode.problem import OdeProblem, Status, Trajectory


@dataclass(frozen=True)
class Failure:
    """One row of `odeint` that failed: where in the batch, why, when, in what state, and its parameters."""

    name: str
    index: tuple[int, ...]
    status: Status
    time: float
    state: dict[str, float]
    parameters: dict[str, float]
    snippet: str

    def __str__(self) -> str:
        state = ", ".join(f"{k} {v:.4g}" for k, v in self.state.items())
        parameters = ", ".join(f"{k} {v:.4g}" for k, v in self.parameters.items()) or "none"
        return (
            f"odeint {self.name!r} row {self.index} ended as {self.status.name} at time {self.time:.6g} in the "
            f"state {state}; parameters {parameters}. {self.status.remedy}"
        )


def failures(problem: OdeProblem, trajectory: Trajectory, most: int = 10) -> list[Failure]:
    """The first `most` rows of `trajectory` that failed.

    >>> import ampost, torch
    >>> looks = ampost.Experiments.on([[0.0, 2.0]], ["A"])
    >>> with ampost.recording() as record:
    ...     y = ampost.odeint(lambda t, y, p: {"A": p.k * y.A**2}, {"A": 1.0}, {"k": 1.0}, looks)
    >>> [failure.status.name for failure in failures(*record.solved[0])]
    ['EXPLODED']
    """
    out = []
    for index in map(tuple, (trajectory.status != Status.OK).nonzero()[:most].tolist()):
        parameters = {k: _at(v, trajectory, index) for k, v in problem.parameters.items()}
        initial = {k: _at(v, trajectory, index) for k, v in problem.initial.items()}
        time, state = problem.experiments.start, initial
        if trajectory.reached is not None and trajectory.ended is not None:
            time = float(trajectory.reached[index])
            state = dict(zip(trajectory.names, trajectory.ended[index].tolist(), strict=True))
        status = Status(int(trajectory.status[index]))
        snippet = _snippet(problem, trajectory, index, initial, parameters)
        out.append(Failure(problem.name, index, status, time, state, parameters, snippet))
    return out


def reasons(statuses: Iterable[Tensor]) -> Counter[str]:
    """How many rows ended how, those that were solved left out."""
    found = Counter(Status(k).name for status in statuses for k in status.flatten().tolist())
    del found[Status.OK.name]
    return found


def _at(value: Tensor, trajectory: Trajectory, index: tuple[int, ...]) -> float:
    """The number of one row in what broadcasts to (..., experiment, 1)."""
    full = value.detach().reshape(value.shape or (1,))
    return float(full.expand(*trajectory.status.shape, 1)[index][0])


def _snippet(
    problem: OdeProblem,
    trajectory: Trajectory,
    index: tuple[int, ...],
    initial: dict[str, float],
    parameters: dict[str, float],
) -> str:
    """Python that solves this row alone."""
    lines = ["from math import inf, nan", "import torch, ampost"]
    name = _imported(problem.rhs, "rhs", lines)
    lines.append("torch.set_default_dtype(torch.float64)")
    times = trajectory.times.expand(*trajectory.status.shape, -1)[index].tolist()
    given = [f"{k!r}: {v!r}" for k, v in parameters.items()]
    lines.append(f"looks = ampost.Experiments.on([{times}], [{next(iter(initial))!r}])")
    after = problem.experiments.after_dose.expand(*trajectory.status.shape, -1)[index]
    start = f"start={problem.experiments.start!r}"
    lines.append("from dataclasses import replace")
    lines.append(f"looks = replace(looks, {start}, after_dose=torch.tensor([{after.tolist()}]))")
    more = ""
    doses = problem.doses
    if doses.time.shape[-1] and bool(doses.mask.any()):
        row = [
            v.detach().expand(*trajectory.status.shape, v.shape[-1])[index][None]
            for v in (doses.time, doses.amount, doses.duration, doses.target, doses.mask)
        ]
        written = ", ".join(f"torch.tensor({v.tolist()})" for v in row)
        lines.append(f"doses = ampost.Doses({written}, {doses.targets!r})")
        more += ", doses=doses"
    if problem.inputs:
        lines.append("from ampost.experiments import Input")
        for key, signal in problem.inputs.items():
            row = [
                v.expand(*trajectory.status.shape, v.shape[-1])[index][None]
                for v in (signal.time, signal.value, signal.mask)
            ]
            written = ", ".join(f"torch.tensor({v.tolist()})" for v in row)
            given.append(f"{key!r}: Input({written}, {signal.linear})")
    if problem.events:
        names = [f"{key!r}: {_imported(event, key, lines)}" for key, event in problem.events.items()]
        more += f", events={{{', '.join(names)}}}"
    inside = ", ".join(given)
    call = f"ampost.odeint({name}, {initial!r}, {{{inside}}}, looks{more})"
    return "\n".join([*lines, f"print({call})"]) + "\n"


def _imported(function: Any, otherwise: str, lines: list[str]) -> str:
    """The name of a function, after a line that imports it, or says that it must be there."""
    name, module = getattr(function, "__name__", otherwise), getattr(function, "__module__", "__main__")
    name = name if name.isidentifier() else otherwise
    there = getattr(sys.modules.get(module), name, None) is function and module != "__main__"
    lines.append(f"from {module} import {name}" if there else f"# {name}: the function of your program")
    return name
