"""From prior draws to trajectories with dense output, whose knots stand where a cubic would err.

Each row is solved on a coarse grid. How far a cubic Hermite over two of its intervals misses the knot between
them says how closely knots must stand there: the error of an interval of width h is h^4 / 384 |y''''|. It
counts in units of the noise and, for each state, of its range. A fixed number of knots shares that error out
evenly, with both sides of every edge besides, and the row is solved again at these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ampost.accuracy import apart, noise_units
from ampost.experiments import Channel, Experiments
from ampost.model import Model
from ampost.ode.edges import signal_at
from ampost.ode.failures import Failure, failures
from ampost.ode.problem import OdeProblem, Rows, Status, Trajectory, flatten
from ampost.passes import double, idle
from ampost.program import recording
from ampost.seeds import derive
from ampost.shards import Shard, Track

GRID = 96  # coarse knots without those at edges
NUMBERS = 2**18  # states held at a time while solving
PILOT, SAMPLE = 100, 100  # draws that the number of knots is found by, and that a shard's error is measured on
FEWEST, MOST, BYTES = 12, 512, 20_000  # of an experiment's knots without those at edges; with these
ERROR, SHARE = 0.02, 0.99  # of the noise's sd; the share of experiments whose worst midpoint meets it
RANGE = 0.03  # of a state's range counts as much as ERROR
EVEN = 0.1  # the share of knots that is spread evenly over time
ROUNDING = 1e-5  # of the noise's sd is the solver's own, and no curvature

Solved = list[tuple[OdeProblem, Trajectory]]


@dataclass(frozen=True)
class Drawn:
    """A shard, and what failed: parameters (failed row, parameter) on the user's scale, the status of each row.

    `errors` (experiment,) are the worst midpoint errors of some rows' dense output, in units of the noise.
    """

    shard: Shard
    failed: Tensor
    status: Tensor
    errors: Tensor


@dataclass(frozen=True)
class _Block:
    """Some rows solved: tracks of those that could be, the status of each, examples of those that could not."""

    tracks: dict[str, Track]
    status: Tensor
    examples: list[Failure]


def drawn(model: Model, count: int, seed: int, knots: int) -> Drawn:
    """`count` prior draws under the design's protocols, solved, with `knots` knots besides those at edges."""
    protocols = model.design.draw_protocols(count, derive(seed, "protocols"))
    first = torch.full((*protocols.live.shape, 1), model.design.start, dtype=torch.float64)
    early = replace(protocols, times=first, after_dose=first.bool() & False)
    with recording() as asked:
        prior = model.simulate_at(None, early, derive(seed, "z"), solver=idle)
    edges = _edges(model, protocols, [problem for problem, _ in asked.solved])
    times, after = _grid(model, edges)
    held = times[0].numel() * max([1, *(len(problem.initial) for problem, _ in asked.solved)])
    blocks = [
        _solved(model, prior.z[rows], protocols.at(rows), edges[rows], (times[rows], after[rows]), knots)
        for rows in torch.arange(count).split(max(1, NUMBERS // held))
    ]
    status = torch.cat([block.status for block in blocks])
    good = status == 0
    shard = Shard(
        prior.z[good],
        protocols.at(good),
        _end_to_end([block.tracks for block in blocks if block.tracks]),
        int((~good).sum()),
        Counter(Status(code).name for code in status[~good].tolist()),
        tuple(example for block in blocks for example in block.examples)[:3],
    )
    columns = [value[~good] for value in table(prior.parameters).values()]
    return Drawn(shard, torch.stack(columns, -1), status[~good], _errors(model, shard))


def enough(model: Model, seed: int) -> int:
    """How many knots an experiment needs, so that 99 % of them err by less than 0.02 sd of the noise.

    At most 512, or as many as take 20 kB.
    """
    knots = FEWEST
    while True:
        pilot = drawn(model, PILOT, derive(seed, "pilot"), knots)
        if not len(pilot.errors):
            return MOST // 4
        if float((pilot.errors < ERROR).double().mean()) >= SHARE:
            return knots
        more = round(knots * 2**0.5)
        each = sum(8 + 8 * len(track.names) for track in pilot.shard.tracks.values())
        fixed = max(track.times.shape[-1] for track in pilot.shard.tracks.values()) - knots
        if more > MOST or (more + fixed) * each > BYTES:
            return knots
        knots = more


def table(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters (draw, ...) as one column (draw,) for each number; those of one name are told apart by [k]."""
    columns = {}
    for name, value in parameters.items():
        wide = value[:, None] if value.dim() == 1 else value.flatten(1)
        for k in range(wide.shape[1]):
            columns[name if wide.shape[1] == 1 else f"{name}[{k + 1}]"] = wide[:, k]
    return columns


def _solved(
    model: Model,
    z: Tensor,
    protocols: Experiments,
    edges: Tensor,
    coarse: tuple[Tensor, Tensor],
    knots: int,
) -> _Block:
    """Rows solved on the coarse grid, and those that could be again at their knots."""
    depth = _depth(model, protocols)
    looks = _watched(model, protocols, *coarse)
    with recording() as record:
        noises = model.noises(z, looks)
    status, examples = _status(record.solved, len(z), depth)
    good = status == 0
    if not bool(good.any()):
        return _Block({}, status, examples)
    missed = _missed(model, z, looks, record.solved, noises)[good]
    z, protocols, edges, times = z[good], protocols.at(good), edges[good], coarse[0][good]
    for number in (2 * knots, 2 * knots, knots):  # a feature between coarse knots shows at the finer ones
        times, after = _with_edges(_placed(times, missed, number), edges)
        final = number == knots
        looks = replace(protocols, times=times, after_dose=after)
        looks = looks if final else _watched(model, protocols, times, after)
        with recording() as record:
            noises = model.noises(z, looks)
        if not final:
            missed = _missed(model, z, looks, record.solved, noises)
    again, more = _status(record.solved, len(z), depth)
    status[good] = again
    fine = again == 0
    tracks = {}
    for problem, trajectory in record.solved:
        slopes = _slopes(flatten(problem), trajectory.states)
        knotted = problem.experiments.times.expand(trajectory.states.shape[:-1])
        parts = ((knotted, 1), (trajectory.states, 2), (slopes, 2))
        own = [_by_row(value, len(z), depth, axes)[fine] for value, axes in parts]
        tracks[problem.name] = Track(own[0], own[1].float(), own[2].float(), trajectory.names)
    return _Block(tracks, status, examples + more)


def _by_row(value: Tensor, rows: int, depth: int, own: int) -> Tensor:
    """(row, experiment, ...) of what broadcasts to (row, 1, ..., experiment, ...), with `own` axes behind."""
    batch, rest = value.shape[: value.dim() - own], value.shape[value.dim() - own :]
    lead = torch.broadcast_shapes(batch, (rows, *(1,) * depth))
    return value.expand(*lead, *rest).reshape(rows, lead[1:].numel(), *rest)


def _depth(model: Model, protocols: Experiments) -> int:
    """Axes of the model's sites, the program's own plates among them."""
    return max(len(site.batch) for site in model.sites(protocols.count))


def _status(solved: Solved, rows: int, depth: int) -> tuple[Tensor, list[Failure]]:
    """The status of each row, that of its first ODE that failed, and some of the failures."""
    status, examples = torch.zeros(rows, dtype=torch.long), list[Failure]()
    for problem, trajectory in solved:
        worst = _by_row(trajectory.status, rows, depth, 0).amax(1)
        if bool(worst.any()):
            examples += failures(problem, trajectory, most=3)
        status = torch.where(status == 0, worst, status)
    return status, examples


def _watched(model: Model, protocols: Experiments, times: Tensor, after: Tensor) -> Experiments:
    """Looks at `times` (row, experiment, time) in every channel of the design, with what stands beside them."""
    mask = protocols.live[..., None].expand(times.shape)
    channels = {name: Channel(mask) for name in model.design.channels}
    if any(look.sd is not None or look.columns for look in model.design.channels.values()):
        beside = model.design.draw_looks(protocols, derive(0, "beside")).channels
        for name, channel in beside.items():
            sd = None if channel.sd is None else channel.sd[..., :1].expand(times.shape)
            columns = {key: value[..., :1].expand(times.shape) for key, value in channel.columns.items()}
            channels[name] = Channel(mask, sd=sd, columns=columns)
    return replace(protocols, times=times, after_dose=after, channels=channels)


def _missed(model: Model, z: Tensor, looks: Experiments, solved: Solved, noises: Mapping[str, Any]) -> Tensor:
    """How far each look is missed by a cubic over its neighbours, (row, experiment, time); ERROR is 1."""
    rows, experiments, _ = looks.times.shape
    skipping, missed = {}, torch.zeros_like(looks.times)
    for problem, trajectory in solved:
        times, states = problem.experiments.times, trajectory.states
        skipping[problem.name] = trajectory
        if times.numel() != looks.times.numel() or not torch.equal(times.flatten(), looks.times.flatten()):
            continue  # looked at at times of the program's own
        across = _across(times, states, _slopes(flatten(problem), states))
        skipping[problem.name] = replace(trajectory, states=across)
        size = states.amax(-2) - states.amin(-2) + 0.01 * states.abs().amax(-2)
        off = ((across - states).abs() / size.clamp(min=1e-300)[..., None, :]).amax(-1)
        off = _by_row(off, rows, _depth(model, looks), 1).unflatten(1, (-1, experiments)).amax(1)
        missed = torch.maximum(missed, off.nan_to_num(0.0) / RANGE)
    others = model.noises(z, looks, lambda problem: skipping[problem.name])
    for off in apart(looks, noises, others).values():
        missed = torch.maximum(missed, (off.nan_to_num(0.0).abs() - ROUNDING) / ERROR)
    return missed


def _across(times: Tensor, states: Tensor, slopes: Tensor) -> Tensor:
    """States (..., time, state) as a cubic over the neighbours of each has them, where no edge is near."""
    start, here, end = (times[..., a : times.shape[-1] - 2 + a, None] for a in range(3))
    width = end - start
    inside = (start < here) & (here < end)
    x = torch.where(inside, (here - start) / width.clamp(min=1e-300), 0.0)
    low, high = slice(None, -2), slice(2, None)
    value = (1 - x) ** 2 * ((1 + 2 * x) * states[..., low, :] + x * width * slopes[..., low, :])
    value = value + x**2 * ((3 - 2 * x) * states[..., high, :] - (1 - x) * width * slopes[..., high, :])
    out = states.clone()
    out[..., 1:-1, :] = torch.where(inside, value, states[..., 1:-1, :])
    return out


def _placed(times: Tensor, missed: Tensor, knots: int) -> Tensor:
    """`knots` times (row, experiment, knot) from the first to the last of `times`, with equal errors between.

    `missed` (row, experiment, time) is how far a cubic over the neighbours is from each of `times`.
    """
    before, behind = times.diff(dim=-1)[..., :-1], times.diff(dim=-1)[..., 1:]
    room = before * behind
    needed = (missed[..., 1:-1] / (16 * room.square()).clamp(min=1e-300)) ** 0.25
    needed = torch.nn.functional.pad(torch.where(room > 0, needed, 0.0), (1, 1))
    share = torch.maximum(needed[..., 1:], needed[..., :-1]) * times.diff(dim=-1)
    total, span = share.sum(-1, keepdim=True), times[..., -1:] - times[..., :1]
    share = share + torch.where(total > 0, EVEN * total, 1.0) * times.diff(dim=-1) / span
    risen = torch.nn.functional.pad(share.cumsum(-1), (1, 0))
    wanted = risen[..., -1:] * torch.linspace(0.0, 1.0, knots, dtype=torch.float64)
    upper = torch.searchsorted(risen, wanted).clamp(1, times.shape[-1] - 1)
    low, high = risen.gather(-1, upper - 1), risen.gather(-1, upper)
    part = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0.0, 1.0)
    begin = times.gather(-1, upper - 1)
    return begin + part * (times.gather(-1, upper) - begin)


def _grid(model: Model, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Coarse times (row, experiment, time) and which come after a dose: even, denser near start and edges.

    After each edge there are further ones, fewer where there are many edges.
    """
    start, end = model.design.start, model.design.horizon
    even = torch.linspace(0.0, 1.0, 2 * GRID // 3, dtype=torch.float64)
    early = torch.logspace(-5, -1, GRID // 3, dtype=torch.float64)
    base = start + (end - start) * torch.cat([even, early]).unique()
    knots = base.expand(*edges.shape[:-1], len(base))
    if edges.shape[-1]:
        after_each = early[:: max(4, edges.shape[-1] // 10)]
        near = (edges[..., None] + (end - start) * after_each).flatten(-2).clamp(max=end)
        knots = torch.cat([knots, near], -1)
    return _with_edges(knots, edges)


def _with_edges(knots: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Knots (row, experiment, knot) with both sides of every edge, in order, and which are behind theirs."""
    times = torch.cat([knots, edges, edges], -1)
    behind = torch.arange(times.shape[-1]) >= knots.shape[-1] + edges.shape[-1]
    order = (times + 0.0).sort(dim=-1, stable=True).indices
    return times.gather(-1, order), behind.expand(times.shape).gather(-1, order)


def _edges(model: Model, protocols: Experiments, asked: list[OdeProblem]) -> Tensor:
    """Times (row, experiment, edge) at which a slope or a state jumps: doses, as the program gives them to
    its ODEs, ends of infusions, breakpoints of inputs."""
    start, shape = model.design.start, tuple(protocols.live.shape)

    def per_experiment(time: Tensor) -> Tensor:
        """(row, 1, ..., experiment, dose), where plates of the program's own may stand, flat."""
        full = time.expand(shape[0], *time.shape[1:-2], shape[1], time.shape[-1])
        return full.reshape(shape[0], -1, shape[1], time.shape[-1]).movedim(1, 2).flatten(2)

    parts = [torch.zeros(*shape, 0, dtype=torch.float64)]
    for problem in asked:
        doses = problem.doses
        if not doses.time.shape[-1]:
            continue
        times = [doses.time]
        if bool((doses.duration > 0).any()):
            times.append(doses.time + doses.duration)
        for time in times:
            known = torch.where(doses.mask, time, start)
            parts.append(per_experiment(known.reshape(*(1,) * (4 - known.dim()), *known.shape)))
    parts += [torch.where(s.mask, s.time, start) for s in protocols.inputs.values()]
    return torch.cat(parts, -1).clamp(start, model.design.horizon)


def _slopes(flat: Rows, states: Tensor) -> Tensor:
    """The right-hand side at every knot, inputs and infusions included; 0 where it is not finite."""
    knots = flat.times.shape[1]
    parameters = {k: v.repeat_interleave(knots) for k, v in flat.parameters.items()}
    for name, signal in flat.inputs.items():
        parameters[name] = signal_at(signal, flat.times, flat.after_dose).reshape(-1)
    y = states.reshape(-1, states.shape[-1])
    with double(), torch.no_grad():
        slopes = flat.rhs(flat.times.reshape(-1), y, parameters).reshape(states.shape)
    slopes = slopes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
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


def _errors(model: Model, shard: Shard) -> Tensor:
    """Worst errors (experiment,) of some rows' dense output between knots, in units of the noise."""
    if not shard.tracks or not len(shard):
        return torch.zeros(0, dtype=torch.float64)
    rows = torch.arange(min(SAMPLE, len(shard)))
    protocols = shard.protocols.at(rows)
    track = max(shard.tracks.values(), key=lambda t: t.times.shape[-1])
    knots = track.times[rows, : protocols.count]
    middle = 0.5 * (knots[..., 1:] + knots[..., :-1])
    looks = _watched(model, protocols, middle, torch.zeros_like(middle, dtype=torch.bool))
    units = noise_units(model, shard.z[rows], looks, model.solver, shard.rows(rows))
    worst = torch.stack([value.nan_to_num(0.0).abs().amax(-1) for value in units.values()]).amax(0)
    return worst[protocols.live]


def _end_to_end(blocks: list[dict[str, Track]]) -> dict[str, Track]:
    """Tracks of all blocks, by the name of their `odeint`."""
    whole = {}
    for name in blocks[0] if blocks else ():
        tracks = [block[name] for block in blocks]
        parts = [torch.cat([getattr(t, part) for t in tracks]) for part in ("times", "states", "slopes")]
        whole[name] = Track(parts[0], parts[1], parts[2], tracks[0].names)
    return whole
