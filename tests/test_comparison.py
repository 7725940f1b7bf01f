"""Answers side by side."""

import numpy as np
import pytest
import torch
from arviz_plots import plot_ecdf_pit
from scipy.stats import norm

from ampost import (
    Budget,
    Estimator,
    Model,
    ProxySettings,
    Schedule,
    baselines,
    calibrate,
    compare,
    compare_methods,
    infer,
    plots,
    train_proxy,
)
from ampost import bank as banks
from ampost.calibration import inside_band
from ampost.errors import ArgumentError
from ampost.zoo import lotka_volterra


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
    assert float(seen.results["solves"].sel(result="nuts")) > 4_000  # a gradient is four
    assert float(seen.results["effective_size"].sel(result="nuts")) > 60
    assert float(seen.results["below_best"].drop_sel(result="nuts").max()) < 0.001
    nuts = answers["nuts"]
    assert 0.9 < float(nuts["fit/rhat"]) < 1.1
    assert seen.answers == answers
    assert np.isnan(seen.results["break_even"].sel(result="nuts"))
    assert float(abs(seen.parameters["off"].sel(result="nuts")).max()) < 0.5
    assert (seen.parameters["ratio"].sel(result="ampost") == 1).all()
    for word in ("seconds", "below_best", "vmax", "nuts", "ampost: ", " s by nuts (", "rhat"):
        assert word in str(seen)


def test_all_methods_run_by_one_call_and_say_from_when_on_training_pays(
    kinetics: Model, trained: Estimator
) -> None:
    data = kinetics.simulate(1, 3).experiments
    bank = banks.build(kinetics, 300, 0, show=False)
    brief = ProxySettings(width=16, trunk=8, batch=16, schedule=Schedule(30, validate_every=10))
    proxy = train_proxy(kinetics, bank, brief, 0, show=False)
    seen = compare_methods(
        kinetics, data, trained, 1, proxy=proxy, starts=3, draws=60, warmup=60, chains=2, progress=False
    )
    names = ["nuts", "fit", "point", "network", "proxy optimum", "optimum", "corrected"]
    assert list(seen.results["result"].values) == names
    below = seen.results["below_best"]
    assert float(below.sel(result="optimum")) == pytest.approx(float(below.sel(result="fit")), abs=1e-6)
    assert float(below.sel(result="proxy optimum")) >= 0
    assert float(below.min()) == 0
    assert float(seen.results["solves"].sel(result="point")) == 0
    assert float(seen.parameters["sd"].sel(result="point").max()) == 0
    assert (seen.parameters["distance"].sel(result="nuts") == 0).all()
    assert float(seen.parameters["distance"].sel(result="corrected").max()) < 0.6
    row = seen.results.sel(result="corrected")
    saved = float(seen.results["seconds"].sel(result="nuts") - row["seconds"])
    assert float(row["break_even"]) == pytest.approx(trained.seconds / saved)
    (sentence,) = seen.paying()
    assert f"pays from {int(np.ceil(trained.seconds / saved))} data set" in sentence
    figure = plots.comparison(seen.answers)
    assert len(figure.axes[0].lines) == len(names)
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == len(names)


def test_chains_begin_where_a_result_is_and_fits_show_every_end(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, 3).experiments.at(0)
    found = infer(kinetics, data, trained, budget=Budget(effective_size=1_000), optimum=False)
    warm = baselines.nuts(kinetics, data, draws=20, warmup=1, chains=2, start=found, progress=False)
    drawn = np.asarray(warm["unconstrained_posterior/z"])
    known = np.asarray(found["unconstrained_posterior/z"])[0]
    assert (abs(drawn[:, 0] - known.mean(0)) < 6 * known.std(0)).all()
    with pytest.raises(ArgumentError, match=r"nuts\(start=...\): its posterior has 3 coordinates in z"):
        baselines.nuts(lotka_volterra.model(), lotka_volterra.data(), start=found, progress=False)
    fitted = baselines.fit(kinetics, data, starts=4, progress=False)
    figure = plots.waterfall(fitted)
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 4
    assert "4 starts" in figure.get_suptitle()
    assert not np.asarray(fitted["optima/failed"]).any()


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
