"""Correction on cases with known answers."""

import math

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import ks_2samp

from ampost import Budget, Design, Estimator, Experiments, Model, infer, observe, summary
from ampost.correction import correct
from ampost.errors import EstimatorError, ExperimentError, FileError
from ampost.importance import (
    draw_round,
    effective_sizes,
    equally_weighted,
    fitted_mixture,
    khat,
    kish,
    log_mixture,
    shared,
    student,
    weighed,
)
from ampost.inference import Settings, train
from ampost.mcmc import smc
from ampost.optimize import laplace, maximise
from ampost.plans import Looks
from ampost.tokens import tokens
from ampost.training import Schedule


def _normal(scale: float, z: torch.Tensor) -> torch.Tensor:
    return (-0.5 * (z / scale).square() - math.log(scale)).sum(-1)


def test_khat_of_known_shapes() -> None:
    torch.manual_seed(0)
    z = torch.randn(100_000, 1, 1, dtype=torch.float64)
    heavy = _normal(2.0, z) - _normal(1.0, z)
    light = _normal(0.7, z) - _normal(1.0, z)
    assert 0.55 <= float(khat(heavy)) <= 0.85
    assert float(khat(light)) < 0.3
    assert float(khat(torch.zeros(1_000, 1).double())) == -math.inf
    alone = torch.full((1_000, 1), -1000.0).double()
    alone[3] = 0.0
    assert float(khat(alone)) == math.inf
    lost = light[:2_000].clone()
    lost[::7] = -math.inf
    assert float(khat(lost)) < 0.5
    assert float(khat(torch.full((100, 1), -math.inf).double())) == math.inf
    assert float(kish(alone)) == pytest.approx(1.0)


def _target(z: torch.Tensor) -> torch.Tensor:
    return -0.5 * ((z - 1.0) / 0.5).square().sum(-1)


def test_equally_weighted_draws_follow_the_target_without_duplicates() -> None:
    mean, factor = torch.full((1, 3), 0.8).double(), 0.6 * torch.eye(3).double()[None]
    proposal = student(mean, factor, 5.0, torch.ones(1).double())
    draws = draw_round([proposal], _target, 8_000, seed=1)
    z, joint = equally_weighted(draws, _target, 4_000, seed=2)
    assert len(z.unique(dim=0)) == 4_000
    torch.testing.assert_close(joint, _target(z))
    for k in range(3):
        exact = np.random.default_rng(k).normal(1.0, 0.5, 4_000)
        assert ks_2samp(z[:, 0, k].numpy(), exact).pvalue > 1e-4


def test_student_density_is_torchs() -> None:
    z = torch.linspace(-4, 4, 9).double().reshape(-1, 1, 1)
    one = student(
        torch.full((1, 1), 0.3).double(),
        torch.full((1, 1, 1), 2.0).double(),
        5.0,
        torch.ones(1).double(),
    )
    exact = torch.distributions.StudentT(5.0, 0.3, 2.0).log_prob(z[..., 0])
    torch.testing.assert_close(one.log_density(z), exact)


