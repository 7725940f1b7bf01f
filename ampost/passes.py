"""Handlers that run a program for a `Model`: latents from z or the prior, channels scored or drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ampost.bijection import Standard, bijection
from ampost.censored import Censored
from ampost.errors import ModelError, OdeError
from ampost.experiments import Experiments
from ampost.ode.failures import Failure, failures
from ampost.ode.problem import OdeProblem, Solver, Status, Trajectory
from ampost.ode.recorded import truth
from ampost.program import is_observation


@dataclass(frozen=True)
class Site:
    """One latent site: where it stands in z and how it is shaped.

    `batch` is its batch shape on the model's axes (..., experiment, 1), `event` its event shape,
    `z_event` the event shape in z (one less for a simplex). A `local` site has one value per experiment.
    """

    name: str
    batch: tuple[int, ...]
    event: tuple[int, ...]
    z_event: tuple[int, ...]
    start: int
    exact: bool
    standard: Standard | None
    local: bool

    @property
    def size(self) -> int:
        """How many coordinates of z it takes."""
        return int(torch.Size((*self.batch, *self.z_event)).numel())


class Holding:
    """A solver that remembers which rows failed and, if asked, holds their last finite state."""

    def __init__(self, solver: Solver, hold: bool = True) -> None:
        self.solver, self.hold = solver, hold
        self.statuses: list[Tensor] = []
        self.examples: list[Failure] = []

    def __call__(self, problem: OdeProblem) -> Trajectory:
        trajectory = self.solver(problem)
        self.statuses.append(trajectory.status)
        if self.hold and truth(trajectory.status.any()):
            self.examples += failures(problem, trajectory, most=3)
        return replace(trajectory, states=held(trajectory.states)) if self.hold else trajectory

    def failed(self, lead: tuple[int, ...]) -> Tensor:
        """Rows (*lead) with any failure."""
        failed = torch.zeros(lead, dtype=torch.bool)
        for status in self.statuses:
            bad = status != 0
            bad = bad.expand(torch.broadcast_shapes(bad.shape, (*lead, *(1,) * (bad.dim() - len(lead)))))
            failed = failed | (bad.flatten(len(lead)).any(-1) if bad.dim() > len(lead) else bad)
        return failed


def held(states: Tensor) -> Tensor:
    """States (..., time, state) with every non-finite entry replaced by the last finite one (or 0)."""
    good = torch.isfinite(states)
    if bool(good.all()):
        return states
    place = torch.arange(states.shape[-2])[:, None].expand_as(states)
    last = torch.where(good, place, 0).cummax(-2).values
    return torch.nan_to_num(states.gather(-2, last), nan=0.0, posinf=0.0, neginf=0.0)


def idle(problem: OdeProblem) -> Trajectory:
    """Answers an ODE without solving it: the initial state throughout. For what needs no trajectory."""
    shape = torch.broadcast_shapes(
        problem.experiments.times.shape, *(v.shape for v in problem.initial.values())
    )
    states = torch.stack([v.expand(shape) for v in problem.initial.values()], -1)
    status = torch.zeros(shape[:-1], dtype=torch.long)
    return Trajectory(problem.experiments.times, states, status, tuple(problem.initial))


class Pass(Messenger):
    """One pass: latents set from z, by their values or drawn from the prior, channels scored or drawn."""

    def __init__(
        self,
        sites: tuple[Site, ...],
        z: Tensor | None,
        lead: tuple[int, ...],
        depth: int,
        draw: bool,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.given = given
        self.sites = {site.name: site for site in sites}
        self.z, self.lead, self.depth, self.draw = z, lead, depth, draw
        self.z_parts: dict[str, Tensor] = {}
        self.theta: dict[str, Tensor] = {}
        self.site_log_prior: dict[str, Tensor] = {}
        self.total_log_prior = torch.zeros(lead, dtype=torch.float64)
        self.log_likelihood: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.noises: dict[str, Any] = {}
        self.counts: set[str] = set()
        self.deterministic: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        if msg["done"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        if msg["infer"].get("_deterministic"):
            self.deterministic[msg["name"]] = msg["value"]
        elif is_observation(msg):
            self._observation(msg)
        elif msg["name"] in self.sites:
            self._latent(msg, self.sites[msg["name"]])
        else:
            raise ModelError(f"site {msg['name']!r} was not there when the program was traced")
        msg["done"] = True

    def _latent(self, msg: Any, site: Site) -> None:  # noqa: ANN401
        fn = msg["fn"]
        map_ = bijection(fn, site.standard)
        shape = (*self.lead, *site.batch)
        if self.given is not None:
            theta = self.given[site.name].reshape(*shape, *site.event)
            z = map_.inverse(theta)
        elif self.z is not None:
            z = self.z[..., site.start : site.start + site.size].reshape(*shape, *site.z_event)
            theta = map_.forward(z)
        elif site.exact:
            z = torch.randn(*shape, *site.z_event)
            theta = map_.forward(z)
        else:
            theta = fn.expand(torch.Size(shape)).sample()
            z = map_.inverse(theta)
        self.z_parts[site.name] = z
        self.theta[site.name] = theta
        if not self.draw:
            log_prior = total(map_.log_prior(z, theta), self.lead, self.depth)
            self.total_log_prior = self.total_log_prior + log_prior
            self.site_log_prior[site.name] = total(fn.log_prob(theta), self.lead, self.depth)
        msg["value"] = theta

    def _observation(self, msg: Any) -> None:  # noqa: ANN401
        self.noises[msg["name"]] = msg["fn"]
        if msg["is_observed"]:
            self.log_likelihood[msg["name"]] = msg["fn"].log_prob(msg["value"])
            return
        fn = msg["fn"]
        if self.draw:
            shape = torch.broadcast_shapes(fn.batch_shape, (*self.lead, *(1,) * self.depth))
            msg["value"] = _drawn(msg["name"], fn.expand(shape))
            self.values[msg["name"]] = msg["value"]
            if noise_of(fn).support.is_discrete:
                self.counts.add(msg["name"])
        else:
            msg["value"] = torch.zeros(fn.batch_shape)

    def z_of(self, sites: tuple[Site, ...]) -> Tensor:
        """The z that was used, (*lead, z)."""
        parts = [self.z_parts[s.name].reshape(*self.lead, -1) for s in sites]
        return torch.cat(parts, -1)

    def named(self, sites: tuple[Site, ...]) -> dict[str, Tensor]:
        """Parameters as (*lead, ...): axes of size 1 dropped, but not the experiments of a local one."""
        out = {}
        for site in sites:
            experiments = len(site.batch) - 2 if site.local else -1
            kept = [n for k, n in enumerate(site.batch) if n > 1 or k == experiments]
            full = self.theta[site.name].expand(*self.lead, *site.batch, *site.event)
            out[site.name] = full.reshape(*self.lead, *kept, *site.event)
        return out


def _drawn(channel: str, noise: Any) -> Tensor:  # noqa: ANN401 - a distribution
    """A draw of a channel's noise.

    Raises:
        ModelError: some parameter of the noise is no number, or outside of what it may be.
    """
    try:
        value: Tensor = noise.sample()
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the noise of channel {channel!r}, {type(noise_of(noise)).__name__}, cannot be drawn at some "
            f"parameters of the prior ({str(error).splitlines()[0]}): a width is negative or no number, as "
            f"the root or logarithm of a negative number; keep it inside, as by clamp(min=1e-9)"
        ) from error
    return value


class PriorDraw(Messenger):
    """Latents drawn as the program says, channels not drawn at all."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if is_observation(msg) and not msg["is_observed"]:
            msg["value"], msg["done"] = torch.zeros(msg["fn"].batch_shape), True

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401
        if not is_observation(msg) and not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"]


