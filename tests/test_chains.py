"""Markov chains where no proposal carries the weights: right on known targets, and honest when they are not."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import Budget, Design, Estimator, Experiments, Looks, Model, between, infer, observe
from ampost.chains import GROUPS, Local, chains, nested_rhat
from ampost.correction import _sampled, _taken, correct
from ampost.importance import Component, Draws, draw_round, student
from ampost.inference import _computation
from ampost.mcmc import convergence
from ampost.modes import Modes
from ampost.shaping import Exact, Parts
from ampost.zoo import michaelis_menten


def bend(z: Tensor) -> Tensor:
    """Log density of z (draw, 1, 3): two directions along a parabola, one with a heavy tail."""
    x, y, t = z[..., 0], z[..., 1], z[..., 2]
    tail = dist.StudentT(torch.tensor(4.0).double()).log_prob(t)
    return -0.5 * x.square() - 0.5 * ((y - 0.5 * x.square()) / 0.3).square() + tail


def wide(scale: float) -> list[Component]:
    factor = scale * torch.eye(3, dtype=torch.float64)[None]
    one = torch.ones(1, dtype=torch.float64)
    return [student(torch.zeros(1, 3, dtype=torch.float64), factor, 5.0, one)]


@pytest.mark.parametrize("jumps", [0.0, 0.5, 1.0])
def test_chains_draw_a_bent_and_heavy_density(jumps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = torch.randn(GROUPS, 3, generator=generator, dtype=torch.float64)
    z = torch.randn(2_000, 1, 3, generator=generator, dtype=torch.float64)
    local = Local.of(z, torch.zeros(2_000, 1).double(), None, 5.0)
    found = chains(bend, starts, wide(1.5), local, 1, (200, 400), jumps)
    assert found.agree
    assert found.solves in {256 * 201, 256 * 601}
    drawn = found.z.flatten(0, 1)
    assert drawn.mean(0).tolist() == pytest.approx([0.0, 0.5, 0.0], abs=0.06)
    assert drawn[:, 0].std().item() == pytest.approx(1.0, abs=0.05)
    assert drawn[:, 1].std().item() == pytest.approx((0.5 + 0.09) ** 0.5, abs=0.06)
    quantile = torch.tensor([0.05, 0.95]).double()
    assert drawn[:, 2].quantile(quantile).tolist() == pytest.approx([-2.132, 2.132], abs=0.3)
    again = chains(bend, starts, wide(1.5), local, 1, (200, 400), jumps)
    assert torch.equal(again.z, found.z)


def test_local_moves_leave_their_own_distribution_alone() -> None:
    """Without any likelihood a move is always right: Student-t draws stay Student-t draws."""
    torch.manual_seed(0)
    local = Local(None, torch.zeros(2).double(), torch.eye(2).double(), 4.0)
    normal, chi = torch.randn(40_000, 2).double(), torch.distributions.Chi2(4.0).sample((40_000, 1)).double()
    start = normal / (chi / 4.0).sqrt()
    for rho in (0.3, 0.95):
        moved = local.moved(start, rho)
        levels = torch.tensor([0.01, 0.25, 0.75, 0.99]).double()
        assert moved[:, 0].quantile(levels).tolist() == pytest.approx(
            [-3.747, -0.7407, 0.7407, 3.747], rel=0.08
        )
        related = torch.corrcoef(torch.stack([start[:, 0].clamp(-3, 3), moved[:, 0].clamp(-3, 3)]))[0, 1]
        assert float(related) == pytest.approx((1 - rho**2) ** 0.5, abs=0.08)


def test_groups_that_stay_where_they_began_show_in_nested_r_hat() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(256, 25, 2, dtype=torch.float64)
    assert nested_rhat(mixed) < 1.005
    stuck = mixed + 0.5 * torch.randn(GROUPS, 1, 2).double().repeat_interleave(16, 0)
    assert nested_rhat(stuck) > 1.05


def test_chains_that_do_not_mix_show_in_r_hat() -> None:
    torch.manual_seed(0)
    apart = torch.randn(64, 50, 2, dtype=torch.float64)
    apart[:32, :, 1] += 3.0
    rhat, effective = convergence(apart)
    assert float(rhat[0]) < 1.02
    assert float(rhat[1]) > 1.5
    assert float(effective[1]) < 200


def parts(exact: Exact) -> Parts:
    """Those of which chains need the log joint alone."""
    component = wide(1.0)[0]
    return Parts(exact, component, component, None)


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
    exact_joint = Exact(model, data)
    proposal = [student(torch.zeros(1, 2).double(), torch.eye(2).double()[None], 5.0, torch.ones(1).double())]
    final = draw_round(proposal, exact_joint, 1_000, 1)
    none = Modes(*(torch.zeros(0, *shape).double() for shape in ((2,), (2, 2), (), ())), 60, 0)
    found = _sampled(final, proposal, none, parts(exact_joint), seed=2, show=False)
    assert found is not None
    assert found.agree
    assert exact_joint.solves == 1_000 + found.solves
    z, effective, rhat = _taken(found, final, 4_000)
    assert rhat <= 1.01
    assert float(effective.min()) >= 400
    assert z.mean(0).tolist() == pytest.approx(exact.tolist(), abs=0.06)
    assert z.std(0).tolist() == pytest.approx(spread.tolist(), rel=0.06)


def test_a_data_set_that_no_parameters_explain_is_failed_with_a_reason() -> None:
    z = torch.zeros(100, 1, 3, dtype=torch.float64)
    nothing = torch.full((100, 1), -torch.inf, dtype=torch.float64)
    hopeless = Draws(z, 0 * nothing.exp(), nothing, nothing, torch.zeros(100, dtype=torch.long))
    model = michaelis_menten.model()
    exact = Exact(model, model.simulate(1, seed=1).experiments.at(0))
    none = Modes(*(torch.zeros(0, *shape).double() for shape in ((3,), (3, 3), (), ())), 60, 0)
    assert _sampled(hopeless, [], none, parts(exact), 0, False) is None
    drawn, effective, rhat = _taken(None, hopeless, 50)
    assert len(drawn) == 50
    assert bool(torch.isnan(effective).all())
    assert math.isnan(rhat)
    assert exact.solves == 0


def test_the_verdict_says_sampled_or_failed_by_the_chains(kinetics: Model, trained: Estimator) -> None:
    data = kinetics.simulate(1, seed=3).experiments.at(0)
    found = correct(kinetics, data, trained, 0, Budget(draws=100, effective_size=500))
    chains = replace(found, sampled=True, rhat=1.004, effective=torch.full((3,), 900.0))
    label, words = _computation(kinetics, data, chains, 500)
    assert label == "sampled"
    assert "largest nested R-hat 1.004, smallest effective size 900" in words
    label, words = _computation(kinetics, data, replace(chains, rhat=1.2), 500)
    assert label == "failed"
    assert "do not agree or are too short" in words
    nothing = replace(found.final, log_weight=torch.full_like(found.final.log_weight, -torch.inf))
    label, words = _computation(kinetics, data, replace(chains, rhat=math.nan, final=nothing), 500)
    assert label == "failed"
    assert "No parameters explain these data" in words


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


def test_chains_jump_to_a_mode_that_their_proposal_thinks_little_of() -> None:
    """Two narrow modes of the same mass; the proposal and the weighted draws know of one."""

    class Two:
        solves = 0

        def __call__(self, z: Tensor) -> Tensor:
            near, far = (-0.5 * ((z - at) / 0.1).square().sum(-1) for at in (0.0, 3.0))
            return torch.logaddexp(near, far)

    proposal = [
        student(torch.zeros(1, 2).double(), 0.1 * torch.eye(2).double()[None], 5.0, torch.ones(1).double())
    ]
    final = draw_round(proposal, Two(), 1_000, 1)
    place = torch.tensor([[0.0, 0.0], [3.0, 3.0]]).double()
    factor = 10.0 * torch.eye(2).double().expand(2, 2, 2)
    mass = torch.full((2,), math.log(2 * math.pi * 0.01)).double()
    modes = Modes(place, factor, torch.zeros(2).double(), mass, 60, 0)
    found = _sampled(final, proposal, modes, parts(Two()), seed=2, show=False)  # type: ignore[arg-type]
    assert found is not None
    assert found.agree
    assert float((found.z[..., 0] > 1.5).double().mean()) == pytest.approx(0.5, abs=0.05)
