"""The ODE slot: a problem goes in, a trajectory comes out; whoever answers it is a `Solver`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from ampost.axes import RowMask, RowStart, RowStates, RowStatus, RowTimes, Series, States
from ampost.errors import OdeError
from ampost.experiments import Doses, Experiments

RightHandSide = Callable[[Any, Any, Any], Mapping[str, Any]]
RESERVED = ("times", "states", "status", "final", "names", "slopes")


class Status(IntEnum):
    """How the integration of one row ended."""

    OK = 0
    TOO_MANY_STEPS = 1
    NOT_FINITE = 2

    @property
    def remedy(self) -> str:
        """What happened and what to try, as a sentence."""
        return {
            Status.OK: "Solved.",
            Status.TOO_MANY_STEPS: (
                "The step budget ran out: the system is stiff or fast at these parameters; raise "
                "max_steps, narrow the prior or use a stiff solver."
            ),
            Status.NOT_FINITE: (
                "A state or rate became infinite or NaN: the solution explodes or leaves its "
                "domain; narrow the prior or guard the right-hand side."
            ),
        }[self]


@dataclass(frozen=True)
class OdeProblem:
    """One call of `odeint`: a right-hand side of scalars, a start, parameters, where and when.

    Start and parameters broadcast to `(..., experiment, 1)`; their last axis is 1 or absent.
    """

    name: str
    rhs: RightHandSide
    initial: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    experiments: Experiments
    doses: Doses


@dataclass(frozen=True)
class Trajectory:
    """States at the experiments' times, `(..., experiment, time, state)`; `y.S` is one of them.

    `status` (..., experiment) holds a `Status` per row. A failed row is NaN from the failure on.
    """

    times: Series
    states: States
    status: Tensor
    names: tuple[str, ...]

    def __getattr__(self, name: str) -> Tensor:
        names = object.__getattribute__(self, "names")
        if name not in names:
            raise AttributeError(f"the trajectory has no state {name!r}; it has {', '.join(names)}")
        return self.states[..., names.index(name)]

    @property
    def final(self) -> SimpleNamespace:
        """The state at the last time, each `(..., experiment, 1)`: a start for another `odeint`."""
        return SimpleNamespace(**{n: self.states[..., -1:, k] for k, n in enumerate(self.names)})


class Solver(Protocol):
    """Anything that answers an ODE problem: an integrator, a learned proxy, stored trajectories."""

    def __call__(self, problem: OdeProblem) -> Trajectory: ...


@dataclass(frozen=True)
class Rows:
    """A problem with its leading axes flattened: one row per trajectory.

    `dose_target` indexes states; a dose with duration > 0 is an infusion.
    """

    rhs: Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    start_time: float
    start: RowStart
    parameters: Mapping[str, Tensor]
    times: RowTimes
    after_dose: RowMask
    dose_time: Tensor
    dose_amount: Tensor
    dose_duration: Tensor
    dose_target: Tensor
    dose_mask: Tensor
    batch: tuple[int, ...]

    def unflatten(self, names: tuple[str, ...], states: RowStates, status: RowStatus) -> Trajectory:
        """The rows' states back on `(..., experiment, time, state)`."""
        return Trajectory(
            times=self.times.reshape(*self.batch, -1),
            states=states.reshape(*self.batch, *states.shape[1:]),
            status=status.reshape(self.batch),
            names=names,
        )


def check(problem: OdeProblem) -> None:
    """Refuse an ill-posed problem, by the name of what is wrong."""
    if not problem.initial:
        raise OdeError(f"odeint {problem.name!r} has no initial state; give one value per state")
    for name in problem.initial:
        if name in RESERVED or name.startswith("_"):
            raise OdeError(f"a state cannot be named {name!r}: it would hide an attribute; rename it")
    for kind, values in (("initial state", problem.initial), ("parameter", problem.parameters)):
        for name, value in values.items():
            if value.dim() and value.shape[-1] != 1:
                raise OdeError(
                    f"{kind} {name!r} of odeint {problem.name!r} has shape {tuple(value.shape)}, "
                    f"expected (..., experiment, 1); use `with experiments.plate():` for a value "
                    f"per experiment, give your own plates dim=-3 or further left, and index a "
                    f"vector parameter as k[..., 0]"
                )
    unknown = [t for t in problem.doses.targets if t not in problem.initial]
    if unknown and problem.doses.any:
        raise OdeError(
            f"doses go into {unknown[0]!r}, which is no state of odeint {problem.name!r}; its "
            f"states are {', '.join(problem.initial)} (events are not supported yet)"
        )


