"""Proposals are shaped on a proxy of the data set, keep what guards them, and stay within the budget."""

import pytest
import torch

from ampost import Budget, Estimator, Model, importance, shaping
from ampost.correction import correct
from ampost.estimator import Reading
from ampost.shaping import Exact, Parts, adapt, network, prior_of, rate_of, round_of


class Shifted(Estimator):
    """An estimator that is off by one and a half units of z, and too narrow."""

    def sample(self, reading: Reading, draws: int, seed: int) -> torch.Tensor:
        return 0.5 * super().sample(reading, draws, seed) + 1.5

    def log_density(self, z: torch.Tensor, reading: Reading) -> torch.Tensor:
        size = z.shape[-1]
        return super().log_density((z - 1.5) / 0.5, reading) - size * torch.tensor(0.5).double().log()


def shifted(trained: Estimator) -> Estimator:
    return Shifted(**{name: getattr(trained, name) for name in trained.__dataclass_fields__})


def test_a_round_from_a_wrong_network_shapes_a_good_proposal(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, seed=3).experiments.at(0)
    exact = Exact(kinetics, data)
    wrong = shifted(trained)
    parts = Parts(exact, network(wrong, wrong.reading(kinetics, data)), prior_of(kinetics, data), None)
    first = parts.first()
    plain = importance.draw_round(first, exact.kept, round_of(3), 1)
    proposal, found, shaped_by = adapt(parts, plain, first, 2)
    assert shaped_by == "proxy"
    assert rate_of(found) > max(0.15, 20 * rate_of(plain))
    shares = [float(component.share) for component in proposal]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] >= 0.2 - 1e-9
    assert shares[1] == pytest.approx(0.05)
    assert exact.solves == sum(len(told.z) for told in exact.told)
    other = Exact(kinetics, data)
    again = importance.draw_round(first, other.kept, round_of(3), 1)
    _, same, _ = adapt(Parts(other, parts.flow, parts.prior, None), again, first, 2)
    assert torch.equal(same.z, found.z)


def test_trajectories_beyond_the_memory_are_forgotten(kinetics: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    data = kinetics.simulate(1, seed=3).experiments.at(0)
    exact = Exact(kinetics, data)
    z = torch.randn(100, 1, 3, dtype=torch.float64)
    exact.kept(z)
    monkeypatch.setattr(shaping, "MEMORY", 150 * exact.told[0].values)
    exact.kept(z)
    assert len(exact.told) == 1
    assert exact.solves == 200


def test_moving_repeated_draws_keeps_to_the_budget(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, seed=3).experiments.at(0)
    found = correct(kinetics, data, trained, 1, Budget(draws=30_000, effective_size=1_000, solves=20_000))
    assert not found.sampled
    assert len(found.z) == 30_000
    assert found.solves <= 20_000 + 30_000  # one step of each
