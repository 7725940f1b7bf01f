"""The learned proxy against the exact solver: error in units of the noise, and evaluations per second.

Run: python benchmarks/training/proxy.py [--model NAME] [--seconds N] [--rows N]. On fresh draws of prior
and design: sqrt(sum over points of ((proxy - exact) / sigma)^2), with each draw's own sigma. For
Michaelis-Menten the picture goes to docs/proxy_error.png.
"""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import replace
from pathlib import Path

import torch
from scores import PROXIES

from ampost import bank as banks
from ampost import plots
from ampost.model import Model
from ampost.ode.problem import Solver
from ampost.proxy import Proxy, ProxySettings, proxy_error, train_proxy
from ampost.seeds import derive
from ampost.training import Schedule

TARGET = 0.2
DOCS = Path(__file__).parents[2] / "docs"


def per_second(model: Model, solver: Solver, draws: int) -> float:
    """Looks answered per second, with the gradient of the log joint to z."""
    drawn = model.simulate(draws, seed=5)
    z = drawn.z[None].clone().requires_grad_()
    seconds = []
    chosen = replace(model, solver=solver)
    for _ in range(3):
        began = time.perf_counter()
        (found,) = torch.autograd.grad(chosen.log_joint(z, drawn.experiments).sum(), z)
        seconds.append(time.perf_counter() - began)
        assert bool(torch.isfinite(found).any())
    return drawn.experiments.times.numel() / min(seconds)


def trained(model: Model, name: str, rows: int, seconds: float) -> Proxy:
    """A proxy from a bank, and how long either took."""
    began = time.perf_counter()
    bank = banks.build(model, rows, seed=0)
    print(f"| bank | {len(bank):,} rows in {time.perf_counter() - began:.1f} s |")
    schedule = Schedule(60_000, patience=1_000, validate_every=1_000, seconds=seconds)
    settings = replace(PROXIES.get(name, ProxySettings()), schedule=schedule)
    spent = time.process_time()
    proxy = train_proxy(model, bank, settings, seed=0)
    steps, passed, spent = proxy.report.steps, proxy.report.seconds, time.process_time() - spent
    print(f"| training | {steps:,} steps, {passed:.0f} s, {spent:.0f} s of one core |", flush=True)
    return proxy


def main() -> None:
    """Train, measure, print the table, save the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="michaelis_menten")
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=1_000)
    given = parser.parse_args()
    model: Model = importlib.import_module(f"ampost.zoo.{given.model}").model()
    torch.set_num_threads(1)
    print(f"| {given.model} | |\n| --- | --- |")
    proxy = trained(model, given.model, given.rows, given.seconds)
    error = proxy_error(model, proxy, given.draws, seed=derive(1, "held out"))
    for share in (0.5, 0.9, 0.99):
        verdict = ", target met" if error.quantile(share) <= TARGET else ", **target missed**"
        mark = verdict if share == 0.9 else ""
        print(f"| {share:.0%} of draws below | {error.quantile(share):.3g}{mark} |")
    print(f"| draws within {TARGET} | {float((error.total <= TARGET).double().mean()):.0%} |")
    for name, spread in error.channels.items():
        print(f"| {name}: rms, 90 % of points below (sd of the noise) | {spread.rms:.3g}, {spread.most:.3g} |")
    for name, spread in error.states.items():
        print(f"| state {name}: rms, 90 % below (sd of the noise) | {spread.rms:.3g}, {spread.most:.3g} |")
    for name, spread in error.unseen.items():
        print(f"| state {name}, unseen: rms, 90 % below (its spread) | {spread.rms:.3g}, {spread.most:.3g} |")
    exact, mine = (per_second(model, solver, 500) for solver in (model.solver, proxy))
    print(f"| looks per second with gradient: exact, proxy | {exact:,.0f}, {mine:,.0f} |")
    if given.model == "michaelis_menten":
        plots.save(plots.proxy(error), str(DOCS / "proxy_error.png"))


if __name__ == "__main__":
    main()
