"""An estimator reweighted to a model with other priors or noise."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import (
    Budget,
    Design,
    Estimator,
    Experiments,
    Looks,
    Model,
    Schedule,
    Settings,
    between,
    infer,
    observe,
    train,
)
from ampost.errors import EstimatorError
from ampost.importance import student
from ampost.transfer import transferred


def line(prior: Any, scale: float) -> Any:
    def program(experiments: Experiments) -> None:
        level = pyro.sample("level", prior)
        width = pyro.sample("width", between(0.5, 2.0))
        observe("y", dist.Normal(level + 0 * experiments.times, scale * width), experiments)

    return program


TIMES = (0.0, 1.0, 2.0, 3.0)
DESIGN = Design({"y": Looks(TIMES, (2, 4))}, {}, (1, 1), 3.5)
LOOKS = Experiments.on([TIMES], ["y"])
DATA = LOOKS.with_values({"y": torch.tensor([[0.9, 1.4, 0.2, 1.1]], dtype=torch.float64)})


@pytest.fixture(scope="module")
def first() -> Model:
    return Model(line(dist.Normal(0.0, 1.0), 1.0), DESIGN)


@pytest.fixture(scope="module")
def estimator(first: Model) -> Estimator:
    settings = Settings(2_000, Schedule(steps=200), refining=None)
    return train(first, settings, seed=0, progress=False)


def by_grid(model: Model) -> tuple[float, float]:
    """Mean and sd of the level by quadrature over z."""
    axis = torch.linspace(-6, 6, 301, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    with torch.no_grad():
        mass = torch.softmax(model.log_joint(z, DATA)[:, 0], 0)
        level = model.parameters(z, DATA)["level"][:, 0]
    mean = float((mass * level).sum())
    return mean, float((mass * (level - mean).square()).sum().sqrt())


@pytest.mark.parametrize(
    ("prior", "scale"),
    [(dist.Normal(2.0, 0.3), 1.0), (dist.Uniform(0.5, 3.0), 1.0), (dist.Normal(0.0, 1.0), 0.4)],
    ids=["another prior", "a prior that excludes", "another noise"],
)
def test_the_posterior_is_that_of_the_new_model(
    first: Model, estimator: Estimator, prior: Any, scale: float
) -> None:
    other = Model(line(prior, scale), DESIGN)
    mean, sd = by_grid(other)
    result = infer(
        other, DATA, estimator, budget=Budget(draws=4_000), trained_for=first, progress=False, optimum=False
    )
    drawn = np.asarray(result["posterior/level"]).ravel()
    assert result["fit/computation"].item() in {"trusted", "corrected"}
    assert drawn.mean() == pytest.approx(mean, abs=0.08 * sd)
    assert drawn.std() == pytest.approx(sd, rel=0.06)
    assert np.isfinite(result["fit/khat_network"].item())


def test_a_density_that_is_carried_over_has_mass_one(first: Model) -> None:
    other = Model(line(dist.Normal(1.0, 0.5), 1.0), DESIGN)
    part = student(torch.zeros(1, 2).double(), 0.5 * torch.eye(2).double()[None], 10.0, torch.ones(1).double())
    carried = transferred(part, first, other, DATA)
    axis = torch.linspace(-12, 12, 801, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    with torch.no_grad():
        mass = float(carried.log_density(z).exp().sum() * (axis[1] - axis[0]) ** 2)
    assert mass == pytest.approx(1.0, abs=1e-3)
    drawn = carried.sample(500, 0)
    same = other.parameters(drawn, DATA)["level"]
    assert torch.allclose(same, first.parameters(part.sample(500, 0), DATA)["level"], atol=1e-9)


def test_other_parameters_are_refused(first: Model, estimator: Estimator) -> None:
    def program(experiments: Experiments) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(slope + 0 * experiments.times, 1.0), experiments)

    with pytest.raises(EstimatorError, match="trained for parameters level, width, this model has slope"):
        infer(Model(program, DESIGN), DATA, estimator, trained_for=first, progress=False)
    other = replace(first, program=line(dist.Normal(2.0, 0.3), 1.0), _layouts={}, _channels=[])
    with pytest.raises(EstimatorError, match=r"give infer\(..., trained_for=...\)"):
        infer(other, DATA, estimator, progress=False)
