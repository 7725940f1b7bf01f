"""The ODE slot: a problem goes in, a trajectory comes out; whoever answers it is a `Solver`."""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace, TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ampost.axes import RowMask, RowStart, RowStates, RowStatus, RowTimes, Series, States
from ampost.errors import OdeError
from ampost.experiments import Doses, Experiments, Input
from ampost.ode.recorded import truth

RightHandSide = Callable[[Any, Any, Any], Mapping[str, Any]]
Event = Callable[[Any, Any, Any], Any]
RESERVED = ("times", "states", "status", "final", "names", "slopes", "reached", "ended")


class Status(IntEnum):
    """How the integration of one row ended."""

    OK = 0
    TOO_MANY_STEPS = 1
    NOT_FINITE = 2
    EXPLODED = 3
    STALLED = 4
    DOSE_BEFORE_START = 5

    @property
    def remedy(self) -> str:
        """What happened and what to try, as a sentence."""
        return {
            Status.OK: "Solved.",
            Status.TOO_MANY_STEPS: (
                "The step budget ran out: the system is stiff, fast or kinked at these parameters; raise "
                "max_steps, narrow the prior, smooth a clamp or where that is crossed again and again, or use "
                "Compiled() where Eager or one method was named."
            ),
            Status.NOT_FINITE: (
                "A state or rate is infinite or NaN: a start or parameter that is not finite, or a solution "
                "that leaves the domain of the right-hand side (the root or logarithm of a negative state, "
                "say); narrow the prior or guard the right-hand side by clamp."
            ),
            Status.EXPLODED: (
                "The solution grows without bound within the times looked at; narrow the prior, or add "
                "what limits the growth."
            ),
            Status.STALLED: (
                "The steps became too small to go on: a kink, a jump or a singular point of the right-hand "
                "side; smooth it, or make it a dose, an event or a breakpoint of an input."
            ),
            Status.DOSE_BEFORE_START: (
                "An estimated dose lies before the start, or at no time: keep the lag positive by its prior, "
                "or set `start` of the experiments earlier."
            ),
        }[self]


@dataclass(frozen=True)
class OdeProblem:
    """One call of `odeint`: a right-hand side of scalars, a start, parameters, where and when.

    Start and parameters broadcast to `(..., experiment, 1)`; their last axis is 1 or absent. `inputs`
    are parameters that are functions of time; a dose into an event calls `event(y, p, amount)`.
    """

    name: str
    rhs: RightHandSide
    initial: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    experiments: Experiments
    doses: Doses
    inputs: Mapping[str, Input] = field(default_factory=dict)
    events: Mapping[str, Event] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """States at the experiments' times, `(..., experiment, time, state)`; `y.S` is one of them.

    `status` (..., experiment) holds a `Status` per row. A failed row is NaN from the failure on; it
    failed at the time `reached` (..., experiment), in the state `ended` (..., experiment, state).
    Stored or learned trajectories have neither.
    """

    times: Series
    states: States
    status: Tensor
    names: tuple[str, ...]
    reached: Tensor | None = None
    ended: Tensor | None = None

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


@runtime_checkable
class Tangential(Solver, Protocol):
    """A solver that answers draws close to the first one to first order about it, in one solve."""

    def tangent(self, problem: OdeProblem) -> Trajectory | None: ...


@dataclass(frozen=True)
class Rows:
    """A problem with its leading axes flattened: one row per trajectory.

    `dose_target` indexes states, then events; a dose with duration > 0 is an infusion.
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
    inputs: Mapping[str, Input]
    batch: tuple[int, ...]

    def unflatten(
        self, names: tuple[str, ...], states: RowStates, status: RowStatus, reached: Tensor, ended: Tensor
    ) -> Trajectory:
        """The rows' states back on `(..., experiment, time, state)`."""
        return Trajectory(
            times=self.times.reshape(*self.batch, -1),
            states=states.reshape(*self.batch, *states.shape[1:]),
            status=status.reshape(self.batch),
            names=names,
            reached=reached.reshape(self.batch),
            ended=ended.reshape(*self.batch, -1),
        )


