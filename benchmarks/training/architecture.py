"""Which networks learn most in a given time, and draw fastest?

Run: python benchmarks/training/architecture.py MODEL [--seconds 60] [--only NAME ...]
     python benchmarks/training/architecture.py --draw

Each line trains the embedding and the density given the context (no density about the mode) for the same time
of one core, from the same bank of 50,000 trajectories with fresh noise. On data sets drawn afresh: loss (-log q
of the truth, in nats); how far the PIT of the worst coordinate is from uniform (Kolmogorov's distance times the
root of the number of data sets: 5 % of calibrated ones are above 1.36) and whether all stay inside their 95 %
band; draws with log densities per second, 10,000 at a time. PIT are those of 1,000 data sets, of 200 where
draws are slow. Flow matching is sbi's, drawn by its ODE: log densities of 60 data sets. A line of
docs/architecture.csv is added for each; what is there is not done again. --draw makes docs/architecture.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from sbi.neural_nets import posterior_flow_nn
from scipy.stats import kstest
from scores import TITLES, add, best, measured
from torch import Tensor, nn

from ampost import Estimator, Model, Schedule, Settings
from ampost import bank as banks
from ampost import learning as learns
from ampost.architecture import Architecture
from ampost.bank import Bank
from ampost.calibration import inside_band
from ampost.estimator import Layout, Networks, Reading
from ampost.plots import save
from ampost.tokens import Scaling, scaling_of, tokens
from ampost.training import FitReport, fit

DOCS = Path(__file__).parents[2] / "docs"
TABLE = DOCS / "architecture.csv"
BASE = Architecture(96, 64, "zuko_maf", 5, 64)
NETWORKS: dict[str, Architecture] = {
    "DeepSet 96": BASE,
    "DeepSet 48": replace(BASE, width=48, context=32),
    "DeepSet 192": replace(BASE, width=192, context=128),
    "attention 48": replace(BASE, width=48, context=32, pooling="attention"),
    "attention 96": replace(BASE, pooling="attention"),
    "affine, 3 of 32": replace(BASE, transforms=3, hidden=32),
    "affine, 8 of 128": replace(BASE, transforms=8, hidden=128),
    "spline, 3 of 32": replace(BASE, density="zuko_nsf", transforms=3, hidden=32),
    "spline, 5 of 64": replace(BASE, density="zuko_nsf"),
    "affine coupling, 5 of 64": replace(BASE, passes=2),
    "affine coupling, 10 of 128": replace(BASE, passes=2, transforms=10, hidden=128),
    "spline coupling, 5 of 64": replace(BASE, density="zuko_nsf", passes=2),
    "spline coupling, 8 of 128": replace(BASE, density="zuko_nsf", passes=2, transforms=8, hidden=128),
}
MATCHED = {"flow matching, 3 of 64": (3, 64), "flow matching, 5 of 128": (5, 128)}
BANK, TEST, SETS, BATCH = 50_000, 1_000, 200, 256
SLOW = 5_000  # draws per second, below which PIT are of SETS data sets
COLUMNS = ("model", "networks", "seconds", "steps", "loss", "distance", "inside", "draws_per_second")


class Matching(nn.Module):
    """The embedding with sbi's flow matching in the density's place."""

    def __init__(self, scaling: Scaling, z: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.networks = Networks(BASE, scaling, Layout(((False, 1, z),)))
        build = posterior_flow_nn("mlp", "none", "none", hidden, layers)
        self.field = build(torch.randn(8, z), torch.randn(8, BASE.context))

    def read(self, seen: tuple[Tensor, ...]) -> Reading:
        """The reading of tokens."""
        return self.networks.read(seen)

    def posterior(self, context: Tensor) -> VectorFieldPosterior:
        """sbi's posterior given one context."""
        z = self.field.input_shape[0]
        prior = torch.distributions.MultivariateNormal(torch.zeros(z), torch.eye(z))
        return VectorFieldPosterior(self.field, prior, sample_with="ode").set_default_x(context[None])


def distance(pit: Tensor) -> tuple[float, bool]:
    """Of the worst coordinate of PIT (dataset, z) from uniform; whether all stay inside their band."""
    count, size = pit.shape
    apart = [float(kstest(pit[:, k].numpy(), "uniform").statistic) * count**0.5 for k in range(size)]
    return max(apart), all(inside_band(pit[:, k], 0.05 / size) for k in range(size))


def ranked(drawn: Tensor, z: Tensor, seed: int) -> Tensor:
    """PIT (dataset, z) of the truth among draws (draw, dataset, z)."""
    noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((drawn < z).sum(0) + noise) / (len(drawn) + 1)


def trained(model: Model, bank: Bank, sizes: Architecture, seconds: float) -> Estimator:
    """An estimator without a density about the mode."""

    def train(steps: int) -> Estimator:
        schedule = Schedule(steps, validate_every=200, patience=10_000)
        return learns.train_estimator(model, bank, Settings(BANK, schedule, BATCH, sizes, None), 0, show=False)

    return train(affordable(train, seconds))


def affordable(train: Callable[[int], object], seconds: float) -> int:
    """How many steps take so many seconds of one core, whatever else the machine does meanwhile."""
    spent = []
    for steps in (10, 20, 80):  # the first one compiles and fills caches
        began = time.process_time()
        train(steps)
        spent.append(time.process_time() - began)
    return max(80, int(seconds * 60 / (spent[2] - spent[1])))


