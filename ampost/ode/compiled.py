"""The compiled engine: a right-hand side becomes machine code, rows are spread over the cores.

What has no scalar form, and what does not live on the CPU in double precision, goes to `Eager`,
with one warning that says why.
"""

from __future__ import annotations

import math
import os
import types
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numba import cfunc
from torch import Tensor

from ampost.errors import OdeError
from ampost.ode import kernels
from ampost.ode.eager import Eager
from ampost.ode.problem import OdeProblem, Rows, Trajectory, check, dose_edges, flatten, stacked
from ampost.ode.trace import NotTraceableError, Traced, source, trace

CHUNK = 64
Array = np.ndarray[Any, Any]
Points = tuple[Tensor, Tensor, Mapping[str, Tensor]]
Slopes = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Compiled:
    """Compiled explicit solver; tolerances per step and a step budget per row, as `Eager`.

    Gradients come from forward sensitivities, integrated when they are asked for; they are those of
    the solution within the tolerance, for initial states, parameters, dose amounts, times and
    durations. There is no second derivative.
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    max_steps: int = 2_000

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "max_steps"):
            if not getattr(self, name) > 0:
                raise OdeError(f"{name} is {getattr(self, name)}, expected a positive number")

    def __call__(self, problem: OdeProblem) -> Trajectory:
        """The trajectory of `problem` at its experiments' times."""
        check(problem)
        rows = flatten(problem)
        names = tuple(problem.initial)
        functions = None
        if rows.times.dtype == torch.float64 and rows.times.device.type == "cpu":
            functions = _functions(problem, rows)
        if functions is None:
            return Eager(self.rtol, self.atol, self.max_steps)(problem)
        states, status = _solve(self, functions, rows)
        return rows.unflatten(names, states, status)


class Functions:
    """The compiled right-hand side and, once a gradient asks for it, its Jacobians."""

    def __init__(self, traced: Traced, rhs: Slopes, points: Points) -> None:
        self.traced, self.rhs, self.points = traced, rhs, points
        self.reads = {traced.time: "t"}
        self.reads |= {k: f"y[{i}]" for i, k in enumerate(traced.states)}
        self.reads |= {k: f"p[{i}]" for i, k in enumerate(traced.parameters)}

    @cached_property
    def slopes(self) -> Any:
        """f(t, y, p, out)."""
        outputs = {f"out[{i}]": k for i, k in enumerate(self.traced.slopes)}
        return self._compiled("slopes", outputs, "t, y, p, out", kernels.RIGHT_HAND_SIDE)

    @cached_property
    def jacobians(self) -> Any:
        """jac(t, y, p, by_state, by_parameter)."""
        outputs: dict[str, int] = {}
        for target, inputs in (("a", self.traced.states), ("b", self.traced.parameters)):
            for i, row in enumerate(self.traced.jacobian(inputs)):
                outputs |= {f"{target}[{i}, {j}]": k for j, k in enumerate(row)}
        compiled = self._compiled("jacobians", outputs, "t, y, p, a, b", kernels.JACOBIAN)
        self._compare(compiled)
        return compiled

    def plain_points(self) -> tuple[Array, Array, Array]:
        """The points of comparison as arrays: t (point,), y (point, state), p (point, parameter)."""
        t, y, p = self.points
        return t.numpy(), y.numpy(), _wide(p, len(t)).numpy()

    def _compare(self, compiled: Any) -> None:
        """Refuse Jacobians that are not torch's at the points."""
        t, y, p = self.points
        inputs = [y.clone().requires_grad_(), *(v.clone().requires_grad_() for v in p.values())]
        with torch.enable_grad():
            slopes = self.rhs(t, inputs[0], dict(zip(p, inputs[1:], strict=True)))
            rows = [
                torch.autograd.grad(s.sum(), inputs, retain_graph=True, materialize_grads=True)
                if s.requires_grad
                else [torch.zeros_like(i) for i in inputs]
                for s in slopes.unbind(-1)
            ]
        by_state, by_parameter = np.empty((*y.shape, y.shape[1])), np.empty((*y.shape, len(p)))
        kernels.jacobians_at(compiled, *self.plain_points(), by_state, by_parameter)
        mine = np.concatenate([by_state, by_parameter], -1)
        theirs = torch.stack([torch.cat([g[0], *(v[:, None] for v in g[1:])], -1) for g in rows], 1).numpy()
        known = np.isfinite(theirs)  # torch differentiates both branches of a where, and may get NaN
        if not np.allclose(mine[known], theirs[known], rtol=1e-7, atol=1e-12):
            raise OdeError(
                "the compiled derivative of a right-hand side differs from torch's; use solver=Eager() and "
                "report the right-hand side"
            )

    def _compiled(self, name: str, outputs: Mapping[str, int], head: str, signature: Any) -> Any:
        space: dict[str, Any] = {"math": math}
        exec(source(name, self.traced.graph, outputs, self.reads, head), space)
        return cfunc(signature, error_model="numpy")(space[name])


