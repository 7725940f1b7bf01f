"""Words for what was understood: the model's schema, an account of the data, and likely mistakes of units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ampost.errors import UnitError
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.plans import Range
from ampost.reading.accounts import KINDS, repeats, ties
from ampost.scales import Scaled
from ampost.units import USUAL, scale

LINES = 12  # experiments of a channel that are listed one by one
CLOSE = 0.35  # decades within which a factor is taken for that of a unit
FACTORS = {"time": (60.0, 3600.0, 24.0, 1440.0, 86400.0)}
PREFIXES = (1e3, 1e6, 1e9)


def number(value: float) -> str:
    """Three digits; whole numbers with commas from a thousand on."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"


def with_unit(name: str, units: Mapping[str, str]) -> str:
    """`name [unit]`, or the name where no unit is known."""
    return f"{name} [{units[name]}]" if units.get(name) else name


def span(low: float, high: float) -> str:
    """`low to high`, or one number where they are equal."""
    return number(low) if low == high else f"{number(low)} to {number(high)}"


# ------------------------------------------------------------------------------------- the schema


def schema(
    model: Model,
    records: Sequence[Experiments],
    parameters: Mapping[str, Tensor],
    noises: Mapping[str, str],
    assumed: Sequence[str],
) -> list[str]:
    """The model as it was understood; `parameters` (draw, ...) are prior draws by site, `noises` by channel.

    `assumed` are the names of the data without a unit, which are taken to be in the model's.
    """
    data, units = records[0], model.units
    own = {site.name for site in model.sites(data.count) if site.local}
    lines = [f"Model {model.name!r}. Parameters, by 5, 50 and 95 % of the prior:"]
    width = max(len(with_unit(name, units)) for name in parameters)
    for name, drawn in parameters.items():
        told = [
            number(float(q))
            for q in drawn.double().flatten().quantile(torch.tensor([0.05, 0.5, 0.95]).double())
        ]
        several = drawn[0].numel() > 1 and name not in own
        kind = " (one per experiment)" if name in own else f" ({drawn[0].numel()} numbers)" if several else ""
        lines.append(f"  {with_unit(name, units):<{width}}  {told[0]:>9} {told[1]:>9} {told[2]:>9}{kind}")
    lines.append("Channels: " + ", ".join(f"{with_unit(n, units)} with {noises[n]} noise" for n in noises))
    for name in data.conditions:
        found = torch.cat([record[name][record.live].flatten() for record in records])
        ends = model.design.conditions.get(name)
        lines.append(f"Condition {with_unit(name, units)}: {_ranges(found, ends)}")
    lines += _doses(model, records) + _inputs(records, units)
    until = f"the design ends at {number(model.design.horizon)}"
    lines.append(f"{with_unit('Time', {'Time': units.get('time', '')})} from {number(data.start)}; {until}.")
    return lines + [f"Taken for granted: {said}." for said in _granted(model, records, assumed)]


def _ranges(found: Tensor, ends: Range | None) -> str:
    told = span(float(found.min()), float(found.max()))
    return told if ends is None else f"{told} (design {span(*ends)})"


def _doses(model: Model, records: Sequence[Experiments]) -> list[str]:
    lines = []
    for target in dict.fromkeys(t for record in records for t in record.doses.targets):
        amounts, most = [], 0
        for doses in (record.doses for record in records if target in record.doses.targets):
            mine = doses.mask & (doses.target == doses.targets.index(target))
            amounts.append(doses.amount[mine])
            most = max(most, int(mine.sum(-1).max()))
        found = torch.cat(amounts)
        if len(found):
            name = with_unit(target, model.units)
            lines.append(f"Doses into {name}: up to {most} per experiment, {_ranges(found, None)}")
    return lines


