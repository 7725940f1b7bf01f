"""Whether what is stored belongs to a model: by the model's behaviour, not by its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ampost.design import Design
from ampost.errors import AmpostError
from ampost.model import Model


def difference(stored: Mapping[str, Any], model: Model, design: Design) -> str | None:
    """How a fingerprint, taken under `design`, differs from the model's; None if only by a solver's error."""
    try:
        mine = model.fingerprint(design)
    except AmpostError as error:
        return f"{model.name!r} cannot run under its design ({error})"
    for part in ("sites", "channels", "behaviour"):
        same = _close(stored[part], mine[part]) if part == "behaviour" else stored[part] == mine[part]
        if not same:
            return f"its {part} are {stored[part]}, those of {model.name!r} are {mine[part]}"
    return None


def _close(stored: list[str], mine: list[str]) -> bool:
    """Whether two behaviours agree but for the error of a solver."""
    pairs = [(float(a), float(b)) for a, b in zip(stored, mine, strict=False)]
    near = (a == b or abs(a - b) <= 1e-3 * (1 + abs(b)) for a, b in pairs)  # where the ODE fails both are -inf
    return len(stored) == len(mine) and all(near)