@cache
def _nothing() -> Any:
    """Stands in for the Jacobians where no gradient is wanted."""

    def jacobians(t, y, p, a, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return 0

    return cfunc(kernels.JACOBIAN)(jacobians)


_known: dict[Any, Functions | None] = {}


def _functions(problem: OdeProblem, rows: Rows) -> Functions | None:
    """The compiled functions of a problem, made once per right-hand side; None where there are none."""
    key = _key(problem)
    if key is None:
        return None
    if key not in _known:
        _known[key] = _made(problem, rows)
    return _known[key]


def _key(problem: OdeProblem) -> Any:
    """What a right-hand side depends on; None where a captured value may change unseen."""
    names = (tuple(problem.initial), tuple(problem.parameters))
    if not isinstance(problem.rhs, types.FunctionType):
        return (problem.rhs, names)
    try:
        return (_identity(problem.rhs, ()), names)
    except NotTraceableError as reason:
        _warn(problem.name, str(reason))
        return None


def _identity(function: types.FunctionType, callers: tuple[types.CodeType, ...]) -> tuple[Any, ...]:
    """Code and captured values of a function and of those it captures.

    Functions that a program makes anew in each run are so compiled once.
    """
    code = function.__code__
    if code in callers:
        return (code,)
    cells = [c.cell_contents for c in function.__closure__ or ()]
    parts: list[Any] = [code]
    for value in (*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if isinstance(value, types.FunctionType):
            parts.append(_identity(value, (*callers, code)))
        elif isinstance(value, bool | int | float | str | types.NoneType | types.ModuleType | type):
            parts.append((type(value), value))
        else:
            raise NotTraceableError(
                f"it captures a {type(value).__name__}, which may change unseen and should be a "
                f"parameter of odeint"
            )
    return tuple(parts)


def _made(problem: OdeProblem, rows: Rows) -> Functions | None:
    names = tuple(problem.initial)
    points = _points(rows)
    rhs = stacked(problem, names)
    slopes = rhs(*points)  # first in torch: its errors name what is wrong with a right-hand side
    try:
        functions = Functions(trace(problem.rhs, names, tuple(problem.parameters)), rhs, points)
    except NotTraceableError as reason:
        _warn(problem.name, str(reason))
        return None
    mine = np.empty(slopes.shape)
    kernels.slopes_at(functions.slopes, *functions.plain_points(), mine)
    if not np.allclose(mine, slopes.numpy(), rtol=1e-9, atol=1e-300, equal_nan=True):
        _warn(problem.name, "the compiled function differs from the torch function")
        return None
    return functions


def _points(rows: Rows, count: int = 8) -> Points:
    """Random times, states and parameters around those of the first rows."""
    generator = torch.Generator().manual_seed(0)
    pick = torch.arange(count) % len(rows.start)

    def near(value: Tensor) -> Tensor:
        factor = torch.exp(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
        return torch.where(value == 0, 0.1 * factor, value * factor)

    with torch.no_grad():
        return (
            near(rows.times[pick, 0].abs() + 0.1),
            near(rows.start[pick]),
            {k: near(v[pick]) for k, v in rows.parameters.items()},
        )


def _warn(name: str, reason: str) -> None:
    warnings.warn(
        f"the right-hand side of odeint {name!r} is not compiled: {reason}. The slower torch solver runs it.",
        stacklevel=2,
    )


def _wide(parameters: Mapping[str, Tensor], count: int) -> Tensor:
    if not parameters:
        return torch.zeros(count, 0, dtype=torch.float64)
    return torch.stack(list(parameters.values()), -1)


@dataclass(frozen=True)
class _Job:
    """What does not change between a solve and its gradient; times are sorted, `order` undoes it."""

    solver: Compiled
    functions: Functions
    start: float
    times: Array
    after_dose: Array
    target: Array
    order: Tensor
    wanted: tuple[tuple[int, int], ...]


def _solve(solver: Compiled, functions: Functions, rows: Rows) -> tuple[Tensor, Tensor]:
    """States (row, time, state) and status (row,)."""
    times = rows.times.detach()
    by_dose = torch.argsort(rows.after_dose.to(torch.int8), dim=1, stable=True)
    order = by_dose.gather(1, torch.argsort(times.gather(1, by_dose), dim=1, stable=True))
    edges = dose_edges(rows)
    wide = _wide(rows.parameters, len(rows.start))
    wanted = []
    if torch.is_grad_enabled():
        if rows.start.requires_grad:
            wanted += [(kernels.INITIAL, k) for k in range(rows.start.shape[1])]
        needs = [v.requires_grad for v in rows.parameters.values()]
        wanted += [(kernels.PARAMETER, k) for k, need in enumerate(needs) if need]
        for kind, value in (
            (kernels.EDGE_TIME, edges.time),
            (kernels.EDGE_JUMP, edges.jump),
            (kernels.EDGE_RATE, edges.rate),
        ):
            if value.requires_grad:
                wanted += [(kind, k) for k in range(value.shape[1])]
    job = _Job(
        solver,
        functions,
        rows.start_time,
        np.ascontiguousarray(times.gather(1, order).numpy()),
        np.ascontiguousarray(rows.after_dose.gather(1, order).numpy()),
        np.ascontiguousarray(edges.target.numpy()),
        order,
        tuple(wanted),
    )
    inputs = (rows.start, wide, edges.time, edges.jump, edges.rate)
    states, status = _Solution.apply(job, *inputs)  # type: ignore[no-untyped-call]
    return states, status


class _Solution(torch.autograd.Function):
    """The solve as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.job = job
        ctx.save_for_backward(*inputs)
        sorted_states, status, _ = _integrate(job, [i.detach() for i in inputs], None)
        wide = job.order[..., None].expand(*job.order.shape, sorted_states.shape[-1])
        states = torch.empty_like(sorted_states).scatter_(1, wide, sorted_states)
        ctx.mark_non_differentiable(status)
        return states, status

    @staticmethod
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise OdeError(
                "a second derivative through the compiled solver was asked for (create_graph=True); take "
                "differences of the gradient, or solve with answering(Eager())"
            )
        inputs = ctx.saved_tensors
        job: _Job = ctx.job
        wide = job.order[..., None].expand(*job.order.shape, outer.shape[-1])
        _, _, collected = _integrate(job, [i.detach() for i in inputs], outer.gather(1, wide))
        slopes = [torch.zeros_like(i) for i in inputs]
        for column, (kind, k) in enumerate(job.wanted):
            slopes[kind][:, k] = collected[:, column]
        return (None, *slopes)


def _integrate(job: _Job, inputs: list[Tensor], weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted states, status and, where `weights` are given, the weighted sums of sensitivities."""
    begin, parameters, edge_time, edge_jump, edge_rate = (np.ascontiguousarray(i.numpy()) for i in inputs)
    count, looks, size = len(begin), job.times.shape[1], begin.shape[1]
    wanted = job.wanted if weights is not None else ()
    kinds = np.array([w[0] for w in wanted], dtype=np.int64)
    index = np.array([w[1] for w in wanted], dtype=np.int64)
    atol = np.full(1 + len(wanted), job.solver.atol)
    states = np.empty((count, looks, size))
    status, steps = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    gradient = np.zeros((count, len(wanted)))
    given = np.empty((0, 0, 0)) if weights is None else np.ascontiguousarray(weights.numpy())
    arguments = (
        job.functions.slopes,
        job.functions.jacobians if wanted else _nothing(),
        job.start,
        begin,
        parameters,
        job.times,
        job.after_dose,
        edge_time,
        job.target,
        edge_jump,
        edge_rate,
        job.solver.rtol,
        job.solver.max_steps,
        kinds,
        index,
        atol,
        states,
        given,
        gradient,
        status,
        steps,
    )
    _spread(lambda first, last: kernels.explicit(*arguments, first, last), count)
    return torch.as_tensor(states), torch.as_tensor(status), torch.as_tensor(gradient)


def _spread(work: Callable[[int, int], None], count: int) -> None:
    """Run `work(first, last)` over all rows, in chunks over as many threads as torch uses."""
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    if threads == 1 or count <= CHUNK:
        work(0, count)
        return
    width = max(CHUNK, -(-count // (8 * threads)))
    cuts = range(0, count, width)
    for done in _pool(threads).map(lambda a: work(a, min(a + width, count)), cuts):
        assert done is None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ampost-ode")
