"""Evidence that no inference can use: a verdict with a reason, no traceback, no warning of numpy, and soon."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ampost import (
    Budget,
    Design,
    Estimator,
    Experiments,
    Looks,
    Model,
    Schedule,
    Settings,
    baselines,
    compare_methods,
    infer,
    observe,
    odeint,
    train,
)
from ampost.architecture import Architecture
from ampost.errors import ArgumentError, ExperimentError, ModelError
from ampost.optimize import maximise
from ampost.potential import Potential
from ampost.refining import Refining

SMALL = Settings(
    1_000,
    Schedule(steps=80, validate_every=40),
    128,
    Architecture(width=16, context=16, transforms=2, hidden=24),
    Refining(1_000, Schedule(steps=30, validate_every=15), batch=64),
)
TIMES = (0.0, 0.5, 1.0, 2.0, 4.0)
QUICK = Budget(draws=300, effective_size=1_000)
Program = Callable[[Experiments], None]


def decay(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"A": -p.k * y.A}


def curve(experiments: Experiments, start: Any = 1.0) -> Any:
    k = pyro.sample("k", dist.LogNormal(-1.0, 0.5))
    return odeint(decay, {"A": start}, {"k": k}, experiments).A


def plain(experiments: Experiments) -> None:
    s = pyro.sample("s", dist.LogNormal(-2.0, 0.5))
    observe("A", dist.Normal(curve(experiments), s), experiments)


def rooted(experiments: Experiments) -> None:
    """The ODE cannot begin where the condition is negative."""
    s = pyro.sample("s", dist.LogNormal(-2.0, 0.5))
    observe("A", dist.Normal(curve(experiments, experiments["x"].sqrt()), s), experiments)


def counts(experiments: Experiments) -> None:
    """Nobody is there, so whoever is counted is impossible."""
    observe("A", dist.Poisson(curve(experiments, 0.0)), experiments)


def sharp(experiments: Experiments) -> None:
    """A noise so small that the log joint of ordinary data is below -1e11."""
    a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
    observe("A", dist.Normal(curve(experiments, a), 1e-7), experiments)


def flat(experiments: Experiments) -> None:
    """A parameter without any effect, whose prior has no curvature."""
    pyro.sample("idle", dist.Laplace(0.0, 1.0))
    observe("A", dist.Normal(curve(experiments), 0.05), experiments)


def model_of(program: Program, conditions: Mapping[str, tuple[float, float]] | None = None) -> Model:
    return Model(program, Design({"A": Looks(TIMES, (1, 5))}, conditions or {}, (1, 1), 4.4))


def record(values: list[float], times: tuple[float, ...] = TIMES, **conditions: float) -> Experiments:
    looks = Experiments.on([list(times)], ["A"], {name: [value] for name, value in conditions.items()})
    return looks.with_values({"A": torch.tensor([values], dtype=torch.float64)})


ORDINARY = [1.02, 0.77, 0.73, 0.42, 0.21]


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    return train(model_of(plain), SMALL, seed=1, progress=False)


def unknown(result: xr.DataTree) -> set[str]:
    """The numbers of `fit` that are none."""
    numbers = {str(n): np.asarray(v) for n, v in result["fit"].data_vars.items()}
    return {n for n, v in numbers.items() if v.dtype.kind == "f" and bool(np.isnan(v).any())}


def verdict(result: xr.DataTree) -> str:
    return str(result["fit/verdict"].item())


def without_network(model: Model, data: Experiments, said: str) -> None:
    """Fit and NUTS end at once, with the reason."""
    for run in (
        lambda: baselines.fit(model, data, starts=3, progress=False),
        lambda: baselines.nuts(model, data, draws=50, warmup=50, chains=2, progress=False),
    ):
        with pytest.warns(UserWarning, match=r"nowhere to begin") as told:
            result = run()
        assert said in str(told[0].message)
        assert result["fit/computation"].item() == "failed"
        assert said in verdict(result)
        assert float(result["fit/seconds"]) < 5
        assert "effective_size" not in result["fit"]


def test_a_likelihood_that_is_zero_everywhere() -> None:
    model, data = model_of(counts), record([0.0, 1.0, 3.0, 2.0, 0.0])
    said = "'A', 1 at time 0.5 of experiment 1, 3 at time 1 of experiment 1"
    without_network(model, data, said)
    trained = train(model, SMALL, seed=1, progress=False)
    result = infer(model, data, trained, seed=1, budget=QUICK, progress=False)
    assert result["fit/computation"].item() == "failed"
    assert said in verdict(result)
    assert "has probability 0 under its noise Poisson" in verdict(result)
    assert result["fit/data"].item() == "misfit"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*nowhere to begin")
        told = compare_methods(
            model, data, trained, budget=QUICK, starts=2, draws=20, warmup=20, chains=1, progress=False
        )
    assert told.results["computation"].sel(result="corrected").item() == "failed"
    assert bool(np.isnan(told.results["below_best"]).all())


def test_an_ode_that_fails_everywhere() -> None:
    model, data = model_of(rooted, {"x": (0.5, 2.0)}), record(ORDINARY, x=-1.0)
    said = "the ODE cannot be solved for these data at any of"
    without_network(model, data, said)
    result = infer(
        model, data, train(model, SMALL, seed=1, progress=False), seed=1, budget=QUICK, progress=False
    )
    assert result["fit/computation"].item() == "failed"
    assert said in verdict(result)
    assert "NOT_FINITE" in verdict(result)
    assert "Whether the model explains the data is not known" in verdict(result)


def test_data_that_nothing_explains_are_refused_before_a_training() -> None:
    with pytest.raises(ExperimentError, match=r"no parameters explain these data: .*'A', 1 at time 0.5"):
        infer(model_of(counts), record([0.0, 1.0, 3.0, 2.0, 0.0]), progress=False)


def test_a_value_at_the_bound_of_a_noise() -> None:
    def log_normal(experiments: Experiments) -> None:
        observe("A", dist.LogNormal(curve(experiments).log(), 0.1), experiments)

    def gamma(experiments: Experiments) -> None:
        observe("A", dist.Gamma(5.0, 5.0 / curve(experiments)), experiments)

    data = record([1.0, 0.8, 0.5, 0.2, 0.0])
    for run in (infer, baselines.fit, baselines.nuts):
        with pytest.raises(ExperimentError, match=r"'A' has the value 0 at time 4 .*noise LogNormal; leave"):
            run(model_of(log_normal), data, progress=False)
    with pytest.raises(ExperimentError, match=r"'A', 0 at time 4 of experiment 1, has probability 0 .* Gamma"):
        infer(model_of(gamma), data, progress=False)
    without_network(model_of(gamma), data, "'A', 0 at time 4 of experiment 1, has probability 0")


def test_data_far_from_anything(estimator: Estimator) -> None:
    data = record([50.0, -30.0, 40.0, -60.0, 25.0])
    result = infer(model_of(plain), data, estimator, seed=1, budget=QUICK, progress=False)
    assert result["fit/computation"].item() in {"corrected", "sampled"}
    assert result["fit/data"].item() == "misfit"
    assert "The model does not explain A (A: its residuals are larger than the noise" in verdict(result)
    assert float(result["posterior/s"].mean()) > 10


def test_a_number_beyond_squares(estimator: Estimator) -> None:
    model, data = model_of(plain), record([1.0, 0.8, 1e300, 0.4, 0.2])
    result = infer(model, data, estimator, seed=1, budget=QUICK, progress=False)
    assert result["fit/computation"].item() == "failed"
    assert "'A', 1e+300 at time 1 of experiment 1, has probability 0 under its noise Normal" in verdict(result)
    without_network(model, data, "1e+300 at time 1 of experiment 1, has probability 0")


def test_all_weight_on_few_draws() -> None:
    model, data = model_of(sharp), record(ORDINARY)
    trained = train(model, SMALL, seed=1, progress=False)
    result = infer(model, data, trained, seed=1, budget=QUICK, progress=False)
    best = float(result["fit/best_log_joint"])
    assert -1e12 < best < -1e11
    assert result["fit/data"].item() == "misfit"
    assert "k-hat" in verdict(result)
    assert "no maximum" not in verdict(result)  # it has one, and BFGS finds it
    fitted = baselines.fit(model, data, starts=4, progress=False)
    assert float(fitted["fit/best_log_joint"]) == pytest.approx(best, rel=1e-6)
    assert not bool(fitted["optima/failed"].all())


def test_what_fails_is_worse_than_what_is_far() -> None:
    potential = Potential(model_of(sharp), model_of(sharp).prepare(record(ORDINARY)))
    far = potential(torch.zeros(2, dtype=torch.float64))
    assert 1e11 < float(far) < float(potential(torch.full((2,), 1e4, dtype=torch.float64)))

    def joint(z: torch.Tensor) -> torch.Tensor:
        value = -1e12 * (z[:, 0] - 1.0).square() - 1e11
        return torch.where(z[:, 0] > 0, value, torch.nan)

    ends = maximise(joint, torch.tensor([[3.0], [-1.0]], dtype=torch.float64))
    assert [end.failed for end in ends] == [False, True]
    assert float(ends[0].z) == pytest.approx(1.0, abs=1e-4)


def test_a_singular_hessian() -> None:
    model, data = model_of(flat), record(ORDINARY)
    fitted = baselines.fit(model, data, starts=3, progress=False)
    assert fitted["fit/computation"].item() == "optimum only: singular Hessian"
    assert unknown(fitted) == set()
    result = infer(
        model, data, train(model, SMALL, seed=1, progress=False), seed=1, budget=QUICK, progress=False
    )
    assert result["fit/computation"].item() in {"trusted", "corrected"}
    assert "The data leave to the prior: idle" in verdict(result)
    assert float(result["posterior/idle"].std()) == pytest.approx(2**0.5, rel=0.3)  # the prior's


@pytest.mark.parametrize("time", [0.0, 1.0])
def test_one_observation(estimator: Estimator, time: float) -> None:
    data = record([0.9], (time,))
    result = infer(model_of(plain), data, estimator, seed=1, budget=QUICK, progress=False)
    assert result["fit/computation"].item() in {"trusted", "corrected"}
    assert result["fit/data"].item() == "consistent"
    assert "The data leave to the prior: " in verdict(result)
    assert unknown(result) == {"rhat"}  # nothing was sampled


def test_a_budget_too_small(estimator: Estimator) -> None:
    with pytest.raises(ArgumentError, match=r"Budget\(solves=10\): expected at least"):
        Budget(solves=10)
    model, data = model_of(plain), record(ORDINARY)
    little = Budget(draws=200, effective_size=1_000_000, solves=8_000)
    result = infer(model, data, estimator, seed=1, budget=little, progress=False)
    assert result["fit/computation"].item() in {"trusted", "corrected"}
    assert "of 1000000 asked for: the budget of solves ended" in verdict(result)
    one = infer(model, data, estimator, seed=1, budget=Budget(draws=1), progress=False)
    assert one["posterior"].sizes["draw"] == 1


def test_a_likelihood_that_is_no_number() -> None:
    def named(experiments: Experiments) -> None:
        s = pyro.sample("s", dist.Normal(0.1, 0.1))  # a width that may be negative
        observe("A", dist.Normal(curve(experiments), s.sqrt()), experiments)

    for run in (infer, baselines.fit, baselines.nuts):
        with pytest.raises(ModelError, match=r"the noise of channel 'A', Normal, cannot be drawn"):
            run(model_of(named), record(ORDINARY), progress=False)
