"""What a proxy learns from: stretches of stored trajectories, begun and looked at anywhere, and whole ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost.accuracy import located
from ampost.errors import TrainingError
from ampost.experiments import Experiments
from ampost.flowmap import Begin, FlowMap, Layout, begun, solve
from ampost.model import Model
from ampost.ode.problem import OdeProblem, Rows, Solver, Trajectory, flatten
from ampost.program import recording
from ampost.seeds import derive, seeded
from ampost.shards import Shard
from ampost.stretches import Stretches, some, stretches_of

LOOKS = 8  # at each begin: its end, some near to it and some anywhere
BEGINS = 2  # in each trajectory of a batch
ANYWHERE = 0.25  # the share of begins that lie within a stretch
ALONG = 16  # looks at a whole trajectory
FLOOR = 1e-9  # of a large value: below it a state is what a solver makes of zero
NEAR = 1e-9  # of the horizon: so near to an edge is beside it
PILOT = 2_000  # trajectories that scales are found by
SHARP = 20.0  # an error in units of the noise times this counts as large


@dataclass(frozen=True)
class Ground:
    """One ODE of a shard: its rows (draw x series), their stretches, and the shard that answers it."""

    problem: OdeProblem
    rows: Rows
    stretches: Stretches
    live: Tensor
    last: Tensor
    shard: Shard
    series: int

    def asked(self, index: Tensor, times: Tensor) -> Tensor:
        """Stored states (draw, series, time, state) of draws `index` at `times` (draw, series, time)."""
        late = torch.zeros_like(times, dtype=torch.bool)
        looks = replace(self.problem.experiments, times=times, after_dose=late)
        bare = replace(self.problem, initial={}, parameters={}, experiments=looks)
        return self.shard.rows(index)(bare).states.double()

    def row(self, index: Tensor) -> Tensor:
        """The rows (draw x series,) of draws."""
        return (index[:, None] * self.series + torch.arange(self.series)).reshape(-1)


@dataclass(frozen=True)
class Lesson:
    """Begins, times since (begin, look), and the coordinates after them (begin, look, state)."""

    begin: Begin
    elapsed: Tensor
    target: Tensor


@dataclass(frozen=True)
class Whole:
    """Whole trajectories: their rows with looks, and the coordinates at these (row, look, state)."""

    problem: OdeProblem
    rows: Rows
    target: Tensor


def grounds_of(model: Model, shard: Shard, longest: float | Mapping[str, float] | None) -> list[Ground]:
    """The ODEs that the program solves for the rows of a shard, in its order.

    No stretch is longer than `longest`, one time for all ODEs or one for each; None leaves stretches whole.
    """
    ends = [model.design.start, model.design.horizon]
    times = torch.tensor(ends, dtype=torch.float64).expand(*shard.protocols.live.shape, 2).contiguous()
    looks = replace(shard.protocols, times=times, after_dose=torch.zeros_like(times, dtype=torch.bool))
    with recording() as asked, torch.no_grad():
        model.simulate_at(shard.z, looks, 0, solver=shard.rows(torch.arange(len(shard))))
        grounds = []
        for problem, _ in asked.solved:
            rows = flatten(problem)
            stored = shard.tracks[problem.name].times
            series, count = stored.shape[1], len(rows.times)
            last = stored.amax(-1).reshape(-1)[:count]
            live = shard.protocols.live.expand(series // problem.experiments.count, -1, -1).movedim(1, 0)
            limit = longest[problem.name] if isinstance(longest, Mapping) else longest
            stretches = stretches_of(problem, rows, math.inf if limit is None else limit, last)
            grounds.append(Ground(problem, rows, stretches, live.reshape(-1)[:count], last, shard, series))
    return grounds


def layout_of(ground: Ground, logarithmic: tuple[bool, ...]) -> Layout:
    """The layout of the network of one ODE."""
    problem, rows, stretches = ground.problem, ground.rows, ground.stretches
    positive = tuple(bool((v > 0).all()) for v in rows.parameters.values())
    longest = float(stretches.length[ground.live].max())
    if not longest > 0:
        raise TrainingError(
            f"odeint {problem.name!r} covers no time at all, so that there is nothing to learn; give it a "
            f"later time to look at, or leave it out"
        )
    held = {name: stretches.value[:, -1, k] for k, name in enumerate(rows.inputs)}
    early = torch.full_like(rows.start[:, 0], rows.start_time)
    first, later = (
        rows.rhs(t, rows.start, {**rows.parameters, **held}).nan_to_num()
        for t in (early, early + 0.37 * longest)
    )
    names = tuple(problem.initial), tuple(problem.parameters), tuple(problem.inputs), tuple(problem.events)
    return Layout(problem.name, *names, logarithmic, positive, longest, not torch.equal(first, later))


def learn_scales(flow: FlowMap, ground: Ground, sensitivity: Tensor, seed: int) -> None:
    """Set the scales of a network; `sensitivity` (look, state) is per unit of each state or logarithm."""
    flow.floor.copy_(FLOOR * _large(ground.shard.tracks[flow.layout.name].states))
    late = drawn(ground, flow, PILOT, seed).target.flatten(0, 1)
    low, middle, high = late.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=late.dtype), 0)
    # 3.3 sd lie between these of a normal distribution
    flow.spread.copy_(torch.maximum((high - low) / 3.3, 1e-3 * middle.abs()).clamp(min=1e-12))
    features = drawn(ground, flow, PILOT, seed).begin
    known = features.features.double()
    centre, sd = known.mean(0), known.std(0)
    varied = sd > 1e-6 * centre.abs().clamp(min=1e-6)
    if not flow.layout.timed:
        varied[-1] = False
    flow.scale.copy_(torch.stack([centre, torch.where(varied, 1 / sd, 0.0)]))
    flow.moves.copy_((features.pace != 0).any(0).double())
    weights = torch.stack(
        [(s[s > 0].median() if bool((s > 0).any()) else s.new_tensor(torch.nan)) for s in sensitivity.T]
    )
    weights = weights * flow.spread
    usual = weights.nanmedian() if bool(weights.isfinite().any()) else weights.new_tensor(1.0)
    flow.weight.copy_(torch.where(weights.isfinite(), weights, usual))


def sensitivities(model: Model, shard: Shard, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By ODE: states (row, time, state), and how many sd of the noise one unit of each is; 0 where unseen."""
    index = torch.arange(min(PILOT // 4, len(shard)))
    looks = model.design.draw_looks(shard.protocols.at(index), derive(seed, "sensitivity"))
    found = seen_by_noise(model, shard.z[index], looks, shard.rows(index))
    return {ode: (states.flatten(0, -3), slope.flatten(0, -3)) for ode, (states, slope) in found.items()}


def seen_by_noise(
    model: Model, z: Tensor, looks: Experiments, solver: Solver
) -> dict[str, tuple[Tensor, Tensor]]:
    """By ODE: states (..., time, state), and how many sd of the noise one unit of each is; 0 where unseen."""
    kept = dict[str, Tensor]()

    def watched(problem: OdeProblem) -> Trajectory:
        trajectory = solver(problem)
        kept[problem.name] = trajectory.states.detach().requires_grad_()
        return replace(trajectory, states=kept[problem.name])

    noises = model.noises(z, looks, watched)
    total = {name: torch.zeros_like(states) for name, states in kept.items()}
    for name, noise in noises.items():
        centre, sd = located(noise, tuple(looks.times.shape))
        known = looks.channels[name].mask
        seen = torch.where(known, centre / torch.where(known, sd, 1.0).detach(), 0.0).sum()
        if seen.requires_grad:
            found = torch.autograd.grad(seen, list(kept.values()), retain_graph=True, allow_unused=True)
            for ode, gradient in zip(kept, found, strict=True):
                if gradient is not None:
                    total[ode] = total[ode] + gradient.nan_to_num(0.0, 0.0, 0.0).square()
    return {ode: (states.detach(), total[ode].sqrt()) for ode, states in kept.items()}


def seen_relatively(states: Tensor, sensitivity: Tensor, stored: Tensor) -> tuple[bool, ...]:
    """Which states never fall below zero and are seen by their logarithm, under relative noise.

    States unseen follow the others, all of which must be seen so. `stored` (..., state) are all the bank's.
    """
    positive = (stored > -FLOOR * _large(stored)).flatten(0, -2).all(0)
    found: list[bool | None] = []
    for k in range(states.shape[-1]):
        y, s = states[..., k], sensitivity[..., k]
        seen = (s > 0) & (y > 0)
        if not bool((seen.sum(-1) > 1).any()):
            found.append(None)
            continue
        constant, relative = (_varied(torch.where(seen, v, 1.0).log(), seen) for v in (s, s * y))
        found.append(relative < constant)
    others = [f for f in found if f is not None]
    usual = bool(others) and all(others)
    return tuple(bool(p) and (usual if f is None else f) for p, f in zip(positive, found, strict=True))


def _large(stored: Tensor) -> Tensor:
    """A large value of each state (state,) among those stored."""
    some = stored.flatten(0, -2)
    return some[:: max(1, len(some) // 100_000)].abs().double().quantile(0.95, 0)


def _varied(value: Tensor, known: Tensor) -> float:
    """Mean square deviation of values (row, time) from the mean of their row, where `known`."""
    count = known.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(known, value, 0.0).sum(-1, keepdim=True) / count
    return float(torch.where(known, value - mean, 0.0).square().sum())


def drawn(ground: Ground, flow: FlowMap, draws: int, seed: int) -> Lesson:
    """Stretches of random draws: most from their begin on, some from within."""
    stretches = ground.stretches
    with seeded(seed):
        index = torch.randint(len(ground.rows.times) // ground.series, (draws,))
        row = ground.row(index)[:, None].expand(-1, BEGINS)
        there = stretches.length[row[:, 0]] > 0
        there[:, -1] |= ~there.any(1)
        stretch = torch.multinomial(there.double(), BEGINS, replacement=True)
        room = stretches.length[row, stretch]
        within = torch.rand(room.shape, dtype=torch.float64)
        offset = torch.where(torch.rand(room.shape) < ANYWHERE, within, 0.0) * room
        share = torch.rand(*room.shape, LOOKS, dtype=torch.float64)
    close = slice(1, LOOKS // 2)
    share[..., 0] = 1.0
    share[..., close] = 10.0 ** (-4.0 * share[..., close])
    begin = stretches.begin[row, stretch] + offset
    near = NEAR * flow.layout.longest
    first = begin[..., None] + near
    times = torch.cat(
        [first, torch.maximum(first - near + (room - offset)[..., None] * share - near, first)], -1
    )
    states = ground.asked(index, times.reshape(draws, ground.series, -1)).reshape(*times.shape, -1)
    alive = (ground.live[row] & torch.isfinite(states).all(-1).all(-1)).reshape(-1)
    row, stretch, begin, offset = (v.reshape(-1)[alive] for v in (row, stretch, begin, offset))
    states, times = states.flatten(0, 1)[alive], times.flatten(0, 1)[alive]
    slope = stretches.slope[row, stretch]
    held = stretches.value[row, stretch] + slope * offset[:, None]
    forcing = torch.cat([stretches.infusion[row, stretch], held, slope], -1)
    with torch.no_grad():
        known = begun(flow, some(ground.rows, row), states[:, 0], begin, forcing)
        return Lesson(known, times[:, 1:] - times[:, :1], flow.coordinates(states[:, 1:]))


def whole(ground: Ground, flow: FlowMap, draws: int, seed: int) -> Whole:
    """Trajectories of random draws from their start on, at random times."""
    with seeded(seed):
        index = torch.randint(len(ground.rows.times) // ground.series, (draws,))
        share = torch.rand(draws * ground.series, ALONG, dtype=torch.float64).sort(-1).values
    row = ground.row(index)
    start = ground.rows.start_time
    times = start + (ground.last[row, None] - start) * share
    states = ground.asked(index, times.reshape(draws, ground.series, -1)).reshape(*times.shape, -1)
    alive = ground.live[row] & torch.isfinite(states).all(-1).all(-1)
    looks = replace(some(ground.rows, row), times=times, after_dose=torch.zeros_like(times, dtype=torch.bool))
    return Whole(ground.problem, some(looks, alive), flow.coordinates(states[alive]))


def missed(flow: FlowMap, lesson: Lesson | Whole) -> Tensor:
    """The loss: errors in units of the noise, squared while small, so that the few hardest rows do not rule."""
    if isinstance(lesson, Whole):
        found = flow.coordinates(solve(flow, lesson.problem, lesson.rows))
    else:
        found = flow(lesson.begin, lesson.elapsed)
    size = ((found - lesson.target) * flow.weight * SHARP).square().sum(-1)
    if isinstance(lesson, Whole):
        return torch.log1p(size).mean().float()
    return (torch.sqrt(1 + size) - 1).mean().float()
