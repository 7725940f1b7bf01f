"""A shard: parameters, protocols and trajectories with dense output, and how they lie in a file.

`shard.rows(i)` is a `Solver`: it answers a program's ODEs from stored trajectories by cubic Hermite
interpolation, so that every training batch gets fresh times, masks and noise at no ODE cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ampost.errors import ArgumentError, BankError
from ampost.experiments import Doses, Experiments, Input, Signals
from ampost.ode.failures import Failure
from ampost.ode.problem import OdeProblem, Solver, Status, Trajectory

Packed = Mapping[str, Tensor]
AT_ONCE = 16_384  # points interpolated at a time, so that they stay in the cache


@dataclass(frozen=True)
class Track:
    """Dense output of one `odeint`: knots (row, experiment, knot), states and slopes by state in float32.

    Both sides of an edge have a knot. Where the program has plates of its own, each of their members is a
    further experiment.
    """

    times: Tensor
    states: Tensor
    slopes: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """Parameters z (row, z), protocols and trajectories; rows whose ODE failed are left out, and counted."""

    z: Tensor
    protocols: Experiments
    tracks: dict[str, Track]
    failures: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return self.z.shape[0]

    def rows(self, index: Tensor) -> Solver:
        """A solver that answers the ODEs of rows `index` from the store."""

        def answer(problem: OdeProblem) -> Trajectory:
            track, looks = self.tracks[problem.name], problem.experiments
            batch = torch.broadcast_shapes(
                looks.times.shape[:-1],
                *(v.shape[:-1] for v in (*problem.initial.values(), *problem.parameters.values()) if v.dim()),
            )
            series = track.times.shape[1]
            # what depends on no draw is the same in every row
            chosen = index if math.prod(batch) == len(index) * series else index[:1]
            if math.prod(batch) != len(chosen) * series:
                raise ArgumentError(
                    f"{len(index)} rows of a bank are asked for {math.prod(batch)} trajectories of odeint "
                    f"{problem.name!r}, expected {series} for each row; give one data set for each row"
                )
            full = (len(chosen), series, looks.times.shape[-1])
            times, after = (
                v.expand(*batch, v.shape[-1]).reshape(full) for v in (looks.times, looks.after_dose)
            )
            _refuse_outside(problem.name, track, chosen, times)
            states = interpolate(track, chosen, times, after).reshape(*batch, full[-1], len(track.names))
            return Trajectory(looks.times, states, torch.zeros(batch, dtype=torch.long), track.names)

        return answer


def _refuse_outside(name: str, track: Track, index: Tensor, times: Tensor) -> None:
    """Raise BankError where a look lies before the first or behind the last knot of its row."""
    first, last = (track.times[..., k].index_select(0, index)[..., None] for k in (0, -1))
    room = 1e-9 * (1 + last.abs())
    outside = (times < first - room) | (times > last + room)
    if bool(outside.any()):
        row = outside.nonzero()[0]
        low, high = (float(end[row[0], row[1], 0]) for end in (first, last))
        raise BankError(
            f"odeint {name!r} is looked at at time {float(times[tuple(row)]):g}, and the bank knows it from "
            f"{low:g} to {high:g}: in the program, solve for all of experiments.times and take from the answer "
            f"what you need"
        )


def interpolate(track: Track, index: Tensor, times: Tensor, after: Tensor) -> Tensor:
    """States (row, experiment, time, state) of rows `index` at `times`; at a dose, before it unless `after`."""
    out = torch.empty(len(track.names), *times.shape, dtype=torch.float64)
    width = max(1, AT_ONCE // max(1, times[0].numel()))
    late = bool(after.any())
    for start in range(0, len(index), width):
        part = slice(start, start + width)
        moments = times[part].contiguous()
        _fill(out[:, part], track, index[part], moments, after[part] if late else None)
    return out.movedim(0, -1)


def _fill(out: Tensor, track: Track, index: Tensor, times: Tensor, after: Tensor | None) -> None:
    """Write the states (state, row, experiment, time) into `out`."""
    knots = track.times.index_select(0, index)
    upper = torch.searchsorted(knots, times)
    if after is not None:
        upper = torch.where(after, torch.searchsorted(knots, times, right=True), upper)
    upper.clamp_(1, knots.shape[-1] - 1)
    start, end = knots.gather(-1, upper - 1), knots.gather(-1, upper)
    width = end - start
    x = (times - start).div_(width.clamp(min=1e-300)).clamp_(0.0, 1.0)
    x = torch.where(width > 0, x, 0.0 if after is None else after.to(x))
    first = index[:, None] * track.times.shape[1] + torch.arange(track.times.shape[1])
    place = upper.add_(first[..., None] * knots.shape[-1]).view(-1)
    down = 1 - x
    bend = x * down * width
    size, ends = len(track.names), []
    for k, (weight, values, at) in enumerate(
        (
            (down * down * (1 + 2 * x), track.states, place - 1),
            (x * x * (3 - 2 * x), track.states, place),
            (bend * down, track.slopes, place - 1),
            (-bend * x, track.slopes, place),
        )
    ):
        ends.append(values.view(-1, size).index_select(0, at).T.double().view(out.shape))
        if k:
            out.addcmul_(ends[k], weight)
        else:
            torch.mul(ends[k], weight, out=out)
    under = (out < 0).nonzero(as_tuple=True)
    if len(under[0]):  # between two non-negative knots: a cubic does where a solution rarely would
        below = (ends[0][under] < 0) | (ends[1][under] < 0)
        out[under] = torch.where(below, out[under], 0.0)


def packed(shard: Shard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A shard as a JSON header and tensors; what is the same in every row is there once."""
    looks, doses = shard.protocols, shard.protocols.doses
    tensors = {"z": shard.z, "live": looks.live}
    tensors |= {f"condition {name}": value for name, value in looks.conditions.items()}
    tensors |= {f"dose {name}": getattr(doses, name) for name in ("time", "amount", "duration", "mask")}
    tensors["dose target"] = doses.target.to(torch.int16)
    for name, signal in looks.inputs.items():
        tensors |= {f"input {name} {part}": getattr(signal, part) for part in ("time", "value", "mask")}
    for name, track in shard.tracks.items():
        tensors |= {f"track {name} {part}": getattr(track, part) for part in ("times", "states", "slopes")}
    header = {
        "rows": len(shard),
        "conditions": list(looks.conditions),
        "targets": list(doses.targets),
        "inputs": {name: signal.linear for name, signal in looks.inputs.items()},
        "tracks": {name: list(track.names) for name, track in shard.tracks.items()},
        "names": [list(names) for names in looks.names],
        "datasets": list(looks.datasets),
        "start": looks.start,
        "units": dict(looks.units),
        "failures": shard.failures,
        "reasons": dict(shard.reasons),
        "examples": [asdict(e) for e in shard.examples],
    }
    return header, {name: _once(value) for name, value in tensors.items()}


