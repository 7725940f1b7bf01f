"""Alarms: rare on clean data, raised by changed models, and they name the channel and what is wrong with it."""

from dataclasses import replace

import pyro.distributions as dist
import torch

from ampost import Estimator, Model
from ampost.accuracy import located, standardised
from ampost.alarms import LARGEST, alarms
from ampost.experiments import Experiments


def test_residuals_are_in_units_of_the_noise_whatever_its_scale() -> None:
    centre, sd = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.3])
    residual = torch.tensor([1.5, -2.0])
    for noise, value in (
        (dist.Normal(centre, sd), centre + residual * sd),
        (dist.LogNormal(centre, sd), (centre + residual * sd).exp()),
    ):
        found = standardised(noise, value[None].double(), (1, 2))
        assert torch.allclose(found, residual[None].double(), atol=1e-5)
        assert torch.allclose(located(noise, (1, 2))[0], centre[None])
    counts = standardised(dist.Poisson(torch.tensor([0.0, 4.0])), torch.tensor([[0.0, 8.0]]), (1, 2))
    assert counts.tolist() == [[0.0, 2.0]]


def changed(data: Experiments, by: torch.Tensor) -> Experiments:
    """The data set with something added to its channel."""
    channel = data.channels["P"]
    assert channel.values is not None
    return replace(data, channels={"P": replace(channel, values=channel.values + by)})


def test_clean_data_are_rarely_flagged_and_spoilt_ones_are_by_their_culprit(
    kinetics: Model, trained: Estimator
) -> None:
    drawn = kinetics.simulate(40, 7)
    clean = [alarms(kinetics, drawn.experiments.at(k), drawn.z[k], trained, k) for k in range(40)]
    assert sum(found.smallest < 0.05 for found in clean) <= 6
    data = drawn.experiments.at(0)
    times = data.times[data.channels["P"].mask]
    place = int((data.channels["P"].mask[0]).nonzero()[2])
    outlier = torch.zeros_like(data.times)
    outlier[0, place] = 100.0 * float(data.channels["P"].values.abs().max())  # type: ignore[union-attr]
    found = alarms(kinetics, changed(data, outlier), drawn.z[0], trained, 0)
    assert found.misfit
    assert str(found).startswith("The model does not explain P (P: ")
    (alarm,) = [a for a in found.channels if a.statistic == LARGEST]
    assert alarm.raised
    assert alarm.place == (data.names[0][0], float(data.times[0, place]))
    assert len(times) > 3
    again = alarms(kinetics, changed(data, outlier), drawn.z[0], trained, 0)
    assert again == found