def _inputs(records: Sequence[Experiments], units: Mapping[str, str]) -> list[str]:
    lines = []
    for name, signal in records[0].inputs.items():
        value = torch.cat([r.inputs[name].value[r.inputs[name].mask] for r in records if name in r.inputs])
        kind = "linear" if signal.linear else "held"
        told = span(float(value.min()), float(value.max())) if len(value) else "no breakpoint"
        lines.append(f"Input {with_unit(name, units)}: {kind} between breakpoints, {told}")
    return lines


def _granted(model: Model, records: Sequence[Experiments], assumed: Sequence[str]) -> list[str]:
    """What nobody said and was assumed."""
    data, units, said = records[0], model.units, []
    taken = [name.removeprefix("dose ") for name in assumed]
    if taken:
        told = ", ".join(f"{name} in {units[name]}" for name in dict.fromkeys(taken))
        said.append(f"the data state no unit for {told}, which are the model's")
    known = {name.removeprefix("dose ") for name in (*units, *data.units)}
    names = ["time", *data.channels, *data.conditions, *data.inputs]
    unknown = [name for name in names if name not in known]
    if unknown:
        said.append(f"no unit is known of {', '.join(unknown)}; give them by Model(units=...)")
    absent = [name for name in model.channels if name not in data.channels]
    if absent:
        said.append(f"{', '.join(absent)} of the program was not measured")
    tied = sum(ties(record) for record in records)
    if tied:
        said.append(f"{tied} measurement(s) at the time of a dose came before it, as after_dose says")
    return said


# ------------------------------------------------------------------------------------ the account


def account(records: Sequence[Experiments]) -> list[str]:
    """Measurements, censored and missing ones and replicates, by channel and experiment."""
    places = [(record, e) for record in records for e in range(record.count) if bool(record.live[e])]
    total = sum(int(channel.mask.sum()) for record in records for channel in record.channels.values())
    sets = f" of {len(records)} data sets" if len(records) > 1 else ""
    lines = [f"Data: {total} measurements in {len(places)} experiment(s){sets}."]
    for name in records[0].channels:
        rows = [
            f"  {name}, experiment {_name(record, e, len(records) > 1)}: {_counts(record, name, e)}"
            for record, e in places
            if name in record.channels
        ]
        lines += rows[:LINES]
        if len(rows) > LINES:
            lines.append(f"  {name}: and {len(rows) - LINES} further experiments")
    return lines


def _name(record: Experiments, e: int, several: bool) -> str:
    name = record.names[0][e] if e < len(record.names[0]) else str(e + 1)
    if not several:
        return name
    return f"{name} of {record.datasets[0]}" if record.count > 1 else record.datasets[0]


def _counts(record: Experiments, name: str, e: int) -> str:
    channel = record.channels[name]
    mask = channel.mask[e]
    times = record.times[e][mask]
    if not len(times) or channel.values is None:
        return "not measured"
    values = channel.values[e][mask]
    said = [
        f"{len(times)} from {span(float(times.min()), float(times.max()))}, "
        f"values {span(float(values.min()), float(values.max()))}"
    ]
    if channel.censoring is not None:
        codes = channel.censoring[e][mask].tolist()
        said += [f"{codes.count(kind)} {word}" for kind, word in KINDS.items() if kind in codes]
    repeated = repeats(record.times[e], record.after_dose[e], mask)
    if repeated:
        said.append(f"{repeated} of them replicates")
    missing = _missing(record, name, e)
    said += [f"{missing} missing where all else was measured"] if missing else []
    return ", ".join(said)


def _missing(record: Experiments, name: str, e: int) -> int:
    """Times at which every other channel was measured; 0 if this one is mostly measured at other times."""
    others = [
        channel.mask[e] for key, channel in record.channels.items() if key != name and channel.mask[e].any()
    ]
    if not others:
        return 0
    times = record.times[e]
    mine = times[record.channels[name].mask[e]].unique()
    theirs = times[torch.stack(others).any(0)].unique()
    together = [t for t in theirs.tolist() if all(t in times[mask].tolist() for mask in others)]
    shared = int(torch.isin(theirs, mine).sum())
    return sum(t not in mine.tolist() for t in together) if 2 * shared >= len(theirs) else 0