def unpacked(header: Mapping[str, Any], tensors: Packed) -> Shard:
    """What `packed` gave, after a passage through a file."""
    rows = header["rows"]
    full = {name: value.expand(rows, *value.shape[1:]) for name, value in tensors.items()}
    nothing = torch.zeros(*full["live"].shape, 0, dtype=torch.float64)
    doses = {part: full[f"dose {part}"] for part in ("time", "amount", "duration", "target", "mask")}
    inputs = {
        name: {part: full[f"input {name} {part}"] for part in ("time", "value", "mask")}
        for name in header["inputs"]
    }
    tracks = {
        name: {part: full[f"track {name} {part}"].contiguous() for part in ("times", "states", "slopes")}
        for name in header["tracks"]
    }
    protocols = Experiments(
        times=nothing,
        channels={},
        conditions={name: full[f"condition {name}"] for name in header["conditions"]},
        doses=Doses(**{**doses, "target": doses["target"].long()}, targets=tuple(header["targets"])),
        inputs=Signals({name: Input(**parts, linear=header["inputs"][name]) for name, parts in inputs.items()}),
        live=full["live"],
        after_dose=nothing.bool(),
        names=tuple(tuple(names) for names in header["names"]),
        datasets=tuple(header["datasets"]),
        start=header["start"],
        units=header["units"],
    )
    return Shard(
        full["z"],
        protocols,
        {name: Track(**parts, names=tuple(header["tracks"][name])) for name, parts in tracks.items()},
        header["failures"],
        Counter(header["reasons"]),
        tuple(failure(stored) for stored in header["examples"]),
    )


def end_to_end(parts: Iterable[Packed], rows: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of packed shards of so many `rows`, joined; `parts` are read one by one."""
    total, at = sum(rows), 0
    whole: dict[str, Tensor] = {}
    once: dict[str, Tensor] = {}
    for part, count in zip(parts, rows, strict=True):
        for name, value in part.items():
            if at == 0 and value.shape[0] == 1:
                once[name] = value
            elif name in once and not (value.shape[0] == 1 and torch.equal(value, once[name])):
                whole[name] = value.new_empty(total, *value.shape[1:])
                whole[name][:at] = once.pop(name)
            if name not in once:
                if name not in whole:
                    whole[name] = value.new_empty(total, *value.shape[1:])
                whole[name][at : at + count] = value
        at += count
    return whole | once


def _once(value: Tensor) -> Tensor:
    """The first row alone where all rows are the same."""
    return value[:1] if bool((value == value[:1]).all()) else value


def failure(stored: Mapping[str, Any]) -> Failure:
    return Failure(**{**stored, "index": tuple(stored["index"]), "status": Status(stored["status"])})
