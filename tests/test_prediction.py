"""Predictions against closed forms, and what a result keeps for them."""

import gc
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

from ampost import Design, Doses, Experiments, Input, Model, between, observe, odeint, plots, predict, results
from ampost.errors import ArgumentError, ModelError, UnitError
from ampost.experiments import INTERVAL, LEFT, Signals
from ampost.likeness import centre
from ampost.results import model_of, summary

UNITS = {"time": "h", "C": "mg", "A": "mg", "k": "1/h", "A0": "mg", "half_life": "h"}


def decay(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"C": p.feed - p.k * y.C}


def single(experiments: Experiments) -> None:
    k = pyro.sample("k", between(0.1, 1.0))
    sigma = pyro.sample("sigma", between(0.05, 0.5))
    pyro.deterministic("half_life", math.log(2.0) / k)
    feed = experiments.inputs.get("feed", 0.0)
    y = odeint(decay, {"C": experiments["C0"]}, {"k": k, "feed": feed}, experiments)
    pyro.deterministic("rate", k * y.C)
    observe("C", dist.Normal(y.C, sigma), experiments)


def looks(times: Any, C0: Any = 2.0, **more: Any) -> Experiments:
    grid = torch.atleast_2d(torch.as_tensor(times, dtype=torch.float64))
    return Experiments.on(grid, ["C"], {"C0": C0}, **more)


def posterior(model: Model, data: Experiments, z: Tensor, chains: int = 1) -> xr.DataTree:
    """A result whose draws are z (draw, z)."""
    reported = results.report(model, data, z, seed=0)
    prior = results.prior_draws(model, data, 20, seed=0)
    return results.build(model, data, z, reported, prior, {"computation": "given"}, chains=chains)


def simulated(model: Model, at: Experiments, seed: int = 0) -> Experiments:
    return model.simulate(1, seed, at).experiments.at(0)


@pytest.fixture(scope="module")
def model() -> Model:
    at = looks([0.5, 1.0, 2.0, 4.0])
    design = Design.like(at.with_values({"C": torch.ones(1, 4)}))
    return Model(single, replace(design, conditions={"C0": (1.0, 3.0)}, horizon=5.0), UNITS)


@pytest.fixture(scope="module")
def data(model: Model) -> Experiments:
    return simulated(model, looks([0.5, 1.0, 2.0, 4.0]))


@pytest.fixture(scope="module")
def result(model: Model, data: Experiments) -> xr.DataTree:
    return posterior(model, data, torch.randn(400, 2, generator=torch.Generator().manual_seed(1)).double(), 2)


def parameter(tree: xr.DataTree, name: str) -> Any:
    return tree["posterior"][name].to_numpy()


# ------------------------------------------------------------------------------------ closed forms


def test_a_new_condition_on_a_fine_grid(model: Model, result: xr.DataTree) -> None:
    grid = torch.linspace(0.0, 5.0, 41)
    told = predict(result, looks([1.0], C0=1.5), times=grid)
    exact = 1.5 * np.exp(-parameter(result, "k")[:, :, None, None] * grid.numpy())
    for group in ("predictions_noiseless", "predictions_states"):
        assert told[group]["C"].dims == ("chain", "draw", "experiment", "time")
        np.testing.assert_allclose(told[group]["C"].to_numpy(), exact, rtol=1e-4)
    np.testing.assert_allclose(told["predictions"]["time"], grid)
    assert told["predictions_constant_data"]["C0"].item() == 1.5


def test_noise_has_the_draws_own_width(result: xr.DataTree) -> None:
    told = predict(result, looks([1.0]), times=torch.linspace(0.0, 5.0, 200), seed=3)
    noise = told["predictions"]["C"].to_numpy() - told["predictions_noiseless"]["C"].to_numpy()
    scaled = noise / parameter(result, "sigma")[:, :, None, None]
    assert scaled.mean() == pytest.approx(0.0, abs=0.02)
    assert scaled.std() == pytest.approx(1.0, abs=0.02)


