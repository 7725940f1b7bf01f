"""The learned proxy: it answers as a solver does, whatever it has learnt; and it learns."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import Compiled, Design, Estimator, Experiments, Model, answering, between, observe, odeint, plots
from ampost import bank as banks
from ampost.accuracy import noise_units
from ampost.baselines import nuts
from ampost.errors import EstimatorError, FileError, TrainingError
from ampost.experiments import mapped
from ampost.lessons import seen_relatively
from ampost.ode.problem import OdeProblem, Status, flatten
from ampost.optimize import maximise
from ampost.plans import DosePlan, InputPlan, Looks
from ampost.program import recording
from ampost.proxy import Proxy, ProxySettings, _total, proxy_error, train_proxy
from ampost.stretches import stretches_of
from ampost.training import Schedule
from ampost.zoo import lotka_volterra

TINY = ProxySettings(
    width=16, depth=1, trunk=16, batch=16, unrolled=0.25, schedule=Schedule(80, validate_every=40, rate=5e-3)
)
TIMES = tuple(float(k) for k in range(1, 11))


def dilution(t: Any, y: Any, p: Any) -> Any:
    return {"V": 0.0 * y.V, "C": -p.rate * y.C + p.feed}


def pulse(y: Any, p: Any, amount: Any) -> Any:
    return {"V": y.V + amount, "C": y.C * y.V / (y.V + amount)}


def fed(experiments: Experiments) -> None:
    """Volume changes by pulses alone, which come late by a lag; the concentration decays and is fed."""
    rate = pyro.sample("rate", between(0.1, 1.0))
    lag = pyro.sample("lag", between(0.05, 0.5))
    with experiments.plate():
        start = pyro.sample("start", between(1.0, 4.0))
    doses = experiments.doses.delayed(lag)
    values = {"rate": rate, "feed": experiments.inputs["feed"]}
    y = odeint(dilution, {"V": 1.0, "C": start}, values, experiments, doses, {"pulse": pulse})
    for name in ("V", "C"):
        observe(name, dist.Normal(getattr(y, name), 0.1), experiments)


def twice(experiments: Experiments) -> None:
    """Two decays; the noise of the second is relative."""
    rate = pyro.sample("rate", between(0.1, 1.0))

    def decay(t: Any, y: Any, p: Any) -> Any:
        return {"N": -p.rate * y.N}

    first = odeint(decay, {"N": 2.0}, {"rate": rate}, experiments, name="first")
    second = odeint(decay, {"N": 1.0 + rate}, {"rate": 0.5 * rate}, experiments, name="second")
    observe("A", dist.Normal(first.N, 0.1), experiments)
    observe("B", dist.LogNormal(second.N.clamp(min=1e-10).log(), 0.1), experiments)


def taught(model: Model, settings: ProxySettings = TINY) -> Proxy:
    return train_proxy(model, banks.build(model, 400, 0, show=False), settings, 0, show=False)


@pytest.fixture(scope="module")
def pulses() -> Model:
    looks = Looks(TIMES, (5, 10))
    doses = (
        DosePlan("pulse", (2.0, 3.0), (0.1, 0.5)),
        DosePlan("pulse", (6.0, 7.0), (0.1, 0.5)),
        DosePlan("C", (4.0, 4.5), (0.5, 1.0), (0.5, 1.0)),
    )
    feed = InputPlan(((0.0, 5.0),), ((0.0, 0.3),))
    return Model(fed, Design({"V": looks, "C": looks}, {}, (1, 2), 11.0, doses, {"feed": feed}))


@pytest.fixture(scope="module")
def pulsed(pulses: Model) -> Proxy:
    return taught(pulses)


@pytest.fixture(scope="module")
def proxy(kinetics: Model) -> Proxy:
    return taught(kinetics)


def asked(model: Model, draws: int, seed: int = 1) -> OdeProblem:
    """The ODE of a model's prior draws under its design."""
    with recording() as record:
        model.simulate(draws, seed)
    return record.solved[0][0]


# ------------------------------------------------------------------------------- what holds untaught


def test_at_the_start_it_is_the_initial_state(kinetics: Model, proxy: Proxy) -> None:
    problem = asked(kinetics, 4)
    first = replace(
        problem.experiments,
        times=torch.zeros_like(problem.experiments.times[..., :1]),
        after_dose=problem.experiments.after_dose[..., :1],
    )
    answer = proxy(replace(problem, experiments=first))
    torch.testing.assert_close(answer.S, problem.initial["S"].expand(answer.S.shape))
    assert bool((answer.P == 0).all())


