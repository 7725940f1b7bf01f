"""Does the model fit the data, before any training? What was understood, and the prior against the data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ampost import plots
from ampost.costs import training_cost
from ampost.experiments import INTERVAL, LEFT, RIGHT, Experiments
from ampost.learning import Settings
from ampost.model import Model
from ampost.ode.problem import Status
from ampost.passes import Holding, noise_of
from ampost.program import is_observation
from ampost.results import unlimited
from ampost.scales import Scaled, exact, suspect
from ampost.seeds import derive
from ampost.tokens import MOST
from ampost.units import assumed
from ampost.wording import account, mistaken, number, rescaled, schema, undecided

Array = NDArray[np.float64]
DRAWS, CHUNK = 1_000, 250
SECONDS = 3.0  # for prior draws; where the solver is slow there are fewer of them
UNITS_SECONDS = 1.5  # for other units of times, conditions, doses, inputs and channels
COVERED = 0.95  # the share of a channel's data in the 99 % band below which it is a concern
MOSTLY = 0.8  # the share below which what lies outside is no matter of outliers
FAR = 1.0  # decades between data and model from which on a unit may be wrong
FEW = 3  # failures from which on their region is looked for
CERTAIN = 0.01  # a region of failures is named if chance would find one with less than this probability


@dataclass(frozen=True)
class Check:
    """What `check` found: `str(check)` is the text, `figure` the prior predictive bands behind the data.

    `concerns` is what to look at first; `inside` the share of each channel's data in the 99 % band of the
    prior predictive; `ratios` the median size of the data over that of the model's; `failures` how many of
    `simulations` failed, by reason, and `regions` where; `outside` why the data lie outside the design;
    `tokens` what the network reads of each experiment.
    """

    text: str
    figure: Figure = field(repr=False, compare=False)
    concerns: tuple[str, ...]
    inside: Mapping[str, float]
    ratios: Mapping[str, float]
    simulations: int
    failures: Mapping[str, int]
    regions: tuple[str, ...]
    outside: tuple[str, ...]
    tokens: tuple[int, ...]
    seconds_of_training: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Drawn:
    """Prior draws at the looks of one data set: true values (draw, experiment, time), NaN where they failed.

    `parameters` (draw, ...) are by site; `noises` the names of distributions by channel; `status` (draw,) is
    the worst of each draw, and `example` the first failure in words.
    """

    values: Mapping[str, Array]
    parameters: Mapping[str, Tensor]
    noises: Mapping[str, str]
    status: Tensor
    example: str


def check(model: Model, data: Experiments, seed: int = 0, settings: Settings | None = None) -> Check:
    """Compare data with what a model expects before any training: units, coverage, failures, cost.

    Several data sets are looked at together. Nothing is trained; the solver and one batch are timed, for a
    training by `settings`.

    A wrong unit shows where sizes are far from the design or the prior predictive, or where other units of
    times, conditions, doses, inputs or one channel explain the data far better. It cannot be seen where
    the parameters make up for it within their priors (times 60 times too long, where all rates may be 60 times
    lower), or where the data hardly depend on the quantity (a substrate far above saturation).

    Raises:
        ExperimentError: data that the program cannot score.
        UnitError: units of the data that cannot be converted to the model's.
    """
    records = [model.prepare(record) for record in data.split()]
    draws = max(CHUNK, min(DRAWS, 10 * DRAWS // len(records)))
    seconds = SECONDS / len(records)
    drawn = [
        _drawn(model, record, draws, seconds, derive(seed, "check", k)) for k, record in enumerate(records)
    ]
    names = list(records[0].channels)
    sizes = {name: found for name in names if (found := _sizes(name, records, drawn)) is not None}
    inside = {name: _inside(name, records, drawn) for name in names}
    outside = tuple(dict.fromkeys(said for record in records for said in model.design.outside(record)))
    concerns = _design_concerns(model, records)
    wrong = None if concerns else _wrong(model, records, drawn, sizes, inside, derive(seed, "units"))
    concerns += _concerns(model, sizes, inside, outside, wrong)
    failures, regions, failed = _failures(model, drawn)
    read = tuple(tokens_of(record, e) for record in records for e in range(record.count) if record.live[e])
    training, cost = training_cost(model, settings or Settings(), derive(seed, "training"))
    shares = ", ".join(f"{name} {_percent(share)}" for name, share in inside.items())
    lines = [
        *(["Look at this first:", *(f"  - {said}" for said in concerns)] if concerns else []),
        *schema(model, records, drawn[0].parameters, drawn[0].noises, assumed(data, model.units)),
        *account(records),
        f"Prior predictive ({len(drawn[0].status):,} draws), share of the data in its 99 % band: {shares}.",
        *failed,
        f"Tokens per experiment: {min(read)}" + (f" to {max(read)}." if max(read) > min(read) else "."),
        cost,
    ]
    values = {name: [prior.values[name] for prior in drawn] for name in names}
    return Check(
        text="\n".join(lines),
        figure=plots.prior_predictive(values, records, {**records[0].units, **model.units}),
        concerns=tuple(concerns),
        inside=inside,
        ratios={name: size.seen / size.expected for name, size in sizes.items()},
        simulations=sum(len(prior.status) for prior in drawn),
        failures=failures,
        regions=regions,
        outside=outside,
        tokens=read,
        seconds_of_training=training,
    )


def _wrong(
    model: Model,
    records: Sequence[Experiments],
    drawn: Sequence[Drawn],
    sizes: Mapping[str, Size],
    inside: Mapping[str, float],
    seed: int,
) -> Scaled | None:
    """The quantity whose unit is probably wrong, looked for in the data set with most measurements."""
    pairs = zip(records, drawn, strict=True)
    record, prior = max(pairs, key=lambda pair: sum(int(c.mask.sum()) for c in pair[0].channels.values()))
    conspicuous = any(size.far for size in sizes.values()) or min(inside.values()) < MOSTLY
    looked = record if conspicuous else _typical(record, prior)
    return suspect(model, looked, conspicuous, UNITS_SECONDS, seed)


def _concerns(
    model: Model,
    sizes: Mapping[str, Size],
    inside: Mapping[str, float],
    outside: Sequence[str],
    wrong: Scaled | None,
) -> list[str]:
    """What is wrong with the values: their size, their place in the prior predictive, their design.

    Where a condition or time is `wrong`, the sizes of channels follow from it and are not mentioned.
    """
    units = model.units
    far = {name: size for name, size in sizes.items() if size.far}
    undosed = [words for words in outside if "doses in an experiment" in words]
    if undosed:
        far, wrong = {}, None  # without its doses the model is far from the data whatever the units
    if wrong is not None and (wrong.others or wrong.whose != "data"):
        far = {}
    said = [
        mistaken(name, units.get(name), size.seen, size.expected, "the model expects")
        for name, size in far.items()
    ]
    if wrong is not None and wrong.others:
        said.insert(0, undecided([wrong, *wrong.others], units))
    elif wrong is not None and wrong.name not in far:
        said.insert(0, rescaled(wrong.name, units.get(wrong.name), wrong.factor, wrong.gain, wrong.whose))
    return [
        *(f"Outside the design: {words}." for words in undosed),
        *said,
        *(
            f"{name}: {_percent(1 - share)} of the data lie outside the 99 % band of the prior predictive."
            for name, share in inside.items()
            if share < COVERED
        ),
        *(f"Outside the design: {words}." for words in outside if words not in undosed),
    ]


# ------------------------------------------------------------------------------ the prior predictive


class Noises(Messenger):
    """The names of the distributions that a program observes its channels with."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        if is_observation(msg):
            self.names[msg["name"]] = type(noise_of(msg["fn"])).__name__


