"""The estimator: what its context depends on, seeds, saving, and the way to sbi."""

import copy
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import Design, Doses, Estimator, Experiments, Model, between, observe, odeint
from ampost.architecture import DENSITIES, Architecture
from ampost.errors import EstimatorError
from ampost.estimator import Networks, Reading
from ampost.inference import Settings, train
from ampost.nets import EMBEDDINGS
from ampost.plans import DosePlan, Looks
from ampost.refining import Refining
from ampost.seeds import seeded
from ampost.stacking import stack
from ampost.tokens import scaling_of, tokens
from ampost.training import Schedule

TINY = Settings(
    simulations=600,
    schedule=Schedule(steps=30, validate_every=15),
    batch=64,
    architecture=Architecture(width=16, context=8, transforms=1, hidden=16),
    refining=Refining(1_000, Schedule(steps=30, validate_every=15), batch=64),
)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def data(kinetics: Model) -> Experiments:
    return kinetics.simulate(1, 5).experiments.at(0)


@pytest.fixture(scope="module")
def tiny(kinetics: Model) -> Estimator:
    return train(kinetics, TINY, seed=3, progress=False)


def on_grid(data: Experiments, change: Any) -> Experiments:
    """`change` of every tensor that stands on (experiment, time)."""
    return data.map(lambda t: change(t) if t.dim() == 2 and t.shape[1] == data.times.shape[1] else t)


# ---------------------------------------------------------------------------------------- context


def test_padding_of_times_does_not_change_the_context(data: Experiments, trained: Estimator) -> None:
    width = data.times.shape[1]

    def pad(t: Tensor) -> Tensor:
        filler = torch.zeros_like(t[:, :1]) if t.dtype == torch.bool else torch.full_like(t[:, :1], 7.0)
        return torch.cat([t, filler.expand(len(t), 5)], 1)

    padded = on_grid(data, pad)
    assert padded.times.shape[1] == width + 5
    torch.testing.assert_close(trained.context(padded), trained.context(data), **CLOSE)


def test_padding_of_experiments_does_not_change_the_context(data: Experiments, trained: Estimator) -> None:
    # stacked with a larger data set, the smaller one gets an experiment that is not live
    one = data.map(lambda t: t[:1])
    one = replace(one, names=(data.names[0][:1],))
    both = stack([one, data])
    assert both.live.tolist() == [[True, False], [True, True]]
    together = trained.context(both)
    torch.testing.assert_close(together[:1], trained.context(one), **CLOSE)
    torch.testing.assert_close(together[1:], trained.context(data), **CLOSE)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_order_of_rows_does_not_change_the_context(data: Experiments, trained: Estimator) -> None:
    torch.manual_seed(0)
    order = torch.randperm(data.times.shape[1])
    shuffled = on_grid(data, lambda t: t[:, order])
    assert not torch.equal(shuffled.times, data.times)
    torch.testing.assert_close(trained.context(shuffled), trained.context(data), **CLOSE)


def test_the_order_of_experiments_does_not_change_the_context(data: Experiments, trained: Estimator) -> None:
    swapped = data.map(lambda t: t.flip(0))
    assert not torch.equal(swapped["S0"], data["S0"])
    torch.testing.assert_close(trained.context(swapped), trained.context(data), **CLOSE)


def test_data_sets_in_a_batch_have_the_contexts_that_they_have_alone(
    kinetics: Model, trained: Estimator
) -> None:
    many = kinetics.simulate(6, 8).experiments
    alone = torch.cat([trained.context(many.at(k)) for k in range(6)])
    torch.testing.assert_close(trained.context(many), alone, **CLOSE)