def flatten(problem: OdeProblem) -> Rows:
    """Broadcast all leading axes of a checked problem and flatten them to rows."""
    times = problem.experiments.times
    doses = problem.doses
    shape = torch.broadcast_shapes(
        times.shape[:-1],
        doses.time.shape[:-1],
        doses.amount.shape[:-1],
        *(v.shape[:-1] for v in problem.initial.values() if v.dim()),
        *(v.shape[:-1] for v in problem.parameters.values() if v.dim()),
    )

    def scalar(value: Tensor) -> Tensor:
        value = value.to(times) if value.dtype != times.dtype else value
        return (value[..., 0] if value.dim() else value).expand(shape).reshape(-1)

    def wide(value: Tensor) -> Tensor:
        return value.expand(*shape, value.shape[-1]).flatten(0, len(shape) - 1)

    names = tuple(problem.initial)
    index = [names.index(t) if t in names else 0 for t in doses.targets]
    target = torch.tensor(index)[doses.target] if index else doses.target
    return Rows(
        rhs=stacked(problem, names),
        start_time=problem.experiments.start,
        start=torch.stack([scalar(problem.initial[n]) for n in names], -1),
        parameters={n: scalar(v) for n, v in problem.parameters.items()},
        times=wide(times),
        after_dose=wide(problem.experiments.after_dose),
        dose_time=wide(doses.time),
        dose_amount=wide(doses.amount),
        dose_duration=wide(doses.duration),
        dose_target=wide(target),
        dose_mask=wide(doses.mask),
        batch=tuple(shape),
    )


@dataclass(frozen=True)
class Edges:
    """Sorted times per row (row, edge) at which `target` jumps by `jump` and its inflow by `rate`."""

    time: Tensor
    target: Tensor
    jump: Tensor
    rate: Tensor


def dose_edges(rows: Rows) -> Edges:
    """Boluses jump the state; an infusion raises the inflow at its start and lowers it at its end."""
    infused = rows.dose_duration > 0
    amount = torch.where(rows.dose_mask, rows.dose_amount, 0.0)
    jump = torch.where(infused, 0.0, amount)
    rate = torch.where(infused, amount / torch.where(infused, rows.dose_duration, 1.0), 0.0)
    time = torch.where(rows.dose_mask, rows.dose_time, torch.inf)
    target = rows.dose_target
    if bool(infused.any()):
        end = torch.where(infused & rows.dose_mask, rows.dose_time + rows.dose_duration, torch.inf)
        time, target = torch.cat([time, end], 1), torch.cat([target, target], 1)
        jump, rate = torch.cat([jump, torch.zeros_like(jump)], 1), torch.cat([rate, -rate], 1)
    time, order = torch.sort(time, dim=1, stable=True)
    return Edges(time, *(value.gather(1, order) for value in (target, jump, rate)))


def stacked(
    problem: OdeProblem, names: tuple[str, ...]
) -> Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]:
    """The user's right-hand side on rows: time (row,), states (row, state) -> slopes (row, state)."""

    def slopes(t: Tensor, y: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        given = SimpleNamespace(**{n: y[..., k] for k, n in enumerate(names)})
        answer = _answer(problem, t, given, SimpleNamespace(**parameters))
        if not isinstance(answer, Mapping) or set(answer) != set(names):
            got = sorted(answer) if isinstance(answer, Mapping) else type(answer).__name__
            raise OdeError(
                f"the right-hand side of odeint {problem.name!r} returned {got}, expected a dict "
                f"with one slope for each state: {sorted(names)}"
            )
        columns = []
        for name in names:
            try:
                value = torch.as_tensor(answer[name], dtype=y.dtype, device=y.device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise OdeError(
                    f"the slope of {name!r} in odeint {problem.name!r} is {answer[name]!r}, expected a "
                    f"number or one torch scalar per trajectory"
                ) from error
            if value.shape not in (t.shape, torch.Size([])):
                raise OdeError(
                    f"the slope of {name!r} in odeint {problem.name!r} has shape "
                    f"{tuple(value.shape)}, expected one scalar per trajectory; use torch "
                    f"operations on y.{name} and p only"
                )
            columns.append(value.expand(t.shape))
        return torch.stack(columns, -1)

    return slopes


def _answer(problem: OdeProblem, t: Tensor, y: SimpleNamespace, p: SimpleNamespace) -> Any:  # noqa: ANN401
    """What the right-hand side returns; its usual mistakes are named."""
    try:
        return problem.rhs(t, y, p)
    except AttributeError as error:
        asked = next((k for k, v in (("state", y), ("parameter", p)) if error.obj is v), None)
        if asked is None:
            raise
        raise OdeError(
            f"the right-hand side of odeint {problem.name!r} reads {asked} {error.name!r}; the states are "
            f"{', '.join(problem.initial)}, the parameters {', '.join(problem.parameters) or 'none'}: "
            f"correct the name or hand it to odeint"
        ) from error
    except RuntimeError as error:
        if "Boolean value of Tensor" not in str(error):
            raise
        raise OdeError(
            f"the right-hand side of odeint {problem.name!r} branches on a value (if, min, max, and, or), "
            f"which differs between trajectories; use torch.where, torch.minimum or torch.maximum"
        ) from error
