"""Speed and error of ampost's ODE engine and its peers, on one core, interleaved.

Run: python benchmarks/engine/compare.py [--cases ...] [--batches 1 100 10000] [--rounds 3] [--tune]

Every peer is built, compiled and warmed up first. Then the peers take turns, `rounds` times, and the
median counts. Peers that solve row by row are measured on as many rows as fit into `--seconds`, which
the column `rows` tells; their trajectories per second are those of these rows. The errors are those of
the first 50 rows of the largest batch against a reference solution, as |y - reference| / (floor +
|reference|), the largest over times and states of each row; their median and maximum over rows are
shown. With `--tune` each peer takes the relative tolerance whose median error is nearest to, and at
most twice, ampost's at 1e-6. The process is held on one core; time is that of all its threads together,
unless `--clock wall` is given.
"""

# ruff: noqa: E402 - the numbers of threads are set before anything reads them

from __future__ import annotations

import os
import sys

SINGLE = ("OMP", "MKL", "OPENBLAS", "NUMBA", "NUMEXPR", "VECLIB_MAXIMUM")
os.environ |= {f"{name}_NUM_THREADS": "1" for name in SINGLE}
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[-1]})

import argparse
import csv
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import Peer, Scipy, peers
from problems import CASES, Array, Case, Segment
from scipy.integrate import solve_ivp

REFERENCE_ROWS = 50
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
DEFAULT = 1e-6
SEED = 20_250
COLUMNS = (
    *("case", "what", "batch", "peer", "rtol", "rows", "seconds", "spread", "cores"),
    *("trajectories/s", "× ampost", "median error", "max error", "failed"),
)


@dataclass
class Line:
    """One row of the table. `seconds` is the median time for `rows` rows."""

    case: str
    what: str
    batch: int
    peer: str
    version: str
    rtol: float
    atol: float
    rows: int
    rounds: int
    seconds: float
    spread: float
    cores: float
    per_second: float
    to_ampost: float | None
    error_median: float | None
    error_max: float | None
    failed: int
    build_seconds: float
    note: str


class Reference(Scipy):
    """DOP853 for what is not stiff and LSODA or Radau for what is, by numba, at tight tolerances."""

    def __init__(self, method: str | None = None) -> None:
        super().__init__()
        self.method = method

    def build(self, case: Case, rtol: float, atol: float) -> Callable[[Segment, Array, Array], Array]:
        """The same loop as scipy's, with a faster right-hand side."""
        from numba import njit

        fast = njit(case.rhs, error_model="numpy")
        method = self.method or ("LSODA" if case.stiff else "DOP853")

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            rows = [
                solve_ivp(
                    fast,
                    (segment.begin, segment.grid[-1]),
                    y[r],
                    method,
                    t_eval=segment.grid,
                    args=(p[r],),
                    rtol=rtol,
                    atol=atol,
                )
                for r in range(len(y))
            ]
            assert all(row.success for row in rows), case.name
            return np.stack([row.y.T for row in rows])

        return advance


def reference(case: Case, parameters: Array, method: str | None = None) -> Array:
    """The solution (row, time, state) at rtol 1e-11 and atol 1e-13."""
    solved = Reference(method).solve(case, parameters, case.starts(len(parameters)), 1e-11, 1e-13)
    assert solved is not None
    return solved


def errors(case: Case, states: Array, truth: Array) -> Array:
    """The largest relative error of each row; infinite where the row failed."""
    relative = np.abs(states - truth) / (np.array(case.floor) + np.abs(truth))
    return np.where(np.isfinite(relative), relative, np.inf).max((1, 2))


def clock(kind: str) -> Callable[[], float]:
    """Seconds of all cores together ("cpu"), which other programs disturb less, or of the wall."""
    return time.process_time if kind == "cpu" else time.perf_counter


def once(work: Callable[[], object], now: Callable[[], float], least: float = 0.02) -> tuple[float, float]:
    """Seconds per call, and cores in use; short calls are repeated for at least `least` seconds."""
    calls, began, wall, cpu = 0, now(), time.perf_counter(), time.process_time()
    while True:
        work()
        calls += 1
        spent = now() - began
        if spent >= least:
            cores = (time.process_time() - cpu) / (time.perf_counter() - wall)
            return spent / calls, cores