@dataclass(frozen=True)
class NoNumber:
    """A drawn value that is not a finite number: where, and at which parameters."""

    channel: str
    value: float
    time: float
    parameters: Mapping[str, float]

    def __str__(self) -> str:
        at = ", ".join(f"{name} {value:.4g}" for name, value in self.parameters.items())
        why = (
            "its noise is so wide that values are beyond float64; narrow the prior of its width"
            if math.isinf(self.value)
            else "a parameter of its noise is no number there, as the logarithm of a state that a solver "
            "leaves a trifle below 0; keep it inside, as by y.A.clamp(min=1e-9) before the logarithm"
        )
        where = f"channel {self.channel!r} is drawn as {self.value:g} at time {self.time:.6g}"
        return f"{where} (parameters {at}): {why}"


def no_numbers(
    looks: Experiments, values: Mapping[str, Tensor], parameters: Mapping[str, Tensor], failed: Tensor
) -> Iterator[NoNumber]:
    """The first drawn value of each channel that is not finite, of draws that were solved."""
    for name, value in values.items():
        if name not in looks.channels:
            continue
        bad = looks.channels[name].mask & ~torch.isfinite(value) & ~failed[:, None, None]
        if bool(bad.any()):
            d, e, t = bad.nonzero()[0].tolist()
            at = {k: float(v[d]) for k, v in parameters.items() if v[d].numel() == 1}
            yield NoNumber(name, float(value[d, e, t]), float(looks.times[d, e, t]), at)


