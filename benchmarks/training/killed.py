"""Killed at random moments, does a training end with the result of one that was left alone?

Run: python benchmarks/training/killed.py [--kills 20] [--seed 0]

Bank, networks and density about the mode of Michaelis-Menten are made by a process of its own, in small. It is
sent SIGKILL at a random moment of its life and started again, so many times, and then left to finish. The
shards must be the same bytes, and weights and losses of the estimator the same numbers, as those of a process
that nobody stopped.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ampost import Estimator, Schedule, Settings, train
from ampost.refining import Refining
from ampost.zoo import michaelis_menten

SETTINGS = Settings(
    20_000,
    Schedule(400, validate_every=25),
    128,
    refining=Refining(2_000, Schedule(400, validate_every=25), 256),
)


def child(folder: Path) -> None:
    """What is killed: from nothing, or from what is in the folder, to an estimator."""
    estimator = train(
        michaelis_menten.model(), SETTINGS, seed=0, bank=folder / "bank", checkpoint=folder / "part.ampost"
    )
    estimator.save(folder / "estimator.ampost")


def started(folder: Path) -> subprocess.Popen[bytes]:
    """A process that trains in `folder`."""
    return subprocess.Popen([sys.executable, __file__, "--child", str(folder)])


def stage(folder: Path) -> str:
    """How far a killed process had come."""
    if list(folder.glob("part.modes-*")) or (folder / "part.about").exists():
        return "density about the mode"
    if (folder / "part.ampost").exists():
        return "networks"
    shards = len(list((folder / "bank").glob("shard-*.ampost")))
    return f"bank, {shards} shards" if (folder / "bank").exists() else "start"


def same(one: Path, two: Path) -> list[str]:
    """What differs between two results."""
    differs = []
    shards = [sorted((folder / "bank").glob("shard-*.ampost")) for folder in (one, two)]
    if [p.name for p in shards[0]] != [p.name for p in shards[1]]:
        differs.append("the names of the shards")
    differs += [a.name for a, b in zip(*shards, strict=False) if a.read_bytes() != b.read_bytes()]
    first, second = (Estimator.load(folder / "estimator.ampost") for folder in (one, two))
    mine, theirs = first.networks.state_dict(), second.networks.state_dict()
    differs += [name for name in mine if not torch.equal(mine[name], theirs[name])]
    for name in ("report", "refining"):
        for part in ("steps", "training", "validation", "best"):
            if getattr(getattr(first, name), part) != getattr(getattr(second, name), part):
                differs.append(f"{name}.{part}")
    return differs


def main() -> None:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    asked = parser.parse_args()
    if asked.child is not None:
        child(asked.child)
        return
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as held:
        whole, killed = Path(held, "whole"), Path(held, "killed")
        for folder in (whole, killed):
            folder.mkdir()
        began = time.perf_counter()
        assert started(whole).wait() == 0
        life = time.perf_counter() - began
        print(f"left alone: {life:.1f} s")
        kills = 0
        while kills < asked.kills:
            if (killed / "estimator.ampost").exists():  # it was faster: begin again, so that all kills count
                for path in killed.rglob("*.ampost"):
                    path.unlink()
            run = started(killed)
            try:
                run.wait(moments.uniform(0.2 * life, life))
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                run.wait()
                kills += 1
                print(f"kill {kills}: {stage(killed)}", flush=True)
        assert started(killed).wait() == 0
        differs = same(whole, killed)
        print("the result is identical" if not differs else f"DIFFERENT: {', '.join(differs)}")
        left = [path.name for path in killed.iterdir() if path.name not in ("bank", "estimator.ampost")]
        print(f"left over: {', '.join(left) or 'nothing'}")
    sys.exit(bool(differs))


if __name__ == "__main__":
    main()
