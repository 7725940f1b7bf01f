"""From an ODE problem to its compiled functions: made once per right-hand side, compared with torch first."""

from __future__ import annotations

import dis
import types
import warnings
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from ampost.errors import OdeError
from ampost.experiments import Experiments, Input, no_doses
from ampost.ode import kernels
from ampost.ode.graph import LANES
from ampost.ode.machine import Code
from ampost.ode.methods import Method, tsitouras
from ampost.ode.problem import OdeProblem, Rows, jumped, stacked
from ampost.ode.recorded import truth
from ampost.ode.stepper import Stepper
from ampost.ode.trace import Jump, NotTraceableError, Rates

Array = np.ndarray[Any, Any]
Wanted = tuple[tuple[int, int], ...]
MOST = 256  # right-hand sides kept compiled
_known: dict[Any, Functions | None] = {}


class Functions:
    """The compiled functions of one right-hand side with its events, by method, as they are asked for."""

    def __init__(self, problem: OdeProblem, rows: Rows, points: _Points) -> None:
        states, parameters = tuple(problem.initial), tuple(problem.parameters)
        self.rates = Rates(problem.rhs, states, parameters, tuple(problem.inputs))
        self.jumps = [Jump(event, states, parameters) for event in problem.events.values()]
        self.events = len(self.jumps)
        self._name, self._inflows = problem.name, _infused(rows)
        self._points = points
        self._steppers: dict[Method, Stepper] = {}
        self._codes: dict[tuple[Method, Wanted], tuple[Array, int, int, int, int]] = {}
        self._alive: list[Code] = []  # what the addresses point into
        self._derivatives_known = False

    def code(self, method: Method, wanted: Wanted) -> tuple[Array, int, int, int, int]:
        """Addresses in the kernel's order, slots of block and area, where inflows are, stages.

        `wanted` are the kinds and indices of the columns of sensitivities.
        """
        if (method, wanted) not in self._codes:
            stepper = self.stepper(method)
            if (wanted or not method.reuses_last) and not self._derivatives_known:
                self._compare_derivatives(stepper)
                self._derivatives_known = True
            addresses = dict(stepper.solving.addresses)
            if wanted:
                deriving = stepper.deriving(wanted)
                self._alive.append(deriving)
                addresses |= deriving.addresses
            code = np.array([addresses.get(name, 0) for name in _IN_ORDER], dtype=np.int64)
            slots = stepper.block_slots, stepper.area_slots, stepper.inflow_at, method.stages
            self._codes[method, wanted] = (code, *slots)
        return self._codes[method, wanted]

    def stepper(self, method: Method) -> Stepper:
        """The stepper of `method`."""
        if method not in self._steppers:
            self._steppers[method] = Stepper(self.rates, self.jumps, method, self._inflows)
        return self._steppers[method]

    def compare_values(self, slopes: Tensor) -> None:
        """Compare slopes with torch's `slopes` at the points, and events likewise.

        Raises:
            NotTraceableError: they differ.
        """
        points, stepper = self._points, self.stepper(tsitouras)
        addresses = stepper.solving.addresses
        block, area, extra = points.slots(stepper)
        kernels.evaluate(addresses["slopes"], block, area, extra)
        n = len(self.rates.states)
        _agree(area[2 * n : 3 * n], slopes, "function")
        for k, name in enumerate(points.problem.events):
            block[kernels.EVENT], block[kernels.AMOUNT] = k, 1.5
            kernels.evaluate(addresses["jump"], block, area, extra)
            _agree(area[2 * n : 3 * n], points.after(name), "event")

    def _compare_derivatives(self, stepper: Stepper) -> None:
        """Refuse Jacobians that are not torch's at the points."""
        points, n = self._points, len(self.rates.states)
        y = points.states.clone().requires_grad_()
        p = {k: v.clone().requires_grad_() for k, v in points.parameters.items()}
        with torch.enable_grad():
            rows = [
                torch.autograd.grad(s.sum(), [y, *p.values()], retain_graph=True, materialize_grads=True)
                if s.requires_grad
                else [torch.zeros_like(i) for i in (y, *p.values())]
                for s in points.slopes(y, p).unbind(-1)
            ]
        theirs = torch.stack([torch.cat([g[0], *(v[:, None] for v in g[1:])], -1) for g in rows], 1)
        block, area, extra = points.slots(stepper)
        kernels.evaluate(stepper.jacobians.addresses["jacobians"], block, area, extra)
        mine = extra[: n * (n + len(p))].reshape(n, n + len(p), LANES).transpose(2, 0, 1)
        known = np.isfinite(theirs.numpy())  # torch differentiates both branches of a where, and may get NaN
        if not np.allclose(mine[known], theirs.numpy()[known], rtol=1e-7, atol=1e-12):
            raise OdeError(
                f"the compiled derivative of the right-hand side of odeint {self._name!r} differs from "
                f"torch's; use solver=Eager() and report the right-hand side"
            )