def check(problem: OdeProblem) -> None:
    """Refuse an ill-posed problem, by the name of what is wrong."""
    where = f"odeint {problem.name!r}"
    if not problem.initial:
        raise OdeError(f"{where} has no initial state; give one value per state")
    for name in problem.initial:
        if name in RESERVED or name.startswith("_"):
            raise OdeError(f"a state cannot be named {name!r}: it would hide an attribute; rename it")
    count = problem.experiments.count
    for kind, values in (("initial state", problem.initial), ("parameter", problem.parameters)):
        for name, value in values.items():
            if value.dim() and value.shape[-1] != 1:
                raise OdeError(
                    f"{kind} {name!r} of {where} has shape {tuple(value.shape)}, "
                    f"expected (..., experiment, 1); use `with experiments.plate():` for a value "
                    f"per experiment, give your own plates dim=-3 or further left, and index a "
                    f"vector parameter as k[..., 0]"
                )
            if value.dim() > 1 and value.shape[-2] not in (1, count):
                raise OdeError(
                    f"{kind} {name!r} of {where} has shape {tuple(value.shape)}, whose experiment axis is "
                    f"{value.shape[-2]} for {count} experiment(s); give one value or one per experiment, and "
                    f"put draws further left: (draw, 1, 1)"
                )
    both = [name for name in problem.events if name in problem.initial]
    if both:
        raise OdeError(f"{both[0]!r} is a state and an event of {where}; rename the event")
    for name, signal in problem.inputs.items():
        if signal.value.requires_grad or signal.time.requires_grad:
            raise OdeError(
                f"the input {name!r} of {where} is asked for a gradient, which inputs do not have; multiply "
                f"it by a parameter inside the right-hand side"
            )
        if not truth((signal.mask.any(-1) | ~problem.experiments.live).all()):
            raise OdeError(
                f"the input {name!r} of {where} has no breakpoint in some experiment; give every experiment "
                f"at least one row of that input"
            )
        numbers = torch.where(signal.mask, signal.time + signal.value, 0.0)
        if not truth(torch.isfinite(numbers).all()):
            raise OdeError(
                f"the input {name!r} of {where} has a breakpoint whose time or value is not finite; correct "
                f"it or leave the row out"
            )
    _check_times(problem, where)
    if problem.doses.time.shape[-1]:
        _check_doses(problem, where)


def _check_times(problem: OdeProblem, where: str) -> None:
    times, start = problem.experiments.times.detach().cpu().numpy(), problem.experiments.start
    if not times.size:
        raise OdeError(f"{where} is to be looked at at no time at all; give at least one time per experiment")
    onward = (times[..., 1:] >= times[..., :-1]).all()
    if onward and times[..., 0].min() >= start and times[..., -1].max() < np.inf:
        return
    if not np.isfinite(times).all():
        raise OdeError(f"{where} is to be looked at at a time that is not finite; give finite times")
    if not onward:
        back = np.argwhere(times[..., 1:] < times[..., :-1])[0]
        one, two = (float(times[(*back[:-1], back[-1] + k)]) for k in (0, 1))
        raise OdeError(
            f"the times of {where} go back from {one:g} to {two:g}; sort them (a repeated time is fine)"
        )
    raise OdeError(
        f"{where} is to be looked at at time {float(times[..., 0].min()):g}, before the start at {start:g}; "
        f"set `start` of the experiments earlier, or leave that time out"
    )


def _check_doses(problem: OdeProblem, where: str) -> None:
    doses, start = problem.doses, problem.experiments.start
    if truth((doses.mask & ((doses.target < 0) | (doses.target >= max(1, len(doses.targets))))).any()):
        raise OdeError(
            f"a dose of {where} has the target number {int(doses.target.max())}, expected one of 0 to "
            f"{len(doses.targets) - 1} for the targets {', '.join(doses.targets) or 'none'}"
        )
    unknown = [t for t in doses.targets if t not in problem.initial and t not in problem.events]
    if unknown and doses.any:
        raise OdeError(
            f"doses go into {unknown[0]!r}, which is no state of {where}; its states are "
            f"{', '.join(problem.initial)}, its events {', '.join(problem.events) or 'none'}"
        )
    duration, time = doses.duration.detach(), doses.time.detach()
    bad = doses.mask & ~((duration >= 0) & (duration < torch.inf))
    if truth(bad.any()):
        raise OdeError(
            f"a dose of {where} has the duration {float(duration.expand(bad.shape)[bad][0]):g}, expected 0 (at "
            f"once) or a positive time"
        )
    # as tabulated, every dose must be in time; estimated times are a matter of their row
    tabulated = problem.experiments.doses
    plain = time.dim() <= 2 and not doses.time.requires_grad
    for table in (tabulated, doses) if plain else (tabulated,):
        moments = torch.where(table.mask, table.time.detach(), start)
        if not truth((moments >= start).all()):
            bad = moments[~(moments >= start)][0]
            raise OdeError(
                f"a dose of {where} is given at {float(bad):g}, before the start at {start:g} or at no time; "
                f"correct it, or set `start` of the experiments earlier"
            )
    infused = doses.mask & (duration > 0)
    events = [
        name
        for k, name in enumerate(doses.targets)
        if name in problem.events and truth((infused & (doses.target == k)).any())
    ]
    if events:
        raise OdeError(
            f"a dose into the event {events[0]!r} of {where} has a duration; an event happens at once: set the "
            f"duration to 0, or aim the infusion at a state"
        )


