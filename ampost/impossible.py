"""Why a log joint is finite nowhere: an ODE that cannot be solved, or measurements that the noise excludes."""

from __future__ import annotations

import torch
from torch import Tensor

from ampost.experiments import Experiments
from ampost.model import Model
from ampost.ode.failures import failures, reasons
from ampost.ode.problem import OdeProblem, Trajectory
from ampost.passes import noise_of

NAMED = 3  # measurements that are named one by one
TRIED = 200  # draws at most, evenly spaced


def culprits(model: Model, data: Experiments, z: Tensor) -> str:
    """A sentence on why the log joint is not finite at any of z (draw, z), for one data set."""
    z = z[torch.linspace(0, len(z) - 1, min(TRIED, len(z))).round().long()]
    solved: list[tuple[OdeProblem, Trajectory]] = []

    def solver(problem: OdeProblem) -> Trajectory:
        solved.append((problem, model.solver(problem)))
        return solved[-1][1]

    with torch.no_grad():
        run = model.run(z[:, None], data.unsqueezed(1), solver)
    tried = "the parameters tried" if len(z) == 1 else f"any of the {len(z)} draws tried"
    dead = [(asked, got) for asked, got in solved if bool((got.status != 0).all())]
    if dead:
        ((reason, _),) = reasons([dead[0][1].status]).most_common(1)
        first = str(failures(*dead[0], most=1)[0]).rstrip(".")
        return f"the ODE cannot be solved for these data at {tried} (mostly {reason}); the first: {first}"
    said = []
    for name, value in run.log_likelihood.items():
        mask, noise = data.channels[name].mask, type(noise_of(run.noises[name])).__name__
        value = value.expand(len(z), *value.shape[1:]).reshape(len(z), *mask.shape)
        bad, unknown = mask & ~torch.isfinite(value).any(0), torch.isnan(value).double().mean(0) > 0.5
        for which, what in (
            (bad & ~unknown, f"has probability 0 under its noise {noise}"),
            (bad & unknown, f"has no likelihood: a parameter of its noise {noise} is no number"),
        ):
            if bool(which.any()):
                said.append(f"{_named(name, data, which)} {what}")
    if said:
        return (
            f"at {tried} {'; '.join(said)}; correct these values, leave them out, or use a noise that allows "
            f"them"
        )
    return (
        f"at {tried} some measurement is impossible or the ODE fails, each time another one; look at "
        f"check(model, data), and for regions of the prior where the ODE fails"
    )


def _named(channel: str, data: Experiments, bad: Tensor) -> str:
    """The first of some measurements (experiment, time), and how many there are."""
    values, places = data.channels[channel].values, bad.nonzero().tolist()
    assert values is not None
    told = ", ".join(
        f"{float(values[e, t]):g} at time {float(data.times[e, t]):g} of experiment {data.names[0][e]}"
        for e, t in places[:NAMED]
    )
    more = f" and {len(places) - NAMED} further values" if len(places) > NAMED else ""
    return f"the value of channel {channel!r}, {told}{more},"
