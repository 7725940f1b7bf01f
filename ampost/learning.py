"""How an estimator learns: batches without end from the bank and the proxy, and the losses.

Each batch takes trajectories from the bank, or new parameters and protocols through the proxy, then fresh
times, masks and noise by the program. The loss is -log q(z | context), plus that of the point heads, whose
share in the context fades to zero at 70 % of the schedule. From there on trajectories are exact ones only:
rows made by a proxy teach the proxy's posterior.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ampost.accuracy import located
from ampost.architecture import Architecture
from ampost.bank import Bank
from ampost.errors import EstimatorError, TrainingError
from ampost.estimator import QUANTILES, Estimator, Layout, Networks, Reading, Teaching
from ampost.experiments import Experiments
from ampost.model import Model, Simulation
from ampost.ode.problem import Solver
from ampost.progress import tell
from ampost.proxy import HELD_OUT, Proxy, ProxySettings, proxy_error
from ampost.refining import Refining, refine
from ampost.seeds import derive, seeded
from ampost.tokens import Scaling, scaling_of, tokens
from ampost.training import FitReport, Schedule, digest, fit

FIRST = 0.5  # the share of the schedule's seconds before an estimator is refined
EXACT = 0.7  # the share of the schedule from which on trajectories are exact and point heads go alone
AT_ONCE = 8  # batches drawn in one pass over the program, where they are small
SLOTS = 300_000  # times in one such pass
VALIDATION = 2_000
PROXIED = 500  # fresh draws that the error of a proxy is measured on
TRACED = 64  # rows of a batch whose trajectories are reconstructed, in every TRACED_EVERY-th batch
TRACED_EVERY = 4


@dataclass(frozen=True)
class Settings:
    """How an estimator is trained: ODE solves for the bank, the schedule, batch and networks.

    Without an `architecture` the networks grow with the model, see `Architecture.suited`.
    `refining` adds a density about the mode (not where parameters differ between experiments), which takes some
    hundred ODE solves for each of its data sets; both share its seconds. With a `proxy`, that
    is trained too, `proxy_share` of the batches in the first 70 % of the schedule take new parameters through
    it, and the schedule's patience does not count. `reconstruction` trains a further head for the parameters
    whose trajectory is nearest, by gradients through the proxy.
    """

    simulations: int = 20_000
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 256
    architecture: Architecture | None = None
    refining: Refining | None = field(default_factory=Refining)
    proxy: ProxySettings | None = None
    proxy_share: float = 0.5
    reconstruction: bool = False

    def __post_init__(self) -> None:
        if self.reconstruction and self.proxy is None:
            raise EstimatorError(
                "Settings(reconstruction=True) decodes parameters by a proxy, and there is none; add "
                "proxy=ProxySettings()"
            )
        if not 0 <= self.proxy_share <= 1:
            raise EstimatorError(f"Settings(proxy_share={self.proxy_share}): expected a share, 0 to 1")
        if self.batch < 2 or self.batch % 2:
            raise EstimatorError(f"Settings(batch={self.batch}): expected an even number, of at least 2")

    def sizes(self, model: Model) -> Architecture:
        """The networks' sizes for a model."""
        if self.architecture is not None:
            return self.architecture
        return Architecture.suited(sum(site.size for site in model.sites()), len(model.channels))


@dataclass(frozen=True)
class Part:
    """Half of a batch: z, tokens with masks, and what there is to reconstruct."""

    z: Tensor
    seen: tuple[Tensor, ...]
    trace: _Trace | None = None


@dataclass(frozen=True)
class _Trace:
    """Looks at some rows of a batch, where their noise is centred by channel, and the unit of errors."""

    looks: Experiments
    centres: Mapping[str, Tensor]
    scale: Mapping[str, float]


@dataclass(frozen=True)
class _Drawn:
    """The batches of one turn: z, data, and the solver that made some of their rows."""

    key: tuple[int, bool]
    z: Tensor
    data: Experiments
    solver: Callable[[slice], Solver]