def _drawn(model: Model, record: Experiments, draws: int, seconds: float, seed: int) -> Drawn:
    """At least one chunk of draws, and further ones until there are `draws` or `seconds` are over."""
    began, parts = time.perf_counter(), [_chunk(model, record, derive(seed, 0))]
    while len(parts) * CHUNK < draws and time.perf_counter() - began < seconds:
        parts.append(_chunk(model, record, derive(seed, len(parts))))
    first = parts[0]
    return Drawn(
        values={name: np.concatenate([p.values[name] for p in parts]) for name in first.values},
        parameters={name: torch.cat([p.parameters[name] for p in parts]) for name in first.parameters},
        noises=first.noises,
        status=torch.cat([p.status for p in parts]),
        example=next((p.example for p in parts if p.example), ""),
    )


def _chunk(model: Model, record: Experiments, seed: int) -> Drawn:
    holding = Holding(model.solver)
    looks = unlimited(record).expand((CHUNK,))
    with torch.no_grad(), Noises() as noises:
        simulated = model.simulate_at(None, looks, seed, solver=holding)
    status = torch.zeros(CHUNK, dtype=torch.long)
    for each in holding.statuses:
        status = torch.maximum(status, each.expand(CHUNK, *each.shape[1:]).reshape(CHUNK, -1).amax(-1))
    status = torch.where(simulated.failed & (status == 0), int(Status.NOT_FINITE), status)
    failed = (status != 0)[:, None, None]
    return Drawn(
        values={
            name: torch.where(failed, torch.nan, channel.values.double()).numpy()
            for name, channel in simulated.experiments.channels.items()
            if channel.values is not None
        },
        parameters=simulated.parameters,
        noises=noises.names,
        status=status,
        example=str(simulated.failures[0]) if simulated.failures else "",
    )