def test_smc_reaches_a_narrow_posterior_and_its_evidence() -> None:
    torch.manual_seed(0)

    def path(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prior = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
        return prior, prior + dist.Normal(z, 0.1).log_prob(torch.tensor(1.0)).sum(-1)

    found = smc(torch.randn(2_000, 1, 2, dtype=torch.float64), path, seed=0)
    exact = 2 * float(dist.Normal(0.0, math.sqrt(1.01)).log_prob(torch.tensor(1.0)))
    assert found.complete
    assert float(found.log_evidence) == pytest.approx(exact, abs=0.3)
    assert found.z.mean((0, 1)).tolist() == pytest.approx([1 / 1.01] * 2, abs=0.02)
    assert found.z.std((0, 1)).tolist() == pytest.approx([0.0995] * 2, rel=0.1)


def test_a_mixture_follows_a_bent_posterior() -> None:
    def bent(z: torch.Tensor) -> torch.Tensor:
        x, y = z[..., 0], z[..., 1] - z[..., 0].square()
        return -0.5 * (x.square() + (y / 0.3).square())

    torch.manual_seed(0)
    x = torch.randn(3_000, 1, dtype=torch.float64)
    z = torch.stack([x, x.square() + 0.3 * torch.randn_like(x)], -1)
    even = torch.zeros(3_000, 1, dtype=torch.float64)
    several = draw_round(fitted_mixture(z, even, 5.0, seed=0), bent, 4_000, seed=1)
    one = draw_round(fitted_mixture(z[:30], even[:30], 5.0, seed=0), bent, 4_000, seed=1)
    assert float(effective_sizes(several).min()) > 1.5 * float(effective_sizes(one).min())
    assert several.weights.sum().item() == pytest.approx(1.0)


def test_a_mixture_is_a_density() -> None:
    grid = torch.linspace(-30, 30, 20_001).double().reshape(-1, 1, 1)
    parts = [
        shared(
            student(torch.full((1, 1), m).double(), torch.full((1, 1, 1), s).double(), 5.0, torch.ones(1)), w
        )
        for m, s, w in ((0.0, 1.0, 0.3), (2.0, 0.5, 0.7))
    ]
    mass = torch.trapezoid(log_mixture(grid, parts)[:, 0].exp(), grid[:, 0, 0])
    assert float(mass) == pytest.approx(1.0, abs=1e-3)


def test_bfgs_in_lockstep() -> None:
    def joint(z: torch.Tensor) -> torch.Tensor:
        return -((z[:, 0] - 1) ** 2) - 10 * (z[:, 1] - z[:, 0] ** 2) ** 2

    found = maximise(joint, torch.randn(5, 2, dtype=torch.float64))
    assert len(found) == 5
    assert all(f.converged for f in found)
    torch.testing.assert_close(found[0].z, torch.ones(2).double(), rtol=1e-3, atol=1e-3)
    covariance = laplace(joint, found[0].z)
    assert covariance is not None
    assert float(covariance[0, 0]) == pytest.approx(0.5, rel=0.01)


def test_context_ignores_padding_and_order(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, 5).experiments.at(0)
    context = trained.context(data)
    swapped = data.map(lambda t: t.flip(0))
    torch.testing.assert_close(trained.context(swapped), context, rtol=1e-4, atol=1e-5)
    order = torch.randperm(data.times.shape[-1])
    shuffled = data.map(lambda t: t[:, order] if t.dim() == 2 and t.shape[1] == len(order) else t)
    torch.testing.assert_close(trained.context(shuffled), context, rtol=1e-4, atol=1e-5)
    pad = data.map(
        lambda t: (
            torch.cat([t, torch.zeros_like(t[:, :1])], 1) if t.dim() == 2 and t.shape[1] == len(order) else t
        )
    )
    torch.testing.assert_close(trained.context(pad), context, rtol=1e-4, atol=1e-5)
    moved = data.with_values({"P": data.channels["P"].values + 1})  # type: ignore[operator]
    assert not torch.allclose(trained.context(moved), context, atol=1e-3)
    assert tokens(data, trained.scaling)[0].dtype == torch.float32


def test_infer_answers_with_a_verdict_and_is_reproducible(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, 7).experiments.at(0)
    budget = Budget(draws=1_000, effective_size=1_500)
    result = infer(kinetics, data, trained, seed=3, budget=budget, progress=False)
    again = infer(kinetics, data, trained, seed=3, budget=budget, progress=False, optimum=False)
    np.testing.assert_array_equal(result["posterior"]["vmax"], again["posterior"]["vmax"])
    assert result["fit"]["computation"].item() in {"trusted", "corrected", "sampled"}
    assert set(summary(result).index) == {"vmax", "km", "sigma"}
    assert result["posterior"]["vmax"].shape == (1, 1_000)
    assert result["posterior"]["vmax"].attrs["units"] == "mM/min"
    assert result["log_likelihood"]["P"].shape[-1] == int(data.channels["P"].mask.sum())


def test_estimators_survive_saving_and_refuse_others(
    kinetics: Model, trained: Estimator, tmp_path: object
) -> None:
    path = tmp_path / "mm.ampost"  # type: ignore[operator]
    trained.save(path)
    loaded = Estimator.load(path)
    data = kinetics.simulate(1, 7).experiments.at(0)
    torch.testing.assert_close(loaded.context(data), trained.context(data))
    torch.testing.assert_close(loaded.quantiles(data), trained.quantiles(data))
    loaded.belongs_to(kinetics)
    with pytest.raises(EstimatorError, match="another model"):
        loaded.belongs_to(kinetics.fix(km=1.0))
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FileError, match="damaged"):
        Estimator.load(path)
    with pytest.raises(FileError, match="no file"):
        Estimator.load(path.with_name("none"))


