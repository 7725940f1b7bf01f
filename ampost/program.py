"""What programs say (`odeint`, `observe`) and the handlers that answer the ODE effect.

`odeint` puts a message of type "ode" on Pyro's stack. A handler wraps the program, as in
`answering(proxy)(program)`; one around `MCMC(...).run()` answers nothing, because MCMC cuts outer
handlers off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor
from torch.distributions import Distribution

from ampost.censored import Censored
from ampost.errors import ModelError, OdeError
from ampost.experiments import INTERVAL, Channel, Doses, Experiments, Input
from ampost.ode.problem import Event, OdeProblem, RightHandSide, Solver, Trajectory
from ampost.ode.recorded import truth
from ampost.ode.solvers import default

CHANNEL = "ampost_channel"


def odeint(
    rhs: RightHandSide,
    initial: Mapping[str, Any],
    parameters: Mapping[str, Any],
    experiments: Experiments,
    doses: Doses | None = None,
    events: Mapping[str, Event] | None = None,
    name: str = "trajectory",
) -> Trajectory:
    """Solve an ODE inside a program: states at the experiments' times as `y.S` (..., experiment, time).

    Args:
        rhs: `rhs(t, y, p)` of scalars of one trajectory, torch operations only; returns a dict
            with one slope per state.
        initial: one value per state, broadcast to (..., experiment, 1).
        parameters: what `p` holds, broadcast likewise. One of `experiments.inputs` is a function of
            time: inside the right-hand side `p.F` is its value at t.
        experiments: when to look, and the doses.
        doses: in place of `experiments.doses` (delayed or scaled ones, say).
        events: `{"pulse": jump}`; a dose whose target is "pulse" calls `jump(y, p, amount)`, which
            returns the states that change, by name.
        name: told apart where a program solves more than once.
    """
    if not isinstance(experiments, Experiments):
        raise OdeError(
            f"the experiments of odeint {name!r} are a {type(experiments).__name__}, expected Experiments; to "
            f"look at plain times use Experiments.on([times], [names of what is looked at])"
        )
    for key, value in {**parameters, **(events or {})}.items():
        if callable(value) != (key in (events or {})):
            raise OdeError(
                f"{key!r} of odeint {name!r} is {value!r}, expected "
                + (
                    "a function jump(y, p, amount) that returns the states that change"
                    if key in (events or {})
                    else "a number, a tensor or one of experiments.inputs; write a function of t into the "
                    "right-hand side"
                )
            )
    return _ode(
        OdeProblem(
            name=name,
            rhs=rhs,
            initial=_tensors("initial state", initial, experiments),
            parameters=_tensors(
                "parameter", {k: v for k, v in parameters.items() if not isinstance(v, Input)}, experiments
            ),
            experiments=experiments,
            doses=experiments.doses if doses is None else doses,
            inputs={k: v for k, v in parameters.items() if isinstance(v, Input)},
            events=events or {},
        )
    )


def _tensors(kind: str, values: Mapping[str, Any], experiments: Experiments) -> dict[str, Tensor]:
    dtype, device = experiments.times.dtype, experiments.times.device
    out = {}
    for name, value in values.items():
        try:
            out[name] = torch.as_tensor(value, dtype=dtype, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OdeError(f"{kind} {name!r} is {value!r}, expected a number or a tensor of numbers") from error
    return out


@effectful(type="ode")
def _ode(problem: OdeProblem) -> Trajectory:
    return default()(problem)


class answering(Messenger):
    """Answer every `odeint` of a program by `solver`: `answering(proxy)(program)`."""

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.solver = solver

    def _pyro_ode(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        if not msg["done"]:
            msg["value"] = self.solver(msg["args"][0])
            msg["done"] = True


class recording(Messenger):
    """Record what was asked and answered: pairs of `OdeProblem` and `Trajectory`."""

    def __init__(self) -> None:
        super().__init__()
        self.solved: list[tuple[OdeProblem, Trajectory]] = []

    def _pyro_post_ode(self, msg: Any) -> None:  # noqa: ANN401
        self.solved.append((msg["args"][0], msg["value"]))


def replaying(solved: list[tuple[OdeProblem, Trajectory]]) -> Solver:
    """A solver that answers with what was recorded, by name, for the same parameters and times."""
    states: dict[str, list[Tensor]] = {}
    status: dict[str, list[Tensor]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for problem, trajectory in solved:
        states.setdefault(problem.name, []).append(trajectory.states)
        status.setdefault(problem.name, []).append(trajectory.status)
        names[problem.name] = trajectory.names

    def answer(problem: OdeProblem) -> Trajectory:
        given = (*problem.initial.values(), *problem.parameters.values())
        shape = torch.broadcast_shapes(problem.experiments.times.shape, *(v.shape for v in given))
        stored = _again(states[problem.name], (*shape, len(names[problem.name])))
        failed = _again(status[problem.name], shape[:-1])
        return Trajectory(problem.experiments.times, stored, failed, names[problem.name])

    return answer


def _again(parts: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Chunks end to end, in `shape`; what depends on no draw is the same for all of them."""
    joined = torch.cat(parts)
    return joined.reshape(shape) if joined.numel() == math.prod(shape) else parts[0].expand(shape)


