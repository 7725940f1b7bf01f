"""How often do alarms go off on clean data, and on data of changed models?

Run: python benchmarks/exactness/alarms.py --file FILE [--datasets 1000] [--changed 100]
FILE is an estimator of Michaelis-Menten that `ampost train` made. Clean data sets are drawn from the model. The
changed ones are the same data sets, but
    decay    product is lost at a rate (an ODE of its own makes the data)
    noise    a constant is added to every value
    drift    the sensor drifts in proportion to time
    outlier  one value is far off
each so large that residuals at the new optimum have a root mean square that is at least one sd of the true
noise larger than before (in squares); where no size of the change does it, the change can be absorbed, which
is counted. A data set is flagged where the smallest adjusted p-value is below 5 %. The optimum is searched from
the network's draws and from the parameters that made the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ampost import Estimator, Experiments, Model, odeint
from ampost.accuracy import located
from ampost.alarms import alarms
from ampost.laplace import highest
from ampost.zoo import michaelis_menten

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # in sd of the true noise


def shifted(data: Experiments, by: Tensor) -> Experiments:
    """The data with something added to the product."""
    channel = data.channels["P"]
    assert channel.values is not None
    return replace(data, channels={"P": replace(channel, values=channel.values + by)})


def decay(data: Experiments, truth: dict[str, Tensor], size: float) -> Tensor:
    """What is missing of the product at the rate that makes it `size` sd less at its largest."""

    def lossy(t: object, y: object, p: object) -> dict[str, object]:
        rate = p.vmax * y.S / (p.km + y.S)  # type: ignore[attr-defined]
        return {"S": -rate, "P": rate - p.loss * y.P}  # type: ignore[attr-defined]

    start = {"S": data["S0"], "P": 0.0}
    rates = {"vmax": truth["vmax"], "km": truth["km"]}
    with torch.no_grad():
        whole = odeint(lossy, start, {**rates, "loss": 0.0}, data).P
        low, high = 1e-4, 10.0
        for _ in range(40):
            middle = (low * high) ** 0.5
            lost = odeint(lossy, start, {**rates, "loss": middle}, data).P - whole
            small = float(lost.abs().max()) < size * float(truth["sigma"])
            low, high = (middle, high) if small else (low, middle)
    return lost


def noise(data: Experiments, truth: dict[str, Tensor], size: float) -> Tensor:
    """A constant."""
    return torch.full_like(data.times, size * float(truth["sigma"]))


def drift(data: Experiments, truth: dict[str, Tensor], size: float) -> Tensor:
    """In proportion to time, `size` sd at the end."""
    return size * float(truth["sigma"]) * data.times / data.times.max()


def outlier(data: Experiments, truth: dict[str, Tensor], size: float) -> Tensor:
    """One value in the middle; its residual counts alone in the root mean square, so that it is large."""
    added = torch.zeros_like(data.times)
    places = data.channels["P"].mask.nonzero()
    e, t = places[len(places) // 2].tolist()
    added[e, t] = size * float(truth["sigma"]) * len(places) ** 0.5
    return added


def rms(model: Model, data: Experiments, z: Tensor, sigma: float) -> tuple[float, Tensor]:
    """Root mean square of residuals, in sd of the true noise, at the best optimum from z (start, z)."""
    found = highest(model, data, z[:, None])
    with torch.no_grad():
        noises = model.noises(found.mode, data.unsqueezed(1), model.solver)
    channel = data.channels["P"]
    assert channel.values is not None
    centre, _ = located(noises["P"], (1, *data.times.shape))
    off = (channel.values - centre[0])[channel.mask]
    return float(off.square().mean().sqrt()) / sigma, found.mode[0]


CHANGES: dict[str, Callable[[Experiments, dict[str, Tensor], float], Tensor]] = {
    "decay": decay,
    "noise": noise,
    "drift": drift,
    "outlier": outlier,
}


def main() -> None:
    """Print the share of clean data sets flagged, and that of each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--datasets", type=int, default=1_000)
    parser.add_argument("--changed", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, estimator = michaelis_menten.model(), Estimator.load(asked.file)
    drawn = model.simulate(asked.datasets, 277)
    good = (~drawn.failed).nonzero()[:, 0].tolist()

    def starts(data: Experiments, z: Tensor) -> Tensor:
        return torch.cat([estimator.sample(estimator.reading(model, data), 100, 0)[:, 0], z[None]])

    flagged = 0
    for k in good:
        data = drawn.experiments.at(k)
        best = highest(model, data, starts(data, drawn.z[k])[:, None]).mode[0]
        flagged += alarms(model, data, best, estimator, k).smallest < 0.05
    print(f"clean: {flagged} of {len(good)} flagged, {flagged / len(good):.1%} (wanted 3 to 7 %)", flush=True)
    for name, change in CHANGES.items():
        seen, found, culprits, absorbed = 0, 0, 0, 0
        for k in good[: asked.changed]:
            data = drawn.experiments.at(k)
            truth = {n: v[k] for n, v in drawn.parameters.items()}
            sigma = float(truth["sigma"])
            usual, _ = rms(model, data, starts(data, drawn.z[k]), sigma)
            for size in SIZES:
                spoilt = shifted(data, change(data, truth, size))
                worse, best = rms(model, spoilt, starts(spoilt, drawn.z[k]), sigma)
                if worse**2 - usual**2 >= 1.0:
                    told = alarms(model, spoilt, best, estimator, k)
                    seen, found = seen + 1, found + (told.smallest < 0.05)
                    culprits += told.misfit
                    break
            else:
                absorbed += 1
        share = found / seen if seen else float("nan")
        print(
            f"{name}: {found} of {seen} flagged, {share:.0%} (wanted 90 %), {culprits} as a misfit; "
            f"{absorbed} data sets absorb it at any size",
            flush=True,
        )


if __name__ == "__main__":
    main()