def test_deterministic_sites_are_predicted(result: xr.DataTree) -> None:
    told = predict(result, looks([0.0, 2.0], C0=1.0))
    np.testing.assert_allclose(told["predictions"]["half_life"], math.log(2) / parameter(result, "k"))
    assert told["predictions"]["half_life"].dims == ("chain", "draw")
    rate = told["predictions"]["rate"]
    assert rate.dims == ("chain", "draw", "experiment", "time")
    np.testing.assert_allclose(rate[..., 0, 0], parameter(result, "k"), rtol=1e-6)


def test_new_doses_and_inputs(model: Model, result: xr.DataTree) -> None:
    grid = torch.tensor([0.0, 1.0, 1.5, 3.0])
    k = parameter(result, "k")[:, :, None]
    dosed = looks(grid, C0=1.0, doses=Doses.at([1.0], [4.0], target="C"))
    with pytest.warns(UserWarning, match="1 doses in an experiment, the design has 0"):
        tree = predict(result, dosed)
    assert tree["predictions_constant_data"]["dose_amount"].to_numpy().tolist() == [[4.0]]
    assert tree["predictions_constant_data"]["dose_amount"].attrs == {"units": "mg"}
    told = tree["predictions_states"]["C"].to_numpy()[:, :, 0]
    after = np.where(grid > 1.0, 4.0 * np.exp(-k * (grid.numpy() - 1.0)), 0.0)
    np.testing.assert_allclose(told, np.exp(-k * grid.numpy()) + after, rtol=1e-4)
    fed = looks(grid, C0=0.0, inputs={"feed": Input.at([0.0], [0.5])})
    with pytest.warns(UserWarning, match="input 'feed' is not in the design"):
        told = predict(result, fed)["predictions_states"]["C"].to_numpy()[:, :, 0]
    np.testing.assert_allclose(told, 0.5 / k * (1 - np.exp(-k * grid.numpy())), rtol=1e-4, atol=1e-8)


def test_experiments_with_times_of_their_own(result: xr.DataTree) -> None:
    two = looks([[0.0, 1.0], [0.0, 1.0]], C0=[1.0, 2.0])
    told = predict(result, two, times=[[0.0, 1.0, 2.0], [1.0, 3.0, 5.0]])
    assert "time" not in told["predictions"].coords
    assert told["predictions"]["times"].to_numpy().tolist() == [[0.0, 1.0, 2.0], [1.0, 3.0, 5.0]]
    k = parameter(result, "k")
    np.testing.assert_allclose(told["predictions_states"]["C"][..., 1, 2], 2 * np.exp(-5 * k), rtol=1e-4)


def test_states_of_two_odes_and_of_another_grid() -> None:
    def phases(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.1, 1.0))
        rates = {"k": k, "feed": 0.0}
        early = experiments.times[..., :1] + torch.tensor([0.0, 1.0])
        first = replace(experiments, times=early, after_dose=torch.zeros_like(early).bool())
        before = odeint(decay, {"C": 1.0}, rates, first, name="before")
        y = odeint(decay, {"C": before.final.C}, rates, experiments, name="after")
        observe("C", dist.Normal(y.C, 0.1), experiments)

    at = Experiments.on([[0.0, 1.0, 2.0]], ["C"])
    model = Model(phases, Design.like(at.with_values({"C": torch.ones(1, 3)})))
    result = posterior(model, simulated(model, at), torch.linspace(-1.0, 1.0, 5).double()[:, None])
    states = predict(result, at)["predictions_states"]
    k = parameter(result, "k")[..., None, None]
    assert states["before_C"].dims == ("chain", "draw", "experiment", "before_C_time")
    assert states["before_C_times"].to_numpy().tolist() == [[0.0, 1.0]]
    np.testing.assert_allclose(states["before_C"], np.exp(-k * np.array([0.0, 1.0])), rtol=1e-4)
    np.testing.assert_allclose(states["after_C"], np.exp(-k * np.array([1.0, 2.0, 3.0])), rtol=1e-4)