def flatten(problem: OdeProblem) -> Rows:
    """Broadcast all leading axes of a checked problem and flatten them to rows."""
    times = problem.experiments.times
    doses = problem.doses
    shape = np.broadcast_shapes(  # torch's own takes five times as long
        times.shape[:-1],
        doses.time.shape[:-1],
        doses.amount.shape[:-1],
        *(v.shape[:-1] for v in problem.initial.values() if v.dim()),
        *(v.shape[:-1] for v in problem.parameters.values() if v.dim()),
        *(v.time.shape[:-1] for v in problem.inputs.values()),
    )

    def scalar(value: Tensor) -> Tensor:
        value = value.to(times) if value.dtype != times.dtype else value
        return (value[..., 0] if value.dim() else value).expand(shape).reshape(-1)

    def wide(value: Tensor) -> Tensor:
        return value.expand(*shape, value.shape[-1]).reshape(math.prod(shape), value.shape[-1])

    names = tuple(problem.initial)
    if doses.time.shape[-1]:
        targets = (*names, *problem.events)
        index = [targets.index(t) if t in targets else 0 for t in doses.targets]
        target = torch.tensor(index, device=times.device)[doses.target] if index else doses.target
        dosed = [wide(v) for v in (doses.time, doses.amount, doses.duration, target, doses.mask)]
    else:
        none = times.new_zeros(math.prod(shape), 0)
        dosed = [none, none, none, none.long(), none.bool()]
    return Rows(
        rhs=stacked(problem, names),
        start_time=problem.experiments.start,
        start=torch.stack([scalar(problem.initial[n]) for n in names], -1),
        parameters={n: scalar(v) for n, v in problem.parameters.items()},
        times=wide(times),
        after_dose=wide(problem.experiments.after_dose),
        dose_time=dosed[0],
        dose_amount=dosed[1],
        dose_duration=dosed[2],
        dose_target=dosed[3],
        dose_mask=dosed[4],
        inputs={
            n: _sorted(wide(v.time), wide(v.value), wide(v.mask), v.linear) for n, v in problem.inputs.items()
        },
        batch=tuple(shape),
    )


def _sorted(time: Tensor, value: Tensor, mask: Tensor, linear: bool) -> Input:
    time = torch.where(mask, time, torch.inf)
    order = torch.argsort(time, dim=1, stable=True)
    return Input(time.gather(1, order), value.gather(1, order), mask.gather(1, order), linear)


