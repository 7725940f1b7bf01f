"""The model: equal to Pyro row by row, refusals, fixed sites, plates."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive

from ampost import Design, Experiments, Model, between, observe
from ampost.errors import ExperimentError, ModelError
from ampost.plans import Looks
from ampost.stacking import stack
from ampost.zoo import lotka_volterra

PLAIN = Design({"y": Looks((0.0, 1.0, 2.0), (3, 3))}, {"x": (0.5, 2.0)}, (2, 2), 2.0)


def line(experiments: Experiments) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
    with experiments.plate():
        offset = pyro.sample("offset", dist.Normal(slope, shape))
    pyro.deterministic("twice", 2 * slope)
    mean = offset + slope * experiments["x"] * experiments.times + weights[..., 0]
    observe("y", dist.Normal(mean, 0.5 + shape), experiments)


def _by_pyro(model: Model, data: Experiments, values: dict[str, torch.Tensor]) -> float:
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.validation_enabled(False):
            conditioned = pyro.poutine.condition(model.program, data=values)
            return float(pyro.poutine.trace(conditioned).get_trace(data).log_prob_sum())
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("model", [Model(line, PLAIN), lotka_volterra.model()], ids=["line", "lotka_volterra"])
def test_log_joint_equals_pyros_row_by_row(model: Model) -> None:
    drawn = model.simulate(12, seed=3)
    data = stack([drawn.experiments.at(k) for k in range(3)])
    z = drawn.z.reshape(4, 3, -1)
    scores = model.score(z, data)
    ours = sum(scores.site_log_prior.values()) + scores.log_likelihood
    for s in range(4):
        for d, single in enumerate(data.split()):
            values = {n: v[s, d] for n, v in scores.parameters.items()}
            if "offset" in values:
                values["offset"] = values["offset"][:, None]
            assert float(ours[s, d]) == pytest.approx(_by_pyro(model, single, values), rel=1e-10)


def test_log_joint_counts_the_jacobian() -> None:
    # where the map is exact the prior in z is the standard normal, whatever the prior was
    model = lotka_volterra.model()
    z = torch.randn(6, 1, 8, dtype=torch.float64)
    expected = -0.5 * z.square().sum(-1) - 4 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(
        model.score(z, lotka_volterra.data()).log_prior, expected.double(), rtol=1e-6, atol=1e-6
    )


def test_simulation_is_a_function_of_the_seed() -> None:
    model = Model(line, PLAIN)
    one, two, other = model.simulate(5, 1), model.simulate(5, 1), model.simulate(5, 2)
    torch.testing.assert_close(one.z, two.z)
    first, second = (s.experiments.channels["y"].values for s in (one, two))
    torch.testing.assert_close(first, second)
    assert not torch.equal(one.z, other.z)
    assert model.z_size() == 6
    torch.testing.assert_close(
        model.parameters(one.z[:, None], one.experiments.at(0))["weights"][:, 0],
        one.parameters["weights"],
    )


def test_fixed_sites_leave_z(kinetics: Model) -> None:
    fixed = kinetics.fix(km=0.5)
    assert [s.name for s in fixed.sites()] == ["vmax", "sigma"]
    with pytest.raises(ModelError, match="cannot fix 'kmm'"):
        kinetics.fix(kmm=1.0)


def test_runs_unchanged_under_pyro(kinetics: Model) -> None:
    data = kinetics.simulate(1, 0).experiments.at(0)
    torch.set_default_dtype(torch.float64)
    try:
        mcmc = MCMC(
            NUTS(kinetics.program, max_tree_depth=2),
            num_samples=3,
            warmup_steps=3,
            disable_progbar=True,
        )
        mcmc.run(data)
        drawn = Predictive(kinetics.program, mcmc.get_samples())(data.without_values())
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn["P"].shape == (3, *data.times.shape)


def _refused(program: object, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        Model(program, PLAIN)  # type: ignore[arg-type]


def test_programs_that_cannot_be_models() -> None:
    def discrete(e: Experiments) -> None:
        k = pyro.sample("k", dist.Poisson(3.0))
        observe("y", dist.Normal(k, 1.0), e)

    def bare(e: Experiments) -> None:
        k = pyro.sample("k", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(k, 1.0), obs=torch.tensor(1.0))

    def silent(e: Experiments) -> None:
        pyro.sample("k", dist.Normal(0.0, 1.0))

    def changing(e: Experiments) -> None:
        k = pyro.sample("k", dist.Normal(0.0, 1.0))
        if k > 0.2:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(k, 1.0), e)

    def plated(e: Experiments) -> None:
        with pyro.plate("things", 4):
            k = pyro.sample("k", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(k.sum(), 1.0), e)

    _refused(discrete, "'k' is discrete")
    _refused(bare, "bare pyro.sample")
    _refused(silent, "observes nothing")
    _refused(changing, "change from run to run")
    _refused(plated, "'k' has batch shape")


def test_data_that_the_program_cannot_score(kinetics: Model) -> None:
    looks = Experiments.on([[0.0, 1.0]], ["hare"])
    zero = looks.with_values({"hare": torch.tensor([[0.0, 2.0]], dtype=torch.float64)})
    with pytest.raises(ExperimentError, match=r"value 0 at time 0 .* LogNormal"):
        lotka_volterra.model().check_data(zero)
    with pytest.raises(ExperimentError, match="program observes P"):
        kinetics.check_data(zero)
    looks = Experiments.on([[0.0, 1.0]], ["P"]).with_values({"P": torch.zeros(1, 2).double()})
    with pytest.raises(ExperimentError, match="condition 'S0'"):
        kinetics.check_data(looks)


def test_between_is_a_log_normal() -> None:
    prior = between(0.05, 20.0)
    mass = prior.cdf(torch.tensor(20.0)) - prior.cdf(torch.tensor(0.05))
    assert float(mass) == pytest.approx(0.95, abs=1e-4)
