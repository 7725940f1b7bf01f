"""`ampost demo` on the real pelt counts: time, memory, and the posterior against posteriordb's.

Run: python benchmarks/hudson_bay.py. Needs the reference cases (AMPOST_REFERENCE, default
../shared/reference).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from targets import Target, show

NAMES = {
    "birth": "theta[1]",
    "hunt": "theta[2]",
    "death": "theta[3]",
    "gain": "theta[4]",
    "hare0": "z_init[1]",
    "lynx0": "z_init[2]",
    "hare_error": "sigma[1]",
    "lynx_error": "sigma[2]",
}


def main() -> None:
    """Run the demonstration, read what it wrote, compare."""
    default = Path(__file__).parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("AMPOST_REFERENCE", default)) / "posteriordb"
    reference = pd.read_csv(folder / "hudson_lynx_hare-lotka_volterra" / "reference_draws.csv.bz2")
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from ampost.cli import main; main()", "demo", "--out", out], check=True
        )
        seconds = time.perf_counter() - began
        result = xr.open_datatree(Path(out) / "posterior.nc", engine="h5netcdf").load()
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    off, wide = [], []
    for mine, theirs in NAMES.items():
        draws, known = np.asarray(result[f"posterior/{mine}"]).ravel(), reference[theirs].to_numpy()
        off.append(abs(draws.mean() - known.mean()) / known.std())
        wide.append(abs(draws.std() / known.std() - 1))
        print(f"{mine:10} mean off by {off[-1]:.3f} reference sd, sd off by {100 * wide[-1]:.1f} %")
    show(
        [
            Target("demo from nothing, s", seconds, most=240),
            Target("peak memory, GB", memory, most=3),
            Target("smallest effective size", float(result["fit/effective_size"].min()), 4_000),
            Target("largest error of a mean, reference sds", max(off), most=0.1),
            Target("largest relative error of an sd", max(wide), most=0.1),
        ]
    )


if __name__ == "__main__":
    main()
