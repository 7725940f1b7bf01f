"""A batched explicit solver in plain torch: any device, any torch operation, exact gradients.

Tsitouras' pair, as in `methods`. Each row has its own step size and error control; finished rows leave
the batch; integration stops and restarts exactly at doses, events and breakpoints of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost.errors import OdeError
from ampost.ode.edges import edges_of
from ampost.ode.methods import TSITOURAS_A, TSITOURAS_C, TSITOURAS_ERROR, tsitouras_weights
from ampost.ode.problem import OdeProblem, Rows, Status, Trajectory, check, flatten, jumped


@dataclass(frozen=True)
class Eager:
    """The torch solver: relative and absolute tolerance per step and a step budget per row.

    Gradients are those of the discrete solution: steps are chosen without gradient, then taken
    again with it, so that a rejected trial never touches the derivative.
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
        run = _Run(problem, rows, self)
        front = run.begin()
        while front.row.numel():
            front = run.advance(front)
        return rows.unflatten(names, run.states(), run.status, run.reached, run.ended)


@dataclass(frozen=True)
class _Front:
    """Where the unfinished rows stand; `slope` is the derivative at (time, state).

    `signals` (row, input, 3) holds each input's value at its last breakpoint, its slope, and when that was.
    """

    row: Tensor
    time: Tensor
    state: Tensor
    slope: Tensor
    step: Tensor
    infusion: Tensor
    signals: Tensor
    edge: Tensor
    steps: Tensor

    def rows(self, index: Tensor) -> _Front:
        return _Front(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class _Run:
    """One integration: the problem, what has been emitted so far, and the statuses."""

    def __init__(self, problem: OdeProblem, rows: Rows, solver: Eager) -> None:
        self.events = [jumped(problem, name) for name in problem.events]
        self.rows, self.solver = rows, solver
        self.edges = edges_of(rows, len(self.events))
        count = rows.times.shape[0]
        self.reached = torch.full_like(rows.times[:, 0], rows.start_time)
        self.ended = rows.start.detach().clone()
        self.status = torch.zeros(count, dtype=torch.long, device=rows.times.device)
        self.pending = torch.ones_like(rows.after_dose)
        self.everyone = torch.arange(count, device=rows.times.device)
        self.last = rows.times.max(1).values
        self.out_index: list[Tensor] = []
        self.out_value: list[Tensor] = []
        doses = (rows.dose_time, rows.dose_amount, rows.dose_duration)
        inputs = (rows.start, *rows.parameters.values(), *doses)
        self.differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)

    def slopes(self, front: _Front, time: Tensor, state: Tensor) -> Tensor:
        """The right-hand side for the rows of `front`, inputs and infusions included."""
        given = dict(self.given(front.row))
        for k, name in enumerate(self.rows.inputs):
            value, slope, since = front.signals[:, k].unbind(-1)
            given[name] = value + slope * (time - since)
        answer = self.rows.rhs(time, state, given)
        return answer + front.infusion if self.edges.time.shape[1] else answer

    def given(self, row: Tensor) -> Mapping[str, Tensor]:
        """The parameters of `row`s, which rejected steps bring out of order."""
        if torch.equal(row, self.everyone):
            return self.rows.parameters
        return {k: v[row] for k, v in self.rows.parameters.items()}

    def states(self) -> Tensor:
        count, times = self.rows.times.shape
        size = self.rows.start.shape[1]
        blank = torch.full((count * times, size), torch.nan, dtype=self.rows.start.dtype)
        blank = blank.to(self.rows.start.device)
        if self.out_index:
            blank = blank.index_put((torch.cat(self.out_index),), torch.cat(self.out_value))
        return blank.reshape(count, times, size)

    def begin(self) -> _Front:
        rows = self.rows
        everyone = self.everyone
        time = torch.full_like(rows.times[:, 0], rows.start_time)
        infusion = torch.zeros_like(rows.start)
        front = _Front(
            row=everyone,
            time=time,
            state=rows.start,
            slope=torch.zeros_like(rows.start),
            step=torch.zeros_like(time),
            infusion=infusion,
            signals=time.new_zeros(len(time), len(rows.inputs), 3),
            edge=torch.zeros_like(everyone),
            steps=torch.zeros_like(everyone),
        )
        self.emit_at(front, before=True)
        front = self.cross_edges(front)
        self.emit_at(front, before=False)
        slope = self.slopes(front, front.time, front.state)
        self.differentiable = self.differentiable or slope.requires_grad  # by what it captures, too
        front = replace(front, slope=slope, step=self.first_step(front, slope))
        broken = ~torch.isfinite(slope.detach()).all(1) | ~torch.isfinite(front.state.detach()).all(1)
        self.status[front.row[broken]] = int(Status.NOT_FINITE)
        moments, dosed = self.edges.time.detach(), self.edges.target < rows.start.shape[1] + len(self.events)
        misplaced = ((~(moments >= rows.start_time)) & dosed).any(1)
        self.status[front.row[misplaced]] = int(Status.DOSE_BEFORE_START)
        broken = broken | misplaced
        return front.rows(((self.last > rows.start_time) & ~broken).nonzero()[:, 0])

    def first_step(self, front: _Front, slope: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.solver.atol + self.solver.rtol * front.state.abs()
            size = (front.state / scale).square().mean(1).sqrt()
            speed = (slope / scale).square().mean(1).sqrt()
            span = self.last[front.row] - front.time
            step = 0.01 * size / speed
            usable = (size > 1e-5) & (speed > 1e-5)
            return torch.where(usable, step, 1e-3 * span).minimum(span)

    def next_edge(self, front: _Front) -> Tensor:
        width = self.edges.time.shape[1]
        if not width:
            return torch.full_like(front.time, torch.inf)
        index = front.edge.clamp(max=width - 1)
        time = self.edges.time[front.row, index]
        return torch.where(front.edge < width, time, torch.inf)

    def emit_at(self, front: _Front, before: bool) -> None:
        """Emit what is to be seen at exactly the present time, before or after its jump."""
        times, after = self.rows.times[front.row], self.rows.after_dose[front.row]
        due = self.pending[front.row] & (times <= front.time.detach()[:, None])
        if before:
            jumps = self.next_edge(front).detach() <= front.time.detach()
            due = due & ~(after & jumps[:, None])
        i, j = due.nonzero(as_tuple=True)
        self._emit(front.row[i], j, front.state[i])

    def _emit(self, row: Tensor, column: Tensor, value: Tensor) -> None:
        if row.numel():
            self.pending[row, column] = False
            self.out_index.append(row * self.rows.times.shape[1] + column)
            self.out_value.append(value)

    def cross_edges(self, front: _Front) -> _Front:
        """Cross every edge due at the present time, one after the other; `edge` moves past them."""
        while True:
            at = (self.next_edge(front).detach() <= front.time.detach()).nonzero()[:, 0]
            if not at.numel():
                return front
            front = _put(front, at, self.cross_one(front.rows(at)))

    def cross_one(self, front: _Front) -> _Front:
        """Cross the next edge of every row of `front`."""
        row, edge, size = front.row, front.edge, front.state.shape[1]
        target, jump, rate, when = (
            getattr(self.edges, k)[row, edge] for k in ("target", "jump", "rate", "time")
        )
        onto = torch.nn.functional.one_hot(target.clamp(max=size), size + 1)[:, :size].to(front.state)
        state = front.state + jump[:, None] * onto
        signals = front.signals
        for k in range(len(self.events)):
            mine = (target == size + k).nonzero()[:, 0]
            if mine.numel():
                new = self.events[k](state[mine], self.given(row[mine]), jump[mine])
                state = state.index_put((mine,), new)
        for k in range(len(self.rows.inputs)):
            mine = (target == size + len(self.events) + k).nonzero()[:, 0]
            since = torch.where(torch.isfinite(when[mine]), when[mine], front.time[mine])
            put = mine, torch.full_like(mine, k)
            signals = signals.index_put(put, torch.stack([jump[mine], rate[mine], since], -1))
        infusion = front.infusion + rate[:, None] * onto
        return replace(front, state=state, infusion=infusion, signals=signals, edge=edge + 1)

    def advance(self, front: _Front) -> _Front:
        """One trial step of every unfinished row."""
        stop = torch.minimum(self.last[front.row], self.next_edge(front))
        with torch.no_grad():
            room = stop - front.time
            clipped = front.step >= room * (1 - 1e-9)
            trial = torch.where(clipped, room, front.step)
            stages, state = self.stages(front, trial)
            wrong = trial[:, None] * sum(e * k for e, k in zip(TSITOURAS_ERROR, stages, strict=True))
            scale = self.solver.atol + self.solver.rtol * torch.maximum(front.state.abs(), state.abs())
            error = (wrong / scale).square().mean(1).sqrt()
            known = torch.isfinite(error)
            error = torch.where(known, error, torch.inf)
            good = error <= 1.0
            factor = (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
            step = trial * torch.where(good, factor, factor.clamp(max=1.0))
            step = torch.where(good & clipped, torch.maximum(step, front.step), step)
        front = replace(front, step=step, steps=front.steps + 1)
        accepted = good.nonzero()[:, 0]
        moved = front.rows(accepted)
        span = trial[accepted]
        if self.differentiable:
            span = torch.where(clipped[accepted], stop[accepted] - moved.time, span)
            stages, state = self.stages(moved, span)
        else:
            stages, state = [k[accepted] for k in stages], state[accepted]
        end = torch.where(clipped[accepted], stop[accepted], moved.time + span)
        arrived = replace(moved, time=end, state=state, slope=stages[-1])
        self.emit_between(moved, arrived, span, stages)
        arrived = self.jump(arrived)
        return self.survivors(front, arrived, good, known)

    def stages(self, front: _Front, step: Tensor) -> tuple[list[Tensor], Tensor]:
        """The seven slopes of a step and the state at its end."""
        wide = step[:, None]
        slopes = [front.slope]
        state = front.state
        for c, weights in zip(TSITOURAS_C[1:], TSITOURAS_A[1:], strict=True):
            total = weights[0] * slopes[0]
            for a, k in zip(weights[1:], slopes[1:], strict=True):
                total = total.add(k, alpha=a)
            state = front.state + wide * total
            slopes.append(self.slopes(front, front.time + c * step, state))
        return slopes, state

    def emit_between(self, old: _Front, new: _Front, step: Tensor, stages: list[Tensor]) -> None:
        """Emit what is to be seen within the step, by the method's own interpolant."""
        times = self.rows.times[old.row]
        end = new.time.detach()[:, None]
        due = self.pending[old.row] & (times <= end)
        if self.edges.time.shape[1]:
            jumps = (self.next_edge(new).detach() <= new.time.detach())[:, None]
            due = due & ~(self.rows.after_dose[old.row] & jumps & (times >= end))
        i, j = due.nonzero(as_tuple=True)
        if not i.numel():
            return
        theta = ((times[i, j] - old.time[i]) / step[i]).clamp(0.0, 1.0)[:, None]
        total = torch.zeros_like(old.state[i])
        for weight, slope in zip(tsitouras_weights(theta), stages, strict=True):
            total = total + weight * slope[i]
        self._emit(old.row[i], j, old.state[i] + step[i][:, None] * total)

    def jump(self, front: _Front) -> _Front:
        """Cross the edges reached, see what is to be seen after them, and restart the slope."""
        if not self.edges.time.shape[1]:
            return front
        at = (self.next_edge(front).detach() <= front.time.detach()).nonzero()[:, 0]
        if not at.numel():
            return front
        crossed = self.cross_edges(front.rows(at))
        self.emit_at(crossed, before=False)
        slope = self.slopes(crossed, crossed.time, crossed.state)
        crossed = replace(crossed, slope=slope, step=self.first_step(crossed, slope))
        return _put(front, at, crossed)

    def survivors(self, front: _Front, arrived: _Front, good: Tensor, known: Tensor) -> _Front:
        """The rows that go on: accepted ones from where they arrived, rejected ones from before."""
        with torch.no_grad():
            spent = front.steps >= self.solver.max_steps
            tiny = front.step <= 1e-14 * torch.maximum(front.time.abs(), self.last[front.row].abs())
            stuck = tiny & ~good
            finished = torch.zeros_like(good)
            finished[good] = arrived.time >= self.last[arrived.row]
            going = ~(spent | stuck | finished)
            self.reached[front.row[finished]] = self.last[front.row[finished]]
            failed = ~going & ~finished
            self.fail(front.rows(failed.nonzero()[:, 0]), stuck[failed], known[failed])
        if bool(good.all()):
            return arrived if bool(going.all()) else arrived.rows(going.nonzero()[:, 0])
        stay = front.rows((going & ~good).nonzero()[:, 0])
        move = arrived.rows(going[good].nonzero()[:, 0])
        return _Front(*(torch.cat([getattr(move, n), getattr(stay, n)]) for n in front.__dataclass_fields__))

    def fail(self, front: _Front, stuck: Tensor, known: Tensor) -> None:
        """Write down why the rows of `front` end here; `known` where the last trial was finite."""
        size = front.state.abs().amax(1)
        grown = size > 1e8 * self.rows.start.detach()[front.row].abs().amax(1).clamp(min=1.0)
        small = torch.where(known, int(Status.STALLED), int(Status.NOT_FINITE))
        status = torch.where(stuck, small, int(Status.TOO_MANY_STEPS))
        self.status[front.row] = torch.where(grown, int(Status.EXPLODED), status)
        self.reached[front.row], self.ended[front.row] = front.time.detach(), front.state.detach()


def _put(front: _Front, at: Tensor, part: _Front) -> _Front:
    """`front` with its rows `at` replaced."""
    return _Front(*(getattr(front, n).index_put((at,), getattr(part, n)) for n in front.__dataclass_fields__))