def test_a_dose_and_an_event_are_applied_exactly(pulses: Model, pulsed: Proxy) -> None:
    problem = asked(pulses, 8)
    exact, answer = Compiled()(problem), pulsed(problem)
    torch.testing.assert_close(answer.V, exact.V, rtol=1e-9, atol=1e-9)
    assert float(answer.V.max()) > 1.2


def test_a_look_at_a_dose_comes_before_it_unless_after(pulses: Model, pulsed: Proxy) -> None:
    problem = asked(pulses, 3)
    when = problem.doses.time[..., :1]
    both = torch.cat([when, when], -1)
    after = torch.tensor([False, True]).expand(both.shape)
    looks = replace(problem.experiments, times=both, after_dose=after)
    answer = pulsed(replace(problem, experiments=looks))
    amount = problem.doses.amount[..., 0]
    torch.testing.assert_close(answer.V[..., 0], torch.ones_like(amount))
    torch.testing.assert_close(answer.V[..., 1], 1 + amount)
    torch.testing.assert_close(answer.C[..., 1] * answer.V[..., 1], answer.C[..., 0])


def test_a_dose_before_the_start_is_a_status(pulses: Model, pulsed: Proxy) -> None:
    problem = asked(pulses, 3)
    lag = torch.zeros_like(problem.doses.time)
    lag[1] = -20.0
    answer = pulsed(replace(problem, doses=problem.doses.delayed(lag)))
    assert answer.status[1].eq(Status.DOSE_BEFORE_START).all()
    assert bool(torch.isnan(answer.states[1]).all())
    assert answer.status[[0, 2]].eq(Status.OK).all()


def test_rows_do_not_know_of_each_other_nor_of_padding(pulses: Model, pulsed: Proxy) -> None:
    problem = asked(pulses, 6)
    full = pulsed(problem).states

    def part(value: Any) -> Any:
        return value[2:4] if isinstance(value, Tensor) and value.dim() > 2 else value

    some = replace(
        problem,
        initial={n: part(v) for n, v in problem.initial.items()},
        parameters={n: part(v) for n, v in problem.parameters.items()},
        experiments=problem.experiments.map(part),
        doses=mapped(problem.doses, part),
        inputs={name: mapped(signal, part) for name, signal in problem.inputs.items()},
    )
    torch.testing.assert_close(pulsed(some).states, full[2:4], rtol=1e-5, atol=1e-6)

    def padded(value: Tensor, with_: float) -> Tensor:
        return torch.cat([value, torch.full_like(value[..., :2], with_)], -1)

    doses = problem.doses
    wide = replace(
        doses,
        time=padded(doses.time, 3.3),
        amount=padded(doses.amount, 9.0),
        duration=padded(doses.duration, 0.0),
        target=padded(doses.target, 0),
        mask=padded(doses.mask, False),
    )
    torch.testing.assert_close(pulsed(replace(problem, doses=wide)).states, full, rtol=1e-5, atol=1e-6)


def test_stretches_hold_infusions_and_inputs(pulses: Model, pulsed: Proxy) -> None:
    problem = asked(pulses, 5)
    rows = flatten(problem)
    stretches = stretches_of(problem, rows, 1.0)
    assert float(stretches.length.max()) <= 1.0 + 1e-9
    torch.testing.assert_close(stretches.length.sum(1), rows.times.max(1).values)
    middle = stretches.begin + 0.5 * stretches.length
    inside = stretches.length > 0
    torch.testing.assert_close(stretches.value[..., 0][inside], 0.3 * (middle > 5.0).double()[inside])
    infused = rows.dose_duration > 0
    begin, rate = (torch.where(infused, v, 0.0).sum(1)[:, None] for v in (rows.dose_time, rows.dose_amount))
    span = torch.where(infused, rows.dose_duration, 0.0).sum(1)[:, None]
    on = (middle > begin) & (middle < begin + span)
    expected = torch.where(on, rate / span, 0.0)
    torch.testing.assert_close(stretches.infusion[..., 1][inside], expected[inside])


def test_draws_by_data_sets_is_one_call(kinetics: Model, proxy: Proxy) -> None:
    model = replace(kinetics, solver=proxy)
    data = kinetics.simulate(3, 2).experiments
    z = 0.3 * torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = model.log_joint(z, data)
    assert together.shape == (4, 3)
    apart = torch.stack([model.log_joint(z[:, d : d + 1], data.at(d))[:, 0] for d in range(3)], 1)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)


# ----------------------------------------------------------------------------------------- gradients


