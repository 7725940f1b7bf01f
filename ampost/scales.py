"""Which of times, conditions, doses, inputs or channels is in another unit than the model takes.

Each is scaled by the factors of usual units. The one that lets the model explain the data far better is named.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ampost.experiments import Channel, Doses, Experiments, Signals
from ampost.model import Model
from ampost.optimize import maximise
from ampost.seeds import derive, seeded

DRAWS, FIRST, STARTS, ITERATIONS = 250, 16, 3, 20
TIMES = (60.0, 3600.0, 24.0, 1440.0, 1e3)
THOUSAND = (1e3,)
CLEAR = 20.0  # log joint by which another unit explains data better that are not conspicuous otherwise
HELPFUL = 3.0  # the same for data that are
NEAR = 5.0  # of factors whose log joints differ by less than this the smallest is named


@dataclass(frozen=True)
class Scaled:
    """The data with `name` times `factor`, which raises the best log joint by `gain`.

    `whose` are the numbers that are scaled: "data", "values", "doses" or "times". `others` raise it as much.
    """

    name: str
    whose: str
    factor: float
    record: Experiments
    gain: float = 0.0
    others: tuple[Scaled, ...] = ()


def suspect(model: Model, record: Experiments, conspicuous: bool, seconds: float, seed: int) -> Scaled | None:
    """The quantity whose unit is probably wrong in one data set; None if no other unit is clearly better.

    The best log joint of prior draws, the same for all, picks a quantity and a factor. Then short searches
    from the best draws must confirm it: by `HELPFUL` for data that are `conspicuous` (far from the prior
    predictive), else by `CLEAR`; by one more for each parameter of a single experiment. Candidates that would
    end after `seconds` are left out. Two quantities that are wrong together are not found; two that do the
    same, as a start and what is measured of it where only their ratio counts, are both named.
    """
    ends = time.perf_counter() + seconds
    with seeded(derive(seed, "z")):
        z = torch.randn(DRAWS, model.z_size(record.count), dtype=torch.float64)
    began = time.perf_counter()
    first = _joint(model, record, z)
    took = time.perf_counter() - began
    tried: list[tuple[Scaled, Tensor]] = []
    for candidate in candidates(record, counted(model, record, derive(seed, "counts"))):
        began = time.perf_counter()
        if began + took > ends:
            break
        _joint(model, candidate.record, z[:FIRST])
        if (time.perf_counter() - began) * DRAWS / FIRST < ends - time.perf_counter():
            tried.append((candidate, _joint(model, candidate.record, z) + _jacobian(candidate)))
    own = sum(site.size for site in model.sites(record.count) if site.local)
    least = own + (HELPFUL if conspicuous else CLEAR)  # the top of many parameters of experiments is rough
    top = max((float(joint.max()) for _, joint in tried), default=-torch.inf)
    if not tried or (not conspicuous and not top - float(first.max()) >= least):
        return None
    before = _searched(model, record, z, first)
    near = [pair for pair in tried if float(pair[1].max()) >= top - NEAR]
    best = max(near, key=lambda pair: float(pair[1].max()))[0].name
    found = []
    for name in dict.fromkeys([best, *(pair[0].name for pair in near)]):
        same = [pair for pair in near if pair[0].name == name]
        candidate, joint = min(same, key=lambda pair: abs(math.log(pair[0].factor)))
        gain = _searched(model, candidate.record, z, joint) + _jacobian(candidate) - before
        found.append(replace(candidate, gain=gain))
    first_of, *others = found
    alike = tuple(other for other in others if abs(other.gain - first_of.gain) < NEAR)
    return replace(first_of, others=alike) if first_of.gain >= least else None


def _joint(model: Model, record: Experiments, z: Tensor) -> Tensor:
    """Log joint of z (draw, z), (draw,); -inf where it is not a number."""
    with torch.no_grad():
        return torch.nan_to_num(model.log_joint(z[:, None], record)[:, 0], nan=-torch.inf)


def _searched(model: Model, record: Experiments, z: Tensor, joint: Tensor) -> float:
    """The best log joint by short searches from the best of z."""
    starts = z[joint.argsort(descending=True)[:STARTS]]
    found = maximise(lambda at: model.log_joint(at[:, None], record)[:, 0], starts, most=ITERATIONS)
    return max((end.log_joint for end in found), default=-torch.inf)


def _jacobian(candidate: Scaled) -> float:
    """log |dy'/dy| of the scaled measurements, so that densities are those of the data as they are."""
    if candidate.whose != "data":
        return 0.0
    channel = candidate.record.channels[candidate.name]
    return float(torch.tensor(candidate.factor).log()) * int(exact(channel).sum())


def exact(channel: Channel) -> Tensor:
    """Where a value is known exactly, (experiment, time)."""
    return channel.mask if channel.censoring is None else channel.mask & (channel.censoring == 0)


def counted(model: Model, record: Experiments, seed: int) -> set[str]:
    """The channels whose noise gives whole numbers; measured values may be whole by chance or by their unit."""
    free = {
        name: Channel(channel.mask, sd=channel.sd, columns=channel.columns)
        for name, channel in record.channels.items()
    }
    looks = replace(record.without_values(), channels=free).expand((FIRST,))
    drawn = model.simulate_at(None, looks, seed).experiments.channels
    return {
        name for name, c in drawn.items() if c.values is not None and bool((c.values == c.values.round()).all())
    }


def candidates(record: Experiments, counts: Collection[str] = ()) -> Iterator[Scaled]:
    """The data with one quantity scaled by the factor of a usual unit; `counts` are not scaled."""
    both = [f for factor in THOUSAND for f in (factor, 1 / factor)]
    for name in record.channels:
        if name not in counts:
            for factor in both:
                yield Scaled(name, "data", factor, _with_channel(record, name, factor))
    for name in record.conditions:
        for factor in both:
            scaled = {**record.conditions, name: factor * record.conditions[name]}
            yield Scaled(name, "values", factor, replace(record, conditions=scaled))
    for k, target in enumerate(record.doses.targets):
        for factor in both:
            yield Scaled(target, "doses", factor, replace(record, doses=_amounts(record.doses, k, factor)))
    for name, signal in record.inputs.items():
        for factor in both:
            scaled_input = replace(signal, value=factor * signal.value)
            inputs = Signals({**record.inputs, name: scaled_input})
            yield Scaled(name, "values", factor, replace(record, inputs=inputs))
    for factor in (f for each in TIMES for f in (1 / each, each)):
        yield Scaled("time", "times", factor, _in_time(record, factor))


def _with_channel(record: Experiments, name: str, factor: float) -> Experiments:
    channel = record.channels[name]
    parts = ("values", "sd", "upper", "lowest", "highest", "width")
    held = {part: getattr(channel, part) for part in parts}
    scaled = replace(channel, **{part: factor * value for part, value in held.items() if value is not None})
    return replace(record, channels={**record.channels, name: scaled})


def _amounts(doses: Doses, target: int, factor: float) -> Doses:
    return replace(doses, amount=torch.where(doses.target == target, factor * doses.amount, doses.amount))


def _in_time(record: Experiments, factor: float) -> Experiments:
    doses = record.doses
    return replace(
        record,
        times=factor * record.times,
        start=factor * record.start,
        doses=replace(doses, time=factor * doses.time, duration=factor * doses.duration),
        inputs=Signals({n: replace(s, time=factor * s.time) for n, s in record.inputs.items()}),
    )
