"""Progress of long work: what is being done and the time left; the one door to tqdm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm


class Bar(Protocol):
    """What a stage reports to: steps done and a few words."""

    def advance(self, steps: int = 1) -> None: ...

    def say(self, words: str) -> None: ...


class _Quiet:
    def advance(self, steps: int = 1) -> None:
        """Nothing to show."""

    def say(self, words: str) -> None:
        """Nothing to show."""


class _Loud:
    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)

    def say(self, words: str) -> None:
        self._bar.set_postfix_str(words, refresh=False)


@contextmanager
def progress(what: str, total: int, show: bool | None = None) -> Iterator[Bar]:
    """A bar over `total` steps; quiet when `show` is False or the error stream is no terminal."""
    if show is False or (show is None and not sys.stderr.isatty()):
        yield _Quiet()
        return
    with tqdm(total=total, desc=what, leave=False, dynamic_ncols=True) as bar:
        yield _Loud(bar)


def tell(message: str, show: bool | None = None) -> None:
    """One line to the error stream, unless `show` is False."""
    if show is not False:
        tqdm.write(message, file=sys.stderr)
