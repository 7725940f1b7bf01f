"""Markov chains where no proposal carries the weights: right on known targets, and honest when they are not."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import Budget, Design, Estimator, Experiments, Looks, Model, between, infer, observe
from ampost.correction import _by_chains, _Exact, _from_prior, correct
from ampost.inference import _computation
from ampost.mcmc import SmcResult, convergence, hmc
from ampost.zoo import michaelis_menten


def test_hmc_draws_a_correlated_normal_and_a_heavy_tail() -> None:
    scale = torch.tensor([[1.0, 0.0], [0.9, 0.4358898943540673]]).double()

    def joint(z: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(scale, z[:, :2].T, upper=False).T
        tail = dist.StudentT(torch.tensor(4.0).double()).log_prob(z[:, 2])
        return -0.5 * white.square().sum(-1) + tail

    torch.manual_seed(0)
    starts = 3 * torch.randn(64, 3, dtype=torch.float64)
    chains, gradients = hmc(joint, starts, 30, 200, seed=1)
    rhat, effective = convergence(chains)
    assert float(rhat.max()) < 1.02
    assert float(effective.min()) > 1_000
    assert gradients < 64 * 230
    z = chains.flatten(0, 1)
    assert z.mean(0).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=0.05)
    assert torch.corrcoef(z[:, :2].T)[0, 1].item() == pytest.approx(0.9, abs=0.01)
    quantile = torch.tensor([0.05, 0.95]).double()
    assert z[:, 2].quantile(quantile).tolist() == pytest.approx([-2.132, 2.132], abs=0.1)
    again, _ = hmc(joint, starts, 30, 200, seed=1)
    assert torch.equal(again, chains)


def test_chains_that_do_not_mix_show_in_r_hat() -> None:
    torch.manual_seed(0)
    apart = torch.randn(64, 50, 2, dtype=torch.float64)
    apart[:32, :, 1] += 3.0
    rhat, effective = convergence(apart)
    assert float(rhat[0]) < 1.02
    assert float(rhat[1]) > 1.5
    assert float(effective[1]) < 200


def bent(experiments: Experiments) -> None:
    """A level that is an exponential, and a scale from few values: skewed and heavy-tailed."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", between(0.05, 0.5))
    observe("C", dist.Normal(a.exp() + 0 * experiments.times, sigma), experiments)


def test_the_fallback_agrees_with_quadrature() -> None:
    looks = Experiments.on([[0.0, 1.0, 2.0, 3.0]], ["C"])
    data = looks.with_values({"C": torch.tensor([[0.5, 0.3, 0.9, 0.4]]).double()})
    model = Model(bent, Design({"C": Looks((0.0, 1.0, 2.0, 3.0), (2, 4))}, {}, (1, 1), horizon=3.5))
    axis = torch.linspace(-5, 5, 401, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        mass = torch.softmax(model.log_joint(grid[:, None], data)[:, 0], 0)
    exact = (mass[:, None] * grid).sum(0)
    spread = ((mass[:, None] * (grid - exact).square()).sum(0)).sqrt()
    found = _from_prior(model, data, _Exact(model, data), 1, particles=500)
    z, effective, rhat, gradients = _by_chains(model, data, found, seed=2, draws=4_000, show=False)
    assert rhat <= 1.01
    assert float(effective.min()) >= 400
    assert gradients > 0
    assert z.mean(0).tolist() == pytest.approx(exact.tolist(), abs=0.05)
    assert z.std(0).tolist() == pytest.approx(spread.tolist(), rel=0.05)


def test_a_data_set_that_no_parameters_explain_is_failed_with_a_reason() -> None:
    model = michaelis_menten.model()
    data = model.simulate(1, seed=1).experiments.at(0)
    z = torch.zeros(100, 1, model.z_size(data.count), dtype=torch.float64)
    hopeless = SmcResult(z, torch.full((100, 1), -torch.inf).double(), torch.zeros(1), 60, 0.0, False)
    drawn, effective, rhat, gradients = _by_chains(model, data, hopeless, seed=0, draws=50, show=False)
    assert len(drawn) == 50
    assert bool(torch.isnan(effective).all())
    assert math.isnan(rhat)
    assert gradients == 0


def test_the_verdict_says_sampled_or_failed_by_the_chains(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, seed=3).experiments.at(0)
    found = correct(kinetics, data, trained, 0, Budget(draws=100, effective_size=500))
    chains = replace(found, sampled=True, rhat=1.004, effective=torch.full((3,), 900.0))
    label, words = _computation(chains, 500)
    assert label == "sampled"
    assert "largest R-hat 1.004, smallest effective size 900" in words
    label, words = _computation(replace(chains, rhat=1.2), 500)
    assert label == "failed"
    assert "do not agree or are too short" in words
    label, words = _computation(replace(chains, rhat=math.nan), 500)
    assert label == "failed"
    assert "no parameters under the prior explain these data" in words


def test_infer_falls_back_to_chains_where_the_weights_fail(
    kinetics: Model, trained: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ampost.judging.GOOD", -10.0)  # no k-hat is good enough
    data = kinetics.simulate(1, seed=3).experiments.at(0)
    result = infer(kinetics, data, trained, seed=1, optimum=False, progress=False)
    assert result["fit/computation"].item() == "sampled"
    assert result["fit/rhat"].item() <= 1.01
    assert "importance_samples" not in result.children
    monkeypatch.undo()
    weighted = infer(kinetics, data, trained, seed=1, optimum=False, progress=False)
    for name in ("vmax", "km", "sigma"):
        one, other = result[f"posterior/{name}"], weighted[f"posterior/{name}"]
        assert abs(float(one.mean() - other.mean())) < 0.25 * float(other.std())
