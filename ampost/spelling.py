"""Near names for what was misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Up to three of `known` that are spelt like `word`, whatever the case; the nearest first."""
    by_lower: dict[str, str] = {}
    for text in known:
        by_lower.setdefault(text.lower(), text)
    return [by_lower[k] for k in difflib.get_close_matches(word.strip().lower(), by_lower, 3, 0.6)]
