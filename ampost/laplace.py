"""Where a posterior is and how wide: its mode in z by Gauss-Newton steps, and the information there.

Many data sets at once, each from its own starts. The information is that of the noise about its centre and its
width (by small steps along each coordinate of z, through the solver's own sensitivities where it has them),
plus one for the prior. A density learnt in coordinates where this normal approximation is standard normal has
little left to learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost.accuracy import located
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.ode.problem import OdeProblem, Solver, Tangential, Trajectory
from ampost.passes import Holding, joint_of, noise_of
from ampost.program import recording

NEAR = 1e-6  # step of a difference in z, where the solver answers to first order
APART = 1e-3  # elsewhere, both ways: errors of solvers must be small beside it
LENGTHS = (0.05, 0.2, 0.5)  # of a step that are tried where the whole one gains too little
GAINED = 0.2  # share of what a whole step should gain that is enough
FURTHEST = 1.0  # that a step goes in a coordinate of z
DAMPED = 0.01  # the first damping of a row that no length takes further; ten times as much each time after
CLOSE = 1e-3  # decrement of the log joint below which a row is done
PROMISING = 3  # of many starts
FEW = 4  # steps from each of them, before the best goes on
MEMORY = 1_000_000  # points of trajectories held at once


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


def highest(model: Model, data: Experiments, starts: Tensor) -> Laplace:
    """As `laplace`, from several starts (start, dataset, z).

    A few steps are taken from each of the most promising, by their log joint, and then more from the best.
    """
    data = data if data.batch else data.unsqueezed(1)
    number, count, size = starts.shape
    solves = 0
    if number > PROMISING:
        rows = torch.arange(count).split(at_once(data, number))
        heights = [
            evaluated(model, starts[:, part].double(), data.at(part), model.solver).joint for part in rows
        ]
        best = torch.cat(heights, 1).topk(PROMISING, 0).indices
        starts = starts.gather(0, best[..., None].expand(-1, -1, size))
        solves, number = number * count, PROMISING
    tried = laplace(model, data.at(torch.arange(count).repeat(number)), starts.reshape(-1, size), FEW)
    first = tried.height.reshape(number, count).argmax(0)
    chosen = tried.mode.reshape(starts.shape)[first, torch.arange(count)]
    found = laplace(model, data, chosen)
    return replace(found, solves=found.solves + tried.solves + solves)


def laplace(model: Model, data: Experiments, start: Tensor, most: int = 12) -> Laplace:
    """Gauss-Newton from `start` (dataset, z) on the exact log joint of each data set, at most `most` steps.

    A step is the best of a few lengths along its direction, so that the log joint never falls. Where the ODE
    fails at the start, the start stays, with the information of the prior.
    """
    data = data if data.batch else data.unsqueezed(1)
    size = start.shape[-1]
    slope = slopes(model, data, size)
    rows = torch.arange(len(start)).split(at_once(data, 1 + len(slope.shifts)))
    parts = [_found(model, data.at(part), start[part].double(), slope, most) for part in rows]
    return Laplace(
        torch.cat([p.mode for p in parts]),
        torch.cat([p.factor for p in parts]),
        torch.cat([p.decrement for p in parts]),
        torch.cat([p.height for p in parts]),
        sum(p.solves for p in parts),
    )


def at_once(data: Experiments, draws: int) -> int:
    """Data sets at once, with so many draws of each."""
    return max(1, MEMORY // (draws * data.count * data.times.shape[-1]))


def _found(model: Model, data: Experiments, start: Tensor, slope: Slopes, most: int) -> Laplace:
    z, solves = start.clone(), 0
    count, size = z.shape
    score, height = torch.zeros_like(z), torch.full((count,), -torch.inf, dtype=z.dtype)
    information = torch.eye(size, dtype=z.dtype).repeat(count, 1, 1)
    decrement = torch.full((count,), torch.inf, dtype=z.dtype)
    damping = torch.zeros(count, dtype=z.dtype)
    active = torch.arange(count)
    for k in range(most + 1):
        height[active], score[active], information[active] = slope(z[active], data.at(active))
        solves += slope.solves * len(active)
        gain = 0.5 * (score[active] * solved(information[active], score[active])).sum(-1)
        decrement[active] = torch.where(torch.isfinite(height[active]), gain, torch.inf)
        active = active[(decrement[active] > CLOSE) & torch.isfinite(height[active])]
        if k == most or not len(active):
            break
        damped = information[active] + torch.diag_embed(
            damping[active, None] * information[active].diagonal(dim1=-2, dim2=-1)
        )
        step = solved(damped, score[active]).clamp(-FURTHEST, FURTHEST)
        hoped = (step * score[active]).sum(-1) - 0.5 * torch.einsum("na,nab,nb->n", step, damped, step)
        z[active], length, tries = _along(model, data.at(active), z[active], height[active], step, hoped)
        solves += tries
        stuck = (10 * damping[active]).clamp(min=DAMPED)
        damping[active] = torch.where(length == 0, stuck, 0.1 * damping[active])
    factor, failed = torch.linalg.cholesky_ex(information)
    known = (failed == 0) & torch.isfinite(factor).all(-1).all(-1)
    factor = torch.where(known[:, None, None], factor, torch.eye(size, dtype=z.dtype))
    return Laplace(z, factor, torch.where(known, decrement, torch.inf), height, solves)


def _along(
    model: Model, data: Experiments, z: Tensor, height: Tensor, step: Tensor, hoped: Tensor
) -> tuple[Tensor, Tensor, int]:
    """The best place on the way of each step, how much of it was taken, and the solves.

    The whole step is taken where it gains a fair share of what is hoped for; else shorter ones are tried too.
    """
    whole = evaluated(model, (z + step)[None], data, model.solver).joint[0]
    length = torch.ones_like(height)
    poor = (~(whole - height >= GAINED * hoped)).nonzero()[:, 0]
    if len(poor):
        lengths = torch.tensor((0.0, *LENGTHS, 1.0), dtype=z.dtype)
        between = z[poor] + lengths[1:-1, None, None] * step[poor]
        tried = evaluated(model, between, data.at(poor), model.solver).joint
        length[poor] = lengths[torch.cat([height[None, poor], tried, whole[None, poor]]).argmax(0)]
    return z + length[:, None] * step, length, len(z) + len(LENGTHS) * len(poor)


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solutions of linear equations; 0, which is no step, where a matrix is singular to the last digit."""
    found: Tensor = torch.linalg.solve_ex(matrix, right[..., None])[0][..., 0]
    return found.nan_to_num(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Slopes:
    """What the model says at z (dataset, z), and how that changes along each coordinate.

    `shifts` (shift, 1, z) are along each coordinate of z, and then back where differences go both ways;
    `solves` is what a data set takes; sensitivities count as one solve for each coordinate.
    """

    model: Model
    solver: Solver
    shifts: Tensor
    solves: int

    def __call__(self, z: Tensor, data: Experiments) -> tuple[Tensor, Tensor, Tensor]:
        """Log joint (dataset,), its gradient (dataset, z) and information (dataset, z, z)."""
        found = evaluated(self.model, self.places(z), data, self.solver)
        flat = self.slope(found.features(found.width[0])).permute(1, 0, 2)
        information = flat @ flat.mT + torch.eye(z.shape[-1], dtype=z.dtype)
        good = torch.isfinite(information).all(-1).all(-1) & torch.isfinite(found.joint[0])
        information = torch.where(good[:, None, None], information, torch.eye(z.shape[-1], dtype=z.dtype))
        return found.joint[0], self.slope(found.joint).nan_to_num(0.0, 0.0, 0.0).T, information

    def features(self, z: Tensor, data: Experiments) -> tuple[Tensor, Tensor, Tensor]:
        """Features (dataset, feature) at z, their slopes (dataset, feature, z), and the widths of the noise."""
        found = evaluated(self.model, self.places(z), data, self.solver)
        seen = found.features(found.width[0])
        return seen[0], self.slope(seen).permute(1, 2, 0), found.width[0]

    def places(self, z: Tensor) -> Tensor:
        """z (shift, dataset, z): here and at each shift."""
        return torch.cat([z[None], z + self.shifts])

    def slope(self, value: Tensor) -> Tensor:
        """Slopes (z, ...) of values (shift, ...) at the places."""
        size = self.shifts.shape[-1]
        down = value[:1] if len(self.shifts) == size else value[1 + size :]
        return (value[1 : 1 + size] - down) / (float(self.shifts.abs().sum()) / size)


def slopes(model: Model, data: Experiments, size: int) -> Slopes:
    """How slopes are taken: to first order by the solver where it can, by differences both ways elsewhere."""
    unit = torch.eye(size, dtype=torch.float64)[:, None]
    solver, answered = _tangent(model.solver)
    with recording() as record:
        evaluated(model, torch.cat([0 * unit[:1], NEAR * unit]), data.at(slice(0, 1)), solver)
    if len(record.solved) == len(answered):
        return Slopes(model, solver, NEAR * unit, 1 + size)
    return Slopes(model, model.solver, torch.cat([APART * unit, -APART * unit]), 1 + 2 * size)


def _tangent(solver: Solver) -> tuple[Solver, list[OdeProblem]]:
    """A solver that answers close draws by tangents where it can, and the problems it could do so for."""
    answered: list[OdeProblem] = []

    def answer(problem: OdeProblem) -> Trajectory:
        found = solver.tangent(problem) if isinstance(solver, Tangential) else None
        if found is None:
            return solver(problem)
        answered.append(problem)
        return found

    return answer, answered


@dataclass(frozen=True)
class Evaluated:
    """Log joint (draw, dataset), centres and widths of the noise (draw, dataset, point), and what counts.

    Points are those of all channels that any data set has. `known` (2, 1, dataset, point) says whose centre and
    whose width count: not of what is censored, nor the width of counts.
    """

    joint: Tensor
    centre: Tensor
    width: Tensor
    known: Tensor

    def features(self, unit: Tensor) -> Tensor:
        """Features (draw, dataset, feature): centres in a unit (dataset, point), log widths; 0 where unknown.

        Where the unit is the width of the noise, the information about z is the squared slope of the features.
        """
        both = torch.stack([self.centre / unit, 2**0.5 * self.width.log()])
        both = torch.where(self.known, both, 0.0).nan_to_num(0.0, 0.0, 0.0)
        return both.permute(1, 2, 0, 3).flatten(2)


def evaluated(model: Model, z: Tensor, data: Experiments, solver: Solver) -> Evaluated:
    """What the model says at z (draw, dataset, z); the log joint is -inf where the ODE fails."""
    holding = Holding(solver, hold=False)
    with torch.no_grad():
        run = model.run(z, data, holding)
    lead = tuple(z.shape[:-1])
    joint = joint_of(run)
    joint = torch.where(holding.failed(lead) | torch.isnan(joint), -torch.inf, joint)
    centres, widths, known = [], [], []
    shape = (*lead, *data.times.shape[-2:])
    for name, noise in run.noises.items():
        channel = data.channels[name]
        exact = channel.mask if channel.censoring is None else channel.mask & (channel.censoring == 0)
        used = exact.flatten(1).any(0).nonzero()[:, 0]
        centre, width = (v.flatten(2).index_select(2, used) for v in located(noise, shape))
        centres.append(centre)
        widths.append(width)
        exact = exact.flatten(1).index_select(1, used)
        known.append(torch.stack([exact, exact & (not noise_of(noise).support.is_discrete)]))
    return Evaluated(joint, torch.cat(centres, -1), torch.cat(widths, -1), torch.cat(known, -1)[:, None])
