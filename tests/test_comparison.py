"""Answers side by side."""

import numpy as np
import pytest
import torch
from arviz_plots import plot_ecdf_pit
from scipy.stats import norm

from ampost import Budget, Estimator, Model, baselines, calibrate, compare, infer, plots
from ampost.calibration import inside_band
from ampost.errors import ArgumentError


def test_infer_nuts_and_fit_agree_side_by_side(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, 3).experiments.at(0)
    answers = {
        "ampost": infer(kinetics, data, trained, budget=Budget(effective_size=1_000)),
        "nuts": baselines.nuts(kinetics, data, draws=400, warmup=200),
        "fit": baselines.fit(kinetics, data, starts=3),
    }
    seen = compare(answers)
    assert list(seen.results["result"].values) == ["ampost", "nuts", "fit"]
    assert (seen.results["seconds"] > 0).all()
    assert float(seen.results["solves"].sel(result="ampost")) > 1_000
    assert float(seen.results["gradients"].sel(result="nuts")) > 1_000
    assert float(seen.results["effective_size"].sel(result="nuts")) > 60
    best = seen.results["best_log_joint"]
    assert float(best.sel(result="ampost")) == pytest.approx(float(best.sel(result="fit")), abs=0.01)
    assert float(abs(seen.parameters["off"].sel(result="nuts")).max()) < 0.5
    assert (seen.parameters["ratio"].sel(result="ampost") == 1).all()
    for word in ("seconds", "best_log_joint", "vmax", "nuts"):
        assert word in str(seen)


def test_one_result_alone_is_refused(kinetics: Model) -> None:
    with pytest.raises(ArgumentError, match="two or more"):
        compare({})


def test_calibration_has_a_picture_here_and_in_arviz(kinetics: Model, trained: Estimator) -> None:
    tree = calibrate(kinetics, trained, datasets=200, draws=100, seed=2)
    figure = plots.calibration(tree)
    assert len(figure.axes) == 2
    assert len(figure.axes[0].lines) >= 3
    shown = plot_ecdf_pit(tree, backend="matplotlib")
    assert shown is not None


def test_the_band_holds_the_uniform_and_not_the_overconfident() -> None:
    rng = np.random.default_rng(0)
    inside = [inside_band(torch.as_tensor(rng.random(500)), 0.05) for _ in range(200)]
    assert 0.9 <= np.mean(inside) <= 0.99
    overconfident = torch.as_tensor(norm.cdf(1.5 * rng.standard_normal(500)))
    assert not inside_band(overconfident, 0.05)