# ----------------------------------------------------------------------------- mistakes of units


def mistaken(name: str, unit: str | None, seen: float, expected: float, by: str, whose: str = "data") -> str:
    """That `seen` (its typical size, above 0) is far from what is `expected`, and which unit that suggests."""
    factor = seen / expected
    times, bigger = factor if factor > 1 else 1 / factor, "larger" if factor > 1 else "smaller"
    usual = [f for f in (*FACTORS.get(name, ()), *PREFIXES) if abs(math.log10(times / f)) < CLOSE]
    told = f"{min(usual, key=lambda f: abs(math.log10(times / f))):,.0f}" if usual else _rounded(times)
    takes = f" (the model takes {unit})" if unit else ""
    return (
        f"{name}: the {whose} are about {told} times {bigger} than {by} ({number(seen)} against "
        f"{number(expected)}): check the unit of {name}{takes}{_likely(name, unit, factor)}."
    )


def rescaled(name: str, unit: str | None, factor: float, gain: float, whose: str) -> str:
    """That the data are explained far better with `name` times `factor`, and which unit that suggests.

    `gain` is in log joint density.
    """
    done = f"multiplied by about {number(factor)}" if factor > 1 else f"divided by about {number(1 / factor)}"
    takes = f" (the model takes {unit})" if unit else ""
    return (
        f"{name}: with the {whose} {done} the model explains the data far better (log joint +{gain:.0f}): "
        f"check the unit of {name}{takes}{_likely(name, unit, 1 / factor)}."
    )


def undecided(found: Sequence[Scaled], units: Mapping[str, str]) -> str:
    """That the data are explained far better with one of several quantities in another unit, whichever."""
    ways = []
    for one in found:
        done = f"multiplied by about {number(one.factor)}"
        if one.factor < 1:
            done = f"divided by about {number(1 / one.factor)}"
        unit = units.get(one.name)
        takes = f" (the model takes {unit}{_likely(one.name, unit, 1 / one.factor)})" if unit else ""
        ways.append(f"the {one.whose} of {one.name} {done}{takes}")
    names = [one.name for one in found]
    return (
        f"{' or '.join(names)}: the model explains the data far better (log joint +{found[0].gain:.0f}) with "
        f"{', or '.join(ways)}, and these data cannot tell which: check the units of {' and '.join(names)}."
    )


def _rounded(times: float) -> str:
    size = 10.0 ** math.floor(math.log10(times))
    return f"{round(times / size) * size:,.0f}"


def _likely(name: str, unit: str | None, factor: float) -> str:
    """The usual unit whose numbers would be `factor` times as large, as half a sentence."""
    if not unit:
        return (
            "; a factor of 60 is that of minutes against hours"
            if _near(factor, 60.0) and name == "time"
            else ""
        )
    found = [(other, 1 / ratio) for other in USUAL if (ratio := _ratio(other, unit)) is not None]
    near = [(abs(math.log10(r / factor)), other, r) for other, r in found if r > 0 and _near(factor, r)]
    if not near:
        return "; the header's unit may be wrong"
    _, other, ratio = min(near)
    size = f"{number(ratio)} times as large" if ratio > 1 else f"{number(1 / ratio)} times as small"
    return f"; numbers in {other} are {size}, or the header's unit is wrong"


def _near(factor: float, ratio: float) -> bool:
    return abs(math.log10(factor / ratio)) < CLOSE


def _ratio(other: str, unit: str) -> float | None:
    """How many `unit` one `other` is; None where they do not measure the same, or share no zero."""
    try:
        factor, offset = scale(other, unit)
    except UnitError:
        return None
    return factor if offset == 0 and factor != 1 else None
