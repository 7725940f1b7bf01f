"""A prediction by a program that changed since its result was made is refused, by what changed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ampost import Design, Experiments, Model, baselines, between, observe, odeint, predict
from ampost.errors import ArgumentError


def decay(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"C": -p.k * y.C}


def program(noise: Callable[..., Any], faster: float = 1.0) -> Callable[[Experiments], None]:
    def decaying(experiments: Experiments) -> None:
        k = pyro.sample("k", between(0.1, 1.0))
        sigma = pyro.sample("sigma", between(0.05, 0.5))
        y = odeint(decay, {"C": experiments["C0"]}, {"k": faster * k}, experiments)
        observe("C", noise(y.C, sigma), experiments)

    return decaying


DATA = Experiments.on([[0.5, 1.0, 2.0, 4.0]], ["C"], {"C0": [2.0]}).with_values(
    {"C": torch.tensor([[1.7, 1.3, 0.8, 0.4]], dtype=torch.float64)}
)
DESIGN = Design.like(DATA)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    result = baselines.fit(Model(program(dist.Normal), DESIGN), DATA, starts=1, progress=False)
    path = tmp_path_factory.mktemp("result") / "posterior.nc"
    result.to_netcdf(path, engine="h5netcdf")
    with xr.open_datatree(path, engine="h5netcdf") as opened:
        return opened.load()


def test_the_same_program_predicts_under_any_design(stored: xr.DataTree) -> None:
    wider = replace(DESIGN, conditions={"C0": (1.0, 9.0)}, horizon=20.0)
    for design in (DESIGN, wider):
        assert "predictions" in predict(stored, DATA, model=Model(program(dist.Normal), design)).children


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (program(lambda loc, scale: dist.StudentT(5.0, loc, scale)), r"channel 'C' was Normal and is StudentT"),
        (program(lambda loc, scale: dist.Normal(loc, 2 * scale)), r"channel 'C', Normal, has another width"),
        (program(dist.Normal, 1.5), r"channel 'C' shows other values without noise"),
    ],
)
def test_another_is_refused(stored: xr.DataTree, now: Callable[[Experiments], None], said: str) -> None:
    with pytest.raises(ArgumentError, match=rf"'decaying' changed since the result was made: .*{said}.* anew"):
        predict(stored, DATA, model=Model(now, DESIGN))


def test_a_result_that_does_not_say_is_taken_as_it_is(stored: xr.DataTree) -> None:
    older = stored.copy()
    del older["program"]
    now = Model(program(lambda loc, scale: dist.Normal(loc, 2 * scale)), DESIGN)
    assert "predictions" in predict(older, DATA, model=now).children
