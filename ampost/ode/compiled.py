"""The compiled engine: a right-hand side becomes machine code, eight rows go side by side, over all cores.

What does not live on the CPU in double precision goes to `Eager`; so does what has no scalar form, with
one warning that says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode

from ampost.errors import OdeError
from ampost.ode import kernels
from ampost.ode.eager import Eager
from ampost.ode.edges import Edges, edges_of
from ampost.ode.functions import Functions, functions_of
from ampost.ode.methods import Method, rodas, tsitouras
from ampost.ode.problem import OdeProblem, Rows, Trajectory, check, flatten
from ampost.ode.recorded import jobs, truth

CHUNK = 64
STORED = 2**24  # sensitivities kept for the backward pass, in numbers; more are computed again there
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Compiled:
    """Compiled solver: tolerances per step, a step budget per row, and the methods to try in turn.

    By default a row is solved by the explicit `tsitouras`; where it proves stiff or fails, that row begins
    again with `rodas`, which is linearly implicit. What is chosen for a row depends on that row alone.

    Gradients come from forward sensitivities, for initial states, parameters, and amounts, times and
    durations of doses. They take the steps of the states and have no error control of their own: where
    they must be exact to many digits, lower `rtol`. There is no second derivative.

    `atol` is in the units of the states: where these are tiny (molar concentrations of 1e-9), lower it.
    `max_steps` holds for each method that a row is tried with.

    Raises:
        OdeError: a tolerance or the budget is not positive, or there is no method.
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    max_steps: int = 10_000
    methods: tuple[Method, ...] = (tsitouras, rodas)

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "max_steps"):
            if not getattr(self, name) > 0:
                raise OdeError(f"{name} is {getattr(self, name)}, expected a positive number")
        if not self.methods:
            raise OdeError("methods is empty, expected one or more of tsitouras and rodas")

    def __call__(self, problem: OdeProblem) -> Trajectory:
        """The trajectory of `problem` at its experiments' times."""
        check(problem)
        rows = flatten(problem)
        functions = None
        if not len(rows.start):
            raise OdeError(f"odeint {problem.name!r} is given a batch of no rows; give at least one")
        if rows.times.dtype == torch.float64 and rows.times.device.type == "cpu":
            functions = functions_of(problem, rows)
        if functions is None:
            return Eager(self.rtol, self.atol, self.max_steps)(problem)
        return rows.unflatten(tuple(problem.initial), *_solve(self, functions, rows))

    def tangent(self, problem: OdeProblem) -> Trajectory | None:
        """The trajectories of the first draw, and those of the others to first order about them.

        Draws are the leftmost axis, and are to lie close together: one solve with sensitivities in place of as
        many solves as there are draws. None where draws have times of their own, or there is no compiled form,
        or one row has more sensitivities than are kept.
        """
        check(problem)
        rows = flatten(problem)
        times = problem.experiments.times
        if (times.dim() > len(rows.batch) and times.shape[0] > 1) or times.dtype != torch.float64:
            return None
        functions = functions_of(problem, rows) if rows.times.device.type == "cpu" else None
        if functions is None:
            return None
        with torch.no_grad():
            found = _nearby(self, functions, rows)
        return None if found is None else rows.unflatten(tuple(problem.initial), *found)


@dataclass(frozen=True)
class _Job:
    """What does not change between a solve and its gradient; times are sorted, `order` undoes it."""

    solver: Compiled
    functions: Functions
    start: float
    times: Array
    after_dose: Array
    target: Array
    order: Tensor | None
    wanted: tuple[tuple[int, int], ...]

    def unsorted(self, states: Tensor) -> Tensor:
        """Values (row, time, ...) of sorted times in the order in which they were asked for."""
        if self.order is None:
            return states
        wide = self.order.reshape(*self.order.shape, *(1,) * (states.dim() - 2)).expand(states.shape)
        return torch.empty_like(states).scatter_(1, wide, states)

    def sorted(self, states: Tensor) -> Tensor:
        """The inverse of `unsorted`."""
        if self.order is None:
            return states
        wide = self.order.reshape(*self.order.shape, *(1,) * (states.dim() - 2)).expand(states.shape)
        return states.gather(1, wide)


