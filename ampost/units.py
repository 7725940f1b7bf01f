"""Units: what their texts mean, and data converted to the units of a model; the one door to pint.

The names are those of `Experiments.units`: "time", channels, conditions, columns and inputs by name, and
"dose <target>" for amounts, whose unit in the model is that of the target.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import pint
import torch
from torch import Tensor

from ampost.design import Design
from ampost.errors import UnitError
from ampost.experiments import Channel, Doses, Experiments, Input, Signals
from ampost.spelling import nearest

# What laboratories write and pint lacks or reads as something else (pH as picohenry, turns as radians).
# What is counted has a dimension of its own, so cells are never taken for colonies.
LABORATORY = (
    "acidity_value = [acidity] = pH",
    "optical_density = [optical_density] = OD = OD600",
    "relative_fluorescence_unit = [fluorescence] = RFU",
    "relative_luminescence_unit = [luminescence] = RLU",
    "international_unit = [biological_activity] = IU",
    "carbon_mole = [carbon_amount] = Cmol",
    "dry_gram = gram = gDW = gCDW = gDCW",
    "volume_per_volume_minute = 1 / minute = vvm",
    "revolutions_per_minute = 1 / minute = rpm",  # not 2 pi radians
    "weight_per_volume_percent = 10 gram / liter",
    "@alias week = wk",
    "counted = [counted] = count",
    "colony_forming_unit = [colonies_formed] = CFU = cfu",
    "plaque_forming_unit = [plaques_formed] = PFU = pfu",
    "person = [persons] = _ = people",
    "child = [children] = _ = children",
    "copy = [copies] = _ = copies",
    "colony = [colonies] = _ = colonies",
    *(
        f"{name} = [{name}s]"
        for name in ("animal", "boy", "case", "cell", "egg", "event", "genome", "individual", "larva")
    ),
    *(f"{name} = [{name}s]" for name in ("patient", "pelt", "plant", "read", "spore", "virion")),
)
USUAL = (
    *("s", "sec", "min", "h", "hours", "d", "days", "week", "year", "1/h", "1/min"),
    *("g", "mg", "ug", "kg", "L", "mL", "uL", "g/L", "mg/L", "ug/L", "mg/mL", "ug/mL", "ng/mL", "g/L/h"),
    *("mol", "mmol", "umol", "M", "mM", "uM", "nM", "pM", "mM/min", "mmol/L", "umol/L", "mol/L"),
    *("°C", "K", "%", "bar", "mbar", "pH", "rpm", "L/h", "mL/min", "mg/kg", "L/kg", "L/h/kg"),
    *("OD", "OD600", "cells/mL", "CFU/mL", "cells", "counts", "people", "persons", "U/mL", "IU/mL", "RFU"),
    *("gram", "litre", "liter", "molar", "second", "minute", "hour", "day", "percent", "celsius"),
)
NOTHING = {"", "-", "–", "1"}  # texts of a number without a unit
PERCENT = r"%\s*(?:of\s+)?(?:air\s+|oxygen\s+)?(?:saturation|sat)\b\.?|(?:mol|vol|wt)\s?%|%\s*\(?[vw]/[vw]\)?"
# as written -> as pint reads it, in this order
SPELLINGS = (
    ("−", "-"),
    (r"%\s*\(?w/v\)?", " weight_per_volume_percent"),
    (PERCENT, "percent"),
    (r"\b([mukµμnp]?)M(?:ol|OL)\b", r"\1mol"),  # mMol
    (r"\b([mukµμn]?)L(it(?:er|re)s?)\b", r"\1l\2"),
    (r"\bMin\b", "min"),  # not a megainch
    (r"℃|[°º]\s?C\b|\bdeg\.?\s?C\b", "degC"),
    (r"\bC-?([mukµμ]?)mol\b", r"\1Cmol"),
    (r"\b(number|no\.|count) of ([A-Za-z_]\w*)", r"number_of_\2"),
    (r"(?<![\d.])([A-Za-zµμ]+)\s?(-[1-9])(?!\d)", r"\1^\2"),  # h-1
    (r"\b([mcdµμu]?m)([23])\b", r"\1^\2"),  # cm2
    (r"/\s?(\d+(?:\.\d+)?)\s?([A-Za-zµμ]+)", r"/(\1 \2)"),  # cells/100 mL
)
FALSE_FRIENDS = {
    "C": "coulomb, write '°C'",
    "H": "henry, write 'h'",
    "m": "metre, write 'min'",
    "S": "siemens, write 's'",
}
LOGARITHM = re.compile(r"\b(log|ln|lg)(2|10)?\b", re.IGNORECASE)


def meaning(unit: str, where: str = "") -> pint.Quantity:  # type: ignore[type-arg]
    """What `unit` stands for, a quantity of pint's; `where` is the name that has it, for the message.

    Raises:
        UnitError: the text has no meaning as a unit, or is of a logarithm.
    """
    place = f" of {where!r}" if where else ""
    if LOGARITHM.search(unit):
        raise UnitError(
            f"the unit{place} is {unit!r}, a logarithm, which cannot be converted; give the values "
            f"themselves and their unit, and take logarithms in the program"
        )
    try:
        found = _parsed(_spelled(unit))
        usable = math.isfinite(found.magnitude) and found.magnitude > 0
    except Exception as error:  # pint raises whatever its parser stumbles over
        raise UnitError(_without_meaning(unit, place)) from error
    if not usable:
        raise UnitError(f"the unit{place} is {unit!r}, a factor of {found.magnitude:g}; expected one above 0")
    return found


def refuse_meaningless(units: Mapping[str, str]) -> None:
    """Raise `UnitError` for the first unit by name that has no meaning."""
    for name, unit in units.items():
        meaning(unit, name)


def scale(from_unit: str, to_unit: str, where: str = "") -> tuple[float, float]:
    """(factor, offset) such that a value in `to_unit` is factor * value in `from_unit` + offset.

    Raises:
        UnitError: a unit without meaning, or units of different dimensions.
    """
    if from_unit == to_unit:
        return 1.0, 0.0
    given, wanted = meaning(from_unit, where), meaning(to_unit, where)
    if given.dimensionality != wanted.dimensionality:
        raise UnitError(_incompatible(from_unit, to_unit, where))
    quantity = _registry().Quantity
    here, there = given.units, wanted.units
    step = quantity(1.0, there) - quantity(0.0, there)  # of °C, a difference
    factor = (quantity(1.0, here) - quantity(0.0, here)).to(step.units).magnitude
    offset = quantity(0.0, here).to(there).magnitude
    return _tidy(factor * given.magnitude / wanted.magnitude), _tidy(offset / wanted.magnitude)


def converted(data: Experiments, units: Mapping[str, str]) -> Experiments:
    """The record in `units`; what has no unit in the data is taken to be in the model's.

    Times, doses and inputs are converted too. Where the texts are equal nothing is touched.

    Raises:
        UnitError: a unit without meaning, one of another dimension than the model's, or one for
            which the model states none.
    """
    refuse_meaningless(units)
    names = _names(data)
    scales = {name: _scale_of(name, wanted, data.units, units) for name, wanted in names.items()}

    def change(name: str) -> Callable[[Tensor], Tensor]:
        return lambda values: _affine(values, *scales[name])

    def stretch(name: str) -> Callable[[Tensor], Tensor]:
        return lambda values: _affine(values, scales[name][0], 0.0)

    moment = change("time")
    return replace(
        data,
        times=moment(data.times),
        channels={name: _channel(name, channel, change, stretch) for name, channel in data.channels.items()},
        conditions={name: change(name)(value) for name, value in data.conditions.items()},
        doses=_doses(data.doses, moment, stretch("time"), scales),
        inputs=Signals(
            {
                name: Input(moment(signal.time), change(name)(signal.value), signal.mask, signal.linear)
                for name, signal in data.inputs.items()
            }
        ),
        start=float(moment(torch.tensor(data.start, dtype=torch.float64))),
        units={name: units[wanted] for name, wanted in names.items() if wanted in units},
    )


def converted_design(design: Design, units: Mapping[str, str]) -> Design:
    """The design in `units`; its own hold where these say nothing.

    Raises:
        UnitError: a unit without meaning, or of another dimension.
    """
    targets = {f"dose {plan.target}": plan.target for plan in design.doses}
    wanted = {name: units.get(targets.get(name, name), unit) for name, unit in design.units.items()}
    scales = {name: scale(unit, wanted[name], name) for name, unit in design.units.items()}

    def change(name: str, value: float) -> float:
        factor, offset = scales.get(name, (1.0, 0.0))
        return factor * value + offset

    def stretch(name: str, value: float) -> float:
        return scales.get(name, (1.0, 0.0))[0] * value

    if all(pair == (1.0, 0.0) for pair in scales.values()):
        return replace(design, units=wanted)
    return replace(design.converted(change, stretch), units=wanted)


def assumed(data: Experiments, units: Mapping[str, str]) -> list[str]:
    """The names whose unit the model states and the data do not: they are taken to be in the model's."""
    return [name for name, wanted in _names(data).items() if wanted in units and name not in data.units]