def _inside(name: str, records: Sequence[Experiments], drawn: Sequence[Drawn]) -> float:
    """The share of a channel's data in the central 99 % of prior draws."""
    within = np.concatenate(
        [_within(name, record, prior) for record, prior in zip(records, drawn, strict=True)]
    )
    return float(within.mean()) if len(within) else 1.0


def _within(name: str, record: Experiments, prior: Drawn) -> NDArray[np.bool_]:
    """Which measurements lie in the central 99 % of prior draws; a censored one by what it allows."""
    channel = record.channels[name]
    mask = channel.mask.numpy()
    solved = prior.values[name][(prior.status == 0).numpy()][:, mask]
    if channel.values is None or not solved.size:
        return np.zeros(0 if channel.values is None else int(mask.sum()), dtype=bool)
    low, high = np.quantile(solved, [0.005, 0.995], axis=0)
    values = channel.values[channel.mask].numpy()
    code = np.zeros(len(values)) if channel.censoring is None else channel.censoring[channel.mask].numpy()
    upper = values if channel.upper is None else channel.upper[channel.mask].numpy()
    top = np.where(code == INTERVAL, upper, np.where(code == RIGHT, np.inf, values))
    bottom = np.where(code == LEFT, -np.inf, values)
    return np.asarray((top >= low) & (bottom <= high))


def _typical(record: Experiments, prior: Drawn) -> Experiments:
    """The record without the measurements outside the band: a few outliers are no wrong unit."""
    channels = {}
    for name, channel in record.channels.items():
        mask = channel.mask.clone()
        mask[channel.mask] = torch.from_numpy(_within(name, record, prior))
        channels[name] = replace(channel, mask=mask)
    return replace(record, channels=channels)


@dataclass(frozen=True)
class Size:
    """Medians of the size of the data and of the model's values at their places; the same by means.

    `rare` is the two-sided share of draws whose median is as far from the model's as that of the data.
    """

    seen: float
    expected: float
    by_means: float
    rare: float

    @property
    def far(self) -> bool:
        """Whether a wrong unit is likely: a factor that the prior does not allow for, or a very large one.

        A wrong unit moves medians and means; an outlier or a steep curve only one of them.
        """
        by_medians = self.seen / self.expected
        times = min(abs(np.log10(by_medians)), abs(np.log10(self.by_means)))
        same = (by_medians > 1) == (self.by_means > 1)
        return bool(same and ((times >= FAR and self.rare < 0.05) or times >= 2 * FAR))


def _sizes(name: str, records: Sequence[Experiments], drawn: Sequence[Drawn]) -> Size | None:
    """The size of the exactly known data of a channel; None where nothing is known or all is 0."""
    seen, expected = [], []
    for record, prior in zip(records, drawn, strict=True):
        channel = record.channels[name]
        known = exact(channel)
        if channel.values is not None and bool(known.any()):
            seen.append(channel.values[known].abs().numpy())
            solved = prior.values[name][(prior.status == 0).numpy()]
            expected.append(np.abs(solved[:, known.numpy()]))
    draws = min((len(e) for e in expected), default=0)
    if not draws:
        return None
    mine, theirs = np.concatenate(seen), np.concatenate([e[:draws] for e in expected], 1)
    median, each = float(np.median(mine)), np.median(theirs, axis=1)
    middle, mean = float(np.median(each)), float(np.median(theirs.mean(1)))
    if min(median, middle, mean) <= 0:
        return None
    rare = 2 * min(float((each >= median).mean()), float((each <= median).mean()))
    return Size(median, middle, float(mine.mean()) / mean, rare)


