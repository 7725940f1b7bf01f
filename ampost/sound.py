"""Whether the numbers of a record can be scored at all, before they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ampost.errors import ExperimentError
from ampost.experiments import CENSORING, INTERVAL, Channel, Experiments


def refuse_unsound(data: Experiments) -> None:
    """Name the first number of a record that no noise can score.

    Raises:
        ExperimentError: a time, value, limit, covariate or condition that is not finite, a standard deviation
            that is not above 0, an unknown code of censoring, or an interval whose ends are not in order.
    """
    live = data.live[..., None]
    _refuse("time", data.times, ~torch.isfinite(data.times) & live, data, "a finite time")
    for name, value in data.conditions.items():
        _refuse(f"condition {name!r}", value, ~torch.isfinite(value) & live, data, "a finite number")
    for name, channel in data.channels.items():
        _refuse_channel(name, channel, data)


def _refuse_channel(name: str, channel: Channel, data: Experiments) -> None:
    mask, where = channel.mask, f"of channel {name!r}"
    if channel.values is None:
        return
    bad = mask & ~torch.isfinite(channel.values)
    _refuse(f"the value {where}", channel.values, bad, data, "a finite number")
    for column, value in channel.columns.items():
        _refuse(f"column {column!r} {where}", value, mask & ~torch.isfinite(value), data, "a finite number")
    if channel.sd is not None:
        bad = mask & ~((channel.sd > 0) & (channel.sd < torch.inf))
        _refuse(f"the sd {where}", channel.sd, bad, data, "a finite number above 0")
    if channel.censoring is None:
        return
    codes = channel.censoring
    bad = mask & ((codes < 0) | (codes >= len(CENSORING)))
    _refuse(f"the censoring {where}", codes, bad, data, f"0 to {len(CENSORING) - 1} ({', '.join(CENSORING)})")
    interval = mask & (codes == INTERVAL)
    upper = torch.full_like(channel.values, torch.nan) if channel.upper is None else channel.upper
    bad = interval & ~((upper >= channel.values) & (upper < torch.inf))
    _refuse(f"the upper end of an interval {where}", upper, bad, data, "a finite number above the lower end")


def _refuse(what: str, values: Tensor, bad: Tensor, data: Experiments, expected: str) -> None:
    if not bool(bad.any()):
        return
    *dataset, e, t = bad.nonzero()[0].tolist()
    value = float(values.expand(bad.shape)[(*dataset, e, t)])
    names = data.names[dataset[0]] if dataset and dataset[0] < len(data.names) else data.names[0]
    time = f" at time {float(data.times[(*dataset, e, t)]):g}" if values.shape[-1] > 1 else ""
    raise ExperimentError(
        f"{what} is {value:g}{time} in experiment {names[e] if e < len(names) else e!r}, expected {expected}; "
        f"correct it or leave it out"
    )