def test_the_gradient_is_that_of_finite_differences(pulses: Model, pulsed: Proxy) -> None:
    model = replace(pulses, solver=pulsed)
    data = pulses.simulate(1, 3).experiments
    size = model.z_size(data.count)
    z = 0.3 * torch.randn(1, 1, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_joint(z, data).sum(), z)
    step = 1e-3  # the networks are float32
    for k in range(size):
        shift = step * torch.eye(size, dtype=torch.float64)[k]
        with torch.no_grad():
            rise = model.log_joint(z + shift, data) - model.log_joint(z - shift, data)
        found = float(gradient[0, 0, k])
        assert found == pytest.approx(float(rise.sum()) / (2 * step), rel=2e-2, abs=0.05)


def test_gradients_reach_initial_states_and_doses(pulses: Model, pulsed: Proxy) -> None:
    problem = asked(pulses, 2)
    start = problem.initial["C"].clone().requires_grad_()
    amount, time = (v.detach().clone().requires_grad_() for v in (problem.doses.amount, problem.doses.time))
    doses = replace(problem.doses, amount=amount, time=time)
    answer = pulsed(replace(problem, initial={**problem.initial, "C": start}, doses=doses))
    (answer.V.sum() + answer.C.sum()).backward()
    for given in (start, amount, time):
        assert given.grad is not None
        assert bool((given.grad != 0).any())


# ------------------------------------------------------------------------------------ on other stages


def test_a_program_with_two_odes_has_two_networks() -> None:
    looks = Looks(TIMES, (5, 10))
    model = Model(twice, Design({"A": looks, "B": looks}, {}, (1, 1), 10.0))
    made = taught(model, replace(TINY, schedule=Schedule(200, validate_every=100, rate=5e-3)))
    assert [flow.layout.name for flow in made.flows] == ["first", "second"]
    assert [flow.layout.logarithmic for flow in made.flows] == [(False,), (True,)]
    found = proxy_error(model, made, 100, 2)
    assert set(found.states) == {"first N", "second N"}
    assert found.unseen == {}
    # what a channel shows of a state alone is off by as much as the channel is
    for state, channel in (("first N", "A"), ("second N", "B")):
        assert found.states[state].rms == pytest.approx(found.channels[channel].rms, rel=0.05)


def test_nuts_runs_on_it_and_its_program_is_recorded(kinetics: Model, proxy: Proxy) -> None:
    data = kinetics.simulate(1, 5).experiments.at(0)
    tree = nuts(replace(kinetics, solver=proxy), data, draws=20, warmup=20, seed=0, progress=False)
    assert tree["posterior/vmax"].shape == (1, 20)
    assert float(tree["posterior/vmax"].std()) > 0


def test_an_optimum_is_found_on_it(kinetics: Model, proxy: Proxy) -> None:
    data = kinetics.simulate(1, 5).experiments
    model = replace(kinetics, solver=proxy)
    starts = torch.zeros(1, 3, dtype=torch.float64)
    best = maximise(lambda z: model.log_joint(z[:, None], data)[:, 0], starts)[0]
    assert best.log_joint > float(model.log_joint(starts[:, None], data)[0, 0])


def test_it_answers_a_program(kinetics: Model, proxy: Proxy) -> None:
    looks = Experiments.on([[1.0, 2.0]], ["P"], {"S0": [2.0]})
    with recording() as record:
        pyro.set_rng_seed(0)
        answering(proxy)(kinetics.program)(looks)
    ((problem, trajectory),) = record.solved
    torch.testing.assert_close(trajectory.states, proxy(problem).states)


# ------------------------------------------------------------------------------------------- learning


def test_the_error_shrinks_with_training(kinetics: Model) -> None:
    bank = banks.build(kinetics, 2_000, 0, show=False)
    errors = []
    for steps in (5, 400):
        settings = replace(TINY, schedule=Schedule(steps, validate_every=100, rate=5e-3))
        errors.append(proxy_error(kinetics, train_proxy(kinetics, bank, settings, 0), 300))
    assert errors[1].quantile(0.5) < 0.2 * errors[0].quantile(0.5)
    assert errors[1].channels["P"].rms < errors[0].channels["P"].rms


def test_training_is_a_function_of_its_seed_and_resumes(kinetics: Model, tmp_path: Path) -> None:
    bank = banks.build(kinetics, 400, 0, show=False)
    whole = train_proxy(kinetics, bank, TINY, 3)
    part = tmp_path / "proxy.part"

    class CutOff(Exception):
        pass

    class Fails(banks.Bank):
        def window(self, step: int, seed: int) -> Any:
            if step == 60:
                raise CutOff
            return super().window(step, seed)

    cut = Fails(**{name: getattr(bank, name) for name in bank.__dataclass_fields__})
    with pytest.raises(CutOff):
        train_proxy(kinetics, cut, TINY, 3, checkpoint=part)
    again = train_proxy(kinetics, bank, TINY, 3, checkpoint=part)
    for name, value in whole.networks.state_dict().items():
        assert torch.equal(value, again.networks.state_dict()[name])


