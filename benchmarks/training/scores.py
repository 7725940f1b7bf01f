"""What the benchmarks of training have in common: how good an estimator is, and how long a call takes."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ampost import Estimator, Experiments, Model, ProxySettings, importance

DRAWS = 10_000
TITLES = {
    "michaelis_menten": "Michaelis-Menten",
    "lotka_volterra": "Lotka-Volterra",
    "ecoli_fed_batch": "E. coli fed-batch",
}

PROXIES = {  # learning whole trajectories over some sixty edges made the error grow
    "lotka_volterra": ProxySettings(longest=1.0),
    "ecoli_fed_batch": ProxySettings(longest=0.5, trunk=96, unrolled=0.0),
}


def efficiency(model: Model, estimator: Estimator, data: Experiments) -> float:
    """Kish's effective share of 10,000 of the network's own draws, weighed by the exact posterior."""
    reading = estimator.reading(model, data)
    z = estimator.sample(reading, DRAWS, seed=1)
    with torch.no_grad():
        weight = (model.log_joint(z, data) - estimator.log_density(z, reading))[:, 0]
    weight = torch.where(torch.isfinite(weight), weight, -torch.inf)
    return float(importance.kish(weight[:, None])) / DRAWS


def best(call: Callable[[], object], times: int = 5) -> float:
    """The shortest of a few runs, in seconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def measured(path: Path) -> list[dict[str, str]]:
    """The lines of a table, if it is there yet."""
    if not path.exists():
        return []
    with path.open(newline="") as held:
        return list(csv.DictReader(held))


def add(path: Path, columns: Sequence[str], row: Sequence[object]) -> None:
    """Print a line and add it to a table."""
    new = not path.exists()
    text = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row]
    with path.open("a", newline="") as held:
        csv.writer(held, lineterminator="\n").writerows([columns, text] if new else [text])
    print(*text, flush=True)