_IN_ORDER = (
    *("begin", "slopes", "attempt", "look", "jump"),
    *("linearise", "column", "jump_column", "columns", "look_columns", "jump_forcing"),
)


class _Points:
    """Eight random times, states and parameters around those of the first rows, to compare at."""

    def __init__(
        self, problem: OdeProblem, time: Tensor, states: Tensor, parameters: Mapping[str, Tensor]
    ) -> None:
        self.problem, self.time, self.states, self.parameters = problem, time, states, parameters
        # inputs: a value, a slope and when it began
        self.signals = {name: (1.0 + 0.1 * k, 0.3, 0.2) for k, name in enumerate(problem.inputs)}
        self._rhs = stacked(problem, tuple(problem.initial))

    @classmethod
    def near(cls, problem: OdeProblem, rows: Rows) -> _Points:
        """Points around the starts of `rows`."""
        generator = torch.Generator().manual_seed(0)
        pick = torch.arange(LANES) % len(rows.start)

        def close(value: Tensor) -> Tensor:
            factor = torch.exp(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
            return torch.where(value == 0, 0.1 * factor, value * factor)

        with torch.no_grad():
            time = close(rows.times[pick, 0].abs() + 0.1)
            parameters = {k: close(v[pick]) for k, v in rows.parameters.items()}
            nothing = torch.zeros(())
            bare = replace(  # kept for later comparisons, without the batch that it came with
                problem,
                initial=dict.fromkeys(problem.initial, nothing),
                parameters=dict.fromkeys(problem.parameters, nothing),
                experiments=Experiments.on([[0.0]], []),
                doses=no_doses(1),
                inputs=dict.fromkeys(problem.inputs, Input(nothing, nothing, nothing.bool())),
            )
            return cls(bare, time, close(rows.start[pick]), parameters)

    def slopes(self, states: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The torch right-hand side (point, state)."""
        signals = {k: v + slope * (self.time - since) for k, (v, slope, since) in self.signals.items()}
        return self._rhs(self.time, states, {**parameters, **signals})

    def after(self, event: str) -> Tensor:
        """The states (point, state) after an event of amount 1.5, by torch."""
        amount = torch.full((LANES,), 1.5, dtype=torch.float64)
        return jumped(self.problem, event)(self.states, self.parameters, amount)

    def slots(self, stepper: Stepper) -> tuple[Array, Array, Array]:
        """Block, area and a third place, filled with the points, one in each lane."""
        block, area = np.zeros((stepper.block_slots, LANES)), np.zeros((stepper.area_slots, LANES))
        n, m = self.states.shape[1], len(self.parameters)
        block[kernels.TIME], area[:n] = self.time.numpy(), self.states.numpy().T
        values = [v.numpy() for v in self.parameters.values()]
        values += [np.full(LANES, v) for signal in self.signals.values() for v in signal]
        for k, value in enumerate(values):
            block[kernels.HEAD + k] = value
        return block, area, np.zeros((max(1, n * (n + m)), LANES))


def functions_of(problem: OdeProblem, rows: Rows) -> Functions | None:
    """The compiled functions of a problem; None, with a warning, where it has none."""
    try:
        key = _key(problem, rows)
    except NotTraceableError as reason:
        _warn(problem.name, reason)
        return None
    if key not in _known:
        if len(_known) >= MOST:
            del _known[next(iter(_known))]
        with disable_proxy_modes_tracing():
            _known[key] = _made(problem, rows)
    return _known[key]


def _made(problem: OdeProblem, rows: Rows) -> Functions | None:
    points = _Points.near(problem, rows)
    slopes = points.slopes(points.states, points.parameters)  # torch first: its errors name what is wrong
    for name in problem.events:
        points.after(name)
    try:
        functions = Functions(problem, rows, points)
        functions.compare_values(slopes)
    except NotTraceableError as reason:
        _warn(problem.name, reason)
        return None
    return functions


def _agree(mine: Array, theirs: Tensor, what: str) -> None:
    expected = theirs.detach().numpy()
    # terms that cancel may leave a rounding error, which fused operations round otherwise
    rounding = 1e-12 * np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    if not np.allclose(mine.T, expected, rtol=1e-9, atol=max(rounding, 1e-14), equal_nan=True):
        raise NotTraceableError(f"the compiled {what} differs from the torch {what}")


def _warn(name: str, reason: NotTraceableError) -> None:
    warnings.warn(
        f"the right-hand side of odeint {name!r} is not compiled: {reason}. The slower torch solver runs it.",
        stacklevel=2,
    )


def _infused(rows: Rows) -> bool:
    return rows.dose_duration.shape[1] > 0 and truth((rows.dose_duration > 0).any())


def _key(problem: OdeProblem, rows: Rows) -> Any:
    """What compiled functions depend on.

    Raises:
        NotTraceableError: a captured value may change unseen.
    """
    parts = [_identity(f, ()) for f in (problem.rhs, *problem.events.values())]
    names = tuple(problem.initial), tuple(problem.parameters), tuple(problem.inputs), tuple(problem.events)
    return (*parts, *names, _infused(rows))


def _identity(function: Any, callers: tuple[types.CodeType, ...]) -> tuple[Any, ...]:
    """Code of a function and all that it reads from outside, with the functions among that.

    Functions that a program makes anew in each run are so compiled once, and a number that changed since
    is noticed. What may change unseen is not compiled.
    """
    if not isinstance(function, types.FunctionType):
        raise NotTraceableError(
            f"it is a {type(function).__name__}, whose state may change unseen; use a function"
        )
    code = function.__code__
    if code in callers:
        return (code,)
    cells = dict(zip(code.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=True))
    outside = ChainMap(cells, function.__globals__)
    reads = [(path, outside[path[0]]) for path in _paths(code) if path[0] in outside]
    reads += [(("a default",), v) for v in function.__defaults__ or ()]
    reads += [((name,), v) for name, v in (function.__kwdefaults__ or {}).items()]
    parts: list[Any] = [code]
    for (name, *attributes), value in reads:
        while isinstance(value, types.ModuleType) and attributes:
            if value.__name__.partition(".")[0] in _STEADY:
                value, attributes = None, []
            else:
                name, value = f"{name}.{attributes[0]}", getattr(value, attributes.pop(0), None)
        where = f"(line {code.co_firstlineno} of {code.co_filename.rsplit('/', 1)[-1]})"
        if isinstance(value, torch.Tensor):
            raise OdeError(
                f"the right-hand side or an event reads the tensor {name!r} from outside {where}; hand it to "
                f"odeint as a parameter and read it as p.{name.rpartition('.')[2]}"
            )
        if isinstance(value, types.FunctionType) and not attributes:
            steady = (value.__module__ or "").partition(".")[0] in _STEADY
            parts.append(value if steady else _identity(value, (*callers, code)))
        elif isinstance(value, _PLAIN) or (
            isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value)
        ):
            parts.append((name, type(value), value))
        elif attributes or not isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
            raise NotTraceableError(
                f"it reads the {type(value).__name__} {name!r}, which may change unseen and should be a "
                f"parameter of odeint {where}"
            )
    return tuple(parts)


@lru_cache(maxsize=4 * MOST)
def _paths(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """What a function and those written inside it read from outside, each with the attributes read from it."""
    found: list[tuple[str, ...]] = []
    path: list[str] = []
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and path:
            path.append(step.argval)
            continue
        if path:
            found.append(tuple(path))
        path = [step.argval] if step.opname in _FROM_OUTSIDE else []
    if path:
        found.append(tuple(path))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _paths(constant)
    return tuple(dict.fromkeys(found))


_PLAIN = (bool, int, float, str, types.NoneType)
_STEADY = {"torch", "math", "numpy", "pyro", "builtins"}  # whose functions and constants stay what they are
_FROM_OUTSIDE = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
