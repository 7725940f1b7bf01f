"""Modes that no proposal tells of: found from the prior, added, and weighted as a grid says."""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import Design, Estimator, Experiments, Looks, Model, Schedule, Settings, observe, train
from ampost.correction import Budget, correct
from ampost.estimator import Reading
from ampost.importance import log_mixture, student
from ampost.modes import search

TIMES = (0.0, 1.0, 2.0, 3.0)


def square(middle: float, noise: float = 0.2) -> Callable[[Experiments], None]:
    """Only a^2 is seen: two modes, as heavy as the prior makes them."""

    def program(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(middle, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(a.square() + b * experiments.times, noise), experiments)

    return program


def of(middle: float, noise: float = 0.2) -> tuple[Model, Experiments, float]:
    """A model, a data set about a = 1 or -1, and the posterior probability of a > 0 by a grid."""
    model = Model(square(middle, noise), Design({"y": Looks(TIMES, (4, 4))}, {}, (1, 1), 3.5))
    z = torch.tensor([[1.0 - middle, 0.2]], dtype=torch.float64)
    data = model.simulate_at(z, model.design.draw(1, 0), 5).experiments.at(0)
    a = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    b = torch.linspace(-1, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(a - middle, b)
    weight = torch.softmax(model.log_joint(grid[:, None], data)[:, 0], 0)
    return model, data, float(weight[grid[:, 0] > -middle].sum())


@pytest.fixture(scope="module")
def even() -> tuple[Model, Experiments, float]:
    return of(0.0)


def quick(model: Model) -> Estimator:
    settings = Settings(2_000, Schedule(steps=300), refining=None)
    return train(model, settings, seed=0, progress=False)


@dataclass(frozen=True)
class OneSided(Estimator):
    """An estimator that knows only a > `middle`: its draws below are mirrored to there."""

    middle: float = 0.0

    def sample(self, reading: Reading, draws: int, seed: int) -> Tensor:
        z = super().sample(reading, draws, seed)
        return torch.cat([(z[..., :1] + self.middle).abs() - self.middle, z[..., 1:]], -1)

    def log_density(self, z: Tensor, reading: Reading) -> Tensor:
        mirrored = torch.cat([-z[..., :1] - 2 * self.middle, z[..., 1:]], -1)
        both = torch.logaddexp(super().log_density(z, reading), super().log_density(mirrored, reading))
        return torch.where(z[..., 0] > -self.middle, both, -torch.inf)


def test_both_modes_are_found_and_weigh_alike(even: tuple[Model, Experiments, float]) -> None:
    model, data, _ = even
    found = search(model, data, seed=1)
    assert len(found.height) == 2
    assert float(found.place[:, 0].abs().min()) > 0.8
    assert float(found.place[:, 0].prod()) < 0
    torch.testing.assert_close(found.log_mass[0], found.log_mass[1], atol=1e-3, rtol=0.0)
    assert found.ended > 50
    assert found.sentence(0).startswith("2 modes, and none outside of the proposal, were found from")


def test_a_mode_is_outside_of_a_proposal_that_lacks_it(even: tuple[Model, Experiments, float]) -> None:
    model, data, _ = even
    found = search(model, data, seed=1)
    lower = torch.linalg.cholesky(torch.linalg.inv(found.factor[:1] @ found.factor[:1].mT))
    one = student(found.place[:1], lower, 5.0, torch.ones(1, dtype=torch.float64))
    missed = found.outside(one.log_density, float(found.log_mass[0]))
    assert missed.tolist() == [1]
    (other,) = found.components(missed, float(found.log_mass[0]), 5.0)
    assert float(other.share) == pytest.approx(0.45)
    both = [one, other]
    whole = float(torch.logsumexp(found.log_mass, 0))
    assert found.outside(lambda z: log_mixture(z, both), whole).tolist() == []


@pytest.mark.parametrize("middle", [0.0, 0.78])
def test_modes_have_their_weights_also_where_the_network_lost_one(middle: float) -> None:
    model, data, above = of(middle)
    assert above == pytest.approx(0.5 if middle == 0 else 0.8, abs=0.02)
    trained = quick(model)
    half = OneSided(*(getattr(trained, name) for name in Estimator.__dataclass_fields__), middle=middle)
    for estimator in (trained, half):
        found = correct(model, data, estimator, 0, Budget(draws=4_000))
        assert not found.sampled
        share = float((found.z[:, 0] > -middle).double().mean())
        assert share == pytest.approx(above, abs=0.04)
        weighted = found.final.weights[:, 0][found.final.z[:, 0, 0] > -middle].sum()
        assert float(weighted) == pytest.approx(above, abs=0.04)
        if estimator is half:
            assert found.network.unknown >= 1
            assert not found.network.trusted


def test_a_lost_mode_is_added_and_told_of() -> None:
    """So narrow that neither the network's draws nor those of the prior come near it."""
    model, data, _ = of(0.0, noise=0.005)
    trained = quick(model)
    half = OneSided(*(getattr(trained, name) for name in Estimator.__dataclass_fields__))
    found = correct(model, data, half, 0, Budget(draws=4_000))
    assert found.network.missed == 1
    assert not found.network.trusted
    assert "A further mode was found" in found.network.modes.sentence(found.network.missed)
    assert not found.sampled
    assert float((found.z[:, 0] > 0).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_where_no_search_ends_that_is_said() -> None:
    def program(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(a * torch.nan + 0 * experiments.times, 1.0), experiments)

    model = Model(program, Design({"y": Looks(TIMES, (4, 4))}, {}, (1, 1), 3.5))
    data = Experiments.on([list(TIMES)], ["y"]).with_values({"y": torch.ones(1, 4).double()})
    found = search(model, model.prepare(data), seed=0)
    assert found.ended == 0
    assert "not known" in found.sentence(0)
    assert found.outside(lambda z: torch.zeros(z.shape[:2]), 0.0).tolist() == []
