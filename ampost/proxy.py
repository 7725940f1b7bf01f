"""The learned proxy: a network that answers a program's ODEs, as a `Solver`.

It goes from edge to edge by a flow map that a bank taught it; doses and events are applied exactly. So
`answering(proxy)(program)` runs a program on it, and gradients flow to parameters, initial states and doses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ampost import files
from ampost.accuracy import apart, located, noise_units
from ampost.bank import Bank
from ampost.behaviour import difference
from ampost.design import Design, tuples
from ampost.errors import EstimatorError, TrainingError
from ampost.experiments import Channel, Experiments
from ampost.flowmap import FlowMap, Layout, solve
from ampost.lessons import (
    Ground,
    Lesson,
    Whole,
    drawn,
    grounds_of,
    layout_of,
    learn_scales,
    missed,
    seen_by_noise,
    seen_relatively,
    sensitivities,
    whole,
)
from ampost.model import Model
from ampost.ode.problem import OdeProblem, Status, Trajectory, check, flatten
from ampost.program import recording
from ampost.seeds import derive, seeded
from ampost.shards import Shard
from ampost.stretches import some
from ampost.training import FitReport, Schedule, fit

POINTS = 2**16  # begins and looks that are answered at a time
HELD_OUT = 200  # draws that weights are chosen by
FINEST = 200  # times of an example
SMOOTH, SPANNED = 48, 6  # knots of a trajectory that is one stretch; those of a stretch of others


@dataclass(frozen=True)
class ProxySettings:
    """How a proxy is trained: sizes of its networks, the longest stretch, draws in a batch, the schedule.

    Stretches end at edges (doses, ends of infusions, breakpoints of inputs) and are no longer than `longest`.
    Without it the bank decides: where its trajectories bend so often that they took more than 48 knots, a
    stretch spans about six of these, and else it goes from edge to edge, as with `longest=math.inf`. In the
    last share `unrolled` of the schedule whole trajectories are learnt, so that errors do not add up.
    """

    width: int = 128
    depth: int = 2
    trunk: int = 64
    longest: float | None = None
    batch: int = 64
    unrolled: float = 0.2
    schedule: Schedule = field(default_factory=lambda: Schedule(20_000, patience=100, validate_every=1_000))

    def __post_init__(self) -> None:
        for name in ("width", "trunk", "batch"):
            if getattr(self, name) < 2:
                raise TrainingError(f"ProxySettings({name}={getattr(self, name)}): expected at least 2")
        if self.batch % 2:
            raise TrainingError(f"ProxySettings(batch={self.batch}): expected an even number, for two halves")
        if self.depth < 0:
            raise TrainingError(f"ProxySettings(depth={self.depth}): expected 0 or more")
        if self.longest is not None and not self.longest > 0:
            raise TrainingError(f"ProxySettings(longest={self.longest}): expected a positive time, or None")
        if not 0 <= self.unrolled <= 1:
            raise TrainingError(f"ProxySettings(unrolled={self.unrolled}): expected a share, 0 to 1")


@dataclass(frozen=True)
class Proxy:
    """A learned solver; each of its networks stands for one `odeint` of the program.

    It is smooth in the parameters. Far outside the prior and design that it was trained for it extrapolates:
    it answers, with status OK, and is wrong.
    """

    networks: nn.ModuleList
    settings: ProxySettings
    design: Design
    fingerprint: Mapping[str, Any]
    report: FitReport

    def __call__(self, problem: OdeProblem) -> Trajectory:
        """The trajectory of `problem` at its experiments' times.

        Raises:
            EstimatorError: an ODE of another name, or with other states, parameters, inputs or events.
        """
        return _answered(self.networks, problem)

    @property
    def flows(self) -> tuple[FlowMap, ...]:
        """The networks."""
        return _flows(self.networks)

    def belongs_to(self, model: Model) -> None:
        """Raise EstimatorError unless this proxy was trained for `model`'s behaviour."""
        differs = difference(self.fingerprint, model, self.design)
        if differs is not None:
            raise EstimatorError(
                f"the proxy was trained for another model: {differs}; train one for this model (train_proxy)"
            )

    def save(self, path: str | Path) -> None:
        """Write to one file: safetensors with a JSON header, atomic, checksummed."""
        header = {
            "settings": asdict(self.settings),
            "layouts": [asdict(flow.layout) for flow in self.flows],
            "design": self.design.to_json(),
            "fingerprint": self.fingerprint,
            "report": asdict(self.report),
        }
        files.save(path, "proxy", header, self.networks.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> Proxy:
        """Read what `save` wrote."""
        header, tensors = files.load(path, "proxy")
        stored = header["settings"]
        settings = ProxySettings(**{**stored, "schedule": Schedule(**stored["schedule"])})
        networks = _networks([Layout(**tuples(layout)) for layout in header["layouts"]], settings)
        networks.load_state_dict(tensors)
        report = FitReport(**tuples(header["report"]))
        return cls(
            _frozen(networks), settings, Design.from_json(header["design"]), header["fingerprint"], report
        )


def train_proxy(
    model: Model,
    bank: Bank,
    settings: ProxySettings | None = None,
    seed: int = 0,
    *,
    checkpoint: Path | None = None,
    show: bool | None = None,
) -> Proxy:
    """Teach a proxy the ODEs of `model` from a bank; batch k is a function of (seed, k).

    Weights are chosen by the 90 % quantile of `proxy_error` on fresh draws, by the exact solver. With a
    `checkpoint` training goes on from there after a kill.

    Raises:
        BankError: the bank is another model's or design's.
        TrainingError: an ODE covers no time, the loss is not finite time and again, or the checkpoint is of
            another training.
    """
    settings = ProxySettings() if settings is None else settings
    bank.belongs_to(model)
    first = bank.window(0, seed)
    longest = settings.longest or _bending(model, bank)
    found = grounds_of(model, first, longest)
    seen = sensitivities(model, first, seed)
    layouts, noise = [], []
    for ground in found:
        states, unit = seen[ground.problem.name]
        relative = seen_relatively(states, unit, first.tracks[ground.problem.name].states)
        layouts.append(layout_of(ground, relative))
        noise.append(torch.where(torch.tensor(relative), unit * states, unit).flatten(0, -2))
    with seeded(derive(seed, "weights")):
        networks = _networks(layouts, settings)
    del first, found  # windows of the bank, of which there is room for one
    lessons = _Lessons(model, bank, settings, networks, seed)
    for flow, ground, unit in zip(_flows(networks), lessons.grounds(0), noise, strict=True):
        learn_scales(flow, ground, unit, derive(seed, "scales"))
    held_out = model.simulate(HELD_OUT, derive(seed, "held out"))
    z, looks = held_out.z[~held_out.failed], held_out.experiments.at(~held_out.failed)

    with torch.no_grad():
        exact = model.noises(z, looks, model.solver)

    def validation() -> float:
        mine = model.noises(z, looks, lambda problem: _answered(networks, problem))
        return float(_total(apart(looks, exact, mine), looks).quantile(0.9))

    report = fit(
        networks,
        _loss,
        lessons,
        validation,
        settings.schedule,
        checkpoint=checkpoint,
        identity=json.dumps(
            ["proxy", asdict(settings), longest, model.fingerprint(), seed, bank.origin.identity, len(bank)]
        ),
        what="training the proxy",
        show=show,
    )
    return Proxy(_frozen(networks), settings, model.design, model.fingerprint(), report)


def _bending(model: Model, bank: Bank) -> float:
    """The longest stretch, by how many knots a trajectory of the bank took."""
    knots, span = bank.origin.knots, model.design.horizon - model.design.start
    return math.inf if knots <= SMOOTH else SPANNED * span / knots


class _Lessons:
    """Batch k in two halves, of one lesson for each network; the grounds of the present window are kept."""

    def __init__(
        self, model: Model, bank: Bank, settings: ProxySettings, networks: nn.ModuleList, seed: int
    ) -> None:
        self.model, self.bank, self.settings, self.networks, self.seed = model, bank, settings, networks, seed
        self._kept: tuple[Shard, list[Ground]] | None = None

    def grounds(self, k: int) -> list[Ground]:
        """The ODEs of the bank's window at step k."""
        shard = self.bank.window(k, self.seed)
        if self._kept is None or self._kept[0] is not shard:
            self._kept = None
            limits = {flow.layout.name: flow.layout.longest for flow in _flows(self.networks)}
            self._kept = shard, grounds_of(self.model, shard, limits)
        return self._kept[1]

    def __call__(self, k: int, done: float) -> list[list[Lesson | Whole]]:
        teach = whole if done >= 1 - self.settings.unrolled else drawn
        half = self.settings.batch // 2
        return [
            [
                teach(ground, flow, half, derive(self.seed, "lesson", k, part, flow.layout.name))
                for ground, flow in zip(self.grounds(k), _flows(self.networks), strict=True)
            ]
            for part in range(2)
        ]


def _loss(networks: nn.ModuleList, part: list[Lesson | Whole], done: float) -> Tensor:
    """The sum over networks of what each missed."""
    flows = _flows(networks)
    return torch.stack([missed(flow, lesson) for flow, lesson in zip(flows, part, strict=True)]).sum()


def _answered(networks: nn.ModuleList, problem: OdeProblem) -> Trajectory:
    """The trajectory of a problem by the network of its name."""
    check(problem)
    flow = _flow(networks, problem)
    rows = flatten(problem)
    width = max(1, POINTS // (rows.times.shape[1] + rows.dose_time.shape[1] + 1))
    parts = [slice(k, k + width) for k in range(0, len(rows.times), width)]
    found = [solve(flow, problem, some(rows, part)) for part in parts]
    states = torch.cat(found) if len(found) > 1 else found[0]
    early = (rows.dose_mask & ~(rows.dose_time >= rows.start_time)).any(1)
    finite = torch.isfinite(states).flatten(1).all(1)
    status = torch.where(finite, int(Status.OK), int(Status.NOT_FINITE))
    status = torch.where(early, int(Status.DOSE_BEFORE_START), status)
    states = torch.where(early[:, None, None], torch.nan, states)
    return Trajectory(
        rows.times.reshape(*rows.batch, -1),
        states.reshape(*rows.batch, *states.shape[1:]),
        status.reshape(rows.batch),
        flow.layout.states,
    )


def _flow(networks: nn.ModuleList, problem: OdeProblem) -> FlowMap:
    flows = {flow.layout.name: flow for flow in _flows(networks)}
    if problem.name not in flows:
        raise EstimatorError(
            f"the proxy has learnt odeint {', '.join(map(repr, flows))}, not {problem.name!r}; train one for "
            f"this program (train_proxy), or use the exact solver"
        )
    layout = flows[problem.name].layout
    for kind, names, learnt in (
        ("states", problem.initial, layout.states),
        ("parameters", problem.parameters, layout.parameters),
        ("inputs", problem.inputs, layout.inputs),
        ("events", problem.events, layout.events),
    ):
        if tuple(names) != learnt:
            raise EstimatorError(
                f"odeint {problem.name!r} has the {kind} {', '.join(names) or 'none'}; the proxy has learnt "
                f"it with {', '.join(learnt) or 'none'}, in this order: train one for it (train_proxy)"
            )
    return flows[problem.name]


def _flows(networks: nn.ModuleList) -> tuple[FlowMap, ...]:
    return tuple(flow for flow in networks if isinstance(flow, FlowMap))


def _networks(layouts: list[Layout], settings: ProxySettings) -> nn.ModuleList:
    return nn.ModuleList(FlowMap(layout, settings.width, settings.depth, settings.trunk) for layout in layouts)


def _frozen(networks: nn.ModuleList) -> nn.ModuleList:
    """Networks whose weights take no gradient; what goes in does."""
    networks.requires_grad_(False)
    networks.eval()
    return networks


def _total(units: Mapping[str, Tensor], looks: Experiments) -> Tensor:
    """The root of the sum of squares of errors (draw,); infinite where any of them is not known."""
    total = torch.zeros(len(looks.live), dtype=torch.float64)
    for name, off in units.items():
        known = torch.where(looks.channels[name].mask, off.nan_to_num(torch.inf), 0.0)
        total = total + known.square().sum((-1, -2))
    return total.sqrt()


@dataclass(frozen=True)
class Spread:
    """How large errors are: root mean square, and the 90 % quantile of their size."""

    rms: float
    most: float

    @classmethod
    def of(cls, errors: Tensor) -> Spread:
        """Of those that are known, infinite ones too."""
        known = errors[~torch.isnan(errors)].numpy()
        if not known.size:
            return cls(math.nan, math.nan)
        return cls(float(np.sqrt(np.mean(known**2))), float(np.quantile(np.abs(known), 0.9, method="higher")))


@dataclass(frozen=True)
class Example:
    """One draw at many times (experiment, time): the centre of the noise by channel, exact and by the proxy."""

    error: float
    times: Tensor
    exact: Mapping[str, Tensor]
    proxy: Mapping[str, Tensor]


@dataclass(frozen=True)
class ProxyError:
    """How far a proxy is from the exact solver on fresh draws.

    `total` (draw,) is the root of the sum over measured points of ((proxy - exact) / sigma)^2, with the draw's
    own sigma; `channels` are errors of points in units of sigma, `states` those of each state at the measured
    times, in units of sigma by what the channels show of it. A state that no channel shows is in `unseen`, in
    units of its spread (of that of its logarithm, where the proxy learnt that). `examples` are the worst draws,
    then the median ones.
    """

    total: Tensor
    units: Mapping[str, Tensor]
    channels: Mapping[str, Spread]
    states: Mapping[str, Spread]
    unseen: Mapping[str, Spread]
    examples: tuple[Example, ...]
    names: Mapping[str, str]

    def quantile(self, share: float) -> float:
        """The total error that this share of draws stays below."""
        return float(np.quantile(self.total.numpy(), share))


def proxy_error(model: Model, proxy: Proxy, count: int = 1_000, seed: int = 0) -> ProxyError:
    """Compare a proxy with the exact solver on `count` fresh draws of prior and design."""
    if count < 1:
        raise EstimatorError(f"proxy_error(count={count}): expected at least one draw")
    held_out = model.simulate(count, derive(seed, "proxy error"))
    good = ~held_out.failed
    z, looks = held_out.z[good], held_out.experiments.at(good)
    units = noise_units(model, z, looks, model.solver, proxy)
    total = _total(units, looks)
    order = total.argsort(descending=True)
    middle = len(order) // 2
    chosen = torch.cat([order[:2], order[middle : middle + 2]])
    return ProxyError(
        total,
        units,
        {name: Spread.of(v) for name, v in units.items()},
        *_state_errors(model, proxy, z, looks),
        tuple(_example(model, proxy, z, looks, int(k), float(total[k])) for k in chosen),
        dict(model.units),
    )


def _state_errors(
    model: Model, proxy: Proxy, z: Tensor, looks: Experiments
) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """By state, or "odeint state" where the program has several: those that channels show, and the others."""
    exact = seen_by_noise(model, z, looks, model.solver)
    with recording() as asked, torch.no_grad():
        model.noises(z, looks, proxy)
    mine = {problem.name: trajectory.states for problem, trajectory in asked.solved}
    seen, unseen = {}, {}
    for flow in proxy.flows:
        states, slope = exact[flow.layout.name]
        answer = mine[flow.layout.name]
        apart = flow.coordinates(answer) - flow.coordinates(states)
        for k, name in enumerate(flow.layout.states):
            label = name if len(proxy.flows) == 1 else f"{flow.layout.name} {name}"
            shown = slope[..., k] > 0
            if bool(shown.any()):
                there, here = answer[..., k], states[..., k]
                off = there - here
                if flow.layout.logarithmic[k]:  # a large error is not first order in the state itself
                    off = here * apart[..., k] * flow.spread[k]
                off = off * slope[..., k]
                seen[label] = Spread.of(torch.where(shown, off, torch.nan))
            else:
                unseen[label] = Spread.of(apart[..., k])
    return seen, unseen


def _example(model: Model, proxy: Proxy, z: Tensor, looks: Experiments, k: int, error: float) -> Example:
    """One draw seen everywhere in all channels."""
    one = looks.at(slice(k, k + 1))
    share = torch.linspace(0.0, 1.0, FINEST, dtype=torch.float64)
    start, end = model.design.start, model.design.horizon
    times = (start + (end - start) * share).expand(*one.live.shape, FINEST).contiguous()
    everywhere = torch.ones_like(times, dtype=torch.bool)
    seen = {
        name: Channel(
            everywhere,
            sd=None if channel.sd is None else _spread_out(channel.sd, channel.mask),
            columns={c: _spread_out(v, channel.mask) for c, v in channel.columns.items()},
        )
        for name, channel in one.channels.items()
    }
    fine = replace(one, times=times, channels=seen, after_dose=~everywhere)
    centres = []
    with torch.no_grad():
        for solver in (model.solver, proxy):
            noises = model.noises(z[k : k + 1], fine, solver)
            centres.append({n: located(noise, tuple(times.shape))[0][0] for n, noise in noises.items()})
    return Example(error, times[0], *centres)


def _spread_out(column: Tensor, mask: Tensor) -> Tensor:
    """The mean of a column where it is known, at every time of a fine grid."""
    total = torch.where(mask, column, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return total.expand(*total.shape[:-1], FINEST)
