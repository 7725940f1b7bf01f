"""Does the model explain the data? Residuals at the optimum, and the context, against replicates.

Replicates are drawn from the prior predictive at the observed times, with the same missing channels,
conditions, doses and limits, and go the same way as the data: an optimum of the log joint, residuals there,
statistics. So a p-value is uniform where the data come from the model, which one by posterior predictive
replicates is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ampost import checks
from ampost.accuracy import standardised
from ampost.estimator import Estimator
from ampost.experiments import Experiments
from ampost.laplace import laplace
from ampost.model import Model
from ampost.seeds import derive

REPLICATES, EACH = 400, 25  # at least, and for each statistic: the smallest p-value, adjusted, is below LEVEL
LEVEL = 0.05  # of the family of all statistics
ROWS = 200  # replicates fitted at a time
STEPS = 8  # at most, to an optimum, from where the truth or the posterior's best draw already are near

CHI_SQUARE, ORDER, RUNS, TREND = "chi-square", "autocorrelation", "runs", "trend"
LARGEST = "largest residual"
SAYING = {
    CHI_SQUARE: "its residuals are larger than the noise",
    ORDER: "neighbouring residuals go together, as under a drift or a curve of another shape",
    RUNS: "its residuals keep their sign for too long",
    TREND: "its residuals follow a curve in time",
    LARGEST: "one value is far off",
}


@dataclass(frozen=True)
class Alarm:
    """One statistic: of which channel (empty for the context), its p-value, and that adjusted for their number.

    `place` is where the largest residual is: the experiment, and the time in it.
    """

    statistic: str
    channel: str
    p: float
    adjusted: float
    place: tuple[str, float] | None = None

    @property
    def raised(self) -> bool:
        """Whether it is too rare to be chance."""
        return self.adjusted < LEVEL

    def __str__(self) -> str:
        place = ""
        if self.statistic == LARGEST and self.place is not None:
            place = f" (experiment {self.place[0]}, time {self.place[1]:.4g})"
        return f"{SAYING[self.statistic]}{place}, p = {self.adjusted:.2g}"


@dataclass(frozen=True)
class Alarms:
    """All statistics of one data set."""

    channels: tuple[Alarm, ...]
    context: Alarm
    replicates: int

    @property
    def misfit(self) -> bool:
        """Whether the residuals of any channel are not as the model has them."""
        return any(alarm.raised for alarm in self.channels)

    @property
    def smallest(self) -> float:
        """The smallest adjusted p-value: the data are flagged below the level; NaN where nothing is known."""
        known = [a.adjusted for a in (*self.channels, self.context) if a.adjusted == a.adjusted]
        return min(known, default=float("nan"))

    @property
    def numbers(self) -> dict[str, float]:
        """p-values as they are, by name, and the smallest of the adjusted ones."""
        named = {f"p_{a.statistic.replace(' ', '_')}_{a.channel}": a.p for a in self.channels}
        return {**named, "p_context": self.context.p, "p_adjusted": self.smallest}

    def __str__(self) -> str:
        family = f"adjusted for {1 + len(self.channels)} checks, by {self.replicates} replicates"
        culprits: dict[str, list[str]] = {}
        for alarm in sorted(self.channels, key=lambda a: a.adjusted):
            if alarm.raised:
                culprits.setdefault(alarm.channel, []).append(str(alarm))
        if culprits:
            told = "; ".join(f"{name}: {', '.join(said)}" for name, said in culprits.items())
            return f"The model does not explain {' and '.join(culprits)} ({told}; {family})."
        if self.context.raised:
            return (
                f"Data like these are rare under the prior (p = {self.context.adjusted:.2g} by what the "
                f"network reads in them, {family})."
            )
        if self.smallest != self.smallest:
            return "Whether the model explains the data is not known: it cannot be solved at any optimum."
        return f"The model explains the data (smallest p = {self.smallest:.2g}, {family})."


def alarms(model: Model, data: Experiments, best: Tensor, trained: Estimator, seed: int) -> Alarms:
    """The statistics of one data set, whose log joint is high at `best` (z,).

    Searches for the optima of replicates begin at the parameters that they were drawn from.
    """
    number = max(REPLICATES, EACH * (1 + len(SAYING) * len(data.channels)))
    # the scale of contexts takes as many again
    drawn = model.simulate(2 * number, derive(seed, "replicates"), data.without_values())
    good, apart = (~drawn.failed).nonzero()[:, 0].tensor_split(2)
    if len(apart) < 2:  # nothing to compare with
        unknown = float("nan")
        return Alarms((), Alarm("context", "", unknown, unknown), 0)
    mine = residuals(model, data.unsqueezed(1), best[None])
    parts = [residuals(model, drawn.experiments.at(part), drawn.z[part]) for part in good.split(ROWS)]
    times = data.unsqueezed(1).times
    names, here, there = list[tuple[str, str]](), list[Tensor](), list[Tensor]()
    for name, residual in mine.items():
        replicated = torch.cat([part[name] for part in parts])
        further = statistics(replicated, times.expand(replicated.shape))
        for which, value in statistics(residual, times).items():
            names.append((which, name))
            here.append(value)
            there.append(further[which])
    scale = trained.context(drawn.experiments.at(apart))
    names.append(("context", ""))
    here.append(checks.distances(trained.context(data), scale).double())
    there.append(checks.distances(trained.context(drawn.experiments.at(good)), scale).double())
    p, adjusted = checks.p_values(torch.cat(here), torch.stack(there, 1))
    places = {name: _place(residual[0], data) for name, residual in mine.items()}
    *channels, context = (
        Alarm(which, name, one, other, places.get(name))
        for (which, name), one, other in zip(names, p.tolist(), adjusted.tolist(), strict=True)
    )
    return Alarms(tuple(channels), context, len(good))


def residuals(model: Model, data: Experiments, start: Tensor) -> dict[str, Tensor]:
    """Residuals (dataset, experiment, time) by channel, in units of the noise, at optima near `start`.

    `start` is (dataset, z). NaN where nothing is measured or a value is censored; infinite where the log joint
    is not finite at any step: no model explains what it holds impossible.
    """
    found = laplace(model, data, start, STEPS)
    with torch.no_grad():
        noises = model.noises(found.mode, data, model.solver)
    solved = torch.isfinite(found.height)[:, None, None]
    out = {}
    for name, noise in noises.items():
        channel = data.channels[name]
        assert channel.values is not None
        exact = channel.mask if channel.censoring is None else channel.mask & (channel.censoring == 0)
        off = standardised(noise, channel.values, tuple(data.times.shape))
        out[name] = torch.where(exact, torch.where(solved, off, torch.inf), torch.nan)
    return out


def statistics(residual: Tensor, times: Tensor) -> Mapping[str, Tensor]:
    """The statistics (dataset,) of one channel."""
    return {
        CHI_SQUARE: checks.chi_square(residual),
        ORDER: checks.autocorrelation(residual, times),
        RUNS: checks.runs(residual, times),
        TREND: checks.trend(residual, times),
        LARGEST: checks.largest(residual),
    }


def _place(residual: Tensor, data: Experiments) -> tuple[str, float] | None:
    """Experiment and time of the largest residual (experiment, time); None where none is finite."""
    size = residual.abs().nan_to_num(-1.0, posinf=torch.inf)
    if not bool((torch.isfinite(size) & (size >= 0)).any()):
        return None
    e, t = divmod(int(size.argmax()), size.shape[-1])
    return data.names[0][e], float(data.times[e, t])