def _names(data: Experiments) -> dict[str, str]:
    """What can have a unit: the name in the record to that in the model, where amounts go by their target."""
    columns = (name for channel in data.channels.values() for name in channel.columns)
    own = ["time", *data.channels, *data.conditions, *columns, *data.inputs]
    return {name: name for name in own} | {f"dose {target}": target for target in data.doses.targets}


def _scale_of(
    name: str, wanted: str, given: Mapping[str, str], units: Mapping[str, str]
) -> tuple[float, float]:
    if name not in given:
        return 1.0, 0.0
    if wanted not in units:
        meaning(given[name], name)
        raise UnitError(
            f"the data give {name!r} in {given[name]!r}, but the model gives no unit for {wanted!r}; add "
            f"{wanted!r} with the unit that the program takes to Model(units=...), or leave the unit out of "
            f"the table"
        )
    factor, offset = scale(given[name], units[wanted], name)
    if offset and name != wanted:
        raise UnitError(
            f"amounts of {name!r} are in {given[name]!r} and the model's {wanted!r} in {units[wanted]!r}, "
            f"whose zeros differ: it is open whether an amount is a level or a difference; give it in "
            f"{units[wanted]!r}"
        )
    return factor, offset


def _channel(
    name: str,
    channel: Channel,
    change: Callable[[str], Callable[[Tensor], Tensor]],
    stretch: Callable[[str], Callable[[Tensor], Tensor]],
) -> Channel:
    """A channel's values and limits, its widths, and its columns, each in its own unit."""
    levels = {key: getattr(channel, key) for key in ("values", "upper", "lowest", "highest")}
    widths = {key: getattr(channel, key) for key in ("sd", "width")}
    return replace(
        channel,
        **{key: change(name)(value) for key, value in levels.items() if value is not None},
        **{key: stretch(name)(value) for key, value in widths.items() if value is not None},
        columns={key: change(key)(value) for key, value in channel.columns.items()},
    )