def tuned(case: Case, peer: Peer, parameters: Array, truth: Array, target: float) -> float | None:
    """The relative tolerance of nearest median error, at most twice the target; None where none is."""
    found: dict[float, float] = {}
    for rtol in TOLERANCES:
        start = case.starts(len(parameters))
        states = peer.solve(case, parameters, start, rtol, rtol * case.atol_ratio)
        if states is None:
            return None
        found[rtol] = float(np.median(errors(case, states, truth)))
    close = {k: v for k, v in found.items() if v <= 2 * target}
    if not close:
        return None
    return min(close, key=lambda k: abs(np.log(max(close[k], 1e-300) / target)))


class Contest:
    """One case: its parameters, its reference and the peers that take part."""

    def __init__(self, case: Case, options: argparse.Namespace, chosen: Sequence[Peer]) -> None:
        self.case, self.options = case, options
        self.parameters = case.make_parameters(max([*options.batches, REFERENCE_ROWS]), SEED)
        self.some = self.parameters[:REFERENCE_ROWS]
        self.truth = reference(case, self.some)
        self.rtol: dict[str, float] = {}
        self.reached: dict[str, tuple[float, float]] = {}
        self.target = float("nan")
        self.chosen = [peer for peer in chosen if self._enter(peer)]

    def _enter(self, peer: Peer) -> bool:
        """Choose the tolerance and take the error."""
        case, name = self.case, peer.name
        rtol: float | None = self.options.rtol
        if self.options.tune and name != "ampost":
            target = self.target if np.isfinite(self.target) else DEFAULT
            rtol = tuned(case, peer, self.some, self.truth, target)
        if rtol is None:
            print(f"{case.name}: {name} reaches the error at no tolerance, or cannot solve it", flush=True)
            return False
        states = peer.solve(case, self.some, case.starts(len(self.some)), rtol, rtol * case.atol_ratio)
        if states is None:
            print(f"{case.name}: {name} cannot solve it", flush=True)
            return False
        wrong = errors(case, states, self.truth)
        if name == "ampost":
            self.target = float(np.median(wrong))
        self.rtol[name], self.reached[name] = rtol, (float(np.median(wrong)), float(wrong.max()))
        return True

    def run(self, what: str, batch: int) -> list[Line]:
        """Build all, then take turns."""
        now, lines, works = clock(self.options.clock), [], []
        for peer in self.chosen:
            ready = self._ready(peer, what, batch)
            if ready is not None:
                lines.append(ready[0])
                works.append(ready[1])
        times: list[list[float]] = [[] for _ in lines]
        cores: list[list[float]] = [[] for _ in lines]
        for turn in range(self.options.rounds):
            for k, work in enumerate(works):
                if turn and times[k][0] > self.options.limit:
                    continue
                spent, busy = once(work, now)
                times[k].append(spent)
                cores[k].append(busy)
        for line, spent, busy in zip(lines, times, cores, strict=True):
            line.rounds, line.seconds = len(spent), float(np.median(spent))
            line.spread = (max(spent) - min(spent)) / line.seconds
            line.cores, line.per_second = float(np.median(busy)), line.rows / line.seconds
        mine = next((line.per_second for line in lines if line.peer == "ampost"), None)
        if not np.isfinite(self.target):
            mine = None  # ampost failed on half of the rows or more: its speed says nothing
        for line in lines:
            line.to_ampost = None if mine is None else line.per_second / mine
        return lines

    def _ready(self, peer: Peer, what: str, batch: int) -> tuple[Line, Callable[[], object]] | None:
        """Warm up, decide how many rows are measured."""
        case, rtol = self.case, self.rtol[peer.name]
        atol = rtol * case.atol_ratio
        ask = peer.solve if what == "solve" else peer.gradient
        rows = batch if peer.whole else min(batch, 4)
        parameters, start = self.parameters[:rows], case.starts(rows)
        began = time.perf_counter()
        answer = ask(case, parameters, start, rtol, atol)
        if answer is None:
            return None
        build = time.perf_counter() - began
        if not peer.whole:
            each = once(lambda: ask(case, parameters, start, rtol, atol), time.perf_counter)[0] / rows
            rows = min(batch, max(8, int(self.options.seconds / each)))
            parameters, start = self.parameters[:rows], case.starts(rows)
            answer = ask(case, parameters, start, rtol, atol)
        failed = int((~np.isfinite(answer)).reshape(rows, -1).any(1).sum())
        middle, worst = self.reached[peer.name] if what == "solve" else (None, None)
        line = Line(
            case=case.name,
            what=what,
            batch=batch,
            peer=peer.name,
            version=peer.version(),
            rtol=rtol,
            atol=atol,
            rows=rows,
            rounds=0,
            seconds=0.0,
            spread=0.0,
            cores=0.0,
            per_second=0.0,
            to_ampost=None,
            error_median=middle,
            error_max=worst,
            failed=failed,
            build_seconds=build,
            note=peer.note,
        )
        return line, lambda: ask(case, parameters, start, rtol, atol)

    def check_gradients(self) -> None:
        """Print how far the peers' gradients of five rows lie from central differences of the reference."""
        case, p = self.case, self.some[:5]
        if case.pulses is not None:
            return
        truth = np.empty_like(p)
        for k in range(p.shape[1]):
            step = 1e-4 * np.eye(p.shape[1])[k]
            more, less = (reference(case, p * np.exp(s * step)) for s in (1, -1))
            truth[:, k] = ((more - less) @ case.weights).sum(1) / (2e-4 * p[:, k])
        for peer in self.chosen:
            rtol = self.rtol[peer.name]
            found = peer.gradient(case, p, case.starts(5), rtol, rtol * case.atol_ratio)
            if found is not None:
                off = np.abs((found - truth) * p).max(1) / np.abs(truth * p).max(1)
                print(f"{case.name}: gradient of {peer.name} off by at most {off.max():.1e}", flush=True)


