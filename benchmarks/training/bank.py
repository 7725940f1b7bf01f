"""A bank of a million Michaelis-Menten rows: time to make it, size, and memory while it is streamed.

Run: python benchmarks/training/bank.py (--rows, --windows, --folder). Either stage is a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ampost import bank as banks
from ampost.model import Model
from ampost.seeds import derive
from ampost.zoo import michaelis_menten


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def resident() -> float:
    """Resident memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


def batch(model: Model, bank: banks.Bank, step: int) -> None:
    """One batch of data sets, as training draws it."""
    shard = bank.window(step, seed=0)
    index = torch.randint(len(shard), (256,), generator=torch.Generator().manual_seed(derive(0, "rows", step)))
    looks = model.design.draw_looks(shard.protocols.at(index), derive(0, "looks", step))
    model.simulate_at(shard.z[index], looks, derive(0, "noise", step), solver=shard.rows(index))


def make(model: Model, rows: int, folder: Path) -> None:
    """Build and say how long it took."""
    banks.build(model, 16, seed=1, show=False)  # compiles
    began = time.perf_counter()
    bank = banks.build(model, rows, seed=0, folder=folder)
    taken = time.perf_counter() - began
    size = sum(path.stat().st_size for path in folder.glob("*.ampost"))
    print(f"| {len(bank):,} rows in {len(bank.headers)} shards, {bank.failures} failed | {taken:.1f} s |")
    print(f"| rows per second | {len(bank) / taken:,.0f} |")
    print(f"| on disk | {size / 1e6:,.0f} MB, {size / len(bank):.0f} bytes a row |")
    print(f"| knots | {bank.origin.knots} |")
    print(f"| peak resident memory while building | {peak():,.0f} MB |")


def stream(model: Model, windows: int, folder: Path) -> None:
    """A batch from each of so many windows, and the memory after some of them."""
    bank = banks.open_bank(folder)
    print(f"| resident before streaming | {resident():,.0f} MB |")
    began = time.perf_counter()
    for k in range(windows):
        batch(model, bank, banks.STEPS * k)
        if k + 1 in (3, windows // 10, windows // 2, windows):
            print(
                f"| after {k + 1} windows: resident, peak | {resident():,.0f}, {peak():,.0f} MB |", flush=True
            )
    print(f"| seconds a window, every {banks.STEPS} steps | {(time.perf_counter() - began) / windows:.2f} s |")


def main() -> None:
    """Both stages, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--windows", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--stage", choices=["make", "stream"], default=None)
    given = parser.parse_args()
    model = michaelis_menten.model()
    if given.stage == "make":
        return make(model, given.rows, given.folder)
    if given.stage == "stream":
        return stream(model, given.windows, given.folder)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="ampost-bank-"))
    print("| what | measured |\n| --- | --- |", flush=True)
    for stage in ("make", "stream"):
        same = [f"--rows={given.rows}", f"--windows={given.windows}", f"--folder={folder}", f"--stage={stage}"]
        subprocess.run([sys.executable, __file__, *same], check=True)
    if given.folder is None:
        shutil.rmtree(folder)
    return None


if __name__ == "__main__":
    main()
