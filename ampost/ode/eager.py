"""A batched explicit solver in plain torch: any device, any torch operation, exact gradients.

Tsitouras' 5(4) pair with its own fourth-order interpolant (Ch. Tsitouras, Computers & Mathematics
with Applications 62 (2011) 770-775). Each row has its own step size and error control; finished
rows leave the batch; integration stops and restarts exactly at the edges of doses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost.errors import OdeError
from ampost.ode.problem import OdeProblem, Rows, Status, Trajectory, check, dose_edges, flatten

_C = (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0)
_A = (
    (),
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (
        5.86145544294642,
        -12.92096931784711,
        8.159367898576159,
        -0.071584973281401,
        -0.028269050394068383,
    ),
    (
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
    ),
)
_ERROR = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    0.015151515151515152,
)


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
        states, status = _integrate(rows, self)
        return rows.unflatten(names, states, status)


@dataclass(frozen=True)
class _Front:
    """Where the unfinished rows stand; `slope` is the derivative at (time, state)."""

    row: Tensor
    time: Tensor
    state: Tensor
    slope: Tensor
    step: Tensor
    infusion: Tensor
    edge: Tensor
    steps: Tensor

    def rows(self, index: Tensor) -> _Front:
        return _Front(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _integrate(rows: Rows, solver: Eager) -> tuple[Tensor, Tensor]:
    """States (row, time, state), NaN where a row failed, and the status of each row."""
    run = _Run(rows, solver)
    front = run.begin()
    while front.row.numel():
        front = run.advance(front)
    return run.states(), run.status


class _Run:
    """One integration: the problem, what has been emitted so far, and the statuses."""

    def __init__(self, rows: Rows, solver: Eager) -> None:
        self.rows, self.solver = rows, solver
        self.edges = dose_edges(rows)
        onto = torch.nn.functional.one_hot(self.edges.target, rows.start.shape[1]).to(rows.start)
        self.jumps, self.rates = self.edges.jump[..., None] * onto, self.edges.rate[..., None] * onto
        count = rows.times.shape[0]
        self.status = torch.zeros(count, dtype=torch.long, device=rows.times.device)
        self.pending = torch.ones_like(rows.after_dose)
        self.everyone = torch.arange(count, device=rows.times.device)
        self.last = rows.times.max(1).values
        self.out_index: list[Tensor] = []
        self.out_value: list[Tensor] = []
        inputs = (rows.start, *rows.parameters.values(), rows.dose_time, rows.dose_amount)
        self.differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)

    def slopes(self, time: Tensor, state: Tensor, row: Tensor, infusion: Tensor) -> Tensor:
        return self._slopes(time, state, self.given(row), infusion)

    def given(self, row: Tensor) -> Mapping[str, Tensor]:
        """The parameters of `row`s, which rejected steps bring out of order."""
        if torch.equal(row, self.everyone):
            return self.rows.parameters
        return {k: v[row] for k, v in self.rows.parameters.items()}

    def _slopes(self, time: Tensor, state: Tensor, given: Mapping[str, Tensor], infusion: Tensor) -> Tensor:
        value = self.rows.rhs(time, state, given)
        return value + infusion if self.edges.time.shape[1] else value

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
            edge=torch.zeros_like(everyone),
            steps=torch.zeros_like(everyone),
        )
        self.emit_at(front, before=True)
        front = self.cross_edges(front)
        self.emit_at(front, before=False)
        slope = self.slopes(front.time, front.state, front.row, front.infusion)
        front = replace(front, slope=slope, step=self.first_step(front, slope))
        broken = ~torch.isfinite(slope.detach()).all(1) | ~torch.isfinite(front.state.detach()).all(1)
        self.status[front.row[broken]] = int(Status.NOT_FINITE)
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
        """Apply every jump due at the present time; `edge` moves past it."""
        width = self.edges.time.shape[1]
        if not width:
            return front
        order = torch.arange(width, device=front.row.device)
        now = self.edges.time.detach()[front.row] <= front.time.detach()[:, None]
        due = (now & (order >= front.edge[:, None]))[..., None]
        jump = torch.where(due, self.jumps[front.row], 0.0).sum(1)
        rate = torch.where(due, self.rates[front.row], 0.0).sum(1)
        return replace(
            front,
            state=front.state + jump,
            infusion=front.infusion + rate,
            edge=front.edge + due[..., 0].sum(1),
        )

    def advance(self, front: _Front) -> _Front:
        """One trial step of every unfinished row."""
        stop = torch.minimum(self.last[front.row], self.next_edge(front))
        with torch.no_grad():
            room = stop - front.time
            clipped = front.step >= room * (1 - 1e-9)
            trial = torch.where(clipped, room, front.step)
            stages, state = self.stages(front, trial)
            wrong = trial[:, None] * sum(e * k for e, k in zip(_ERROR, stages, strict=True))
            scale = self.solver.atol + self.solver.rtol * torch.maximum(front.state.abs(), state.abs())
            error = (wrong / scale).square().mean(1).sqrt()
            error = torch.where(torch.isfinite(error), error, torch.inf)
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
        return self.survivors(front, arrived, good)

    def stages(self, front: _Front, step: Tensor) -> tuple[list[Tensor], Tensor]:
        """The seven slopes of a step and the state at its end."""
        given = self.given(front.row)
        wide = step[:, None]
        slopes = [front.slope]
        state = front.state
        for c, weights in zip(_C[1:], _A[1:], strict=True):
            total = weights[0] * slopes[0]
            for a, k in zip(weights[1:], slopes[1:], strict=True):
                total = total.add(k, alpha=a)
            state = front.state + wide * total
            slopes.append(self._slopes(front.time + c * step, state, given, front.infusion))
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
        for weight, slope in zip(_interpolant(theta), stages, strict=True):
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
        slope = self.slopes(crossed.time, crossed.state, crossed.row, crossed.infusion)
        crossed = replace(crossed, slope=slope, step=self.first_step(crossed, slope))
        return _Front(
            *(
                getattr(front, name).index_put((at,), getattr(crossed, name))
                for name in front.__dataclass_fields__
            )
        )

    def survivors(self, front: _Front, arrived: _Front, good: Tensor) -> _Front:
        """The rows that go on: accepted ones from where they arrived, rejected ones from before."""
        with torch.no_grad():
            spent = front.steps >= self.solver.max_steps
            tiny = front.step <= 1e-14 * torch.maximum(front.time.abs(), self.last[front.row].abs())
            stuck = tiny & ~good
            finished = torch.zeros_like(good)
            finished[good] = arrived.time >= self.last[arrived.row]
            self.status[front.row[stuck]] = int(Status.NOT_FINITE)
            self.status[front.row[spent & ~finished & ~stuck]] = int(Status.TOO_MANY_STEPS)
            going = ~(spent | stuck | finished)
        if bool(good.all()):
            return arrived if bool(going.all()) else arrived.rows(going.nonzero()[:, 0])
        stay = front.rows((going & ~good).nonzero()[:, 0])
        move = arrived.rows(going[good].nonzero()[:, 0])
        return _Front(*(torch.cat([getattr(move, n), getattr(stay, n)]) for n in front.__dataclass_fields__))


def _interpolant(x: Tensor) -> tuple[Tensor, ...]:
    """Weights of the seven slopes at fraction `x` of a step."""
    x2 = x * x
    return (
        -1.0530884977290216 * x * (x - 1.3299890189751412) * (x2 - 1.4364028541716351 * x + 0.7139816917074209),
        0.1017 * x2 * (x2 - 2.1966568338249754 * x + 1.2949852507374631),
        2.490627285651252793 * x2 * (x2 - 2.38535645472061657 * x + 1.57803468208092486),
        -16.54810288924490272 * (x - 1.21712927295533244) * (x - 0.61620406037800089) * x2,
        47.37952196281928122 * (x - 1.203071208372362603) * (x - 0.658047292653547382) * x2,
        -34.87065786149660974 * (x - 1.2) * (x - 2.0 / 3.0) * x2,
        2.5 * (x - 1.0) * (x - 0.6) * x2,
    )
