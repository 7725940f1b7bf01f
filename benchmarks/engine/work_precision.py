"""Work against precision: what each engine asks for a trajectory, and the error it reaches.

Run: python benchmarks/engine/work_precision.py [--cases ...] [--rows 500] [--rounds 3] [--draw]

Every engine solves each case at relative tolerances from 1e-3 to 1e-9. The time is that of all threads
of one process held on one core, the median of interleaved rounds; the error is the median over 50 rows
of the largest relative error against the reference of compare.py. Engines that solve row by row are
measured on as many rows as fit into `--seconds`. Writes docs/work_precision.csv and draws it as
docs/work_precision.png; `--draw` draws the figures that are there.
"""

from __future__ import annotations

import argparse
import csv
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import REFERENCE_ROWS, SEED, errors, once, processor, reference
from peers import Ampost, Casadi, CyRK, Diffrax, HeyokaBatch, Peer, Scipy, Sundae
from problems import CASES, Case

TOLERANCES = tuple(10.0**-k for k in range(3, 10))
DOCS = Path(__file__).parents[2] / "docs"
FIELDS = ("case", "engine", "rtol", "rows", "error", "microseconds", "spread")
TITLES = {
    "michaelis_menten": "Michaelis-Menten, 2 states",
    "lotka_volterra": "Lotka-Volterra, 2 states",
    "robertson": "Robertson, 3 states, very stiff",
    "ecoli": "E. coli fed-batch, 6 states, 28 pulses",
}
# the colours of Okabe and Ito, told apart by the colour-blind; a marker for each besides
STYLES: dict[str, dict[str, Any]] = {
    "ampost": {"color": "#000000", "marker": "o", "lw": 2.4, "zorder": 5},
    "ampost tsitouras": {"color": "#000000", "marker": "v", "mfc": "white", "ls": "--", "lw": 1.2, "zorder": 4},
    "ampost rodas": {"color": "#000000", "marker": "s", "mfc": "white", "ls": ":", "lw": 1.2, "zorder": 4},
    "heyoka batch": {"color": "#D55E00", "marker": "^"},
    "CyRK": {"color": "#0072B2", "marker": "D"},
    "diffrax": {"color": "#CC79A7", "marker": "P"},
    "scikit-sundae CVODE": {"color": "#009E73", "marker": "X"},
    "CasADi CVODES": {"color": "#E69F00", "marker": "*"},
    "scipy LSODA": {"color": "#56B4E9", "marker": "h"},
}
METHODS = ("Tsit5", "DOP853", "LSODA", "Kvaerno5")  # of CyRK and diffrax, drawn in one style
NAMES = {
    "ampost": "ampost (chooses by itself)",
    "ampost tsitouras": "ampost, tsitouras only",
    "ampost rodas": "ampost, rodas only",
    "CyRK": "CyRK (DOP853; Robertson LSODA, E. coli Tsit5)",
    "diffrax": "diffrax (Tsit5; Robertson Kvaerno5)",
}


def engines(case: Case) -> list[Peer]:
    """Those worth drawing: one explicit method of CyRK and diffrax where it does, else the implicit one."""
    found: list[Peer] = [Ampost()]
    if case.explicit:
        found += [Ampost("tsitouras"), HeyokaBatch()]
    found += [Ampost("rodas"), Sundae(), Casadi(), Scipy()]
    if case.explicit:
        found.append(CyRK("Tsit5" if case.stiff else "DOP853"))
    else:
        found.append(CyRK("LSODA", stiff=True))
    if case.pulses is None:  # diffrax compiles for each stretch between pulses
        found.append(Diffrax("Kvaerno5", stiff=True) if case.stiff else Diffrax("Tsit5"))
    return [peer for peer in found if peer.available()]


def measured(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line per engine and tolerance."""
    parameters = case.make_parameters(max(options.rows, REFERENCE_ROWS), SEED)
    some, lines = parameters[:REFERENCE_ROWS], []
    truth = reference(case, some)
    for rtol in TOLERANCES:
        atol, works, here = rtol * case.atol_ratio, [], []
        for peer in engines(case):
            states = peer.solve(case, some, case.starts(len(some)), rtol, atol)
            if states is None:
                continue
            wrong, rows = float(np.median(errors(case, states, truth))), options.rows
            if not np.isfinite(wrong):
                continue  # half of the rows or more fail
            if not peer.whole:
                few = case, parameters[:4], case.starts(4), rtol, atol
                each = once(partial(peer.solve, *few), time.process_time)[0] / 4
                rows = min(rows, max(8, int(options.seconds / each)))
            arguments = case, parameters[:rows], case.starts(rows), rtol, atol
            peer.solve(*arguments)
            works.append(partial(peer.solve, *arguments))
            here.append(dict(zip(FIELDS, (case.name, peer.name, f"{rtol:.0e}", rows, wrong), strict=False)))
        times: list[list[float]] = [[] for _ in works]
        for _ in range(options.rounds):
            for spent, work in zip(times, works, strict=True):
                spent.append(once(work, time.process_time)[0])
        for line, spent in zip(here, times, strict=True):
            middle = float(np.median(spent))
            line["microseconds"] = 1e6 * middle / line["rows"]
            line["spread"] = (max(spent) - min(spent)) / middle
            print(" ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in line.values()), flush=True)
        lines += here
    return lines


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """The numbers, in the order of the cases."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for line in sorted(lines, key=lambda x: list(CASES).index(x["case"])):
            short = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()}
            table.writerow(short)


def draw(table: Path, picture: Path) -> None:
    """One panel per case, one legend for all."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with table.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 8.6), layout="constrained")
    handles: dict[str, Any] = {}
    for axis, (name, title) in zip(axes.flat, TITLES.items(), strict=True):
        here = [line for line in lines if line["case"] == name]
        for label, style in STYLES.items():
            mine = [x for x in here if x["engine"] in (label, *(f"{label} {m}" for m in METHODS))]
            if not mine:
                continue
            error, cost = (np.array([float(x[key]) for x in mine]) for key in ("error", "microseconds"))
            (handles[label],) = axis.loglog(error, cost, **{"ms": 6.5, "lw": 1.5, "label": label, **style})
        axis.set_title(title, fontsize=11)
        axis.invert_xaxis()
        axis.grid(True, which="major", color="0.9", lw=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("median relative error reached (smaller to the right)", fontsize=11)
    figure.supylabel("microseconds per trajectory, one core (lower is better)", fontsize=11)
    order = [label for label in STYLES if label in handles]
    figure.legend(
        [handles[k] for k in order],
        [NAMES.get(k, k) for k in order],
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.15, help="per turn of a row-by-row engine")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the table and the picture")
    parser.add_argument("--draw", action="store_true", help="only draw the table that is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    table = options.out / "work_precision.csv"
    if not options.draw:
        print(processor())
        lines: list[dict[str, Any]] = []
        if table.exists():  # other cases stay
            with table.open(encoding="utf-8") as file:
                lines = [x for x in csv.DictReader(file) if x["case"] not in options.cases]
        for name in options.cases:
            lines += measured(CASES[name], options)
            write(table, lines)
    draw(table, options.out / "work_precision.png")


if __name__ == "__main__":
    main()
