"""What tables say, entry by entry: measurements, conditions, doses and breakpoints of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ampost.errors import TableError

Key = tuple[str, str]  # data set and experiment


@dataclass(frozen=True)
class Measurement:
    """One measurement; what is None is not told. `place` says where it stands, for messages.

    Of a censored one (codes as in `ampost.experiments.CENSORING`) the value is the limit or the lower end.
    """

    key: Key
    observable: str
    time: float
    value: float
    place: str
    censoring: int = 0
    upper: float | None = None
    sd: float | None = None
    lowest: float | None = None
    highest: float | None = None
    width: float | None = None
    replicate: int | None = None
    after_dose: bool = False
    columns: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dose:
    """One dose; without a data set in its key ("") it is given in all of them."""

    key: Key
    time: float
    amount: float
    duration: float
    target: str


@dataclass(frozen=True)
class Breakpoint:
    """One entry of a logged signal; without a data set in its key ("") it holds for all of them."""

    key: Key
    input: str
    time: float
    value: float
    linear: bool = False


@dataclass(frozen=True)
class Entries:
    """All that tables say of some experiments. `order` has the experiments that were measured, in order."""

    measurements: tuple[Measurement, ...]
    order: tuple[Key, ...]
    channels: tuple[str, ...]
    conditions: Mapping[Key, Mapping[str, float]]
    doses: tuple[Dose, ...] = ()
    inputs: tuple[Breakpoint, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    start: float = 0.0


def same_units(*given: Mapping[str, str]) -> dict[str, str]:
    """The units of several tables together.

    Raises:
        TableError: two tables that give one name in different units.
    """
    found: dict[str, str] = {}
    for units in given:
        for name, unit in units.items():
            if found.setdefault(name, unit) != unit:
                raise TableError(
                    f"{name!r} is in {found[name]!r} in one table and in {unit!r} in another; convert "
                    f"one of them"
                )
    return found
