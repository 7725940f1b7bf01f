"""Baselines and calibration against what is known."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import Design, Estimator, Experiments, Model, observe
from ampost.baselines import fit, nuts
from ampost.calibration import calibrate
from ampost.plans import Looks


def gaussian(experiments: Experiments) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    observe("y", dist.Normal(theta + 0 * experiments.times, 0.5), experiments)


def test_fit_and_nuts_find_the_exact_posterior() -> None:
    looks = Experiments.on([[0.0, 1.0, 2.0, 3.0]], ["y"])
    data = looks.with_values({"y": torch.tensor([[0.4, 0.9, 0.2, 1.1]], dtype=torch.float64)})
    model = Model(gaussian, Design({"y": Looks((0.0, 1.0, 2.0, 3.0), (4, 4))}, {}, (1, 1), 3.5))
    mean, sd = 16 * 0.65 / 17, 17**-0.5
    for result in (fit(model, data, starts=3), nuts(model, data, draws=400, warmup=150, seed=1)):
        drawn = np.asarray(result["posterior/theta"])
        assert drawn.mean() == pytest.approx(mean, abs=0.06)
        assert drawn.std() == pytest.approx(sd, rel=0.2)
    optima = fit(model, data, starts=3)["optima"]
    assert np.asarray(optima["z"]).shape == (3, 1)


def test_calibrate_gives_one_entry_per_coordinate(kinetics: Model, trained: Estimator) -> None:
    tree = calibrate(kinetics, trained, datasets=150, draws=100, seed=1, progress=False)
    assert set(tree["prior_sbc"].data_vars) == {"vmax", "km", "sigma"}
    assert np.asarray(tree["ranks/km"]).shape == (1, 150)
    assert 0 < float(np.asarray(tree["contraction/vmax"]).mean()) < 1
    assert "calibrated" in tree["fit"]["sentence"].item().lower()
