"""Where a posterior is and how wide: its mode in z by Gauss-Newton steps, and the information there.

Many data sets at once, each from its own start. The information is that of the noise about its centre and its
width (by differences along each coordinate of z), plus one for the prior. A density learnt in coordinates where
this normal approximation is standard normal has little left to learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost.accuracy import located
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.ode.problem import OdeProblem, Solver, Trajectory
from ampost.passes import Holding, idle, noise_of, total
from ampost.program import recording

STEP = 1e-3  # of a difference, in z
LENGTHS = (0.0, 0.05, 0.2, 0.5, 1.0)  # of a step that are tried
FURTHEST = 1.0  # that a step goes in a coordinate of z
DAMPED = 0.01  # the first damping of a row that no length takes further; ten times as much each time after
CLOSE = 1e-3  # decrement of the log joint below which a row is done
FEW = 4  # steps from each of several starts, before the best goes on
LOOKED = 16  # data sets that are looked at for what the ODEs depend on
MEMORY = 2_000_000  # numbers of a trajectory's states held at once


@dataclass(frozen=True)
class Laplace:
    """Modes (dataset, z) and lower Cholesky factors (dataset, z, z) of the information there.

    `decrement` (dataset,) is what a further step should gain in the log joint: large where none was found.
    `height` (dataset,) is the log joint there, `solves` is what it took.
    """

    mode: Tensor
    factor: Tensor
    decrement: Tensor
    height: Tensor
    solves: int

    @property
    def log_scale(self) -> Tensor:
        """Log determinant (dataset,) of the map from z to standard coordinates."""
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def standard(self, z: Tensor) -> Tensor:
        """Coordinates (..., dataset, z) in which the approximation is standard normal."""
        return torch.einsum("nji,...nj->...ni", self.factor, z - self.mode)

    def back(self, u: Tensor) -> Tensor:
        """z (..., dataset, z) of standard coordinates."""
        inverse = torch.linalg.inv(self.factor)
        return self.mode + torch.einsum("nji,...nj->...ni", inverse, u)


def highest(model: Model, data: Experiments, starts: Tensor) -> Laplace:
    """As `laplace`, from several starts (start, dataset, z): a few steps from each, then from the best."""
    data = data if data.batch else data.unsqueezed(1)
    number, count, size = starts.shape
    tried = laplace(model, data.at(torch.arange(count).repeat(number)), starts.reshape(-1, size), FEW)
    best = tried.height.reshape(number, count).argmax(0)
    chosen = tried.mode.reshape(starts.shape)[best, torch.arange(count)]
    found = laplace(model, data, chosen)
    return replace(found, solves=found.solves + tried.solves)


def laplace(model: Model, data: Experiments, start: Tensor, most: int = 12) -> Laplace:
    """Gauss-Newton from `start` (dataset, z) on the exact log joint of each data set, at most `most` steps.

    A step is the best of a few lengths along its direction, so that the log joint never falls. Where the ODE
    fails at the start, the start stays, with the information of the prior.
    """
    data = data if data.batch else data.unsqueezed(1)
    moving = _moving(model, data)
    slots = data.count * data.times.shape[-1] * (1 + len(LENGTHS) + 2 * int(moving.sum()))
    rows = torch.arange(len(start)).split(max(1, MEMORY // (8 * slots)))
    parts = [_found(model, data.at(part), start[part].double(), moving, most) for part in rows]
    return Laplace(
        torch.cat([p.mode for p in parts]),
        torch.cat([p.factor for p in parts]),
        torch.cat([p.decrement for p in parts]),
        torch.cat([p.height for p in parts]),
        sum(p.solves for p in parts),
    )


def _found(model: Model, data: Experiments, start: Tensor, moving: Tensor, most: int) -> Laplace:
    z, solves = start.clone(), 0
    count, size = z.shape
    score, height = torch.zeros_like(z), torch.full((count,), -torch.inf, dtype=z.dtype)
    information = torch.eye(size, dtype=z.dtype).repeat(count, 1, 1)
    decrement = torch.full((count,), torch.inf, dtype=z.dtype)
    damping = torch.zeros(count, dtype=z.dtype)
    active = torch.arange(count)
    lengths = torch.tensor(LENGTHS, dtype=z.dtype)
    for k in range(most + 1):
        here = data.at(active)
        height[active], score[active], information[active] = _slope(model, z[active], here, moving)
        solves += len(active) * (1 + 2 * int(moving.sum()))
        gain = 0.5 * (score[active] * _solved(information[active], score[active])).sum(-1)
        decrement[active] = torch.where(torch.isfinite(height[active]), gain, torch.inf)
        active = active[(decrement[active] > CLOSE) & torch.isfinite(height[active])]
        if k == most or not len(active):
            break
        damped = information[active] + torch.diag_embed(
            damping[active, None] * information[active].diagonal(dim1=-2, dim2=-1)
        )
        step = _solved(damped, score[active]).clamp(-FURTHEST, FURTHEST)
        tried = z[active] + lengths[:, None, None] * step
        value = _evaluated(model, tried, data.at(active))[0]
        solves += tried.shape[0] * tried.shape[1]
        best = value.argmax(0)
        z[active] = tried[best, torch.arange(len(active))]
        stuck = (10 * damping[active]).clamp(min=DAMPED)
        damping[active] = torch.where(best == 0, stuck, 0.1 * damping[active])
    factor, failed = torch.linalg.cholesky_ex(information)
    known = (failed == 0) & torch.isfinite(factor).all(-1).all(-1)
    factor = torch.where(known[:, None, None], factor, torch.eye(size, dtype=z.dtype))
    return Laplace(z, factor, torch.where(known, decrement, torch.inf), height, solves)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solutions; 0, which is no step, where a matrix is singular to the last digit."""
    found: Tensor = torch.linalg.solve_ex(matrix, right[..., None])[0][..., 0]
    return found.nan_to_num(0.0, 0.0, 0.0)