def _solve(solver: Compiled, functions: Functions, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States (row, time, state), status (row,), and time and state (row, state) at the end."""
    edges = edges_of(rows, functions.events)
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
            if value.requires_grad:  # not by breakpoints of inputs, which have no gradient
                dosed = (edges.target.numpy() < rows.start.shape[1] + functions.events).any(0)
                wanted += [(kind, int(k)) for k in np.flatnonzero(dosed)]
    job = _job(solver, functions, rows, edges, slice(None), tuple(wanted))
    inputs = (rows.start, _wide(rows), edges.time, edges.jump, edges.rate)
    if get_proxy_mode() is not None:
        jobs[id(job)] = job
        with disable_proxy_modes_tracing():  # compiled before the operation runs, where gradients are known
            for method in solver.methods:
                functions.code(method, job.wanted)
        return solve(id(job), *inputs)[:4]  # type: ignore[no-any-return]
    return _Solution.apply(job, *inputs)  # type: ignore[no-any-return, no-untyped-call]


def _job(
    solver: Compiled,
    functions: Functions,
    rows: Rows,
    edges: Edges,
    part: slice,
    wanted: tuple[tuple[int, int], ...],
) -> _Job:
    """The job of some rows, with their times in order."""
    times, after, order = rows.times[part].detach(), rows.after_dose[part], None
    if truth(after.any()):  # behind those before the dose, at equal times
        by_dose = torch.argsort(after.to(torch.int8), dim=1, stable=True)
        order = by_dose.gather(1, torch.argsort(times.gather(1, by_dose), dim=1, stable=True))
        times, after = times.gather(1, order), after.gather(1, order)
    moments, late, target = (np.ascontiguousarray(v.numpy()) for v in (times, after, edges.target[part]))
    return _Job(solver, functions, rows.start_time, moments, late, target, order, wanted)


def _nearby(solver: Compiled, functions: Functions, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """As `_solve`: solved for the rows of the first draw alone, of which the others' are moved a little."""
    draws, count = rows.batch[0], len(rows.start) // rows.batch[0]
    edges = edges_of(rows, functions.events)
    inputs = [
        v.unflatten(0, (draws, count)) for v in (rows.start, _wide(rows), edges.time, edges.jump, edges.rate)
    ]
    apart = [torch.where(v == v[0], 0.0, v - v[0]) for v in inputs]  # times of no dose are infinite
    moved = [(v != 0).flatten(0, 1).any(0).nonzero()[:, 0] for v in apart]
    wanted = tuple((kind, int(k)) for kind, columns in enumerate(moved) for k in columns)
    shifts = torch.cat([v[..., columns] for v, columns in zip(apart, moved, strict=True)], -1).movedim(0, 1)
    room = STORED // (max(1, len(wanted)) * rows.times.shape[1] * rows.start.shape[1])
    if not room:
        return None
    found = []
    for first in range(0, count, room):
        part = slice(first, min(first + room, count))
        job = _job(solver, functions, rows, edges, part, wanted)
        answer = _integrate(job, tuple(v[0, part] for v in inputs), None)
        states = torch.from_numpy(answer.states).expand(draws, *answer.states.shape)
        if answer.sensitivities is not None:
            slopes = torch.from_numpy(answer.sensitivities).movedim(2, 1).flatten(2)
            states = states + (shifts[part] @ slopes).movedim(1, 0).reshape(states.shape)
        flat = job.unsorted(states.movedim(0, -1)).movedim(-1, 0)
        others = (torch.from_numpy(v) for v in (answer.status, answer.reached, answer.ended))
        found.append((flat, *(v.expand(draws, *v.shape) for v in others)))
    states, status, reached, ended = (torch.cat(v, 1).flatten(0, 1) for v in zip(*found, strict=True))
    return states, status, reached, ended


def _wide(rows: Rows) -> Tensor:
    if not rows.parameters:
        return torch.zeros(len(rows.start), 0, dtype=torch.float64)
    return torch.stack(list(rows.parameters.values()), -1)


class _Solution(torch.autograd.Function):
    """The solve as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.job = job
        ctx.save_for_backward(*inputs)
        answer = _integrate(job, inputs, None)
        ctx.stored = answer.sensitivities
        others = [torch.from_numpy(v) for v in (answer.status, answer.reached, answer.ended)]
        ctx.mark_non_differentiable(*others)
        return job.unsorted(torch.from_numpy(answer.states)), *others

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise OdeError(
                "a second derivative through the compiled solver was asked for (create_graph=True); take "
                "differences of the gradient, or solve with answering(Eager())"
            )
        inputs, job = ctx.saved_tensors, ctx.job
        weights = job.sorted(outer)
        if ctx.stored is not None:
            collected = torch.einsum("rtn,rtcn->rc", weights, torch.from_numpy(ctx.stored))
        else:
            collected = torch.from_numpy(_integrate(job, inputs, weights).gradient)
        return (None, *_by_input(job, inputs, collected))


@torch.library.custom_op("ampost::solve", mutates_args=())
def solve(
    job: int, start: Tensor, parameters: Tensor, time: Tensor, jump: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The solve as one operation of a graph that torch records: sensitivities are the fifth output."""
    answer = _integrate(jobs[job], (start, parameters, time, jump, rate), None)
    stored = np.empty((0, 0, 0, 0)) if answer.sensitivities is None else answer.sensitivities
    out = [torch.from_numpy(v) for v in (answer.status, answer.reached, answer.ended, stored)]
    return jobs[job].unsorted(torch.from_numpy(answer.states)), out[0], out[1], out[2], out[3]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.job = jobs[inputs[0]]
    ctx.save_for_backward(*inputs[1:], output[4])
    ctx.mark_non_differentiable(*output[1:])


def _derive(ctx: Any, outer: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, stored = ctx.saved_tensors
    collected = torch.einsum("rtn,rtcn->rc", ctx.job.sorted(outer), stored)
    return (None, *_by_input(ctx.job, inputs, collected))


solve.register_autograd(_derive, setup_context=_keep)


def _by_input(job: _Job, inputs: Sequence[Tensor], collected: Tensor) -> list[Tensor]:
    """Derivatives by each input, from those by each wanted number (row, column)."""
    slopes = []
    for place, value in enumerate(inputs):
        column = {k: c for c, (kind, k) in enumerate(job.wanted) if kind == place}
        nothing = torch.zeros_like(value[:, 0]) if value.shape[1] else value
        columns = [collected[:, column[k]] if k in column else nothing for k in range(value.shape[1])]
        slopes.append(torch.stack(columns, 1) if columns else torch.zeros_like(value))
    return slopes


@dataclass(frozen=True)
class _Answer:
    """What the kernel wrote, on sorted times; sensitivities (row, time, column, state) or None."""

    states: Array
    status: Array
    reached: Array
    ended: Array
    sensitivities: Array | None
    gradient: Array


def _integrate(job: _Job, inputs: tuple[Tensor, ...], weights: Tensor | None) -> _Answer:
    """Solve, and store sensitivities if they are wanted and few, or sum them by `weights`."""
    begin, parameters, edge_time, edge_jump, edge_rate = (
        np.ascontiguousarray(i.detach().numpy()) for i in inputs
    )
    count, looks, size = len(begin), job.times.shape[1], begin.shape[1]
    columns = len(job.wanted)
    storing = weights is None and 0 < columns * count * looks * size <= STORED
    wanted = job.wanted if storing or weights is not None else ()
    answer = _Answer(
        states=np.empty((count, looks, size)),
        status=np.zeros(count, dtype=np.int64),
        reached=np.full(count, job.start),
        ended=np.array(begin),
        sensitivities=np.empty((count, looks, columns, size)) if storing else None,
        gradient=np.zeros((count, columns)),
    )
    stored = np.empty((0, 0, 0, 0)) if answer.sensitivities is None else answer.sensitivities
    given = np.empty((0, 0, 0)) if weights is None else np.ascontiguousarray(weights.numpy())
    kinds = np.array([w[0] for w in wanted], dtype=np.int64)
    index = np.array([w[1] for w in wanted], dtype=np.int64)
    left = np.arange(count)
    solver, methods = job.solver, job.solver.methods
    for k, method in enumerate(methods):
        patient = np.inf if k + 1 == len(methods) else PATIENCE
        head = job.functions.code(method, wanted)
        middle = (job.start, begin, parameters, job.times, job.after_dose, edge_time, job.target)
        arguments = (
            *head,
            *middle,
            *(edge_jump, edge_rate, job.functions.events, solver.rtol, solver.atol, solver.max_steps),
            *(patient, PATIENCE_PER_EDGE, kinds, index, answer.states, stored, given, answer.gradient),
            *(answer.status, answer.reached, answer.ended),
        )
        _spread(partial(kernels.drive, *arguments), left)
        if not answer.status.any():
            break
        left = np.flatnonzero(np.isin(answer.status, _AGAIN))
        if not left.size:
            break
    return answer


# a row goes to the next method where its remaining steps at the edge of stability would be more than these
PATIENCE, PATIENCE_PER_EDGE = 150.0, 10.0
_AGAIN = (kernels.STIFF_ROW, kernels.TOO_MANY_STEPS, kernels.STALLED)


def _spread(work: Callable[[Array], None], rows: Array) -> None:
    """Run `work` on all rows, in chunks over as many threads as torch uses."""
    if rows.size <= CHUNK:
        return work(rows)
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    if threads == 1:
        return work(rows)
    width = max(2 * CHUNK, -(-rows.size // (8 * threads)))
    for done in _pool(threads).map(work, [rows[a : a + width] for a in range(0, rows.size, width)]):
        assert done is None
    return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ampost-ode")


if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