class Asked(Messenger):
    """Which channels the program observes."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: list[str] = []

    def _pyro_channel(self, msg: Any) -> None:  # noqa: ANN401
        name = msg["args"][0]
        if name in self.channels:
            raise ModelError(
                f"the program observes channel {name!r} twice; observe it once (replicates are further rows "
                f"of the table), or give the second one a name of its own"
            )
        self.channels.append(name)


def watched(experiments: Experiments, read: list[str]) -> Experiments:
    """The same record, which notes the channels whose columns are read."""

    class Watched(Experiments):
        def column(self, name: str, channel: str) -> Tensor:
            read.append(channel)
            return super().column(name, channel)

    return Watched(**{f.name: getattr(experiments, f.name) for f in fields(experiments)})


class Fixed(Messenger):
    """Latent sites held at given values and hidden from every other handler."""

    def __init__(self, values: Mapping[str, float]) -> None:
        super().__init__()
        self.fixed = values

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if msg["name"] in self.fixed:
            msg["value"] = torch.as_tensor(self.fixed[msg["name"]], dtype=torch.float64)
            msg["done"] = msg["stop"] = True


def refuse_same_names(solved: list[tuple[OdeProblem, Trajectory]]) -> None:
    """Refuse a program whose ODEs cannot be told apart (`solved` in one run of it)."""
    names = [problem.name for problem, _ in solved]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(
                f"the program calls odeint {names.count(name)} times under the name {name!r}; tell them "
                f"apart by odeint(..., name=...)"
            )


def refuse_dead_odes(solved: list[tuple[OdeProblem, Trajectory]]) -> None:
    """Refuse a program one of whose ODEs is NaN right after its start, in every one of its runs."""
    alive = {
        problem.name
        for problem, trajectory in solved
        if bool((trajectory.status != Status.NOT_FINITE).any())
        or not bool((trajectory.times > problem.experiments.start).any())
        or bool(torch.isfinite(trajectory.states[trajectory.times > problem.experiments.start]).any())
    }
    for problem, _ in solved:
        if problem.name not in alive:
            tries = sum(other.name == problem.name for other, _ in solved)
            raise OdeError(
                f"odeint {problem.name!r} gives NaN from its start on at each of {tries} prior draws, "
                f"expected finite states {', '.join(problem.initial)}: {Status.NOT_FINITE.remedy}"
            )


def noise_of(fn: Any) -> Any:  # noqa: ANN401 - a distribution
    """The noise itself, without the mask and the censoring around it."""
    while isinstance(fn, MaskedDistribution | Censored):
        fn = fn.base_dist
    return fn


def joint_of(run: Pass) -> Tensor:
    """Log joint (*lead) of a pass that scored; NaN where a likelihood is none."""
    joint = run.total_log_prior
    for value in run.log_likelihood.values():
        joint = joint + total(value, run.lead, run.depth)
    return joint


def total(value: Tensor, lead: tuple[int, ...], depth: int) -> Tensor:
    """`value` (broadcasting to (*lead, ...depth)) summed over the model's own axes."""
    full = value.expand(torch.broadcast_shapes(value.shape, (*lead, *(1,) * depth)))
    return full.flatten(len(lead)).sum(-1)


@contextmanager
def double() -> Iterator[None]:
    """float64 and no argument checks, as MCMC runs programs; both restored."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        torch.set_default_dtype(dtype)