def show(lines: Sequence[Line]) -> str:
    """The table in markdown."""
    text = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for x in lines:
        ratio = "" if x.to_ampost is None else f"{x.to_ampost:.3g}"
        wrong = ["" if e is None else f"{e:.1e}" for e in (x.error_median, x.error_max)]
        rows = str(x.rows) if x.rows == x.batch else f"{x.rows} (scaled)"
        cells = [x.case, x.what, str(x.batch), x.peer, f"{x.rtol:.0e}", rows, f"{x.seconds:.3g}"]
        cells += [f"{x.spread:.0%}", f"{x.cores:.2f}", f"{x.per_second:,.0f}", ratio, *wrong, str(x.failed)]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def write(folder: Path, lines: Sequence[Line], options: argparse.Namespace) -> None:
    """table.md, table.csv and table.json; the last with the machine and the options."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(line) for line in lines]
    (folder / "table.md").write_text(show(lines) + "\n", encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Line)])
        table.writeheader()
        table.writerows(rows)
    about = {
        "python": platform.python_version(),
        "processor": processor(),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "rows": rows,
    }
    (folder / "table.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def agreement(chosen: Sequence[Peer], cases: Sequence[Case]) -> bool:
    """Whether all peers agree with the reference on five rows of each case; prints the errors."""
    good = True
    for case in cases:
        p = case.make_parameters(5, SEED)
        truth = reference(case, p)
        if case.stiff:
            other = errors(case, reference(case, p[:1], "Radau"), truth[:1]).max()
            print(f"{case.name:18}reference, LSODA against Radau on one row: {other:.1e}", flush=True)
        for peer in chosen:
            states = peer.solve(case, p, case.starts(5), 1e-7, 1e-7 * case.atol_ratio)
            if states is None:
                print(f"{case.name:18}{peer.name:22}cannot", flush=True)
                continue
            wrong = errors(case, states, truth).max()
            good &= bool(wrong < 1e-3)
            print(f"{case.name:18}{peer.name:22}{wrong:.1e}{'' if wrong < 1e-3 else '  DISAGREES'}", flush=True)
    return good


def threads(case: Case, options: argparse.Namespace) -> str:
    """Trajectories per second of ampost at each number of threads, by the wall clock, taking turns."""
    peer = peers()[0]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, CORES)
    text = []
    for batch in options.batches:
        parameters, start = case.make_parameters(batch, SEED), case.starts(batch)
        work = partial(peer.solve, case, parameters, start, options.rtol, options.rtol * case.atol_ratio)
        spent: dict[int, list[float]] = {count: [] for count in options.threads}
        for turn in range(options.rounds + 1):
            for count, times in spent.items():
                torch.set_num_threads(count)
                seconds = once(work, time.perf_counter, 0.2)[0]
                if turn:  # the first turn warms up
                    times.append(seconds)
        per = {count: batch / float(np.median(times)) for count, times in spent.items()}
        first = per[options.threads[0]]
        text += [f"| {case.name} | {batch} | {k} | {v:,.0f} | {v / first:.2f} |" for k, v in per.items()]
    torch.set_num_threads(1)
    return "\n".join(text)


def growth(name: str, case: str, rows: int, rtol: float, gradient: bool) -> float | None:
    """MB by which the peak of resident memory grows in one solve, after one of 100 rows; Linux only."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    problem = CASES[case]
    peer = next(p for p in peers() if p.name == name and p.available())
    parameters, atol = problem.make_parameters(rows, SEED), rtol * problem.atol_ratio
    ask = peer.gradient if gradient else peer.solve
    if ask(problem, parameters[:100], problem.starts(100), rtol, atol) is None:
        return None
    start = problem.starts(rows)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _resident("VmRSS")
    answer = ask(problem, parameters, start, rtol, atol)
    assert answer is not None
    return (_resident("VmHWM") - before) / 1e3