def _slope(model: Model, z: Tensor, data: Experiments, moving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log joint (dataset,), its gradient (dataset, z) and information (dataset, z, z) at z (dataset, z)."""
    count, size = z.shape
    shifts = torch.eye(size, dtype=z.dtype)[:, None] * STEP
    record = recording()
    with record:
        moved = _evaluated(model, torch.cat([z[None], z + shifts[moving], z - shifts[moving]]), data)
    first, centre, width, known = moved
    joint = torch.zeros(size, count, dtype=z.dtype)
    slopes = z.new_zeros(2, size, count, centre.shape[-1])
    kept = [(moving, [v[1:] for v in moved[:3]])]
    if not bool(moving.all()):
        both = torch.cat([z + shifts[~moving], z - shifts[~moving]])
        kept.append((~moving, list(_evaluated(model, both, data, _repeating(record.solved))[:3])))
    for chosen, (value, where, wide) in kept:
        up, down = slice(0, len(value) // 2), slice(len(value) // 2, None)
        joint[chosen] = (value[up] - value[down]) / (2 * STEP)
        slopes[0, chosen] = (where[up] - where[down]) / (2 * STEP) / width[0]
        slopes[1, chosen] = 2**0.5 * (wide[up].log() - wide[down].log()) / (2 * STEP)
    slopes = torch.where(known, slopes, 0.0).nan_to_num(0.0, 0.0, 0.0)
    information = torch.einsum("kanp,kbnp->nab", slopes, slopes) + torch.eye(size, dtype=z.dtype)
    good = torch.isfinite(information).all(-1).all(-1) & torch.isfinite(first[0])
    information = torch.where(good[:, None, None], information, torch.eye(size, dtype=z.dtype))
    return first[0], joint.nan_to_num(0.0, 0.0, 0.0).T, information


def _evaluated(
    model: Model, z: Tensor, data: Experiments, solver: Solver | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At z (draw, dataset, z): log joint (draw, dataset), centres, widths (draw, dataset, point), what counts.

    Points are those of all channels. What is censored does not count, nor does the width of counts.
    """
    holding = Holding(model.solver if solver is None else solver, hold=False)
    with torch.no_grad():
        run = model.run(z, data, holding)
    lead = tuple(z.shape[:-1])
    joint = run.total_log_prior
    for value in run.log_likelihood.values():
        joint = joint + total(value, lead, run.depth)
    joint = torch.where(holding.failed(lead) | torch.isnan(joint), -torch.inf, joint)
    centres, widths, known = [], [], []
    shape = (*lead, *data.times.shape[-2:])
    for name, noise in run.noises.items():
        channel = data.channels[name]
        exact = channel.mask if channel.censoring is None else channel.mask & (channel.censoring == 0)
        centre, width = (v.flatten(2) for v in located(noise, shape))
        centres.append(centre)
        widths.append(width)
        discrete = noise_of(noise).support.is_discrete
        known.append(torch.stack([exact, exact & (not discrete)]).flatten(2))
    return joint, torch.cat(centres, -1), torch.cat(widths, -1), torch.cat(known, -1)[:, None]


def _repeating(solved: list[tuple[OdeProblem, Trajectory]]) -> Solver:
    """Answers with the first draw of trajectories already found, whatever the draw."""
    of = {problem.name: trajectory for problem, trajectory in solved}

    def answer(problem: OdeProblem) -> Trajectory:
        held = of[problem.name]
        return replace(held, states=held.states[:1], status=held.status[:1], reached=None, ended=None)

    return answer


def _moving(model: Model, data: Experiments) -> Tensor:
    """Which coordinates of z (z,) the ODEs depend on; those of the noise alone need no solve."""
    size = model.z_size(data.count)
    places = torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([_moving_at(model, data, place) for place in places]).any(0)


def _moving_at(model: Model, data: Experiments, place: Tensor) -> Tensor:
    """The same at one place (z,)."""
    size = len(place)
    z = place.repeat(1 + size, 1, 1)
    z[1:, 0] += torch.eye(size, dtype=torch.float64)
    z = z.expand(-1, min(LOOKED, data.batch[0]), -1)
    first = data.at(slice(0, LOOKED))
    asked: list[OdeProblem] = []

    def still(problem: OdeProblem) -> Trajectory:
        asked.append(problem)
        return idle(problem)

    with torch.no_grad():
        model.run(z, first, still)
    moves = torch.zeros(size, dtype=torch.bool)
    for problem in asked:
        held = [*problem.initial.values(), *problem.parameters.values()]
        held += [problem.doses.time, problem.doses.amount, problem.doses.duration]
        for value in held:
            if value.dim() and value.shape[0] == 1 + size:
                moves |= (value[1:] != value[:1]).flatten(1).any(-1)
    return moves