class Batches:
    """Batch k as parts: a function of k and the share of the schedule that is done. The last pass is kept."""

    def __init__(
        self, model: Model, bank: Bank, settings: Settings, scaling: Scaling, proxy: Proxy | None, seed: int
    ) -> None:
        self.model, self.bank, self.settings = model, bank, settings
        self.scaling, self.proxy, self.seed = scaling, proxy, seed
        times = max(look.rows[1] for look in model.design.channels.values())
        slots = times * model.design.experiments[1] * settings.batch
        self.at_once = max(1, min(AT_ONCE, SLOTS // slots))
        self._kept: _Drawn | None = None

    def __call__(self, k: int, done: float) -> list[Part]:
        turn, place = divmod(k, self.at_once)
        drawn = self._drawn(turn, self.by_proxy(turn, done - place / self.settings.schedule.steps))
        z, data = drawn.z, drawn.data
        size = self.settings.batch
        if self.settings.reconstruction:  # the program decodes, and it runs in one thread at a time
            halves = [slice(place * size, (place + 1) * size)]
        else:
            halves = [slice(place * size + a, place * size + b) for a, b in ((0, size // 2), (size // 2, size))]
        trace = None
        if self.settings.reconstruction and k % TRACED_EVERY == 0:
            rows = slice(halves[0].start, halves[0].start + min(TRACED, size))
            trace = _trace(self.model, z[rows], data.at(rows), drawn.solver(rows))
        return [Part(z[h].float(), tokens(data.at(h), self.scaling), trace) for h in halves]

    def by_proxy(self, turn: int, done: float) -> bool:
        """Whether the batches of a turn, which begins where `done` is done, are the proxy's."""
        ends = done + self.at_once / self.settings.schedule.steps
        if self.proxy is None or ends > EXACT + 1e-9:
            return False
        chosen = torch.Generator().manual_seed(derive(self.seed, "who", turn))
        return float(torch.rand((), generator=chosen)) < self.settings.proxy_share

    def _drawn(self, turn: int, by_proxy: bool) -> _Drawn:
        """The batches of a turn."""
        if self._kept is None or self._kept.key != (turn, by_proxy):
            self._kept = None  # it holds a window of the bank, beside which there is no room for another
            count = self.at_once * self.settings.batch
            if by_proxy:
                assert self.proxy is not None
                proxy = self.proxy
                looks = self.model.design.draw(count, derive(self.seed, "designs", turn))
                drawn = self.model.simulate_at(None, looks, derive(self.seed, "noise", turn), solver=proxy)
                kept = _kept(drawn, "by the proxy")

                def solver(rows: slice) -> Solver:
                    return proxy

            else:
                shard = self.bank.window(turn * self.at_once, self.seed)
                chosen = torch.Generator().manual_seed(derive(self.seed, "rows", turn))
                index = torch.randint(0, len(shard), (count,), generator=chosen)
                looks = self.model.design.draw_looks(
                    shard.protocols.at(index), derive(self.seed, "looks", turn)
                )
                noise = derive(self.seed, "noise", turn)
                drawn = self.model.simulate_at(shard.z[index], looks, noise, solver=shard.rows(index))
                kept = _kept(drawn, "from the bank")

                def solver(rows: slice) -> Solver:
                    return shard.rows(index[kept[rows]])

            self._kept = _Drawn((turn, by_proxy), drawn.z[kept], drawn.experiments.at(kept), solver)
        return self._kept


def _kept(drawn: Simulation, how: str) -> Tensor:
    """Indices (draw,) of draws that did not fail, as many as were drawn: what failed teaches nothing."""
    good = (~drawn.failed).nonzero()[:, 0]
    if not len(good):
        first = f"; the first: {drawn.failures[0]}" if drawn.failures else ""
        raise TrainingError(f"all {len(drawn.failed)} data sets drawn {how} failed{first}")
    return good[torch.arange(len(drawn.failed)) % len(good)]


def _trace(model: Model, z: Tensor, data: Experiments, solver: Solver) -> _Trace:
    """The centres of the noise at z by the solver that the data were drawn with."""
    looks = data.without_values()
    with torch.no_grad():
        centres = _centres(model, z, looks, solver)
    scale = {}
    for name, centre in centres.items():
        seen = centre[looks.channels[name].mask & torch.isfinite(centre)]
        scale[name] = max(float(seen.std()), 1e-12) if len(seen) > 1 else 1.0
    return _Trace(looks, centres, scale)


def _centres(model: Model, z: Tensor, looks: Experiments, solver: Solver) -> dict[str, Tensor]:
    """The centre of the noise by channel, each (draw, experiment, time)."""
    shape = tuple(looks.times.shape)
    return {name: located(noise, shape)[0] for name, noise in model.noises(z, looks, solver).items()}


def enough_rows(bank: Bank, settings: Settings) -> None:
    """Raise EstimatorError where a bank has fewer rows than a batch."""
    if len(bank) < settings.batch:
        raise EstimatorError(
            f"the bank has {len(bank)} rows, fewer than a batch of {settings.batch}; simulate more "
            f"(Settings(simulations=...)), or make the batch smaller (Settings(batch=...))"
        )


def train_estimator(
    model: Model,
    bank: Bank,
    settings: Settings,
    seed: int,
    *,
    proxy: Proxy | None = None,
    batches: type[Batches] | None = None,
    checkpoint: Path | None = None,
    show: bool | None = None,
) -> Estimator:
    """Train on the bank, and on the proxy if there is one, with fresh times, masks and noise in every batch.

    Batch k is a function of (seed, k). Validation is on fresh draws by the exact solver. With a `checkpoint`
    training goes on from there after a kill. Another kind of `batches` is for experiments with training itself.

    Raises:
        BankError: the bank is another model's or design's.
        EstimatorError: fewer rows in the bank than in a batch, or another model's proxy.
        TrainingError: the loss is not finite time and again, or the checkpoint is of another training.
    """
    bank.belongs_to(model)
    if proxy is not None:
        proxy.belongs_to(model)
    enough_rows(bank, settings)
    held_out = model.simulate(VALIDATION, derive(seed, "validation"))
    good = (~held_out.failed).nonzero()[:, 0]
    lost = len(held_out.failed) - len(good)
    why = str(held_out.failures[0]) if held_out.failures else "the reason is not known"
    if not len(good):
        raise TrainingError(f"all {lost} simulated data sets fail: {why}")
    if lost:
        told = f"{lost} of {len(held_out.failed)} simulated data sets fail, and are left out wherever they come"
        tell(f"{told}: {why}", show)
    z, data = held_out.z[good], held_out.experiments.at(good)
    scaling = scaling_of(model.channels, model.design, data)
    sizes = settings.sizes(model)
    with seeded(derive(seed, "weights")):
        networks = Networks(sizes, scaling, Layout.of(model), settings.reconstruction)
    source = (batches or Batches)(model, bank, settings, scaling, proxy, seed)
    seen = tokens(data, scaling)

    def validation() -> float:
        return _loss_of(networks, z, seen)

    taught = None if proxy is None else digest(proxy.networks)
    untimed = replace(settings, schedule=replace(settings.schedule, seconds=math.inf))
    identity = json.dumps([asdict(untimed), model.fingerprint(), seed, bank.origin.identity, len(bank), taught])
    refining = None if networks.layout.local else settings.refining
    schedule = settings.schedule
    if refining is not None:
        schedule = replace(schedule, seconds=FIRST * schedule.seconds)
    if proxy is not None:  # what a proxy taught is to be put right by exact trajectories
        schedule = replace(schedule, patience=schedule.steps)
    report = fit(
        networks,
        _losses(model, proxy),
        source,
        validation,
        schedule,
        checkpoint=checkpoint,
        identity=identity,
        show=show,
    )
    teaching = _teaching(model, bank, source, networks, report, proxy, seed)
    refined = None
    if refining is not None and not report.interrupted:
        left = max(settings.schedule.seconds - report.seconds, 0.3 * settings.schedule.seconds)
        try:
            refined, solves = refine(
                model,
                networks,
                sizes,
                scaling,
                refining,
                derive(seed, "refining"),
                seconds=left,
                checkpoint=checkpoint,
                show=show,
            )
            teaching = replace(teaching, solves=teaching.solves + solves)
            unread = not math.isfinite(refined.best)
        except KeyboardInterrupt:  # while modes were sought
            unread = True
        if unread:  # what there is, is the first density
            networks.refinement, refined, report = None, None, replace(report, interrupted=True)
    networks.eval()
    return Estimator(networks, sizes, scaling, model.design, model.fingerprint(), report, teaching, refined)


def _losses(model: Model, proxy: Proxy | None) -> Any:  # noqa: ANN401 - a loss for `fit`
    """The loss of a part: density, quantiles and, where a trace is there, its reconstruction."""
    levels = torch.tensor(QUANTILES)

    def loss(networks: Networks, part: Part, done: float) -> Tensor:
        reading = networks.read(part.seen)
        points = networks.points(reading, max(0.0, 1.0 - done / EXACT))
        missed = part.z[..., None] - points[..., : len(QUANTILES)]
        value = torch.maximum(levels * missed, (levels - 1) * missed).sum((1, 2)).mean()
        if part.trace is not None and proxy is not None:
            value = value + _reconstruction(
                model, proxy, points[: part.trace.looks.batch[0], :, -1], part.trace
            )
        return value - networks.log_density(part.z[None], reading).mean()

    return loss


def _reconstruction(model: Model, proxy: Proxy, z: Tensor, trace: _Trace) -> Tensor:
    """Error of trajectories through the proxy at z, in units of the spread of each channel.

    Quadratic where it is small, linear where it is large.
    """
    found = _centres(model, z.double(), trace.looks, proxy)
    errors = []
    for name, centre in trace.centres.items():
        mask = trace.looks.channels[name].mask & torch.isfinite(centre)
        missed = torch.where(mask, (found[name] - centre) / trace.scale[name], 0.0)
        # far from the truth the square would drown all else
        errors.append((missed.square() / (1 + missed.abs())).sum() / mask.sum().clamp(min=1))
    return torch.stack(errors).sum().float()


def _loss_of(networks: Networks, z: Tensor, seen: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        parts = [tuple(v.split(500)) for v in (z.float(), *seen)]
        total = 0.0
        for part, *rest in zip(*parts, strict=True):
            reading: Reading = networks.read(tuple(rest))
            total -= float(networks.log_density(part[None], reading).double().sum())
    return total / len(z)


def _teaching(
    model: Model,
    bank: Bank,
    batches: Batches,
    networks: Networks,
    report: FitReport,
    proxy: Proxy | None,
    seed: int,
) -> Teaching:
    """What was spent, the proxy's part and error, and how much lower the loss is on the bank's own rows."""
    shard = bank.window(0, seed)
    index = torch.arange(min(VALIDATION, len(shard)))
    looks = model.design.draw_looks(shard.protocols.at(index), derive(seed, "again"))
    drawn = model.simulate_at(shard.z[index], looks, derive(seed, "afresh"), solver=shard.rows(index))
    kept = _kept(drawn, "from the bank")
    mine = _loss_of(networks, drawn.z[kept], tokens(drawn.experiments.at(kept), batches.scaling))
    solves, error, share = bank.solves + VALIDATION, float("nan"), 0.0
    if proxy is not None:
        error = proxy_error(model, proxy, PROXIED, derive(seed, "proxy")).quantile(0.9)
        solves += PROXIED + HELD_OUT
        schedule, size = batches.settings.schedule, batches.at_once
        planned = schedule.steps if math.isinf(schedule.seconds) else report.steps
        taught = [batches.by_proxy(t, t * size / planned) for t in range(-(-report.steps // size))]
        share = sum(taught) / len(taught)
    return Teaching(solves, share, error, report.best - mine)
