"""Which solver answers where none is named."""

from __future__ import annotations

import warnings
from functools import cache

from ampost.ode.eager import Eager
from ampost.ode.problem import Solver


@cache
def default() -> Solver:
    """`Compiled()` where numba can be imported, else `Eager()` with one warning."""
    try:
        from ampost.ode.compiled import Compiled
    except ImportError as missing:
        warnings.warn(
            f"the compiled engine is not available ({missing}); the slower torch solver is used. Install numba "
            f"for this Python, or name solver=Eager() to be asked no more",
            stacklevel=2,
        )
        return Eager()
    return Compiled()