def test_plates_of_the_programs_own() -> None:
    def mixed(experiments: Experiments) -> None:
        with pyro.plate("parts", 2, dim=-3):
            k = pyro.sample("k", between(0.1, 1.0))
            y = odeint(decay, {"C": 1.0}, {"k": k, "feed": 0.0}, experiments)
        total = pyro.deterministic("total", k.sum(-3, keepdim=True))
        observe("C", dist.Normal(y.C.sum(-3, keepdim=True) + 0 * total, 0.1), experiments)

    at = Experiments.on([[0.0, 1.0], [0.0, 2.0]], ["C"])
    model = Model(mixed, Design.like(at.with_values({"C": torch.ones(2, 2)})))
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double()
    result = posterior(model, simulated(model, at), z)
    told = predict(result, at)
    k = parameter(result, "k")[0]
    exact = np.exp(-k[:, None, None, :] * np.array([[0.0, 1.0], [0.0, 2.0]])[..., None])
    np.testing.assert_allclose(told["predictions_noiseless"]["C"][0], exact.sum(-1), rtol=1e-4)
    np.testing.assert_allclose(told["predictions"]["total"][0], k.sum(-1), rtol=1e-12)
    members = told["predictions_states"]["C"][0]
    assert members.dims == ("draw", "C_member", "experiment", "time")
    np.testing.assert_allclose(members, np.moveaxis(exact, -1, 1), rtol=1e-4)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (dist.Normal(torch.tensor([1.5]), 2.0), 1.5),
        (dist.LogNormal(torch.tensor([0.7]), 0.9), math.exp(0.7)),
        (dist.StudentT(1.0, torch.tensor([-0.4]), 2.0), -0.4),
        (dist.Exponential(torch.tensor([2.0])), math.log(2) / 2),
        (dist.Poisson(torch.tensor([3.2])), 3.2),
        (dist.NegativeBinomial(5.0, torch.tensor([0.5])), 5.0),
    ],
)
def test_without_noise_is_the_median_or_the_mean(noise: Any, expected: float) -> None:
    assert float(centre("P", noise)) == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------- parameters per experiment


def population(experiments: Experiments) -> None:
    middle = pyro.sample("middle", dist.Normal(0.0, 1.0))
    shape = pyro.sample("shape", dist.Gamma(3.0, 2.0))
    with experiments.plate():
        own = pyro.sample("own", dist.Normal(middle, 0.5))
    y = odeint(decay, {"C": 1.0}, {"k": shape, "feed": 0.0}, experiments)
    observe("C", dist.Normal(y.C + own, 0.1), experiments)


def named(experiments: Experiments, *names: str) -> Experiments:
    return replace(experiments, names=(names,))


@pytest.fixture(scope="module")
def fitted() -> xr.DataTree:
    at = named(Experiments.on([[0.5, 1.0]] * 3, ["C"]), "a", "b", "c")
    model = Model(population, Design.like(at.with_values({"C": torch.ones(3, 2)})))
    z = torch.randn(2_000, 5, generator=torch.Generator().manual_seed(2)).double()
    return posterior(model, simulated(model, at), z)


def levels(result: xr.DataTree, *names: str) -> np.ndarray[Any, Any]:
    """`own` of the predicted experiments, (draw, experiment)."""
    at = named(Experiments.on([[0.5, 1.0]] * len(names), ["C"]), *names)
    told = predict(result, at, draws=2_000)["predictions_noiseless"]["C"].to_numpy()[0, :, :, 1]
    return np.asarray(told - np.exp(-parameter(result, "shape")[0])[:, None])


def test_known_experiments_keep_their_parameters_and_new_ones_get_others(fitted: xr.DataTree) -> None:
    own, middle = parameter(fitted, "own")[0], parameter(fitted, "middle")[0]
    told = levels(fitted, "c", "new", "a", "newer")
    np.testing.assert_allclose(told[:, [0, 2]], own[:, [2, 0]], atol=1e-4)
    fresh = (told[:, [1, 3]] - middle[:, None]) / 0.5
    assert np.abs(fresh.mean(0)).max() < 0.1
    assert np.abs(fresh.std(0) - 1).max() < 0.1
    assert abs(np.corrcoef(fresh.T)[0, 1]) < 0.1
    assert abs(np.corrcoef(fresh[:, 0], own[:, 0] - middle)[0, 1]) < 0.1