def test_data_sets_in_a_batch_have_the_modes_that_they_have_alone(kinetics: Model, trained: Estimator) -> None:
    several = kinetics.simulate(8, 11).experiments
    together = trained.reading(kinetics, several).ridge
    assert together is not None
    for k in range(8):
        alone = trained.reading(kinetics, several.at(k)).ridge
        assert alone is not None
        torch.testing.assert_close(alone.laplace.mode[0], together.laplace.mode[k], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(alone.log_scale[0], together.log_scale[k], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("density", DENSITIES)
def test_spread_draws_are_those_of_the_density(density: str, kinetics: Model, trained: Estimator) -> None:
    sizes = Architecture(density=density, hidden=16, transforms=2)
    with seeded(0):
        networks = Networks(sizes, trained.scaling, trained.networks.layout)
        reading = Reading(
            2 * torch.randn(3, sizes.context), torch.zeros(3, 1, sizes.width), torch.ones(3, 1) > 0
        )
        with torch.no_grad():
            spread, drawn = networks.spread(reading, 4_000), networks.wide_sample(reading, 4_000)
    torch.testing.assert_close(spread.mean(0), drawn.mean(0), atol=0.1, rtol=0.0)
    torch.testing.assert_close(spread.std(0), drawn.std(0), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("what", ["value", "time", "mask", "condition", "replicate"])
def test_what_was_measured_does_change_the_context(what: str, data: Experiments, trained: Estimator) -> None:
    channel = data.channels["P"]
    assert channel.values is not None
    place = tuple(channel.mask.nonzero()[1].tolist())
    if what == "value":
        values = channel.values.clone()
        values[place] += 0.5
        changed = data.with_values({"P": values})
    elif what == "time":
        changed = replace(data, times=data.times + 0.5)
    elif what == "mask":
        mask = channel.mask.clone()
        mask[place] = False
        changed = replace(data, channels={"P": replace(channel, mask=mask)})
    elif what == "condition":
        changed = replace(data, conditions={"S0": data["S0"].flip(0)})
    else:
        doubled = on_grid(data, lambda t: torch.cat([t, t], 1))
        assert doubled.channels["P"].mask.sum() == 2 * channel.mask.sum()
        changed = doubled
    assert float((trained.context(changed) - trained.context(data)).abs().max()) > 1e-3


def test_values_where_nothing_was_measured_do_not_count(data: Experiments, trained: Estimator) -> None:
    channel = data.channels["P"]
    assert channel.values is not None
    assert not bool(channel.mask.all())
    blank = data.with_values({"P": torch.where(channel.mask, channel.values, torch.nan)})
    torch.testing.assert_close(trained.context(blank), trained.context(data))


def test_a_condition_that_was_not_trained_for_is_refused(data: Experiments, trained: Estimator) -> None:
    more = replace(data, conditions={**data.conditions, "pH": torch.full_like(data["S0"], 7.0)})
    with pytest.raises(EstimatorError, match="'pH' is not one the estimator knows"):
        trained.context(more)


# ------------------------------------------------------------------------------------------ doses


def washout(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"drug": -p.rate * y.drug}


def dosed(experiments: Experiments) -> None:
    rate = pyro.sample("rate", between(0.1, 2.0))
    y = odeint(washout, {"drug": 0.5}, {"rate": rate}, experiments)
    observe("drug", dist.Normal(y.drug, 0.05), experiments)


@pytest.fixture(scope="module")
def pharmacy() -> tuple[Model, Estimator]:
    looks = Looks(tuple(float(k) for k in range(6)), (4, 8))
    plans = (DosePlan("drug", (0.0, 1.0), (1.0, 4.0)), DosePlan("drug", (2.0, 3.0), (1.0, 4.0), (0.0, 1.0)))
    model = Model(dosed, Design({"drug": looks}, {}, (1, 2), 5.5, doses=plans))
    return model, train(model, TINY, seed=1, progress=False)


@pytest.mark.parametrize("part", ["amount", "time", "duration", "mask"])
def test_a_dose_changes_the_context(part: str, pharmacy: tuple[Model, Estimator]) -> None:
    model, estimator = pharmacy
    data = model.simulate(1, 2).experiments.at(0)
    doses = data.doses
    old = getattr(doses, part)
    other = torch.zeros_like(old) if part == "mask" else old + 2.0
    context = estimator.context(data)
    changed = estimator.context(replace(data, doses=replace(doses, **{part: other})))
    # hardly trained, the network answers weakly; without the dose the two would be equal to the bit
    assert float((changed - context).abs().max()) > 1e-5


def test_the_order_and_padding_of_doses_do_not_change_the_context(pharmacy: tuple[Model, Estimator]) -> None:
    model, estimator = pharmacy
    data = model.simulate(1, 2).experiments.at(0)
    context = estimator.context(data)
    doses = data.doses

    def with_doses(change: Any) -> Experiments:
        parts = ("time", "amount", "duration", "target", "mask")
        return replace(data, doses=replace(doses, **{n: change(getattr(doses, n)) for n in parts}))

    backwards = with_doses(lambda t: t.flip(1))
    assert not torch.equal(backwards.doses.time, doses.time)
    torch.testing.assert_close(estimator.context(backwards), context, rtol=0, atol=1e-6)
    padded = with_doses(lambda t: torch.cat([t, torch.zeros_like(t[:, :1])], 1))
    torch.testing.assert_close(estimator.context(padded), context, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------ seeds


def weights(estimator: Estimator) -> dict[str, Tensor]:
    return dict(estimator.networks.state_dict())


def test_the_same_seed_gives_the_same_weights_and_losses(kinetics: Model, tiny: Estimator) -> None:
    torch.manual_seed(99)  # what was drawn before must not matter
    again = train(kinetics, TINY, seed=3, progress=False)
    for name, value in weights(tiny).items():
        assert torch.equal(value, weights(again)[name]), name
    assert again.report.training == tiny.report.training
    assert again.report.validation == tiny.report.validation
    assert asdict(again.scaling) == asdict(tiny.scaling)


def test_another_seed_gives_other_weights(kinetics: Model, tiny: Estimator) -> None:
    other = train(kinetics, TINY, seed=4, progress=False)
    assert any(not torch.equal(v, weights(other)[n]) for n, v in weights(tiny).items())


def test_training_leaves_the_callers_random_numbers_alone(kinetics: Model, tiny: Estimator) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(kinetics, replace(TINY, schedule=Schedule(steps=3)), seed=3, progress=False)
    tiny.sample(tiny.reading(kinetics, kinetics.simulate(1, 5).experiments), 5, seed=1)
    torch.testing.assert_close(torch.rand(3), expected)


def test_draws_are_a_function_of_the_seed(kinetics: Model, data: Experiments, tiny: Estimator) -> None:
    reading = tiny.reading(kinetics, data)
    one, same, other = (tiny.sample(reading, 50, seed=s) for s in (1, 1, 2))
    assert one.shape == (50, 1, 3)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_training_learns(data: Experiments, tiny: Estimator, trained: Estimator) -> None:
    # standard normal z would cost 3 (1 + log 2 pi) / 2 = 4.26
    assert trained.report.best < 2.5
    assert trained.report.best < tiny.report.best


def test_too_small_a_bank_is_refused_by_number(kinetics: Model) -> None:
    with pytest.raises(EstimatorError, match="bank has 50 rows, fewer than a batch of 64"):
        train(kinetics, replace(TINY, simulations=50), progress=False)


# ---------------------------------------------------------------------------------- density, point


def test_the_density_is_that_of_the_draws(kinetics: Model, trained: Estimator) -> None:
    # E_q[p / q] = 1 for any density p whose tails q covers; here p is a normal of half the width
    reading = trained.reading(kinetics, kinetics.simulate(1, 5).experiments)
    z = trained.sample(reading, 20_000, seed=0)
    density = trained.log_density(z, reading)
    assert density.shape == (20_000, 1)
    middle, spread = z.median(0).values[0], torch.cov(z[:, 0].T) / 4
    inner = torch.distributions.MultivariateNormal(middle, spread).log_prob(z)
    assert float((inner - density).exp().mean()) == pytest.approx(1.0, abs=0.1)


def test_quantiles_rise_in_a_trained_network_and_have_one_row_per_data_set(
    kinetics: Model, trained: Estimator
) -> None:
    levels = trained.quantiles(kinetics.simulate(20, 5).experiments)
    assert levels.shape == (20, 3, 5)
    assert float((levels.diff(dim=-1) > 0).double().mean()) > 0.95


# ----------------------------------------------------------------------------------------- saving


def test_a_loaded_estimator_answers_as_the_saved_one(
    kinetics: Model, data: Experiments, trained: Estimator, tmp_path: Path
) -> None:
    path = tmp_path / "kinetics.ampost"
    trained.save(path)
    loaded = Estimator.load(path)
    context = loaded.context(data)
    assert torch.equal(context, trained.context(data))
    assert torch.equal(loaded.quantiles(data), trained.quantiles(data))
    reading = loaded.reading(kinetics, data)
    draws = loaded.sample(reading, 200, seed=4)
    assert torch.equal(draws, trained.sample(reading, 200, seed=4))
    assert torch.equal(loaded.log_density(draws, reading), trained.log_density(draws, reading))
    assert loaded.design == trained.design
    assert loaded.scaling == trained.scaling
    assert loaded.report == trained.report
    assert loaded.solves == trained.solves


def test_a_dosed_estimator_survives_saving(pharmacy: tuple[Model, Estimator], tmp_path: Path) -> None:
    model, estimator = pharmacy
    estimator.save(tmp_path / "x.ampost")
    loaded = Estimator.load(tmp_path / "x.ampost")
    data = model.simulate(3, 2).experiments
    assert torch.equal(loaded.context(data), estimator.context(data))
    assert loaded.design == model.design
    loaded.belongs_to(model)


def test_an_estimator_from_a_file_answers_in_another_process_alike(
    kinetics: Model, data: Experiments, trained: Estimator, tmp_path: Path
) -> None:
    trained.save(tmp_path / "x.ampost")
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from ampost import Estimator\nfrom ampost.zoo import michaelis_menten\n"
        "model = michaelis_menten.model(); estimator = Estimator.load(sys.argv[1])\n"
        "estimator.belongs_to(model)\n"
        "reading = estimator.reading(model, model.simulate(1, 5).experiments.at(0))\n"
        "print(estimator.sample(reading, 3, seed=4).flatten().tolist())"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "x.ampost")],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = trained.sample(trained.reading(kinetics, data), 3, seed=4).flatten().tolist()
    assert json.loads(ran.stdout) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_saved_estimator_of_another_model_is_refused(
    kinetics: Model, trained: Estimator, tmp_path: Path
) -> None:
    trained.save(tmp_path / "x.ampost")
    loaded = Estimator.load(tmp_path / "x.ampost")
    loaded.belongs_to(kinetics)
    with pytest.raises(EstimatorError, match=r"another model: its sites are .*train again for this model"):
        loaded.belongs_to(kinetics.fix(km=0.5))

    def first_order(experiments: Experiments) -> None:
        vmax, km = pyro.sample("vmax", between(0.05, 5.0)), pyro.sample("km", between(0.1, 10.0))
        sigma = pyro.sample("sigma", between(0.01, 0.2))
        rates = {"vmax": vmax, "km": km}
        start = {"S": experiments["S0"], "P": 0.0}
        y = odeint(lambda t, y, p: {"S": -p.vmax * y.S, "P": p.vmax * y.S}, start, rates, experiments)
        observe("P", dist.Normal(y.P, sigma), experiments)

    with pytest.raises(EstimatorError, match=r"another model: its behaviour are .*'first_order'"):
        loaded.belongs_to(Model(first_order, kinetics.design))


def test_the_file_holds_tensors_and_json_and_nothing_that_could_run(trained: Estimator, tmp_path: Path) -> None:
    path = tmp_path / "kinetics.ampost"
    trained.save(path)
    assert not zipfile.is_zipfile(path)  # torch.save writes a zip of pickles
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "ampost"
    assert set(json.loads(metadata["header"])) >= {"architecture", "scaling", "design", "fingerprint"}
    assert set(header) == set(trained.networks.state_dict())
    # the tensors fill the rest of the file to the last byte
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(raw) - 8 - length
    assert sum(e["data_offsets"][1] - e["data_offsets"][0] for e in header.values()) == len(raw) - 8 - length


# -------------------------------------------------------------------------------------------- sbi

CHECKS = """
import sys, warnings
import torch, pyro, pyro.distributions as dist
pyro.enable_validation(wanted := sys.argv[1] == "on")
torch.distributions.Distribution.set_default_validate_args(wanted)
kinds = (torch.distributions.Distribution, dist.Distribution, dist.torch_distribution.TorchDistribution)
before = [getattr(kind, "_validate_args", None) for kind in kinds]
from ampost.architecture import DENSITIES, Architecture
from ampost.estimator import _density
_density(Architecture(width=8, context=4, transforms=1, hidden=8), 2, 4)
assert "sbi" in sys.modules
refused = []
for make in (torch.distributions.Normal, dist.Normal):
    try:
        make(0.0, -1.0)
    except ValueError:
        refused.append(make)
print([getattr(kind, "_validate_args", None) for kind in kinds] == before, len(refused))
"""


@pytest.mark.parametrize(("setting", "refused"), [("on", 2), ("off", 0)])
def test_importing_sbi_leaves_argument_checks_as_they_were(setting: str, refused: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECKS, setting], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["True", str(refused)]


def test_sbi_samples_and_scores_what_we_hand_back(
    kinetics: Model, data: Experiments, trained: Estimator
) -> None:
    networks = copy.deepcopy(trained.networks)
    networks.refinement = None
    plain = replace(trained, networks=networks, refining=None)
    context = trained.context(data)
    posterior = trained.to_sbi()
    torch.manual_seed(0)
    drawn = posterior.sample((2_000,), x=context, show_progress_bars=False)
    assert drawn.shape == (2_000, 3)
    ours = plain.sample(plain.reading(kinetics, data), 2_000, seed=0)[:, 0]
    error = ours.std(0) * (2 / 2_000) ** 0.5
    assert bool(((drawn.mean(0) - ours.mean(0)).abs() < 5 * error).all())
    theirs = posterior.log_prob(drawn[:50], x=context, norm_posterior=False)
    exact = plain.log_density(drawn[:50, None], plain.reading(kinetics, data))[:, 0]
    torch.testing.assert_close(theirs.double(), exact, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------- tokens


def test_a_channel_that_was_not_measured_gives_no_tokens(pharmacy: tuple[Model, Estimator]) -> None:
    model, estimator = pharmacy
    data = model.simulate(1, 2).experiments.at(0)
    everything = tokens(data, estimator.scaling)
    without = replace(data, channels={})
    features, mask, _, live = tokens(without, estimator.scaling)
    assert features.shape[-1] == everything[0].shape[-1]
    assert int(mask.sum()) == int(data.doses.mask.sum())
    assert torch.equal(live, everything[3])


@pytest.mark.parametrize("pooling", EMBEDDINGS)
def test_an_untrained_network_is_invariant_too(pooling: str) -> None:
    torch.manual_seed(0)
    embedding = EMBEDDINGS[pooling](token=5, conditions=2, width=8, context=4)
    features, mask = torch.randn(1, 3, 4, 5), torch.rand(1, 3, 4) < 0.7
    conditions, live = torch.randn(1, 3, 2), torch.tensor([[True, True, False]])
    context, _ = embedding(features, mask, conditions, live)
    noise = torch.where(mask[..., None] & live[..., None, None], features, 100.0)
    torch.testing.assert_close(embedding(noise, mask, conditions, live)[0], context, **CLOSE)
    other = torch.where(live[..., None], conditions, -50.0)
    torch.testing.assert_close(embedding(features, mask, other, live)[0], context, **CLOSE)


@pytest.mark.parametrize("pooling", EMBEDDINGS)
def test_no_measurement_at_all_has_a_finite_context_and_gradient(pooling: str) -> None:
    torch.manual_seed(0)
    embedding = EMBEDDINGS[pooling](token=5, conditions=2, width=8, context=4)
    features = torch.randn(2, 1, 4, 5, requires_grad=True)
    mask = torch.tensor([[[True, True, False, True]], [[False] * 4]])
    context, _ = embedding(features, mask, torch.zeros(2, 1, 2), torch.ones(2, 1).bool())
    context.square().sum().backward()
    assert bool(torch.isfinite(context).all())
    assert features.grad is not None
    assert bool(torch.isfinite(features.grad).all())
    assert not bool(features.grad[1].any())


def test_attention_gives_each_token_a_weight_of_its_own() -> None:
    """A mean of tokens does not change where each of them is there twice; one token more weighs in on it."""
    torch.manual_seed(0)
    embedding = EMBEDDINGS["attention"](token=5, conditions=0, width=16, context=4)
    features = torch.randn(1, 1, 6, 5)
    twice = torch.cat([features, features], 2)
    inner = embedding.pool(features, torch.ones(1, 1, 6).bool())
    again = embedding.pool(twice, torch.ones(1, 1, 12).bool())
    torch.testing.assert_close(inner[..., :-1], again[..., :-1], **CLOSE)  # the last one counts
    mean, attended = inner[..., :16], inner[..., 16:32]
    assert not torch.allclose(mean, attended, atol=1e-3)


def test_sizes_grow_with_the_model_and_wrong_ones_are_refused() -> None:
    small, large = Architecture.suited(3, 1), Architecture.suited(40, 10)
    assert small == Architecture()
    assert (large.width, large.context, large.hidden) == (160, 160, 160)
    assert Architecture.suited(1_000, 100).width == 192
    with pytest.raises(EstimatorError, match=r"pooling='max'.*mean, attention"):
        Architecture(pooling="max")
    with pytest.raises(EstimatorError, match=r"width=20.*multiple of 8"):
        Architecture(width=20)
    with pytest.raises(EstimatorError, match=r"Architecture\(layers=0\): expected at least 1"):
        Architecture(layers=0)
    for density, passes in (("zuko_nice", 2), ("maf", 2), ("zuko_maf", 0)):
        with pytest.raises(EstimatorError, match=rf"{density}', passes={passes}\): expected one pass or more"):
            Architecture(density=density, passes=passes)


def test_no_feature_of_a_token_is_large_even_of_constants_and_far_data() -> None:
    """A constant sd, condition or amount is scaled by its size, not by a width of zero."""
    looks = Experiments.on([[0.0, 1.0, 2.0]], ["P"], {"S0": [2.0]}, Doses.at([0.5], [0.1], "P"))
    data = looks.with_values({"P": torch.tensor([[0.1, 0.7, 1.2]]).double()})
    sd = torch.full((1, 3), 0.1).double()
    data = replace(data, channels={"P": replace(data.channels["P"], sd=sd, columns={"T": 0 * sd + 37.0})})
    scaling = scaling_of(("P",), Design.like(data), data)
    for factor in (1.0, 1.01, 1e9):
        channel = data.channels["P"]
        far = replace(
            data,
            conditions={"S0": data["S0"] * factor},
            doses=data.doses.scaled(torch.tensor(factor)),
            channels={"P": replace(channel, sd=sd * factor, columns={"T": channel.columns["T"] * factor})},
        )
        features, _, conditions, _ = tokens(far, scaling)
        assert float(features.abs().max()) <= (3.0 if factor < 1e9 else 30.0)
        assert float(conditions.abs().max()) <= (0.1 if factor < 1e9 else 30.0)
