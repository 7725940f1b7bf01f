"""The bank: prior x the ODE's half of a design, each ODE solved once, on a dense grid.

`bank.rows(i)` is a `Solver`: it answers a program's ODEs from stored trajectories by cubic Hermite
interpolation, so that every training batch gets fresh times, masks and noise at no ODE cost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ampost.errors import TrainingError
from ampost.experiments import Experiments, Signals
from ampost.model import Model
from ampost.ode.edges import signal_at
from ampost.ode.failures import Failure, reasons
from ampost.ode.problem import OdeProblem, Rows, Solver, Trajectory, flatten
from ampost.passes import Holding, idle
from ampost.program import recording
from ampost.progress import progress
from ampost.seeds import derive

GRID = 160


@dataclass(frozen=True)
class Track:
    """Dense output of one `odeint`: knots (row, experiment, knot), states and slopes by state in float32."""

    times: Tensor
    states: Tensor
    slopes: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Bank:
    """Parameters z (row, z), protocols and trajectories; rows whose ODE failed are left out."""

    z: Tensor
    protocols: Experiments
    tracks: dict[str, Track]
    failures: int
    examples: tuple[Failure, ...] = ()
    reasons: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return self.z.shape[0]

    def rows(self, index: Tensor) -> Solver:
        """A solver that answers the ODEs of rows `index` from the store."""

        def answer(problem: OdeProblem) -> Trajectory:
            track = self.tracks[problem.name]
            times = problem.experiments.times
            where = times.reshape(len(index), *times.shape[-2:])
            part = Track(track.times[index], track.states[index], track.slopes[index], track.names)
            states = interpolate(part, where, problem.experiments.after_dose.reshape(where.shape))
            states = states.reshape(*times.shape, len(track.names))
            return Trajectory(times, states, torch.zeros(times.shape[:-1], dtype=torch.long), track.names)

        return answer


def interpolate(track: Track, times: Tensor, after: Tensor) -> Tensor:
    """States (row, experiment, time, state) at `times`; at a dose, before it unless `after`."""
    knots = track.times.contiguous()
    left = torch.searchsorted(knots, times.contiguous())
    right = torch.searchsorted(knots, times.contiguous(), right=True)
    upper = torch.where(after, right, left).clamp(1, knots.shape[-1] - 1)
    t0, t1 = knots.gather(-1, upper - 1), knots.gather(-1, upper)
    wide = upper[..., None].expand(*upper.shape, track.states.shape[-1])
    y0, y1 = (track.states.gather(-2, place).double() for place in (wide - 1, wide))
    f0, f1 = (track.slopes.gather(-2, place).double() for place in (wide - 1, wide))
    h = (t1 - t0).clamp(min=1e-300)[..., None]
    x = ((times - t0).clamp(min=0.0)[..., None] / h).clamp(max=1.0)
    x = torch.where((t1 > t0)[..., None], x, after[..., None].to(x))
    down, up = (1 - x) ** 2, x**2
    value = down * (1 + 2 * x) * y0 + up * (3 - 2 * x) * y1 + h * (x * down * f0 - up * (1 - x) * f1)
    # a cubic may undershoot between two non-negative knots; the solution does not
    floor = torch.where((y0 >= 0) & (y1 >= 0), 0.0, -torch.inf)
    return torch.maximum(value, floor)


def build(model: Model, rows: int, seed: int, show: bool | None = None, chunk: int = 5_000) -> Bank:
    """Solve `rows` prior draws under the design's protocols; chunk k is a function of (seed, k).

    Raises:
        TrainingError: every simulation failed.
    """
    parts: list[Bank] = []
    with progress("simulating", rows, show) as bar:
        for k, start in enumerate(range(0, rows, chunk)):
            parts.append(_chunk(model, min(chunk, rows - start), derive(seed, "bank", k)))
            bar.advance(min(chunk, rows - start))
    failures = sum(p.failures for p in parts)
    if failures == rows:
        raise TrainingError(
            f"all {rows} simulations of {model.name!r} failed; narrow the prior. "
            f"{next((str(e) for p in parts for e in p.examples), '')}"
        )
    first = parts[0]
    if len(parts) == 1:
        return first
    tracks = {name: _end_to_end([p.tracks[name] for p in parts]) for name in first.tracks}
    examples = tuple(e for p in parts for e in p.examples)[:3]
    protocols, counts = _joined([p.protocols for p in parts]), sum((p.reasons for p in parts), Counter())
    return Bank(torch.cat([p.z for p in parts]), protocols, tracks, failures, examples, counts)


def _end_to_end(tracks: list[Track]) -> Track:
    return Track(
        times=torch.cat([t.times for t in tracks]),
        states=torch.cat([t.states for t in tracks]),
        slopes=torch.cat([t.slopes for t in tracks]),
        names=tracks[0].names,
    )


def _joined(parts: list[Experiments]) -> Experiments:
    first, doses = parts[0], [p.doses for p in parts]
    return replace(
        first,
        times=torch.cat([p.times for p in parts]),
        conditions={k: torch.cat([p.conditions[k] for p in parts]) for k in first.conditions},
        live=torch.cat([p.live for p in parts]),
        after_dose=torch.cat([p.after_dose for p in parts]),
        doses=replace(
            first.doses,
            time=torch.cat([d.time for d in doses]),
            amount=torch.cat([d.amount for d in doses]),
            duration=torch.cat([d.duration for d in doses]),
            target=torch.cat([d.target for d in doses]),
            mask=torch.cat([d.mask for d in doses]),
        ),
        inputs=Signals(
            {
                name: replace(
                    signal,
                    time=torch.cat([p.inputs[name].time for p in parts]),
                    value=torch.cat([p.inputs[name].value for p in parts]),
                    mask=torch.cat([p.inputs[name].mask for p in parts]),
                )
                for name, signal in first.inputs.items()
            }
        ),
    )


def _chunk(model: Model, count: int, seed: int) -> Bank:
    protocols = model.design.draw_protocols(count, derive(seed, "protocols"))
    first = torch.full((*protocols.live.shape, 1), model.design.start, dtype=torch.float64)
    early = replace(protocols, times=first, after_dose=first.bool() & False)
    with recording() as asked:
        z = model.simulate_at(None, early, derive(seed, "z"), solver=idle).z
    dense, after = _grid(model, _edges(model, protocols, [problem for problem, _ in asked.solved]))
    looks = replace(protocols, times=dense, after_dose=after)
    holding = Holding(model.solver, hold=False)
    with recording() as record:
        drawn = model.simulate_at(z, looks, derive(seed, "z"), solver=holding)
    good = ~holding.failed((count, 1))[:, 0]
    tracks = {}
    for problem, trajectory in record.solved:
        flat = flatten(problem)
        names = trajectory.names
        states = trajectory.states.reshape(*dense.shape, len(names))
        tracks[problem.name] = Track(
            dense[good], states[good].float(), _slopes(flat, states)[good].float(), names
        )
    return Bank(
        drawn.z[good], protocols.at(good), tracks, int((~good).sum()), drawn.failures, reasons(holding.statuses)
    )


def _grid(model: Model, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Knots per experiment: evenly spaced, dense near the start, and both sides of every edge.

    After each edge (draw, experiment, edge) there are further knots, fewer where there are many edges.
    """
    start, end = model.design.start, model.design.horizon
    even = torch.linspace(0.0, 1.0, 2 * GRID // 3, dtype=torch.float64)
    early = torch.logspace(-5, -1, GRID // 3, dtype=torch.float64)
    base = start + (end - start) * torch.cat([even, early])
    knots = base.expand(*edges.shape[:-1], len(base))
    if not edges.shape[-1]:
        knots = knots.sort(-1).values
        return knots, torch.zeros_like(knots, dtype=torch.bool)
    edges = edges.clamp(start, end)
    after_each = early[:: max(4, edges.shape[-1] // 10)]
    near = (edges[..., None] + (end - start) * after_each).flatten(-2).clamp(max=end)
    both = torch.cat([knots, near, edges, edges], -1)
    after = torch.cat([torch.zeros_like(torch.cat([knots, near, edges], -1)), torch.ones_like(edges)], -1)
    order = (both + 0.0).sort(dim=-1, stable=True).indices
    return both.gather(-1, order), after.gather(-1, order).bool()


def _edges(model: Model, protocols: Experiments, asked: list[OdeProblem]) -> Tensor:
    """Times (draw, experiment, edge) at which a slope or a state jumps: doses, as the program gives them to
    its ODEs, ends of infusions, breakpoints of inputs."""
    start, shape = model.design.start, tuple(protocols.live.shape)

    def per_experiment(time: Tensor) -> Tensor:
        """(draw, 1, ..., experiment, dose), where plates of the program's own may stand, flat."""
        full = time.expand(shape[0], *time.shape[1:-2], shape[1], time.shape[-1])
        return full.reshape(shape[0], -1, shape[1], time.shape[-1]).movedim(1, 2).flatten(2)

    parts = [torch.zeros(*shape, 0, dtype=torch.float64)]
    for problem in asked:
        doses = problem.doses
        if not doses.time.shape[-1]:
            continue
        for time in (doses.time, doses.time + doses.duration):
            known = torch.where(doses.mask, time, start)
            parts.append(per_experiment(known.reshape(*(1,) * (4 - known.dim()), *known.shape)))
    parts += [torch.where(s.mask, s.time, start) for s in protocols.inputs.values()]
    return torch.cat(parts, -1)


def _slopes(flat: Rows, states: Tensor) -> Tensor:
    """The right-hand side at every knot, inputs and infusions included."""
    knots = flat.times.shape[1]
    parameters = {k: v.repeat_interleave(knots) for k, v in flat.parameters.items()}
    for name, signal in flat.inputs.items():
        parameters[name] = signal_at(signal, flat.times, flat.after_dose).reshape(-1)
    y = states.reshape(-1, states.shape[-1])
    slopes = flat.rhs(flat.times.reshape(-1), y, parameters).reshape(states.shape)
    infused = (flat.dose_duration > 0) & flat.dose_mask
    if not bool(infused.any()):
        return slopes
    t, late = flat.times[..., None], flat.after_dose[..., None]
    begin = flat.dose_time[:, None]
    end = begin + flat.dose_duration[:, None]
    on = infused[:, None] & torch.where(late, (t >= begin) & (t < end), (t > begin) & (t <= end))
    rate = torch.where(on, (flat.dose_amount / flat.dose_duration.clamp(min=1e-300))[:, None], 0.0)
    size = states.shape[-1]  # targets beyond the states are events, which have no inflow
    onto = torch.nn.functional.one_hot(flat.dose_target.clamp(max=size), size + 1)[..., :size].to(rate)
    return slopes + torch.einsum("rtn,rns->rts", rate, onto).reshape(states.shape)
