"""What does each source of training data buy, at a given number of ODE solves?

Run: python benchmarks/training/ablation.py MODEL [--solves 1000 10000 100000] [--seeds 3] [--steps 2000]
     python benchmarks/training/ablation.py --draw

Four ways to train the density given the context (without a density about the mode), with the same networks and
the same number of steps:

    fixed           each trajectory of the bank has one set of times and one noise, as in a table of simulations
    fresh           times, masks and noise are drawn anew in each batch
    proxy           and half of the batches take new parameters through a proxy, which learnt from the same bank
    reconstruction  and a further head learns the parameters whose trajectory is nearest, through the proxy

On data sets drawn afresh by the exact solver: loss (-log q of the truth, in nats), error of the median (root
mean square, in sd of the prior), contraction (1 - variance / that of the prior, mean), plain importance
efficiency (median of 30 data sets), and how far the trajectory at the point estimate is from the true one (root
mean square in sd of the noise, median over data sets). Each training adds a line to docs/ablation.csv; what is
there is not done again. --draw makes docs/ablation.png of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from scores import PROXIES, TITLES, add, efficiency, measured
from torch import Tensor

from ampost import Estimator, Model, Schedule, Settings
from ampost import bank as banks
from ampost import learning as learns
from ampost.accuracy import apart
from ampost.architecture import Architecture
from ampost.bank import Bank
from ampost.estimator import QUANTILES
from ampost.experiments import Experiments
from ampost.plots import save
from ampost.proxy import Proxy, ProxySettings, train_proxy
from ampost.seeds import derive
from ampost.tokens import Scaling, tokens

DOCS = Path(__file__).parents[2] / "docs"
TABLE = DOCS / "ablation.csv"
ARMS = ("fixed", "fresh", "proxy", "reconstruction")
TEST, SETS, BATCH = 3_000, 30, 128
COLUMNS = (
    *("model", "solves", "arm", "seed", "loss", "point", "contraction", "efficiency", "trajectory", "nearest"),
    *("proxy_error", "seconds"),
)


class Fixed(learns.Batches):
    """Batches of one data set per row of the bank, as a table of simulations has."""

    def __init__(
        self, model: Model, bank: Bank, settings: Settings, scaling: Scaling, proxy: Proxy | None, seed: int
    ) -> None:
        super().__init__(model, bank, settings, scaling, proxy, seed)
        self.z, self.table = _table(model, bank, scaling, seed)

    def __call__(self, k: int, done: float) -> list[learns.Part]:
        """Rows of the table."""
        chosen = torch.Generator().manual_seed(derive(self.seed, "rows", k))
        index = torch.randint(0, len(self.z), (self.settings.batch,), generator=chosen)
        return [learns.Part(self.z[half], tuple(v[half] for v in self.table)) for half in index.chunk(2)]


def _table(model: Model, bank: Bank, scaling: Scaling, seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """z and tokens of one data set per row."""
    zs, seen = [], []
    for k in range(len(bank.headers)):
        shard = bank.shard(k)
        for part in torch.arange(len(shard)).split(500):
            looks = model.design.draw_looks(shard.protocols.at(part), derive(seed, "table", k, int(part[0])))
            noise = derive(seed, "table noise", k, int(part[0]))
            drawn = model.simulate_at(shard.z[part], looks, noise, solver=shard.rows(part))
            zs.append(shard.z[part].float())
            seen.append(tokens(drawn.experiments, scaling))
    longest = max(found[0].shape[2] for found in seen)
    for k, (values, mask, conditions, live) in enumerate(seen):
        room = longest - values.shape[2]
        wide = torch.nn.functional.pad(values, (0, 0, 0, room)), torch.nn.functional.pad(mask, (0, room))
        seen[k] = (*wide, conditions, live)
    return torch.cat(zs), tuple(torch.cat(column) for column in zip(*seen, strict=True))


def trained(
    model: Model, arm: str, bank: Bank, proxy: tuple[ProxySettings, Proxy] | None, steps: int, seed: int
) -> Estimator:
    """An estimator without a density about the mode, of one arm."""
    schedule = Schedule(steps, validate_every=min(200, steps), patience=1_000)
    settings = Settings(len(bank), schedule, BATCH, Architecture(pooling="mean"), refining=None)
    if arm == "fixed":
        return learns.train_estimator(model, bank, settings, seed, show=False, batches=Fixed)
    if arm == "fresh" or proxy is None:
        return learns.train_estimator(model, bank, settings, seed, show=False)
    settings = replace(settings, proxy=proxy[0], reconstruction=arm == "reconstruction")
    return learns.train_estimator(model, bank, settings, seed, proxy=proxy[1], show=False)


def scored(model: Model, estimator: Estimator, z: Tensor, data: Experiments) -> dict[str, float]:
    """Loss, point error, contraction, efficiency and trajectory error on held-out data sets."""
    loss, spread, points = [], [], []
    for k, part in enumerate(torch.arange(len(z)).split(500)):
        reading = estimator.reading(model, data.at(part))
        loss.append(-estimator.log_density(z[part][None], reading)[0])
        spread.append(estimator.sample(reading, 200, seed=k).var(0))
        points.append(estimator.quantiles(data.at(part))[..., QUANTILES.index(0.5)])
    shares = [efficiency(model, estimator, data.at(k)) for k in range(SETS)]
    median = torch.cat(points)
    nearest = estimator.nearest(data) if estimator.networks.traced else None
    return {
        "loss": float(torch.cat(loss).mean()),
        "point": float((median - z).square().mean().sqrt()),
        "contraction": float(1 - (torch.cat(spread) / z.var(0)).mean()),
        "efficiency": float(np.median(shares)),
        "trajectory": missed(model, z, median, data),
        "nearest": float("nan") if nearest is None else missed(model, z, nearest, data),
    }


def missed(model: Model, z: Tensor, point: Tensor, data: Experiments) -> float:
    """Root mean square distance of noiseless trajectories in sd of the noise; the median over data sets."""
    looks = data.without_values()
    with torch.no_grad():
        found = apart(looks, model.noises(z, looks, model.solver), model.noises(point, looks, model.solver))
    squares = torch.cat([value.flatten(1) for value in found.values()], 1).square()
    return float(squares.nanmean(1).sqrt().nanmedian())


def measure(
    name: str, solves: int, seed: int, steps: int, seconds: float, arms: list[str]
) -> Iterator[list[object]]:
    """The arms that are not measured yet, at one number of solves and one seed."""
    model: Model = import_module(f"ampost.zoo.{name}").model()
    drawn = model.simulate(TEST, 99)
    good = (~drawn.failed).nonzero()[:, 0]
    z, data = drawn.z[good], drawn.experiments.at(good)
    bank = banks.build(model, solves, derive(seed, "bank"), show=False)
    proxy = None
    if {"proxy", "reconstruction"} & set(arms):
        schedule = Schedule(60_000, patience=1_000, validate_every=500, seconds=seconds)
        settings = replace(PROXIES.get(name, ProxySettings()), schedule=schedule)
        proxy = settings, train_proxy(model, bank, settings, derive(seed, "proxy"), show=False)
    for arm in arms:
        began = time.perf_counter()
        estimator = trained(model, arm, bank, proxy, steps, derive(seed, "train"))
        took = time.perf_counter() - began
        found = scored(model, estimator, z, data)
        yield [name, solves, arm, seed, *found.values(), estimator.teaching.proxy_error, took]


def draw() -> None:
    """Loss against solves by arm, a panel for each model; bars span the seeds."""
    import matplotlib.pyplot as plt

    rows = measured(TABLE)
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        for k, arm in enumerate(ARMS):
            at: dict[int, list[float]] = {}
            for row in rows:
                if row["model"] == name and row["arm"] == arm:
                    at.setdefault(int(row["solves"]), []).append(float(row["loss"]))
            if at:
                where = np.array(sorted(at)) * 1.06 ** (k - 1.5)
                middle = np.array([np.mean(at[n]) for n in sorted(at)])
                ends = np.array([[np.min(at[n]), np.max(at[n])] for n in sorted(at)]).T
                axis.errorbar(
                    where, middle, np.abs(ends - middle), marker="o", ms=4, capsize=2, color=f"C{k}", label=arm
                )
        axis.set(xscale="log", xlim=(600, 170_000), title=TITLES[name])
        axis.set(xlabel="ODE solves", ylabel="posterior loss (nats)")
    axes[0, 0].legend(frameon=False)
    save(figure, DOCS / "ablation.png")


def main() -> None:
    """Measure what is asked for, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--solves", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=90.0, help="that a proxy is trained")
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    if asked.draw:
        draw()
        return
    torch.set_num_threads(1)
    for seed in range(asked.seeds):
        for solves in asked.solves:
            done = {(r["model"], int(r["solves"]), r["arm"], int(r["seed"])) for r in measured(TABLE)}
            arms = [arm for arm in asked.arms if (asked.model, solves, arm, seed) not in done]
            for row in measure(asked.model, solves, seed, asked.steps, asked.seconds, arms) if arms else ():
                add(TABLE, COLUMNS, row)


if __name__ == "__main__":
    main()
