"""A proxy for one data set: its trajectories as polynomials in z, about where its posterior lies.

A posterior is narrow beside its prior, and there a trajectory is nearly a quadratic function of the parameters,
whatever it is elsewhere. The polynomials are fitted by least squares to trajectories that weighting draws has
solved; prior and noise are the program's own. What is shaped by such a proxy is a proposal: its draws are
weighed by the ODE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from ampost.chains import Local
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.ode.problem import OdeProblem, Status, Trajectory
from ampost.passes import joint_of
from ampost.program import recording

HIGHEST = 4  # degree
DRAWS = 3  # that every term of a polynomial takes
TERMS = 600  # at most
PENALTY = 1e-6  # of a fit, of the terms' mean square
WITHIN = 0.99  # share of the weight that a proxy answers as far out as
VALUES = 10_000_000  # of trajectories at once
KEPT = 20_000_000  # of trajectories that are kept of a round


@dataclass(frozen=True)
class Answers:
    """Log joint (draw,) at z (draw, z), and the states of each ODE (draw, experiment, time, state)."""

    z: Tensor
    log_joint: Tensor
    states: Mapping[str, Tensor]

    @property
    def values(self) -> int:
        """Numbers in the trajectories of a draw."""
        return sum(value[0].numel() for value in self.states.values())


def answers(model: Model, data: Experiments, z: Tensor) -> Answers:
    """What the ODEs of the program say at z (draw, 1, z) of one data set.

    States are left out where they would fill the memory.
    """
    with torch.no_grad(), recording() as record:
        joint = model.log_joint(z, data)[:, 0]
    found: dict[str, list[Tensor]] = {}
    for problem, trajectory in record.solved:
        found.setdefault(problem.name, []).append(trajectory.states)
    # states that depend on no parameter come once
    states = {
        name: torch.cat(parts)[:, 0].expand(len(z), *parts[0].shape[2:])
        if sum(len(part) for part in parts) == len(z)
        else parts[0][:1, 0].expand(len(z), *parts[0].shape[2:])
        for name, parts in found.items()
    }
    told = Answers(z[:, 0], joint, states)
    return replace(told, states={}) if len(z) * told.values > KEPT else told


def joined(parts: list[Answers]) -> Answers:
    """Answers to several calls as one, with the states that all have."""
    names = [name for name in parts[0].states if all(name in p.states for p in parts)]
    return Answers(
        torch.cat([p.z for p in parts]),
        torch.cat([p.log_joint for p in parts]),
        {name: torch.cat([p.states[name] for p in parts]) for name in names},
    )


@dataclass(frozen=True)
class Nearby:
    """Polynomials of the states of each ODE in coordinates `local`; it answers within a `radius` there."""

    model: Model
    data: Experiments
    local: Local
    powers: tuple[tuple[int, ...], ...]
    coefficients: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    radius: float

    def __call__(self, z: Tensor) -> Tensor:
        """Log joint (draw, 1) of z (draw, 1, z); -inf beyond the radius."""
        values = sum(math.prod(shape) for shape in self.shapes.values()) + HIGHEST * len(self.powers)
        return torch.cat([self._joint(part) for part in z.split(max(1, VALUES // values))])

    def _joint(self, z: Tensor) -> Tensor:
        u = self.local.standard(z[:, 0])
        terms = _terms(u, self.powers)

        def solver(problem: OdeProblem) -> Trajectory:
            shape = self.shapes[problem.name]
            states = (terms @ self.coefficients[problem.name]).reshape(len(z), 1, *shape)
            status = torch.full(states.shape[:-2], Status.OK)
            return Trajectory(problem.experiments.times, states, status, tuple(problem.initial))

        with torch.no_grad():
            joint = joint_of(self.model.run(z, self.data, solver))
        far = u.square().sum(-1) > self.radius**2
        return torch.where(far[:, None] | torch.isnan(joint), -torch.inf, joint)


def nearby(model: Model, data: Experiments, local: Local, told: Answers, weight: Tensor) -> Nearby | None:
    """Polynomials fitted to weighted answers, of the degree that so many can carry.

    None where that is below two, and where the program solves no ODE.
    """
    states = {name: value.flatten(1) for name, value in told.states.items()}
    used = (weight > 0) & torch.isfinite(told.log_joint)
    for value in states.values():
        used &= torch.isfinite(value).all(1)
    size = told.z.shape[1]
    most = min(int(used.sum()) // DRAWS, TERMS)
    degree = max((k for k in range(HIGHEST + 1) if math.comb(size + k, k) <= most), default=0)
    if degree < 2 or not states:
        return None
    powers = tuple(term for k in range(degree + 1) for term in combinations_with_replacement(range(size), k))
    u = local.standard(told.z[used])
    terms = _terms(u, powers)
    weighted = terms * (weight[used] / weight[used].mean())[:, None]
    square = weighted.mT @ terms
    square += PENALTY * square.diagonal().mean() * torch.eye(len(powers), dtype=square.dtype)
    return Nearby(
        model,
        data.unsqueezed(1) if not data.batch else data,
        local,
        powers,
        {name: torch.linalg.solve(square, weighted.mT @ value[used]) for name, value in states.items()},
        {name: tuple(value.shape[1:]) for name, value in told.states.items()},
        _reach(u, weight[used]),
    )


def _reach(u: Tensor, weight: Tensor) -> float:
    """How far out weighted draws u (draw, z) go, but for the last few of their weight."""
    far = u.norm(dim=-1)
    order = far.argsort()
    inside = (weight[order].cumsum(0) <= WITHIN * weight.sum()).sum()
    return float(far[order[inside.clamp(max=len(far) - 1)]])


def _terms(u: Tensor, powers: tuple[tuple[int, ...], ...]) -> Tensor:
    """Products (draw, term) of coordinates u (draw, z)."""
    found = [torch.ones_like(u[:, :1])]
    for degree in range(1, max(len(term) for term in powers) + 1):
        index = torch.tensor([term for term in powers if len(term) == degree])
        found.append(u[:, index].prod(-1))
    return torch.cat(found, 1)