def _resident(what: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(what):
            return float(line.split()[1])
    return float("nan")


def memory(case: Case, options: argparse.Namespace, chosen: Sequence[Peer]) -> str:
    """One line per peer: MB of growth at the largest batch, and of the answer itself."""
    rows = max(options.batches)
    answer = 8e-6 * rows * len(case.times) * len(case.states)
    text = []
    for peer in chosen:
        for gradient in (False, True) if options.gradients else (False,):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                grown = pool.apply(growth, (peer.name, case.name, rows, options.rtol, gradient))
            if grown is not None:
                what = "gradient" if gradient else "solve"
                text.append(f"| {case.name} | {what} | {rows} | {peer.name} | {grown:.0f} | {answer:.0f} |")
    return "\n".join(text)


def main() -> int:
    """Compare, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="+", help="names, or beginnings of names")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 100, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtol", type=float, default=DEFAULT)
    parser.add_argument("--tune", action="store_true", help="compare at equal error")
    parser.add_argument("--gradients", action="store_true", help="time the gradients too")
    parser.add_argument("--threads", nargs="+", type=int, help="numbers of threads to time ampost at")
    parser.add_argument("--memory", action="store_true", help="growth of memory at the largest batch")
    parser.add_argument("--check", action="store_true", help="only compare five rows with the reference")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="per turn of a row-by-row peer")
    parser.add_argument("--limit", type=float, default=20.0, help="slower peers take one turn only")
    parser.add_argument("--out", type=Path, help="folder of table.md, table.csv and table.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    wanted = tuple(options.peers or [""])
    chosen = [p for p in peers() if p.name.startswith(wanted)]
    missing = [p.name for p in chosen if not p.available()]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    chosen = [p for p in chosen if p.name not in missing]
    if options.check:
        return 0 if agreement(chosen, [CASES[name] for name in options.cases]) else 1
    cases = [CASES[name] for name in options.cases]
    if options.threads:
        print("| case | batch | threads | trajectories/s | × one thread |\n| --- | --- | --- | --- | --- |")
        print("\n".join(threads(case, options) for case in cases))
        return 0
    if options.memory:
        print("| case | what | rows | peer | growth MB | answer MB |\n| --- | --- | --- | --- | --- | --- |")
        print("\n".join(memory(case, options, chosen) for case in cases))
        return 0
    lines: list[Line] = []
    for name in options.cases:
        contest = Contest(CASES[name], options, chosen)
        for batch in options.batches:
            lines += contest.run("solve", batch)
            if options.gradients:
                lines += contest.run("gradient", batch)
        if options.gradients:
            contest.check_gradients()
        if options.out:
            write(options.out, lines, options)
    print(show(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
