"""Theophylline: each of twelve subjects by one estimator, and all of them at once, against NUTS.

Run: python benchmarks/theophylline.py [--chains 4] [--draws 2000] [--only subjects | population]
[--out FILE.csv] [--estimators FOLDER]. Estimators are trained unless they are in FOLDER, and are saved
there: for the subjects with the default settings, for the population within seven minutes. The
population's typical values also stand beside published fits: ka near 1.5 /h, clearance near 0.04 L/h/kg,
volume 0.45 to 0.5 L/kg (J. C. Pinheiro and D. M. Bates, Mixed-Effects Models in S and S-PLUS, Springer
2000, chapter 8).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import xarray as xr
from agreement import Agreement, agreements, print_and_write, targets_of
from targets import Target, show

from ampost import Budget, Schedule, Settings, infer
from ampost.baselines import nuts
from ampost.zoo import one_compartment_oral as oral

BUDGET = Budget(draws=8_000, effective_size=8_000)


def subjects(chains: int, draws: int, folder: Path) -> tuple[list[Agreement], list[Target]]:
    """One estimator, twelve posteriors, twelve times NUTS."""
    model, data = oral.model(), oral.data()
    rows: list[Agreement] = []
    for k, one in enumerate(data.split()):
        name, kept = one.datasets[0], folder / "theophylline.ampost"
        mine = infer(model, one, kept, seed=k, budget=BUDGET, optimum=False)
        theirs = nuts(model, one, draws=draws, warmup=500, chains=chains, seed=k)
        print(f"subject {name}: {cost(mine)}; NUTS {seconds(theirs):.0f} s")
        rows += agreements(f"subject {name}", model, mine, theirs)
    return rows, targets_of("subjects", rows)


def population(chains: int, draws: int, folder: Path) -> tuple[list[Agreement], list[Target]]:
    """Forty-three parameters of one model, by infer and by NUTS."""
    model, data = oral.population_model(), oral.population_data()
    kept = folder / "theophylline_population.ampost"
    # a batch of 64 data sets holds 768 subjects
    settings = Settings(simulations=10_000, schedule=Schedule(seconds=420), batch=64)
    mine = infer(model, data, kept, seed=1, budget=BUDGET, settings=settings, optimum=False)
    print(mine["fit/verdict"].item())
    theirs = nuts(model, data, draws=draws // 2, warmup=draws // 2, chains=chains, seed=1)
    print(f"population: {cost(mine)}; NUTS {seconds(theirs):.0f} s")
    rows = agreements("population", model, mine, theirs)
    published = {"ka_typical": (1.3, 1.8), "CL_typical": (0.035, 0.045), "V_typical": (0.45, 0.5)}
    found = [
        Target(f"population by {method}, {name}", float(result[f"posterior/{name}"].mean()), *ends)
        for method, result in (("NUTS", theirs), ("infer", mine))
        for name, ends in published.items()
    ]
    return rows, [*found, *targets_of("population", rows)]


def seconds(result: xr.DataTree) -> float:
    """How long it took, without training."""
    return float(result["fit/seconds"])


def cost(result: xr.DataTree) -> str:
    """What an inference cost and how it went, in words."""
    said = f"{result['fit/computation'].item()}, {int(result['fit/solves'])} solves"
    return f"{said}, {seconds(result):.1f} s (training {float(result['fit/seconds_training']):.0f} s)"


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=2_000, help="of NUTS per chain; half for the population")
    parser.add_argument("--only", choices=("subjects", "population"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--estimators", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = [part for part in (subjects, population) if given.only in (None, part.__name__)]
    done = [part(given.chains, given.draws, given.estimators) for part in parts]
    print_and_write([row for rows, _ in done for row in rows], given.out)
    show([target for _, found in done for target in found])


if __name__ == "__main__":
    main()
