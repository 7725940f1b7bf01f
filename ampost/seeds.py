"""Randomness that is a function of a seed and of what is being drawn, never of history.

`derive(seed, "batch", k)` gives batch k the same numbers whether it is the first thing computed
or the last, by one worker or by eight.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *keys: str | int) -> int:
    """A new seed for `keys` under `seed`: 63 bits of a hash, the same on every machine.

    >>> derive(1, "batch", 7) == derive(1, "batch", 7) != derive(1, "batch", 8)
    True
    """
    text = "/".join([str(seed), *(str(key) for key in keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under `seed` (torch, numpy, random), leaving the caller's as they were."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - Pyro and sbi read the global generator
    python_state = random.getstate()
    with torch.random.fork_rng(devices=_devices()):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