def test_linear_gaussian_is_exact() -> None:
    def gaussian(e: Experiments) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(theta + 0 * e.times, 0.5), e)

    looks = Experiments.on([[0.0, 1.0, 2.0, 3.0]], ["y"])
    data = looks.with_values({"y": torch.tensor([[0.4, 0.9, 0.2, 1.1]], dtype=torch.float64)})
    model = Model(gaussian, Design({"y": Looks((0.0, 1.0, 2.0, 3.0), (4, 4))}, {}, (1, 1), 3.5))
    z = torch.randn(6_000, 1, 1, dtype=torch.float64)
    joint = model.log_joint(z, data)
    proposal = dist.Normal(0.0, 1.0).log_prob(z)[..., 0]
    draws = weighed(z, proposal, joint, torch.zeros(6_000, dtype=torch.long))
    drawn, _ = equally_weighted(draws, lambda x: model.log_joint(x, data), 2_000, seed=0)
    precision = 1 + 4 / 0.25
    assert float(drawn.mean()) == pytest.approx(4 / 0.25 * 0.65 / precision, abs=0.03)
    assert float(drawn.std()) == pytest.approx(precision**-0.5, rel=0.08)


def test_more_than_one_data_set_is_refused(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(2, 7).experiments
    with pytest.raises(ExperimentError, match="loop over"):
        infer(kinetics, data, trained)


def test_a_network_that_is_wrong_is_corrected(kinetics: Model, trained: Estimator) -> None:
    """An untrained network proposes far off; the answer agrees with the trained one's."""
    simulated = kinetics.simulate(1, 3)
    data = simulated.experiments.at(0)
    settings = Settings(simulations=1_000, schedule=Schedule(steps=1), refining=None)
    blind = train(kinetics, settings, seed=5, progress=False)
    budget = Budget(draws=2_000, effective_size=2_000)
    good = correct(kinetics, data, trained, 0, budget)
    bad = correct(kinetics, data, blind, 0, budget)
    assert not bad.sampled
    assert bad.shaped_by != "network"
    assert bad.judged.khat < 0.7
    assert bad.log_evidence == pytest.approx(good.log_evidence, abs=0.15)
    close = (bad.z.mean(0) - good.z.mean(0)).abs() / good.z.std(0)
    assert float(close.max()) < 0.15
    assert len(bad.z.unique(dim=0)) == 2_000


def test_equally_weighted_draws_come_in_random_order(kinetics: Model, trained: Estimator) -> None:
    # systematic resampling keeps the order of the proposal's components, which ArviZ takes for correlation
    data = kinetics.simulate(1, 3).experiments.at(0)
    result = infer(kinetics, data, trained, seed=1, optimum=False)
    sizes = arviz_stats.ess(result["posterior"].dataset)
    assert min(float(size) for size in sizes.data_vars.values()) > 500


def test_parameters_per_experiment_are_inferred() -> None:
    def program(experiments: Experiments) -> None:
        spread = pyro.sample("spread", dist.LogNormal(-1.0, 0.3))
        with experiments.plate():
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(level + 0 * experiments.times, spread), experiments)

    times = (0.0, 1.0, 2.0, 3.0)
    model = Model(program, Design({"y": Looks(times, (4, 4))}, {}, (2, 2), 3.5))
    data = model.simulate(1, 1).experiments.at(0)
    settings = Settings(simulations=1_000, schedule=Schedule(steps=100))
    result = infer(model, data, settings=settings, progress=False)
    assert result["posterior/level"].dims == ("chain", "draw", "experiment")
    assert set(summary(result).index) == {"spread", "level[1]", "level[2]"}
    assert np.isfinite(summary(result).to_numpy()).all()
    again = infer(model, data, settings=settings, progress=False, seed=5)
    for k in (1, 2):
        mean, sd = summary(result).loc[f"level[{k}]", ["mean", "sd"]]
        assert summary(again).loc[f"level[{k}]", "mean"] == pytest.approx(mean, abs=0.2 * sd)