def test_stretches_are_short_where_trajectories_bend_often(kinetics: Model) -> None:
    lengths = {}
    for model in (kinetics, lotka_volterra.model()):
        span = model.design.horizon - model.design.start
        lengths[model.name] = taught(model, TINY).flows[0].layout.longest / span
        whole = taught(model, replace(TINY, longest=math.inf))
        assert whole.flows[0].layout.longest == pytest.approx(span)
    assert lengths["michaelis_menten"] == pytest.approx(1.0)
    assert 0.02 < lengths["lotka_volterra"] < 0.2


def test_what_the_proxy_cannot_answer_is_no_small_error(kinetics: Model, proxy: Proxy) -> None:
    drawn = kinetics.simulate(20, 0)
    looks = drawn.experiments
    units = noise_units(kinetics, drawn.z, looks, kinetics.solver, proxy)
    mask = looks.channels["P"].mask[3]
    spoilt = {"P": units["P"].clone()}
    spoilt["P"][3, 0, int(mask[0].nonzero()[0])] = torch.nan
    assert bool(torch.isfinite(_total(units, looks)).all())
    assert torch.isinf(_total(spoilt, looks)).nonzero()[:, 0].tolist() == [3]


def test_oscillations_are_learnt_in_logarithms_and_in_short_stretches() -> None:
    model = lotka_volterra.model()
    made = taught(model, replace(TINY, longest=1.0))
    assert made.flows[0].layout.logarithmic == (True, True)
    assert made.flows[0].layout.longest == pytest.approx(1.0)
    stored = torch.rand(50, 3, 2, dtype=torch.float64)
    even = torch.ones(50, 3, 1, dtype=torch.float64)
    seen = torch.cat([even, 1 / stored[..., 1:]], -1)
    assert seen_relatively(stored, seen, stored) == (False, True)
    assert seen_relatively(stored, seen, stored - 0.5) == (False, False)


# --------------------------------------------------------------------------------- files and refusals


def test_what_is_saved_answers_the_same(pulses: Model, pulsed: Proxy, tmp_path: Path) -> None:
    pulsed.save(tmp_path / "fed.proxy")
    loaded = Proxy.load(tmp_path / "fed.proxy")
    problem = asked(pulses, 3)
    assert torch.equal(loaded(problem).states, pulsed(problem).states)
    assert loaded.settings == pulsed.settings
    assert loaded.report == pulsed.report
    loaded.belongs_to(pulses)
    with pytest.raises(FileError, match="of kind 'proxy'"):
        Estimator.load(tmp_path / "fed.proxy")


def test_another_model_is_refused(kinetics: Model, pulses: Model, proxy: Proxy) -> None:
    proxy.belongs_to(kinetics)
    with pytest.raises(EstimatorError, match="for another model"):
        proxy.belongs_to(pulses)
    with pytest.raises(EstimatorError, match=r"the states V, C; the proxy has learnt it with S, P"):
        proxy(asked(pulses, 2))
    problem = asked(kinetics, 2)
    with pytest.raises(EstimatorError, match="not 'other'"):
        proxy(replace(problem, name="other"))
    with pytest.raises(EstimatorError, match="the parameters vmax; the proxy has learnt it with vmax, km"):
        proxy(replace(problem, parameters={"vmax": problem.parameters["vmax"]}))
    with pytest.raises(EstimatorError, match="the events pulse; the proxy has learnt it with none"):
        proxy(replace(problem, events={"pulse": pulse}))


def test_settings_that_make_no_sense_are_refused(kinetics: Model, proxy: Proxy) -> None:
    for wrong in ({"width": 1}, {"depth": -1}, {"longest": 0.0}, {"unrolled": 1.5}, {"batch": 65}):
        with pytest.raises(TrainingError, match=f"ProxySettings\\({next(iter(wrong))}="):
            ProxySettings(**wrong)
    with pytest.raises(EstimatorError, match="count=0"):
        proxy_error(kinetics, proxy, 0)


def test_the_picture_shows_every_channel(pulses: Model, pulsed: Proxy) -> None:
    found = proxy_error(pulses, pulsed, 50)
    figure = plots.proxy(found)
    assert {axis.get_title().split(":")[0] for axis in figure.axes} >= {"V", "C"}
    assert len(found.examples) == 4
