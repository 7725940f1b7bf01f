"""What do 2,000 effective draws cost by ampost and by NUTS, and from how many data sets on does training pay?

Run: python benchmarks/exactness/speed.py MODEL [--file FILE] [--seconds 60] [--datasets 3] [--limit 600]
     [--head-start] [--in-turn]
MODEL is michaelis_menten or ecoli_fed_batch; FILE is an estimator that `ampost train` made, else one is trained
here for so many seconds. Data sets are simulated from the model. For each of them:

    ampost     `infer` to an effective size of 2,000, alarms and optima included
    NumPyro    NUTS on the same log joint in JAX with diffrax, jitted; 4 chains in turn and, where 4 gradients
               are faster so, vectorized (not with `--in-turn`)
    Pyro       NUTS on ampost's compiled potential, as `baselines.nuts` runs it, 4 chains in turn

NUTS begins at draws of the prior, adapts for 500 draws of each chain, which count, and goes on until bulk and
tail effective size of all parameters are 2,000 by ArviZ, or `--limit` seconds are over. From 500 effective
draws on, the seconds after warm-up are scaled to 2,000 ("extrapolated" where fewer were drawn). With fewer they
are a lower bound (">"): warm-up as far as it came, and 2,000 draws as if each were an independent one. With
`--head-start` NUTS is given ampost's posterior for nothing: its draws to begin at, and its covariance as the
metric, so that 50 draws for the step size do. Its seconds are then less than it takes alone.

All run in one process on one core. Seconds are those of the processor, of all threads together, so that other
work on the machine hardly counts. Compilation is apart.
"""

from __future__ import annotations

import os

os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median

import peers_jax
import torch
from samplers import Run, Sampler, by_pyro, run
from torch import Tensor

from ampost import Budget, Estimator, Experiments, Model, Schedule, Settings, infer, results, train
from ampost.potential import Potential
from ampost.seeds import derive

SIMULATIONS = 20_000
WANTED = 2_000
CHAINS, WARMUP, SHORT = 4, 500, 50
AGREEING = 4  # draws of the prior at which log joints are compared
BLOCKS = {"michaelis_menten": 10, "ecoli_fed_batch": 2}  # draws of each chain between looks at the clock
SEED = 577


@dataclass(frozen=True)
class Ours:
    """What ampost took, scaled to the effective size wanted where chains gave less, and its draws (draw, z)."""

    seconds: float
    effective: float
    computation: str
    z: Tensor

    def words(self) -> str:
        """Seconds, as far as they are known."""
        scaled = "" if self.effective >= WANTED else f", scaled from {self.effective:.0f}"
        return f"{self.seconds:.3g} ({self.computation}{scaled})"


def ours(model: Model, data: Experiments, estimator: Estimator, seed: int) -> Ours:
    """The posterior by `infer`."""
    budget = Budget(draws=WANTED, effective_size=WANTED)
    began = time.process_time()
    found = infer(model, data, estimator, seed, budget, progress=False)
    took = time.process_time() - began
    effective = float(found["fit/effective_size"].min())
    z = torch.as_tensor(results.values(found, "unconstrained_posterior", "z")).flatten(0, 1)
    return Ours(took * max(1.0, WANTED / effective), effective, str(found["fit/computation"].item()), z)


@dataclass(frozen=True)
class Beginning:
    """Where chains begin (chain, z), in coordinates u with z = centre + factor u, and how long they adapt."""

    starts: Tensor
    centre: Tensor
    factor: Tensor
    warmup: int
    metric: bool


def from_prior(model: Model, data: Experiments, seed: int) -> Beginning:
    """Draws of the prior at which the model does not fail, in z itself."""
    drawn = model.simulate(20 * CHAINS, derive(seed, "starts"), data.without_values())
    starts = drawn.z[~drawn.failed][:CHAINS]
    size = starts.shape[1]
    zero, one = torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    return Beginning(starts, zero, one, WARMUP, metric=False)


def from_posterior(z: Tensor) -> Beginning:
    """Draws of a posterior (draw, z), in coordinates in which it is standard."""
    centre, factor = z.mean(0), torch.linalg.cholesky(torch.cov(z.T))
    chosen = z[torch.linspace(0, len(z) - 1, CHAINS).long()]
    starts = torch.linalg.solve_triangular(factor, (chosen - centre).T, upper=False).T.contiguous()
    return Beginning(starts, centre, factor, SHORT, metric=True)


def pyros(model: Model, data: Experiments, begin: Beginning, block: int, seed: int) -> Sampler:
    """Pyro's NUTS on the compiled potential."""
    began = time.process_time()
    potential = Potential(model, model.prepare(data))
    compiling = time.process_time() - began

    def moved(u: Tensor) -> Tensor:
        return potential(begin.centre + begin.factor @ u)

    return by_pyro(moved, begin.starts, begin.warmup, seed, begin.metric, block, compiling)