def _design_concerns(model: Model, records: Sequence[Experiments]) -> list[str]:
    """Times, conditions and doses whose size is far from that of the design."""
    design, found = model.design, []
    last = max(float(record.times.max()) for record in records) - design.start
    pairs = [("time", last, design.horizon - design.start, "times")]
    for name, ends in design.conditions.items():
        values = torch.cat([record[name][record.live].abs().flatten() for record in records])
        pairs.append((name, float(values.median()), max(map(abs, ends)), "values"))
    for plan in design.doses:
        doses = [record.doses for record in records if plan.target in record.doses.targets]
        amounts = [d.amount[d.mask & (d.target == d.targets.index(plan.target))].abs() for d in doses]
        if amounts and len(torch.cat(amounts)):
            pairs.append((plan.target, float(torch.cat(amounts).median()), max(map(abs, plan.amount)), "doses"))
    for name, seen, expected, whose in dict.fromkeys(pairs):
        if seen > 0 and expected > 0 and abs(np.log10(seen / expected)) >= FAR:
            found.append(mistaken(name, model.units.get(name), seen, expected, "the design has", whose))
    return found


# ---------------------------------------------------------------------------------------- failures


def _failures(model: Model, drawn: Sequence[Drawn]) -> tuple[dict[str, int], tuple[str, ...], list[str]]:
    """Failed draws by reason, the regions they lie in, and both in words."""
    status = torch.cat([d.status for d in drawn])
    counted = Counter(Status(code).name for code in status[status != 0].tolist())
    if not counted:
        return {}, (), [f"All {len(status):,} simulations at the data's looks were solved."]
    parameters = {
        name: torch.cat([d.parameters[name] for d in drawn])
        for name in drawn[0].parameters
        if len({d.parameters[name].shape[1:] for d in drawn}) == 1
    }
    regions = region(parameters, status != 0, model.units)
    reasons = ", ".join(f"{count} {name}" for name, count in counted.most_common())
    lines = [f"{int((status != 0).sum())} of {len(status):,} simulations failed ({reasons})."]
    lines += [f"  {said}" for said in regions] or ["  They are spread over the prior."]
    return dict(counted), regions, [*lines, f"  The first: {next(d.example for d in drawn if d.example)}"]


def region(
    parameters: Mapping[str, Tensor], failed: Tensor, units: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Where failed draws lie, if one bound on one parameter holds all or 90 % of them and few others.

    `parameters` (draw, ...) and `failed` (draw,) are draws of the prior. A bound counts if as many failures
    spread at random would lie beyond one with a probability below 1 %, all parameters taken together.
    """
    columns = {
        name if drawn[0].numel() == 1 else f"{name}[{k}]": column
        for name, drawn in parameters.items()
        for k, column in enumerate(drawn.reshape(len(drawn), -1).T)
    }
    good, number_failed = ~failed, int(failed.sum())
    if number_failed < FEW:
        return ()
    if not bool(good.any()):
        return ("Every simulation failed.",)
    found = []
    for label, column in columns.items():
        for share in (1.0, 0.9):
            for sign, word in ((1, "<="), (-1, ">=")):
                bound = sign * float((sign * column[failed]).quantile(share, interpolation="higher"))
                beyond = int((sign * column[good] <= sign * bound).sum())
                others, chance = beyond / int(good.sum()), (beyond + 1) / (int(good.sum()) + 1)
                held = int((sign * column[failed] <= sign * bound).sum())
                if others < 0.5 and 2 * len(columns) * chance**held * comb(number_failed, held) < CERTAIN:
                    found.append((others, -share, label, word, bound, held))
    if not found:
        return ()
    others, _, label, word, bound, held = min(found)
    unit = (units or {}).get(label.split("[")[0], "")
    which = f"All {held}" if held == number_failed else f"{held} of the {number_failed}"
    told = _percent(others) if others >= 0.01 else "fewer than 1 %" if others > 0 else "none"
    return (
        f"{which} failures have {label} {word} {number(bound)}{f' {unit}' if unit else ''}, and "
        f"{told} of the simulations that were solved.",
    )


# -------------------------------------------------------------------------------------------- cost


def tokens_of(record: Experiments, e: int) -> int:
    """What the network reads of one experiment: measurements, doses, segments of inputs; bins where many."""
    doses = record.doses
    counts = [int(channel.mask[e].sum()) for channel in record.channels.values()]
    counts += [int((doses.mask[e] & (doses.target[e] == k)).sum()) for k in range(len(doses.targets))]
    counts += [int(signal.mask[e].sum()) for signal in record.inputs.values()]
    return sum(min(count, MOST) for count in counts)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