def test_one_experiment_of_several_and_several_from_one(fitted: xr.DataTree) -> None:
    np.testing.assert_allclose(levels(fitted, "b")[:, 0], parameter(fitted, "own")[0][:, 1], atol=1e-4)
    alone = named(Experiments.on([[0.5, 1.0]], ["C"]), "a")
    model = Model(population, Design.like(alone.with_values({"C": torch.ones(1, 2)})))
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(3)).double()
    result = posterior(model, simulated(model, alone), z)
    told = levels(result, "new", "a")
    np.testing.assert_allclose(told[:, 1:], parameter(result, "own")[0], atol=1e-4)
    assert np.abs(told[:, 0] - told[:, 1]).min() > 0


def test_a_new_experiment_without_an_exact_prior_is_refused() -> None:
    def gamma(experiments: Experiments) -> None:
        with experiments.plate():
            own = pyro.sample("own", dist.Gamma(3.0, 2.0))
        observe("C", dist.Normal(own, 0.1), experiments)

    at = named(Experiments.on([[0.5], [0.5]], ["C"]), "a", "b")
    model = Model(gamma, Design.like(at.with_values({"C": torch.ones(2, 1)})))
    result = posterior(model, simulated(model, at), torch.randn(20, 2).double())
    told = predict(result, named(at, "b", "a"))["predictions_noiseless"]["C"].to_numpy()[0, :, :, 0]
    np.testing.assert_allclose(told, parameter(result, "own")[0][:, ::-1])
    with pytest.raises(ModelError, match=r"'new'.*'own'.*exact map"):
        predict(result, named(at, "a", "new"))


# ------------------------------------------------------------------------- files, draws, bad input


def test_from_a_file(model: Model, data: Experiments, result: xr.DataTree, tmp_path: Path) -> None:
    result.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    stored = xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf").load()
    with pytest.raises(ArgumentError, match=r"comes from a file.*model="):
        predict(stored, data)
    again = predict(stored, data, model=model)
    assert again.equals(predict(result, data))
    again.to_netcdf(tmp_path / "predictions.nc", engine="h5netcdf")


def test_draws_are_thinned_within_chains(result: xr.DataTree) -> None:
    told = predict(result, looks([0.0, 1.0]), draws=20)
    assert dict(told["predictions"].sizes) == {"chain": 2, "draw": 10, "experiment": 1, "time": 2}
    places = told["predictions"]["draw"].to_numpy()
    assert (places[0], places[-1]) == (0, 199)
    k = parameter(result, "k")[:, places]
    np.testing.assert_allclose(told["predictions_states"]["C"][..., 0, 1], 2 * np.exp(-k), rtol=1e-4)
    assert predict(result, looks([0.0])).equals(predict(result, looks([0.0]), seed=0))
    assert not predict(result, looks([0.0])).equals(predict(result, looks([0.0]), seed=1))


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([2.0, 1.0], "rise"),
        ([[0.0, 1.0], [0.0, 1.0]], r"shape \(2, 2\).*1 experiment"),
        ([-1.0, 1.0], "before the start"),
        ("soon", "expected numbers"),
    ],
)
def test_times_that_cannot_be(result: xr.DataTree, times: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        predict(result, looks([1.0]), times=times)


def test_other_bad_input(model: Model, result: xr.DataTree, fitted: xr.DataTree) -> None:
    with pytest.raises(ArgumentError, match=r"holds 3.*split\(\)"):
        predict(result, looks([1.0]).expand((3,)))
    with pytest.raises(ArgumentError, match="expected Experiments"):
        predict(result, "table.csv")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="draws=0"):
        predict(result, looks([1.0]), draws=0)
    with pytest.raises(ArgumentError, match="parameters middle, shape, own, the model 'single' has k, sigma"):
        predict(fitted, looks([1.0]), model=model)
    with pytest.raises(UnitError, match="time"):
        predict(result, replace(looks([1.0]), units={"time": "mg"}))


