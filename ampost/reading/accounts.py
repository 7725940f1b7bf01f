"""What a record holds, in words."""

from __future__ import annotations

from torch import Tensor

from ampost.experiments import INTERVAL, LEFT, RIGHT, Channel, Experiments

KINDS = {LEFT: "below a limit", RIGHT: "above a limit", INTERVAL: "in an interval"}
MOST = 6  # names that are listed one by one


def account(record: Experiments) -> str:
    """What a record holds: measurements by observable, conditions, doses, inputs, units; one line each.

    >>> from ampost.experiments import Experiments
    >>> print(account(Experiments.on([[0.0, 1.0]], ["P"], {"S0": [2.0]})))
    1 experiment of 1 data set, times 0 to 1
    P: 2 measurements
    condition S0: 2
    """
    lines = [_size(record)]
    lines += [_channel(name, channel, record) for name, channel in record.channels.items()]
    lines += [
        f"condition {_named(record, name)}: {_span(value[record.live])}"
        for name, value in record.conditions.items()
    ]
    lines += _doses(record)
    lines += [
        f"input {_named(record, name)}: {_count(int(signal.mask.sum()), 'breakpoint')}, "
        f"{'linear' if signal.linear else 'held'}"
        for name, signal in record.inputs.items()
    ]
    return "\n".join(lines)


def _size(record: Experiments) -> str:
    sets, count = len(record.datasets), int(record.live.sum())
    names = list(dict.fromkeys(name for own in record.names for name in own))
    listed = f" ({', '.join(names)})" if 1 < len(names) <= MOST else ""
    of = f" ({', '.join(record.datasets)})" if 1 < sets <= MOST else ""
    looked = _anything(record)
    span = f", times {_span(record.times[looked])}{_unit(record, 'time')}" if bool(looked.any()) else ""
    return f"{_count(count, 'experiment')}{listed} of {_count(sets, 'data set')}{of}{span}"


def _channel(name: str, channel: Channel, record: Experiments) -> str:
    words = [_count(int(channel.mask.sum()), "measurement")]
    if channel.censoring is not None:
        for kind, said in KINDS.items():
            here = channel.mask & (channel.censoring == kind)
            if bool(here.any()) and channel.values is not None:
                at = f" ({_span(channel.values[here])})" if kind != INTERVAL else ""
                words.append(f"{int(here.sum())} {said}{at}")
    for part, said in ((channel.lowest, "lowest told"), (channel.highest, "highest told")):
        if part is not None and bool((channel.mask & part.isfinite()).any()):
            words.append(f"{said} {_span(part[channel.mask & part.isfinite()])}")
    repeated = repeats(record.times, record.after_dose, channel.mask)
    if repeated:
        words.append(_count(repeated, "replicate"))
    if channel.sd is not None:
        words.append("with sd")
    if channel.columns:
        words.append(f"with {', '.join(_named(record, n) for n in channel.columns)}")
    return f"{_named(record, name)}: {', '.join(words)}"


def repeats(times: Tensor, after_dose: Tensor, mask: Tensor) -> int:
    """Measurements beyond the first at their time in their experiment; shapes (..., time)."""
    rows = (part.reshape(-1, mask.shape[-1]) for part in (times, after_dose, mask))
    looks = [list(zip(t[m].tolist(), a[m].tolist(), strict=True)) for t, a, m in zip(*rows, strict=True)]
    return sum(len(here) - len(set(here)) for here in looks)


def _doses(record: Experiments) -> list[str]:
    doses = record.doses
    lines = []
    for code, target in enumerate(doses.targets):
        here = doses.mask & (doses.target == code)
        if bool(here.any()):
            infusions = int((here & (doses.duration > 0)).sum())
            long = f", {_count(infusions, 'infusion')} among them" if infusions else ""
            lines.append(
                f"into {target}: {_count(int(here.sum()), 'dose')} of {_span(doses.amount[here])}"
                f"{_unit(record, f'dose {target}')}{long}"
            )
    tied = ties(record)
    if tied:
        takes = "falls on a dose time and is" if tied == 1 else "fall on a dose time and are"
        lines.append(f"{_count(tied, 'measurement')} {takes} taken as before it; after_dose says otherwise")
    return lines


def ties(record: Experiments) -> int:
    """Measurements at the time of a dose of their experiment that are not said to come after it."""
    doses = record.doses
    at = (record.times[..., :, None] == doses.time[..., None, :]) & doses.mask[..., None, :]
    tied = at.any(-1) & ~record.after_dose
    return sum(int((channel.mask & tied).sum()) for channel in record.channels.values())


def _anything(record: Experiments) -> Tensor:
    looked = record.live[..., None].expand(record.times.shape) & False
    for channel in record.channels.values():
        looked = looked | channel.mask
    return looked


def _span(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _unit(record: Experiments, name: str) -> str:
    return f" {record.units[name]}" if name in record.units else ""


def _named(record: Experiments, name: str) -> str:
    return f"{name} [{record.units[name]}]" if name in record.units else name


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
