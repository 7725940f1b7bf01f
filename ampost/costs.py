"""What a training will take, by timing a little of each of its parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ampost import bank as banks
from ampost import knots
from ampost.bank import Bank
from ampost.errors import TrainingError
from ampost.laplace import laplace
from ampost.learning import Settings
from ampost.model import Model
from ampost.nets import EMBEDDINGS
from ampost.seeds import derive
from ampost.tokens import scaling_of, tokens
from ampost.wording import number

TIMED = 256  # simulations that are timed, and rows of the batch
DENSITY_STEP = 0.02  # seconds of a training step for one density, which is beside its data and embedding
SOUGHT = 16  # data sets whose slopes are timed
SLOPES = 25  # that the search for a mode takes


def training_cost(model: Model, settings: Settings, seed: int) -> tuple[float, str]:
    """Estimated seconds of a training by `settings`, and how they come about as a sentence or two."""
    schedule = settings.schedule
    try:
        bank = banks.build(model, TIMED, derive(seed, "timed"), show=False)
        began = time.perf_counter()
        knots.drawn(model, TIMED, derive(seed, "timed"), bank.origin.knots)
        rate = TIMED / (time.perf_counter() - began)
    except TrainingError as error:
        return float("inf"), f"Training is not possible: {error}"
    local = any(site.local for site in model.sites())
    density = DENSITY_STEP * (1 + (model.design.experiments[1] if local else 0))
    with _one_thread():
        step = _step(model, bank, settings, derive(seed, "step")) + density
        about, refined = (0.0, "") if local else _refining(model, settings, derive(seed, "modes"))
    solving, wanted = settings.simulations / rate, schedule.steps * step + about
    learning = min(wanted, schedule.seconds)
    steps = (
        f"{schedule.steps:,} steps of {1000 * step:.0f} ms at most {_duration(schedule.steps * step)}{refined}"
    )
    if learning < wanted:
        steps = f"{_duration(learning)} are given to training, which would take {_duration(wanted)} ({steps})"
    return solving + learning, (
        f"Training takes about {_duration(solving + learning)} on this machine: "
        f"{settings.simulations:,} simulations at {number(rate)} per second take {_duration(solving)}, "
        f"{steps}. Measured by one thread on {TIMED} simulations and one batch; {1000 * DENSITY_STEP:.0f} ms a "
        f"step are assumed for a density."
    )


def _refining(model: Model, settings: Settings, seed: int) -> tuple[float, str]:
    """Estimated seconds for the density about the mode, and how they come about, to be added to a list."""
    if settings.refining is None:
        return 0.0, ""
    drawn = model.simulate(SOUGHT, seed)
    good = (~drawn.failed).nonzero()[:, 0]
    if not len(good):
        return 0.0, ""
    z, data = drawn.z[good], drawn.experiments.at(good)
    laplace(model, data.at(slice(0, 1)), z[:1], 0)  # compiles
    began = time.perf_counter()
    laplace(model, data, z, 0)
    mode = SLOPES * (time.perf_counter() - began) / len(good)
    count, steps = settings.refining.datasets, settings.refining.schedule.steps
    modes, about = count * mode, steps * DENSITY_STEP
    return modes + about, (
        f", {count:,} modes at {1000 * mode:.1f} ms {_duration(modes)}, {steps:,} steps of the density about "
        f"them {_duration(about)}"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread, as many as a training has at least."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _step(model: Model, bank: Bank, settings: Settings, seed: int) -> float:
    """Seconds that the data and the embedding of one batch take, the best of a few."""
    shard = bank.window(0, seed)
    index = torch.randint(len(shard), (settings.batch,), generator=torch.Generator().manual_seed(seed))
    channels = tuple(name for name in model.channels if name in model.design.channels)
    sizes, network, taken = settings.sizes(model), None, [float("inf")]
    while len(taken) <= 5 and sum(taken[1:]) < 0.8:
        began = time.perf_counter()
        looks = model.design.draw_looks(shard.protocols.at(index), derive(seed, "looks"))
        drawn = model.simulate_at(shard.z[index], looks, derive(seed, "noise"), solver=shard.rows(index))
        seen = tokens(drawn.experiments, scaling_of(channels, model.design, drawn.experiments))
        if network is None:
            network = EMBEDDINGS[sizes.pooling](
                seen[0].shape[-1], seen[2].shape[-1], sizes.width, sizes.context
            )
        context, each = network(*seen)
        (context.sum() + each.sum()).backward()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
