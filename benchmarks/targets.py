"""One line per target: what was wanted, what was measured, and whether it was met."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A figure beside the bounds that it should lie in."""

    name: str
    measured: float
    least: float = -float("inf")
    most: float = float("inf")

    @property
    def met(self) -> bool:
        """Whether the figure lies inside its bounds."""
        return self.least <= self.measured <= self.most

    def __str__(self) -> str:
        wanted = " to ".join(f"{b:g}" for b in (self.least, self.most) if abs(b) < float("inf"))
        way = "" if self.least > -float("inf") and self.most < float("inf") else "at least "
        way = "at most " if self.least == -float("inf") else way
        return f"| {self.name} | {way}{wanted} | {self.measured:.4g} | {'met' if self.met else 'MISSED'} |"


def show(targets: list[Target]) -> None:
    """Print the table."""
    print("| what | wanted | measured | |\n| --- | --- | --- | --- |")
    for target in targets:
        print(target)
