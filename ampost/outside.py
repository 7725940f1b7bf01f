"""Why one data set lies outside the parts of a design: one sentence each, by column, value and range."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ampost.experiments import Channel, Experiments
from ampost.plans import DosePlan, InputPlan, Looks, Range, dose_numbers

SHORTEST = 0.3  # a design cuts some experiments short, down to this share of its horizon


def beyond(what: str, values: Tensor, ends: Range) -> list[str]:
    """A sentence if any of `values` lies outside `ends`, up to rounding."""
    low, high = ends
    slack = 1e-9 * max(abs(low), abs(high))
    if not values.numel() or not bool(((values < low - slack) | (values > high + slack)).any()):
        return []
    least, most = float(values.min()), float(values.max())
    measured = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
    spanned = f"has {low:.4g}" if low == high else f"spans {low:.4g} to {high:.4g}"
    return [f"{what} is {measured}, the design {spanned}"]


def in_number(ends: tuple[int, int], record: Experiments) -> list[str]:
    """The number of experiments."""
    number, (low, high) = int(record.live.sum()), ends
    if low <= number <= high:
        return []
    return [f"{number} experiments, the design has {low if low == high else f'{low} to {high}'}"]


def in_conditions(ranges: Mapping[str, Range], record: Experiments, columns: Collection[str] = ()) -> list[str]:
    """Conditions, by name and range; one of `columns` is a covariate that happens to be constant."""
    found = [
        f"condition {name!r} is not in the design ({', '.join(ranges) or 'none'})"
        for name in record.conditions
        if name not in ranges and name not in columns
    ]
    for name, ends in ranges.items():
        found += beyond(f"condition {name!r}", record[name][record.live], ends)
    return found


def in_looks(name: str, look: Looks, record: Experiments, horizon: float) -> list[str]:
    """How a channel is looked at."""
    channel, found = record.channels.get(name), []
    fewest = int(SHORTEST * look.rows[0] * (1 - min(1.0, 1.5 * look.missing)))
    for e in range(record.count):
        times = record.times[e] if channel is None else record.times[e][channel.mask[e]]
        if channel is None or not times.numel():
            if look.presence >= 1:
                found.append(f"channel {name!r} is not measured in some experiment, in the design it always is")
            continue
        distinct, repeats = times.unique(return_counts=True)
        if not fewest <= len(distinct) <= look.rows[1]:
            many = f"at most {look.rows[1]}" if len(distinct) > look.rows[1] else f"at least {fewest}"
            found.append(f"channel {name!r} has {len(distinct)} times, the design has {many}")
        if float(times.max()) > horizon * (1 + 1e-9):
            found.append(
                f"channel {name!r} is measured at {float(times.max()):.4g}, the design ends at {horizon:.4g}"
            )
        if int(repeats.max()) > look.replicates[1]:
            most = f"{int(repeats.max())} replicates, the design has at most {look.replicates[1]}"
            found.append(f"channel {name!r} has {most}")
    return found if channel is None else found + _beside(name, look, channel)


def _beside(name: str, look: Looks, channel: Channel) -> list[str]:
    """What stands beside each measurement."""
    looked = channel.unseen()
    width = None if looked.width is None else torch.where(looked.width > 0, looked.width, torch.nan)
    parts = {
        "sd": (channel.sd, look.sd),
        **{f"column {c!r}": (channel.columns.get(c), look.columns.get(c)) for c in channel.columns},
        "lower limit of detection": (looked.lowest, look.lowest),
        "upper limit of detection": (looked.highest, look.highest),
        # those that end at a limit of detection are narrower
        "width of the intervals": (width, None if look.width is None else (0.0, look.width[1])),
    }
    found = []
    for what, (value, ends) in parts.items():
        known = torch.zeros(0) if value is None else value[channel.mask & torch.isfinite(value)]
        if known.numel() and ends is None:
            found.append(f"channel {name!r} has a {what}, the design has none")
        elif ends is not None:
            found += beyond(f"the {what} of channel {name!r}", known, ends)
    return found


def in_doses(schedule: tuple[DosePlan, ...], record: Experiments) -> list[str]:
    """Number, time, amount and duration of doses."""
    doses = record.doses
    numbers, (least, most) = doses.mask.sum(-1)[record.live], dose_numbers(schedule)
    bad = numbers[(numbers < least) | (numbers > most)]
    if len(bad):
        planned = f"{most}" if least == most else f"{least} to {most}"
        missing = "; is the table of doses missing?" if not doses.any else ""
        return [f"{int(bad[0])} doses in an experiment, the design has {planned}{missing}"]
    found = []
    for k, target in enumerate(doses.targets):
        mine = doses.mask & (doses.target == k)
        plans = [plan for plan in schedule if plan.target == target]
        if not bool(mine.any()):
            continue
        if not plans:
            found.append(f"a dose goes into {target!r}, the design has none there")
            continue
        for what, values in (("time", doses.time), ("amount", doses.amount), ("duration", doses.duration)):
            ends = [getattr(plan, what) for plan in plans]
            span = (min(low for low, _ in ends), max(high for _, high in ends))
            found += beyond(f"the {what} of a dose into {target!r}", values[mine], span)
    return found


def in_inputs(signals: Mapping[str, InputPlan], record: Experiments) -> list[str]:
    """Logged signals, breakpoint by breakpoint."""
    found = [
        f"input {name!r} is not in the design ({', '.join(signals) or 'none'})"
        for name in record.inputs
        if name not in signals
    ]
    for name, plan in signals.items():
        if name not in record.inputs:
            found.append(f"input {name!r} of the design is not in the data")
            continue
        signal = record.inputs[name]
        if signal.linear != plan.linear:
            found.append(f"input {name!r} is {'linear' if signal.linear else 'held'}, the design's is not")
            continue
        for e in range(record.count):
            time, value = signal.time[e][signal.mask[e]], signal.value[e][signal.mask[e]]
            low, high = plan.envelope(time)
            slack = 1e-9 * (1 + high.abs() + low.abs())
            bad = (value < low - slack) | (value > high + slack)
            if bool(bad.any()):
                k = int(bad.nonzero()[0])
                found.append(
                    f"input {name!r} is {float(value[k]):.4g} at {float(time[k]):.4g}, the design spans "
                    f"{float(low[k]):.4g} to {float(high[k]):.4g} there"
                )
                break
    return found
