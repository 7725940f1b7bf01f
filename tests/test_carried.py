"""Draws for predictions: of the model that the result came from, and whose parameters an experiment takes."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ampost import Design, Doses, Experiments, Input, Model, between, observe, odeint, predict, results
from ampost.errors import ArgumentError
from ampost.labels import arranged, constant


def fed(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"C": p.feed - p.k * y.C}


def looks(*names: str, C0: Any = 2.0, amount: float = 3.0, level: float = 0.1, many: int = 1) -> Experiments:
    count = len(names)
    times = torch.arange(1.0, 1.0 + many).double().expand(count, -1)
    return Experiments.on(
        [[0.5, 1.0, 2.0]] * count,
        ["C"],
        {"C0": C0},
        doses=Doses.at(times, torch.full_like(times, amount), target="C"),
        inputs={"feed": Input.at([[0.0, 1.5]] * count, [level, 2 * level])},
        names=names,
    )


def program(own: Callable[[Experiments], Any]) -> Callable[[Experiments], None]:
    """One rate (`own` draws it) and one noise."""

    def decay(experiments: Experiments) -> None:
        k = own(experiments)
        sigma = pyro.sample("sigma", between(0.05, 0.5))
        start, feed = {"C": experiments["C0"]}, experiments.inputs["feed"]
        y = odeint(fed, start, {"k": k, "feed": feed}, experiments)
        observe("C", dist.Normal(y.C, sigma), experiments)

    return decay


def shared(experiments: Experiments) -> Any:
    return pyro.sample("k", between(0.1, 1.0))


def each(experiments: Experiments) -> Any:
    with experiments.plate():
        return pyro.sample("k", between(0.1, 1.0))


def posterior(model: Model, data: Experiments) -> xr.DataTree:
    z = torch.randn(40, model.z_size(data.count), generator=torch.Generator().manual_seed(1)).double()
    reported = results.report(model, data, z, seed=0)
    prior = results.prior_draws(model, data, 20, seed=0)
    return results.build(model, data, z, reported, prior, {"computation": "given"})


def model_of(own: Callable[[Experiments], Any]) -> Model:
    at = looks("1", "2").with_values({"C": torch.ones(2, 3)})
    return Model(program(own), replace(Design.like(at), conditions={"C0": (1.0, 4.0)}))


@pytest.fixture(scope="module")
def pooled() -> xr.DataTree:
    model = model_of(shared)
    return posterior(model, model.simulate(1, 0, looks("1", "2")).experiments.at(0))


@pytest.fixture(scope="module")
def population() -> xr.DataTree:
    model = model_of(each)
    return posterior(model, model.simulate(1, 0, looks("1", "2")).experiments.at(0))


@pytest.fixture(params=[False, True], ids=["in memory", "from a file"])
def stored(request: pytest.FixtureRequest, pooled: xr.DataTree, tmp_path: Path) -> xr.DataTree:
    if not request.param:
        return pooled
    pooled.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as found:
        return found.load()


# -------------------------------------------------------------------------------- the right model


def test_the_same_model_is_taken_also_when_it_is_built_again(stored: xr.DataTree) -> None:
    told = predict(stored, looks("1"), model=model_of(shared), draws=20)
    assert told["predictions"].sizes["draw"] == 20


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            lambda e: pyro.sample("rate", between(0.1, 1.0)),
            "parameters k, sigma, the model 'decay' has rate, sigma",
        ),
        (
            lambda e: pyro.sample("k", between(0.1, 1.1)),
            "parameter 'k' is .* by the priors of the model 'decay'",
        ),
        (lambda e: pyro.sample("k", dist.HalfNormal(1.0)), "parameter 'k' is"),
    ],
)
def test_another_model_with_as_many_coordinates_is_refused(
    stored: xr.DataTree, own: Callable[[Experiments], Any], said: str
) -> None:
    with pytest.raises(ArgumentError, match=rf"{said}.*give the model that the result came from"):
        predict(stored, looks("1"), model=model_of(own))


def test_other_numbers_shapes_and_orders_are_refused(pooled: xr.DataTree, population: xr.DataTree) -> None:
    with pytest.raises(ArgumentError, match="3 coordinates of z, the model 'decay' has 2 for 2 experiment"):
        predict(population, looks("1"), model=model_of(shared))
    one = model_of(each)
    single = posterior(one, one.simulate(1, 0, looks("1")).experiments.at(0))
    with pytest.raises(ArgumentError, match=r"'k' has shape \(1,\) in the result and \(\) in the model"):
        predict(single, looks("1"), model=model_of(shared))

    def swapped(experiments: Experiments) -> None:
        sigma = pyro.sample("sigma", between(0.05, 0.5))
        k = pyro.sample("k", between(0.1, 1.0))
        feed = experiments.inputs["feed"]
        y = odeint(fed, {"C": experiments["C0"]}, {"k": k, "feed": feed}, experiments)
        observe("C", dist.Normal(y.C, sigma), experiments)

    other = Model(swapped, model_of(shared).design)
    with pytest.raises(ArgumentError, match="the order of its sites"):
        predict(pooled, looks("1"), model=other)


def test_priors_may_depend_on_conditions() -> None:
    def conditional(experiments: Experiments) -> Any:
        with experiments.plate():
            return pyro.sample("k", dist.LogNormal(0.1 * experiments["C0"], 0.3))

    at = looks("a", "b", C0=[1.0, 3.0])
    model = Model(program(conditional), Design.like(at.with_values({"C": torch.ones(2, 3)})))
    result = posterior(model, model.simulate(1, 0, at).experiments.at(0))
    assert predict(result, looks("new", C0=2.0))["predictions"].sizes["experiment"] == 1


# ------------------------------------------------------------------- whose parameters are taken


def test_the_result_keeps_doses_and_inputs(stored: xr.DataTree) -> None:
    held = stored["constant_data"]
    assert held["C0"].to_numpy().tolist() == [2.0, 2.0]
    assert held["dose_amount"].to_numpy().tolist() == [[3.0], [3.0]]
    assert held["dose_target"].to_numpy().tolist() == [["C"], ["C"]]
    assert held["feed_time"].to_numpy().tolist() == [[0.0, 1.5], [0.0, 1.5]]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (looks("1", "2", C0=[2.0, 2.5]), r"'2' \(C0\)"),
        (looks("1", amount=3.5), r"'1' \(dose_amount\)"),
        (looks("2", many=2), r"'2' \(dose_time, dose_amount, dose_duration, dose_target\)"),
        (looks("2", level=0.12), r"'2' \(feed_value\)"),
    ],
)
def test_a_known_name_with_other_conditions_or_doses_is_said(
    population: xr.DataTree, wanted: Experiments, said: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict(population, wanted, draws=10)
    (line,) = [str(w.message) for w in caught if "fitted parameters" in str(w.message)]
    assert re.search(said, line)
    assert "names of their own" in line


def test_the_same_and_new_experiments_are_silent(population: xr.DataTree, pooled: xr.DataTree) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(population, looks("2", "1"), draws=10)
        predict(population, looks("new", C0=2.5), draws=10)
        predict(pooled, looks("1", C0=2.5), draws=10)  # no parameter is an experiment's own


def test_padding_and_the_order_of_doses_mean_nothing() -> None:
    def held(times: list[float], padded: bool) -> xr.Dataset:
        doses = Doses.at([times], [[2 * t for t in times]], target="C")
        if padded:
            more = Doses.at([[*times, 9.0]], [[*(2 * t for t in times), 9.0]], target="C")
            doses = replace(more, mask=torch.tensor([[True] * len(times) + [False]]))
        return constant(Experiments.on([[0.0]], ["C"], doses=doses), {})

    assert arranged(held([1.0, 2.0], False), "1") == arranged(held([2.0, 1.0], True), "1")
    assert arranged(held([1.0, 2.0], False), "1")["dose_amount"] == [2.0, 4.0]