def stacked(
    problem: OdeProblem, names: tuple[str, ...]
) -> Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]:
    """The user's right-hand side on rows: time (row,), states (row, state) -> slopes (row, state)."""

    def slopes(t: Tensor, y: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        given = SimpleNamespace(**{n: y[..., k] for k, n in enumerate(names)})
        p = SimpleNamespace(**parameters)
        what = f"the right-hand side of odeint {problem.name!r}"
        answer = _answer(what, lambda: problem.rhs(t, given, p), given, p)
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
            number = value.dim() == 0 and not isinstance(answer[name], Tensor)
            if value.shape != t.shape and not number:
                raise OdeError(
                    f"the slope of {name!r} in odeint {problem.name!r} has shape "
                    f"{tuple(value.shape)}, expected one scalar per trajectory; use torch "
                    f"operations on y.{name} and p only, none that joins trajectories (sum, mean, max)"
                )
            columns.append(value.expand(t.shape))
        return torch.stack(columns, -1)

    return slopes


def jumped(problem: OdeProblem, event: str) -> Callable[[Tensor, Mapping[str, Tensor], Tensor], Tensor]:
    """The user's event on rows: states (row, state), parameters and amounts -> states after it."""
    what = f"the event {event!r} of odeint {problem.name!r}"

    def jump(states: Tensor, parameters: Mapping[str, Tensor], amount: Tensor) -> Tensor:
        y = SimpleNamespace(**dict(zip(problem.initial, states.unbind(-1), strict=True)))
        p = SimpleNamespace(**parameters)
        answer = _answer(what, lambda: problem.events[event](y, p, amount), y, p)
        new = after(answer, y, tuple(problem.initial), what)
        try:
            columns = [torch.as_tensor(v, dtype=states.dtype, device=states.device) for v in new.values()]
            return torch.stack([c.expand(amount.shape) for c in columns], -1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OdeError(
                f"{what} returned {answer!r}, expected a number or torch scalar for each state"
            ) from error

    return jump


def after(answer: Any, y: SimpleNamespace, states: tuple[str, ...], what: str) -> dict[str, Any]:
    """The states after an event: those it returns, by name, and the others as they were."""
    if not isinstance(answer, Mapping | SimpleNamespace):
        raise OdeError(f"{what} returned {answer!r}, expected a dict of the states that change")
    given = answer if isinstance(answer, Mapping) else vars(answer)
    unknown = [name for name in given if name not in states]
    if unknown:
        raise OdeError(
            f"{what} returned {unknown[0]!r}, which is no state; the states are {', '.join(states)}: "
            f"correct the name"
        )
    return {name: given.get(name, getattr(y, name)) for name in states}


def _answer(what: str, call: Callable[[], Any], y: SimpleNamespace, p: SimpleNamespace) -> Any:
    """What a function of the user's returns; its usual mistakes are named."""
    try:
        return call()
    except AttributeError as error:
        kind, there = next(((k, v) for k, v in (("state", y), ("parameter", p)) if error.obj is v), ("", None))
        if there is None:
            if isinstance(error.obj, Tensor) and error.name in {**vars(y), **vars(p)}:
                raise OdeError(f"{what} reads {error.name!r} from a number; {_ORDER}") from error
            raise
        raise OdeError(
            f"{what} reads {kind} {error.name!r}; the states are {', '.join(vars(y))}, the parameters "
            f"{', '.join(vars(p)) or 'none'}: correct the name, or hand it to odeint as an initial value or a "
            f"parameter"
        ) from error
    except (RuntimeError, TypeError, ValueError) as error:
        for sign, done, remedy in _MISTAKES:
            if sign in str(error):
                raise OdeError(f"{what} {done}; {remedy}{line_of(error.__traceback__)}") from error
        raise


_ORDER = "the arguments are (t, y, p) in a right-hand side and (y, p, amount) in an event"
_PLAIN = (
    "turns a value into a Python number (float, .item(), math), which differs between trajectories",
    "use the torch function of that name",
)
_MISTAKES = (  # what torch or Python says, what was done, what to do instead
    (
        "Boolean value of Tensor",
        "branches on a value (if, min, max, and, or), which differs between trajectories",
        "use torch.where, torch.minimum or torch.maximum",
    ),
    ("converted to Scalar", *_PLAIN),
    ("converted to Python scalars", *_PLAIN),
    ("must be real number, not Tensor", *_PLAIN),
    ("numpy", "calls numpy on a value", "use the torch function of that name"),
    ("positional argument", "cannot be called as it is", _ORDER),
    ("SimpleNamespace' object is not subscriptable", "reads y[...] or p[...]", "write y.name and p.name"),
)


def line_of(traceback: TracebackType | None) -> str:
    """The innermost line of the user's that a traceback passed, as text to add to a message."""
    found, here = "", __file__.rsplit("/", 1)[0]
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(here) and "site-packages" not in file:
            text = linecache.getline(file, traceback.tb_lineno).strip()
            found = f" (line {traceback.tb_lineno} of {file.rsplit('/', 1)[-1]}: {text})"
        traceback = traceback.tb_next
    return found