def _doses(
    doses: Doses,
    moment: Callable[[Tensor], Tensor],
    stretch: Callable[[Tensor], Tensor],
    scales: Mapping[str, tuple[float, float]],
) -> Doses:
    factors = [scales[f"dose {target}"][0] for target in doses.targets]
    amount = doses.amount
    if any(factor != 1.0 for factor in factors):
        amount = amount * torch.tensor(factors, dtype=amount.dtype)[doses.target]
    return replace(doses, time=moment(doses.time), amount=amount, duration=stretch(doses.duration))


def _affine(values: Tensor, factor: float, offset: float) -> Tensor:
    """The same tensor where there is nothing to change."""
    return values if factor == 1.0 and offset == 0.0 else values * factor + offset


def _tidy(number: float) -> float:
    """Without the last digits that a way over base units leaves: 0.9999999999999999 is 1."""
    short = float(f"{number:.12g}")
    return short if math.isclose(short, number, rel_tol=2e-15) else number


def _spelled(unit: str) -> str:
    text = unit.strip()
    if text in NOTHING:
        return "dimensionless"
    for written, read in SPELLINGS:
        text = re.sub(written, read, text)
    text = text.strip()
    return f"1{text}" if text.startswith("/") else text


def _parsed(text: str) -> pint.Quantity:  # type: ignore[type-arg]
    registry = _registry()
    for thing in re.findall(r"number_of_\w+", text):
        if thing not in registry:
            registry.define(f"{thing} = [{thing}]")
    try:
        unit = registry.parse_units(text)
    except ValueError:  # a number in front, which only an expression may have
        found: pint.Quantity[float] = registry.Quantity(registry.parse_expression(text))
        return registry.Quantity(float(found.magnitude), found.units)
    return registry.Quantity(1.0, unit)


@cache
def _registry() -> pint.UnitRegistry:  # type: ignore[type-arg]
    registry: pint.UnitRegistry[float] = pint.UnitRegistry(on_redefinition="ignore")
    for definition in LABORATORY:
        registry.define(definition)
    return registry


def _without_meaning(unit: str, place: str) -> str:
    near = nearest(unit, USUAL)
    guess = f"did you mean {' or '.join(map(repr, near))}? Write" if near else "write"
    return (
        f"the unit{place} is {unit!r}, which has no meaning; {guess} units such as 'g/L', 'mM', '1/h', "
        f"'°C', '%' or '1' (none), and what is counted as 'number of flies'"
    )


def _incompatible(given: str, wanted: str, where: str) -> str:
    subject = f"{where!r} is in {given!r} in the data and in {wanted!r} in the model" if where else ""
    subject = subject or f"{given!r} cannot be converted to {wanted!r}"
    mass, amount = (meaning(u) for u in (given, wanted))
    ratio = (mass / amount).dimensionality if not _has_offset(mass, amount) else {}
    by_mole = {"[mass]": 1, "[substance]": -1}
    molar = dict(ratio) in (by_mole, {key: -power for key, power in by_mole.items()})
    why = "between them a molar mass would be needed" if molar else "these are different dimensions"
    why += "".join(f" ({text!r} is {said})" for text in (given, wanted) if (said := FALSE_FRIENDS.get(text)))
    return f"{subject}: {why}; convert the column in the table, or write the program in {given!r}"


def _has_offset(*quantities: pint.Quantity) -> bool:  # type: ignore[type-arg]
    return any(not q._is_multiplicative for q in quantities)