def observe(name: str, noise: TorchDistribution, experiments: Experiments) -> Tensor | None:
    """What channel `name` shows: `noise` has shape (..., experiment, time) or broadcasts to it.

    Scored where the record holds values (a censored one by the probability of what is known of it), drawn
    where it holds none, absent where the record has no such channel.
    """
    _asked(name)
    channel = experiments.channels.get(name)
    if channel is None:
        return None
    shape = _spread(name, noise, channel.mask)
    over_experiments = IndepMessenger("experiments", experiments.count, dim=-2)
    over_time = IndepMessenger("time", experiments.times.shape[-1], dim=-1)
    wide = noise.expand(shape)
    observed = None if channel.values is None else _inside(wide, channel)
    if channel.values is not None and channel.censoring is not None:
        codes = torch.where(channel.mask, channel.censoring, 0)
        if truth((codes != 0).any()):
            wide = Censored(wide, codes, channel.upper if truth((codes == INTERVAL).any()) else None)
    marked: Any = {CHANNEL: name}
    with over_experiments, over_time:
        value: Tensor = pyro.sample(name, wide.mask(channel.mask), obs=observed, infer=marked)
    return value


def _spread(name: str, noise: TorchDistribution, mask: Tensor) -> torch.Size:
    """The noise's batch shape broadcast over experiments and times."""
    if not isinstance(noise, Distribution):
        raise ModelError(
            f"the noise of channel {name!r} is a {type(noise).__name__}, expected a distribution such as "
            f"dist.Normal(y.{name}, sigma)"
        )
    if noise.event_shape:
        raise ModelError(
            f"the noise of channel {name!r}, {type(noise).__name__}, has event shape "
            f"{tuple(noise.event_shape)}, expected one number per measurement; use a univariate noise"
        )
    try:
        shape: torch.Size = torch.broadcast_shapes(noise.batch_shape, mask.shape)
    except RuntimeError as error:
        raise ModelError(
            f"the noise of channel {name!r} has batch shape {tuple(noise.batch_shape)}, expected one that "
            f"broadcasts to (..., experiment, time) = {tuple(mask.shape)}; compute it from states of odeint, "
            f"experiments.times, conditions and sites"
        ) from error
    return shape


@effectful(type="channel")
def _asked(channel: str) -> None:
    """Tells handlers that the program observes `channel`, also where the record lacks it."""


def _inside(noise: TorchDistribution, channel: Channel) -> Tensor:
    """The values, with a point of the noise's support where nothing was measured."""
    assert channel.values is not None
    return torch.where(channel.mask, channel.values, _anywhere(noise.support))


def _anywhere(support: Any) -> float:  # noqa: ANN401 - torch's constraints are untyped
    """A number inside the support: masked entries need one, since NaN under a mask has NaN gradient."""
    support = getattr(support, "base_constraint", support)
    for number in (0.5, 1.0, 0.0, 2.0, -1.0):
        if bool(torch.as_tensor(support.check(torch.tensor(number))).all()):
            return number
    raise ModelError(f"no number was found inside the support {support}; use another noise")


def is_observation(site: Mapping[str, Any]) -> bool:
    """Whether a traced site was made by `observe`."""
    return CHANNEL in site["infer"]


Program = Callable[[Experiments], Any]