def test_extrapolation_is_said(result: xr.DataTree) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(result, looks([0.0, 5.0], C0=3.0))
    with pytest.warns(UserWarning, match="condition 'C0' is 8, the design spans 1 to 3"):
        predict(result, looks([0.0, 5.0], C0=8.0))
    with pytest.warns(UserWarning, match="the times reach 9, the design ends at 5"):
        predict(result, looks([0.0]), times=[0.0, 9.0])


def test_experiments_in_other_units(result: xr.DataTree) -> None:
    minutes = replace(looks([0.0, 60.0]), units={"time": "min", "C": "g"})
    told = predict(result, minutes)["predictions"]
    np.testing.assert_allclose(told["time"], [0.0, 1.0])
    assert told["time"].attrs["units"] == "h"
    assert told["C"].attrs["units"] == "mg"


def test_failed_draws_are_marked_and_counted() -> None:
    def explosion(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
        return {"C": p.k * y.C**2}

    def exploding(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.2, 2.0))
        y = odeint(explosion, {"C": experiments["C0"]}, {"k": k}, experiments)
        observe("C", dist.Normal(y.C, 0.1), experiments)

    at = looks([0.05, 0.1], C0=1.0)
    design = Design.like(at.with_values({"C": torch.ones(1, 2)}))
    model = Model(exploding, replace(design, horizon=3.0, conditions={"C0": (0.1, 1.0)}))
    result = posterior(model, simulated(model, at), torch.linspace(-2.0, 2.0, 40).double()[:, None])
    two = looks([[0.0, 1.0]] * 2, C0=[1.0, 0.4])
    with pytest.warns(UserWarning, match="of 40 draws could not be solved.*EXPLODED") as caught:
        told = predict(result, two)
    failed = told["predictions_stats"]["failed"].to_numpy()[0]
    assert (failed[:, 0] == (parameter(result, "k")[0] > 1.0)).all()
    assert not failed[:, 1].any()
    for group in ("predictions", "predictions_noiseless", "predictions_states"):
        assert (np.isnan(told[group]["C"].to_numpy()[0]).all(-1) == failed).all()
    assert any(f"{failed[:, 0].sum()} of 40" in str(w.message) for w in caught)
    assert plots.prediction(told).axes


def test_what_stands_beside_a_measurement_is_that_of_the_nearest() -> None:
    def weighted(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.1, 1.0))
        observe("C", dist.Normal(k, experiments.column("sd", "C")), experiments)

    at = looks([0.0, 1.0, 4.0])
    channel = replace(at.channels["C"], sd=torch.tensor([[1e-6, 1e-6, 10.0]]).double())
    at = replace(at, channels={"C": channel})
    model = Model(weighted, Design.like(at.with_values({"C": torch.ones(1, 3)})))
    result = posterior(model, simulated(model, at), torch.zeros(300, 1).double())
    told = predict(result, at, times=[0.0, 2.4, 2.6, 4.0])["predictions"]["C"].to_numpy()[0, :, 0]
    assert told.std(0)[:2].max() < 1e-5
    assert told.std(0)[2:].min() > 8.0


# ---------------------------------------------------------------------------------------- results


def test_a_result_knows_its_model_while_it_lives(model: Model, data: Experiments) -> None:
    made = posterior(model, data, torch.zeros(4, 2).double())
    assert model_of(made) is model
    assert model_of(made.copy()) is None
    key = id(made)
    del made
    gc.collect()
    assert key not in results._MODELS


def test_units_stand_in_results_and_summary(result: xr.DataTree, fitted: xr.DataTree) -> None:
    table = summary(result)
    assert list(table.columns[:2]) == ["unit", "MAP"]
    assert table["unit"].to_dict() == {"k": "1/h", "sigma": "", "half_life": "h"} | {
        name: "" for name in table.index if name.startswith("rate")
    }
    assert "unit" not in summary(fitted)
    for group in ("observed_data", "posterior_predictive"):
        assert result[group]["C"].attrs["units"] == "mg"
        assert result[group]["C_time"].attrs["units"] == "h"
    assert "units" not in result["log_likelihood"]["C"].attrs


