"""How an estimator is refined: a second density, in coordinates where the posterior is almost normal.

Data sets are drawn afresh and solved exactly; from draws of the first density Gauss-Newton steps find each
mode, and the coordinates follow the ridge there; what is left to learn is how the posterior differs from a
normal. The embedding stays as it is. Where data sets are few for the parameters, noise on what the density is
given keeps it from learning by heart.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path

import torch
from torch import Tensor

from ampost import files
from ampost.architecture import Architecture
from ampost.errors import FileError, TrainingError
from ampost.estimator import Networks, Refinement, about_mode
from ampost.model import Model
from ampost.progress import progress
from ampost.seeds import derive, seeded
from ampost.tokens import Scaling, tokens
from ampost.training import FitReport, Schedule, digest, fit, half_of_the_cores

CHUNK = 500  # data sets at once; chunk k is a function of (seed, k)
LEAST = 1_000  # data sets, however little time there is
HELD_OUT = 0.1  # their share to validate on
BLUR = 200  # noise on what the density is given is this times parameters over data sets, at most 1
EPOCHS = 100  # times that the density sees each data set, at most: beyond, it learns them by heart
SEARCH = 0.75  # the share of the time in which modes are sought; a search is slow, the density learns fast


_Part = tuple[Tensor, Tensor]  # data sets, and noise on what the density is given


@dataclass(frozen=True)
class Refining:
    """How the density about the mode is trained: from how many data sets (in chunks of 500), and how."""

    datasets: int = 10_000
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=3_000, rate=1e-3, validate_every=100))
    batch: int = 512

    def __post_init__(self) -> None:
        if self.batch < 2 or self.batch % 2:
            raise TrainingError(f"Refining(batch={self.batch}): expected an even number, of at least 2")
        least = 2 * self.batch
        if self.datasets < least:
            raise TrainingError(
                f"Refining(datasets={self.datasets}, batch={self.batch}): expected at least {least} data sets, "
                f"two batches"
            )


@dataclass(frozen=True)
class _Lessons:
    """What the density about the mode learns from, by data set: its features, and the true z there.

    `wide` is the log density of the truth given the context alone, `scale` the log determinant of the map.
    """

    features: Tensor
    standard: Tensor
    scale: Tensor
    wide: Tensor
    solves: Tensor


def refine(
    model: Model,
    networks: Networks,
    sizes: Architecture,
    scaling: Scaling,
    settings: Refining,
    seed: int,
    *,
    seconds: float = math.inf,
    checkpoint: Path | None = None,
    show: bool | None = None,
) -> tuple[FitReport, int]:
    """Give trained networks a density about the mode; the report of its training, and the ODE solves spent.

    At most three quarters of `seconds` go to the data sets, unless they are fewer than 1,000 then. With a
    `checkpoint`, chunks of them are kept beside it.
    """
    with seeded(derive(seed, "weights")):
        refinement = networks.refine(sizes)
    mark = digest(networks)
    lessons, searched = _lessons(
        model, networks, scaling, settings, seed, mark, SEARCH * seconds, checkpoint, show
    )
    count = len(lessons.scale)
    held_out = int(HELD_OUT * count)
    refinement.scale_by(lessons.features[held_out:])
    blur = min(1.0, BLUR * lessons.standard.shape[1] / count)

    def batch_at(k: int, done: float) -> list[_Part]:
        chosen = torch.Generator().manual_seed(derive(seed, "batch", k))
        index = torch.randint(held_out, count, (settings.batch,), generator=chosen)
        noise = blur * torch.randn(len(index), lessons.features.shape[1], generator=chosen)
        return list(zip(index.chunk(2), noise.chunk(2), strict=True))

    def loss(module: Refinement, part: _Part, done: float) -> Tensor:
        return _loss(module, lessons, *part)

    def validation() -> float:
        return float(_loss(refinement, lessons, torch.arange(held_out)))

    left = max(seconds - searched, 0.2 * seconds)
    steps = min(settings.schedule.steps, max(1, EPOCHS * (count - held_out) // settings.batch))
    schedule = replace(
        settings.schedule,
        steps=steps,
        validate_every=min(settings.schedule.validate_every, max(1, steps // 8)),
        seconds=min(settings.schedule.seconds, left),
    )
    part = None if checkpoint is None else checkpoint.with_suffix(".about")
    identity = f"{settings.batch} {seed} {count} {mark}"
    report = fit(
        refinement,
        loss,
        batch_at,
        validation,
        schedule,
        checkpoint=part,
        identity=identity,
        what="training about the mode",
        show=show,
    )
    report = replace(report, seconds=report.seconds + searched)
    return report, int(lessons.solves.sum())


def leftovers(checkpoint: Path) -> list[Path]:
    """Files that `refine` keeps beside a checkpoint until it is done."""
    return [
        checkpoint.with_suffix(".about"),
        *sorted(checkpoint.parent.glob(f"{escape(checkpoint.stem)}.modes-*")),
    ]


def _loss(module: Refinement, lessons: _Lessons, index: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    known = module.known(lessons.features[index]) + noise
    sharp = module.density.log_prob(lessons.standard[index][None], condition=known)[0] + lessons.scale[index]
    return -module.mixed(lessons.wide[index], sharp, known).mean()


def _lessons(
    model: Model,
    networks: Networks,
    scaling: Scaling,
    settings: Refining,
    seed: int,
    mark: str,
    seconds: float,
    checkpoint: Path | None,
    show: bool | None,
) -> tuple[_Lessons, float]:
    """The lessons, and the seconds that they took: those before a kill too."""
    parts: list[_Lessons] = []
    spent = 0.0
    begun = checkpoint is not None and checkpoint.with_suffix(".about").exists()  # on the chunks that there are
    with progress("finding modes", settings.datasets, show) as bar:
        for k in range(-(-settings.datasets // CHUNK)):
            kept = None if checkpoint is None else checkpoint.with_suffix(f".modes-{k}")
            late = spent > seconds and len(parts) * CHUNK >= LEAST
            if late or (begun and kept is not None and not kept.exists()):
                break
            lessons, took = _chunk(model, networks, scaling, derive(seed, "datasets", k), mark, kept)
            parts.append(lessons)
            spent += took
            bar.advance(CHUNK)
    names = _Lessons.__dataclass_fields__
    return _Lessons(*(torch.cat([getattr(p, name) for p in parts]) for name in names)), spent


def _chunk(
    model: Model, networks: Networks, scaling: Scaling, seed: int, mark: str, kept: Path | None
) -> tuple[_Lessons, float]:
    """One chunk and its seconds, read from its file where that is there, whole, and of these networks."""
    if kept is not None and kept.exists():
        try:
            header, tensors = files.load(kept, "modes")
        except FileError:  # damaged: made again
            header, tensors = {}, {}
        if header.get("seed") == seed and header.get("mark") == mark:
            return _Lessons(**tensors), float(header["seconds"])
    began = time.monotonic()
    drawn = model.simulate(CHUNK, seed)
    good = (~drawn.failed).nonzero()[:, 0]
    if not len(good):
        raise TrainingError(
            f"all {CHUNK} simulations for the density about the mode failed; look at check(model), or train "
            f"with Settings(refining=None)"
        )
    z, data = drawn.z[good], drawn.experiments.at(good)
    refinement = networks.refinement
    assert refinement is not None
    with torch.no_grad():
        with half_of_the_cores():
            reading = networks.read(tokens(data, scaling))
            wide = networks.wide_log_density(z.float()[None], reading)[0]
        found = about_mode(networks, model, data, reading)
        lessons = _Lessons(
            refinement.features(reading.context, found),
            found.standard(z).float(),
            found.log_scale.float(),
            wide,
            torch.tensor([found.solves + CHUNK]),
        )
    if kept is not None:
        header = {"seed": seed, "mark": mark, "seconds": time.monotonic() - began}
        files.save(kept, "modes", header, vars(lessons))
    return lessons, time.monotonic() - began
