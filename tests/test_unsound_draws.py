"""Draws whose noise has no number: failed rows with a reason, wherever they come."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ampost import Design, Experiments, Looks, Model, Schedule, Settings, check, observe, train
from ampost.architecture import Architecture
from ampost.refining import Refining


def gone(experiments: Any) -> None:
    """A curve that falls below 0 at times, of which a logarithm is taken."""
    k = pyro.sample("k", dist.Uniform(0.0, 1.0))
    left = 1.0 - k * experiments.times
    observe("A", dist.LogNormal(left.log(), 0.1), experiments)


DESIGN = Design({"A": Looks((0.0, 0.5, 1.1), (3, 3))}, {}, (1, 1), 1.2)


def test_a_draw_that_is_no_number_fails_with_a_reason() -> None:
    drawn = Model(gone, DESIGN).simulate(400, 0)
    share = float(drawn.failed.double().mean())
    assert 0.02 < share < 0.3  # of k above 1 / 1.1
    assert bool((drawn.parameters["k"][drawn.failed] > 0.85).all())
    assert "channel 'A' is drawn as nan at time 1." in str(drawn.failures[0])
    assert "y.A.clamp(min=1e-9)" in str(drawn.failures[0])


def test_check_counts_them_and_names_their_region() -> None:
    looks = Experiments.on([[0.0, 0.5, 1.1]], ["A"])
    data = looks.with_values({"A": torch.tensor([[1.0, 0.8, 0.5]]).double()})
    found = check(Model(gone, DESIGN), data)
    assert found.failures["NOT_FINITE"] > 20
    assert "k >= 0.9" in found.text
    assert found.inside["A"] == 1.0


def test_training_leaves_them_out_and_says_so(capsys: Any) -> None:
    settings = Settings(
        600,
        Schedule(steps=20, validate_every=10),
        64,
        Architecture(width=16, context=8, transforms=1, hidden=16),
        Refining(1_000, Schedule(steps=10, validate_every=5), batch=64),
    )
    trained = train(Model(gone, DESIGN), settings, seed=0, progress=True)
    assert "simulated data sets fail, and are left out wherever they come" in capsys.readouterr().err
    assert torch.isfinite(torch.tensor(trained.loss))
    assert torch.isfinite(torch.tensor(trained.teaching.overfitting))