def numpyros(
    log_joint: peers_jax.LogJoint, begin: Beginning, block: int, seed: int, vectorized: bool
) -> Sampler:
    """NumPyro's NUTS on the log joint in JAX."""
    moved = peers_jax.moved(log_joint, begin.centre, begin.factor)
    return peers_jax.by_numpyro(moved, begin.starts, begin.warmup, seed, begin.metric, block, vectorized)


def peers(
    model: Model, data: Experiments, name: str, mine: Ours, seed: int, head_start: bool, in_turn: bool
) -> Iterator[Sampler]:
    """NumPyro's, vectorized only where a gradient is cheaper so, and Pyro's; each is compiled in its turn."""
    points = mine.z[:: len(mine.z) // CHAINS][:CHAINS]
    way, each = peers_jax.fastest(data, name, points)
    together = peers_jax.side_by_side(data, name, way, points)
    told = ", ".join(f"{each_way} {1e3 * took:.3g} ms" for each_way, took in each.items())
    print(f"  a gradient by diffrax: {told}; {CHAINS} vectorized {1e3 * together:.3g} ms", flush=True)
    log_joint, block = peers_jax.PEERS[name](data, way), BLOCKS[name]
    begin = from_posterior(mine.z) if head_start else from_prior(model, data, seed)
    if not in_turn and together < CHAINS * each[way.name]:
        yield numpyros(log_joint, begin, block, seed, vectorized=True)
    yield numpyros(log_joint, begin, block, seed, vectorized=False)
    yield pyros(model, data, begin, block, seed)


@dataclass(frozen=True)
class Row:
    """One data set: what all took, and the fastest peer."""

    name: str
    mine: Ours
    runs: tuple[Run, ...]
    training: float

    @property
    def peer(self) -> Run:
        """The fastest; a lower bound counts as if it were what is known."""
        return min(self.runs, key=lambda r: r.seconds(WANTED))

    @property
    def ratio(self) -> float:
        """How many times faster ampost is."""
        return self.peer.seconds(WANTED) / self.mine.seconds

    @property
    def pays(self) -> float:
        """From how many data sets on training pays."""
        saved = self.peer.seconds(WANTED) - self.mine.seconds
        return self.training / saved if saved > 0 else math.inf

    def text(self, samplers: list[str]) -> str:
        """A row of the table; a sampler that was not run has a dash."""
        above, below = ("", "") if self.peer.known else ("> ", "< ")
        words = {r.name: r.words(WANTED) for r in self.runs}
        cells = [self.name, self.mine.words(), *(words.get(name, "-") for name in samplers)]
        return f"| {' | '.join(cells)} | {above}{self.ratio:.3g} | {below}{self.pays:.3g} |"


def table(rows: list[Row], title: str) -> str:
    """All rows, and medians."""
    samplers = list(dict.fromkeys(r.name for row in rows for r in row.runs))
    names = ["data set", "ampost", *samplers, "times faster than the fastest", "training pays from"]
    bound = "" if all(row.peer.known for row in rows) else " (bounds among them)"
    last = (
        f"median{bound}: ampost {median(row.mine.seconds for row in rows):.3g} s, the fastest peer "
        f"{median(row.peer.seconds(WANTED) for row in rows):.3g} s, {median(row.ratio for row in rows):.3g} "
        f"times, training pays from {median(row.pays for row in rows):.3g} data sets on"
    )
    body = [row.text(samplers) for row in rows]
    return "\n".join([title, f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}", *body, last])


def main() -> None:
    """Train or load, run all of them on each data set, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(peers_jax.PEERS))
    parser.add_argument("--file", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--datasets", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--head-start", action="store_true")
    parser.add_argument("--in-turn", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model: Model = import_module(f"ampost.zoo.{asked.model}").model()
    if asked.file is None:
        settings = Settings(SIMULATIONS, Schedule(steps=20_000, seconds=asked.seconds))
        estimator = train(model, settings, seed=0)
    else:
        estimator = Estimator.load(asked.file)
    drawn = model.simulate(2 * asked.datasets + 1, SEED)
    first, *good = (~drawn.failed).nonzero()[:, 0].tolist()
    ours(model, drawn.experiments.at(first), estimator, 0)  # compiles
    rows = []
    for k in good[: asked.datasets]:
        data = drawn.experiments.at(k)
        mine = ours(model, data, estimator, k)
        somewhere = model.simulate(AGREEING, derive(k, "agree"), data.without_values()).z
        apart = peers_jax.agrees(model, data, asked.model, somewhere)
        print(f"data set {k}: ampost {mine.words()}; log joints agree to {apart:.1g}", flush=True)
        runs = []
        for sampler in peers(model, data, asked.model, mine, k, asked.head_start, asked.in_turn):
            runs.append(run(sampler, WANTED, asked.limit))
            print(f"  {runs[-1].account()}", flush=True)
        rows.append(Row(str(k), mine, tuple(runs), estimator.seconds))
    begun = ", NUTS with a head start" if asked.head_start else ""
    title = (
        f"\n{asked.model}: seconds for {WANTED:,} effective draws{begun}; {estimator.seconds:.0f} s of training"
    )
    print(table(rows, title))


if __name__ == "__main__":
    main()
