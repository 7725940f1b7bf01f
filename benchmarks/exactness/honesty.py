"""Is a wrong posterior ever called trusted or corrected? Estimators that are spoilt, against quadrature.

Run: python benchmarks/exactness/honesty.py --file FILE [--datasets 200]
FILE is an estimator of Michaelis-Menten that `ampost train` made: the right one. The others are the same with
standard deviations times 0.7, or shifted by two of them; one that was trained for noise that is five times
larger; and one whose networks were never trained. The reference is a grid of 61^3 points in coordinates that
follow the posterior's ridge from where the truth leads, without any network. A posterior is wrong where the
mean of any parameter, in z, is off by more than 0.2 sd, or its sd by more than 15 %. Data sets whose grid does
not hold the posterior are left out and counted.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ampost import Budget, Estimator, Experiments, Model, Schedule, Settings, train
from ampost.correction import Corrected, correct
from ampost.estimator import Reading
from ampost.laplace import laplace
from ampost.ridges import ridge
from ampost.zoo import michaelis_menten

POINTS, REACH, WIDEST = 61, 7.0, 24.0  # of an axis; in its standard coordinates, at first and at most
EDGE = 10.0  # nats by which the density falls to the faces of the grid
SPOILT = 0.7, 2.0  # times the sd; shifted by so many sd
MEAN, SD = 0.2, 0.15


class Spoilt(Estimator):
    """An estimator whose draws are moved about their own mean: scaled, then shifted, in sd."""

    scale: float = 1.0
    shift: float = 0.0

    def moments(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Median and robust sd of its draws (dataset, z)."""
        z = super().sample(reading, 2_000, 0)
        low, middle, high = z.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=z.dtype), 0)
        return middle, (high - low) / 2

    def sample(self, reading: Reading, draws: int, seed: int) -> Tensor:
        """Draws that are moved."""
        middle, sd = self.moments(reading)
        return middle + self.scale * (super().sample(reading, draws, seed) - middle) + self.shift * sd

    def log_density(self, z: Tensor, reading: Reading) -> Tensor:
        """The density of what `sample` draws."""
        middle, sd = self.moments(reading)
        before = middle + (z - self.shift * sd - middle) / self.scale
        return super().log_density(before, reading) - z.shape[-1] * math.log(self.scale)


def spoilt(right: Estimator, scale: float, shift: float) -> Estimator:
    """The right estimator, spoilt."""
    made = Spoilt(**{name: getattr(right, name) for name in right.__dataclass_fields__})
    object.__setattr__(made, "scale", scale)
    object.__setattr__(made, "shift", shift)
    return made


def by_grid(model: Model, data: Experiments, truth: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and sd (z,) of the posterior by quadrature; None where the grid does not hold it."""
    about = ridge(model, data, laplace(model, data, truth[None], 30))
    reach = torch.full((2, truth.shape[0]), REACH, dtype=torch.float64)
    while float(reach.max()) <= WIDEST:
        axes = [torch.linspace(-float(a), float(b), POINTS, dtype=torch.float64) for a, b in reach.T]
        u = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        z = about.back(u.reshape(-1, 1, len(truth)))
        with torch.no_grad():
            value = model.log_joint(z, data)[:, 0]
        value = value.reshape(u.shape[:-1])
        top = float(value[torch.isfinite(value)].max())
        short = torch.zeros_like(reach, dtype=torch.bool)
        for k in range(len(truth)):
            for end, place in ((0, 0), (1, -1)):
                short[end, k] = float(value.select(k, place).max()) > top - EDGE
        if not bool(short.any()):
            mass = torch.softmax(torch.where(torch.isfinite(value), value, -torch.inf).flatten(), 0)
            mean = mass @ z[:, 0]
            return mean, (mass @ (z[:, 0] - mean).square()).sqrt()
        reach = torch.where(short, 1.5 * reach, reach)
    return None


def moments(found: Corrected) -> tuple[Tensor, Tensor]:
    """Mean and sd of a corrected posterior: by the weights, or by the chains' draws."""
    if found.sampled:
        return found.z.mean(0), found.z.std(0)
    weight, z = found.final.weights[:, 0], found.final.z[:, 0]
    mean = weight @ z
    return mean, (weight @ (z - mean).square()).sqrt()


def label(found: Corrected) -> str:
    """The computation's label."""
    if found.sampled:
        return "sampled" if found.complete else "failed"
    return "trusted" if found.network.trusted else "corrected"


def noisy(model: Model) -> Model:
    """The model with noise that is five times larger."""

    def program(experiments: Experiments) -> None:
        import pyro
        import pyro.distributions as dist

        from ampost import between, observe, odeint

        vmax = pyro.sample("vmax", between(0.05, 5.0))
        km = pyro.sample("km", between(0.1, 10.0))
        sigma = pyro.sample("sigma", between(0.05, 1.0))
        start = {"S": experiments["S0"], "P": 0.0}
        y = odeint(michaelis_menten.kinetics, start, {"vmax": vmax, "km": km}, experiments)
        observe("P", dist.Normal(y.P, sigma), experiments)

    return replace(model, program=program, _layouts={}, _channels=[])


def main() -> None:
    """Correct by each estimator, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--datasets", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, right = michaelis_menten.model(), Estimator.load(asked.file)
    brief = Settings(5_000, Schedule(steps=1_000), refining=None)
    other = train(noisy(model), brief, seed=0, progress=False)
    untrained = train(model, replace(brief, schedule=Schedule(steps=1)), seed=0, progress=False)
    made: dict[str, Callable[[], Estimator]] = {
        "right": lambda: right,
        "sd x 0.7": lambda: spoilt(right, SPOILT[0], 0.0),
        "shifted by 2 sd": lambda: spoilt(right, 1.0, SPOILT[1]),
        "trained for other noise": lambda: other,
        "never trained": lambda: untrained,
    }
    drawn = model.simulate(asked.datasets, 377)
    known = {}
    for k in (~drawn.failed).nonzero()[:, 0].tolist():
        grid = by_grid(model, drawn.experiments.at(k), drawn.z[k])
        if grid is not None:
            known[k] = grid
    print(f"{len(known)} data sets, {int((~drawn.failed).sum()) - len(known)} left out", flush=True)
    print("| estimator | labels | wrong, by label | largest error of a mean, of an sd | s |\n|" + " --- |" * 5)
    for name, make in made.items():
        estimator, labels, wrong, worst = make(), Counter[str](), Counter[str](), [0.0, 0.0]
        began = time.perf_counter()
        for k, (mean, sd) in known.items():
            found = correct(model, drawn.experiments.at(k), estimator, k, Budget(), show=False)
            mine, wide = moments(found)
            off, ratio = float(((mine - mean) / sd).abs().max()), float((wide / sd - 1).abs().max())
            labels[label(found)] += 1
            if label(found) != "failed":
                worst = [max(worst[0], off), max(worst[1], ratio)]
                wrong[label(found)] += off > MEAN or ratio > SD
        said = ", ".join(f"{count} {what}" for what, count in labels.most_common())
        errors = ", ".join(f"{count} {what}" for what, count in wrong.items() if count) or "none"
        took = (time.perf_counter() - began) / len(known)
        print(f"| {name} | {said} | {errors} | {worst[0]:.2f} sd, {worst[1]:.0%} | {took:.2f} |", flush=True)
    print(f"none of {len(known)} bounds the share that is wrong by {1 - 0.05 ** (1 / len(known)):.1%}, at 95 %")


if __name__ == "__main__":
    main()