def flow(model: Model, estimator: Estimator) -> list[object]:
    """Steps, loss, distance, whether calibrated, draws per second."""
    drawn = model.simulate(TEST, 98)
    good = (~drawn.failed).nonzero()[:, 0]
    z, data = drawn.z[good], drawn.experiments.at(good)
    one = estimator.reading(model, data.at(0))

    def both(draws: int = 10_000) -> None:
        estimator.log_density(estimator.sample(one, draws, seed=1), one)

    rate = 1_000 / best(lambda: both(1_000), 1)
    many = len(z) if rate > SLOW else SETS
    loss, pit = [], []
    for k, part in enumerate(torch.arange(len(z)).split(100)):
        reading = estimator.reading(model, data.at(part))
        loss.append(-estimator.log_density(z[part][None], reading)[0])
        if int(part[0]) < many:
            pit.append(ranked(estimator.sample(reading, 300, seed=k), z[part], k))
    if rate > SLOW:
        rate = 10_000 / best(both, 3)
    return [estimator.report.steps, float(torch.cat(loss).mean()), *distance(torch.cat(pit)), rate]


def matched(model: Model, bank: Bank, layers: int, hidden: int, seconds: float) -> list[object]:
    """The same for flow matching."""
    held = model.simulate(2 * TEST, 97)
    good = (~held.failed).nonzero()[:, 0]
    z, data = held.z[good].float(), held.experiments.at(good)
    scaling = scaling_of(model.channels, model.design, data)
    torch.manual_seed(0)
    module = Matching(scaling, z.shape[1], layers, hidden)
    settings = Settings(BANK, Schedule(), BATCH, BASE, None)
    batches = learns.Batches(model, bank, settings, scaling, None, 0)
    seen = tokens(data, scaling)

    def loss(networks: Matching, part: learns.Part, done: float) -> Tensor:
        return networks.field.loss(part.z, networks.read(part.seen).context).mean()

    def validation() -> float:
        torch.manual_seed(1)
        return float(module.field.loss(z, module.read(seen).context).mean())

    def train(steps: int) -> FitReport:
        schedule = Schedule(steps, validate_every=200, patience=10_000)
        return fit(module, loss, batches, validation, schedule, show=False)

    report = train(affordable(train, seconds))
    with torch.no_grad():
        context = module.read(seen).context
    values, pit = [], []
    for k in range(SETS):
        torch.manual_seed(k)
        posterior = module.posterior(context[k])
        drawn = posterior.sample((300,), show_progress_bars=False)
        pit.append(ranked(drawn[:, None].double(), z[k : k + 1].double(), k))
        if k < 60:
            values.append(-float(posterior.log_prob(z[k : k + 1]).detach()))

    def both() -> None:
        posterior.log_prob(posterior.sample((1_000,), show_progress_bars=False))

    return [report.steps, float(np.mean(values)), *distance(torch.cat(pit)), 1e3 / best(both, 1)]


def draw() -> None:
    """Loss against draws per second, a panel for each model."""
    import matplotlib.pyplot as plt

    rows = measured(TABLE)
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(
        len(names), 1, figsize=(7.5, 4.2 * len(names)), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[:, 0], names, strict=True):
        for row in (row for row in rows if row["model"] == name):
            inside = row["inside"] == "True"
            x, y = float(row["draws_per_second"]), float(row["loss"])
            axis.plot(x, y, "o", color="C0" if inside else "C3", mfc="C0" if inside else "none")
            flow = row["networks"] in {*list(NETWORKS)[5:], *MATCHED}
            place = {"xytext": (6, 2), "ha": "left"} if flow else {"xytext": (-6, -3), "ha": "right"}
            axis.annotate(row["networks"], (x, y), textcoords="offset points", fontsize=7, **place)
        axis.set(xscale="log", xlabel="draws with log densities per second", ylabel="posterior loss (nats)")
        seconds = next(row["seconds"] for row in rows if row["model"] == name)
        axis.set_title(f"{TITLES[name]}, {float(seconds):.0f} s of one core (open: not calibrated)")
        axis.margins(x=0.3, y=0.15)
    save(figure, DOCS / "architecture.png")


def main() -> None:
    """Measure what is not measured yet, or draw what was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", nargs="+", default=[*NETWORKS, *MATCHED])
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    if asked.draw:
        draw()
        return
    torch.set_num_threads(1)
    model: Model = import_module(f"ampost.zoo.{asked.model}").model()
    bank = banks.build(model, BANK, 0, show=False)
    done = {(row["model"], row["networks"]) for row in measured(TABLE)}
    todo: dict[str, Callable[[], list[object]]] = {}
    for name in asked.only:
        if name in MATCHED:
            todo[name] = lambda name=name: matched(model, bank, *MATCHED[name], asked.seconds)
        else:
            todo[name] = lambda name=name: flow(model, trained(model, bank, NETWORKS[name], asked.seconds))
    for name, measure in todo.items():
        if (asked.model, name) in done:
            continue
        row = [asked.model, name, asked.seconds, *measure()]
        add(TABLE, COLUMNS, row)


if __name__ == "__main__":
    main()