def test_a_result_says_what_was_censored(model: Model, data: Experiments) -> None:
    channel = data.channels["C"]
    assert channel.values is not None
    code = torch.tensor([[0, LEFT, 0, INTERVAL]])
    known = replace(channel, censoring=code, upper=torch.where(code == INTERVAL, channel.values + 0.5, 0.0))
    censored = replace(data, channels={"C": known})
    made = posterior(model, censored, torch.zeros(4, 2).double())
    assert made["censoring"]["C_censoring"].to_numpy().tolist() == [0, LEFT, 0, INTERVAL]
    assert made["censoring"]["C_upper"].to_numpy()[3] == pytest.approx(float(channel.values[0, 3]) + 0.5)
    assert "censoring" not in posterior(model, data, torch.zeros(4, 2).double()).children
    (axis,) = plots.predictive(made, censored).axes
    labels = axis.get_legend_handles_labels()[1]
    assert {"data", "below a limit", "in an interval"} <= set(labels)


# --------------------------------------------------------------------------------------- pictures


def test_pictures_have_a_panel_each_and_units(
    model: Model, data: Experiments, result: xr.DataTree, fitted: xr.DataTree
) -> None:
    (axis,) = plots.prediction(predict(result, data), data).axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("time [h]", "C [mg]")
    assert "data" in axis.get_legend_handles_labels()[1]
    several = named(Experiments.on([[0.5, 1.0]] * 6, ["C"]), *"abcdef")
    shown = [a for a in plots.prediction(predict(fitted, several)).axes if a.get_visible()]
    assert [a.get_title() for a in shown] == [f"experiment {n}" for n in "abcdef"]
    assert "k [1/h]" in [a.get_xlabel() for a in plots.pairs(result).axes]


def test_the_picture_shows_data_in_the_units_of_the_result(data: Experiments, result: xr.DataTree) -> None:
    channel = data.channels["C"]
    assert channel.values is not None
    grams = replace(
        data,
        channels={"C": replace(channel, values=channel.values / 1000)},
        units={"C": "g", "time": "h"},
    )
    for figure in (plots.predictive(result, grams), plots.prediction(predict(result, data), grams)):
        points = next(line for line in figure.axes[0].lines if line.get_label() == "data")
        np.testing.assert_allclose(points.get_ydata(), channel.values[0])


def test_many_experiments_have_panels_of_their_own() -> None:
    at = Experiments.on([[0.5, 1.0]] * 5, ["C"])
    model = Model(population, Design.like(at.with_values({"C": torch.ones(5, 2)})))
    drawn = simulated(model, at)
    figure = plots.predictive(posterior(model, drawn, torch.randn(8, 7).double()), drawn)
    assert sum(axis.get_visible() for axis in figure.axes) == 5


def test_pairs_of_many_parameters_are_the_most_correlated() -> None:
    generator = np.random.default_rng(0)
    drawn = {f"p{k}": generator.normal(size=(1, 300)) for k in range(14)}
    drawn["p13"] = drawn["p2"] + 0.1 * drawn["p13"]
    tree = xr.DataTree.from_dict(
        {"posterior": xr.Dataset({n: (("chain", "draw"), v) for n, v in drawn.items()}), "fit": xr.Dataset()}
    )
    figure = plots.pairs(tree)
    labels = [axis.get_xlabel() for axis in figure.axes if axis.get_xlabel()]
    assert len(labels) == 10
    assert {"p2", "p13"} <= set(labels)
    assert "10 most correlated of 14" in figure.get_suptitle()


def test_signals_survive(result: xr.DataTree) -> None:
    at = replace(looks([0.0, 1.0]), inputs=Signals({"feed": Input.at([0.0, 1.0], [0.1, 0.2])}))
    with pytest.warns(UserWarning, match="feed"):
        kept = predict(result, at)["predictions_constant_data"]
    assert kept["feed_value"].to_numpy().tolist() == [[0.1, 0.2]]
