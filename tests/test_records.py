"""Nothing that a record holds and a program uses is dropped on the way: one code path serves all stages.

One program uses everything: conditions, inputs, doses, infusions, events, deviations and covariates per row,
looks after a dose, censored values, parameters per experiment. Changing one thing must change each stage.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ampost import (
    Budget,
    Design,
    Doses,
    Experiments,
    Input,
    Looks,
    Model,
    Potential,
    Schedule,
    Settings,
    between,
    infer,
    observe,
    odeint,
    train,
)
from ampost.architecture import Architecture
from ampost.bank import build
from ampost.errors import ExperimentError
from ampost.estimator import Layout, Networks
from ampost.experiments import INTERVAL, LEFT, RIGHT, Signals
from ampost.results import report
from ampost.stacking import stack
from ampost.tokens import scaling_of, tokens

TIMES = torch.tensor([[0.5, 1.0, 1.0, 2.0, 2.0, 3.5], [0.5, 1.0, 2.0, 2.0, 3.0, 4.0]], dtype=torch.float64)


def fed(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"C": p.feed - p.k * y.C}


def everything(experiments: Experiments) -> None:
    k = pyro.sample("k", between(0.2, 2.0))
    tilt = pyro.sample("tilt", dist.Normal(0.5, 0.2))
    sigma = pyro.sample("sigma", between(0.05, 0.2))
    with experiments.plate():
        offset = pyro.sample("offset", dist.Normal(0.0, 0.1))
    y = odeint(
        fed,
        {"C": experiments["C0"]},
        {"k": k, "feed": experiments.inputs["feed"]},
        experiments,
        events={"dilute": lambda y, p, amount: {"C": y.C * amount}},
    )
    sd = (experiments.column("sd", "C").square() + sigma.square()).sqrt()
    observe("C", dist.Normal(y.C + offset + tilt * experiments.column("depth", "C"), sd), experiments)


def record() -> Experiments:
    doses = Doses(
        time=torch.tensor([[1.0, 2.0], [2.0, 3.0]]).double(),
        amount=torch.tensor([[1.0, 0.5], [0.6, 0.8]]).double(),
        duration=torch.tensor([[0.0, 0.0], [0.0, 0.5]]).double(),
        target=torch.tensor([[0, 1], [1, 0]]),
        mask=torch.ones(2, 2).bool(),
        targets=("C", "dilute"),
    )
    feed = Input.at([[0.0, 1.5], [0.0, 2.5]], [[0.2, 0.6], [0.4, 0.1]])
    looks = Experiments.on(TIMES, ["C"], {"C0": [1.0, 2.0]}, doses, {"feed": feed})
    generator = torch.Generator().manual_seed(0)
    values = 1.0 + torch.rand(2, 6, generator=generator, dtype=torch.float64)
    codes = torch.zeros(2, 6).long()
    codes[0, 5], codes[1, 4], codes[1, 0] = LEFT, RIGHT, INTERVAL
    channel = replace(
        looks.channels["C"],
        values=values,
        sd=torch.full_like(values, 0.1),
        columns={"depth": torch.linspace(0.1, 0.5, 6).double().expand(2, 6)},
        censoring=codes,
        upper=torch.where(codes == INTERVAL, values + 0.3, 0.0),
        lowest=torch.full_like(values, 0.9),
        highest=torch.full_like(values, 2.5),
    )
    after = torch.zeros(2, 6).bool()
    after[0, 2] = after[0, 4] = after[1, 3] = True
    return replace(looks, channels={"C": channel}, after_dose=after)


def channel(**parts: Callable[[Tensor], Tensor]) -> Callable[[Experiments], Experiments]:
    def change(data: Experiments) -> Experiments:
        held = data.channels["C"]
        new = replace(held, **{name: f(getattr(held, name)) for name, f in parts.items()})
        return replace(data, channels={"C": new})

    return change


def dose(part: str, f: Callable[[Tensor], Tensor]) -> Callable[[Experiments], Experiments]:
    return lambda data: replace(data, doses=replace(data.doses, **{part: f(getattr(data.doses, part))}))


def feed(part: str, f: Callable[[Tensor], Tensor]) -> Callable[[Experiments], Experiments]:
    def change(data: Experiments) -> Experiments:
        held = data.inputs["feed"]
        return replace(data, inputs=Signals({"feed": replace(held, **{part: f(getattr(held, part))})}))

    return change


def put(e: int, n: int, value: float) -> Callable[[Tensor], Tensor]:
    def f(tensor: Tensor) -> Tensor:
        out = tensor.clone()
        out[e, n] = value
        return out

    return f


ALL = {"simulate", "score", "tokens", "potential"}
SEEN = {"score", "tokens", "potential"}  # what was seen says nothing about what another look would see
CHANGES: dict[str, tuple[Callable[[Experiments], Experiments], set[str]]] = {
    "condition": (lambda d: replace(d, conditions={"C0": d["C0"] * 1.1}), ALL),
    "time of a look": (lambda d: replace(d, times=put(0, 0, 0.7)(d.times)), ALL),
    "look after a dose": (lambda d: replace(d, after_dose=put(0, 2, False)(d.after_dose)), ALL),
    "missing look": (channel(mask=put(0, 3, False)), ALL),
    "sd": (channel(sd=put(0, 3, 0.3)), ALL),
    "covariate": (channel(columns=lambda c: {"depth": put(0, 3, 0.9)(c["depth"])}), ALL),
    "value": (channel(values=put(0, 3, 1.77)), SEEN),
    "limit of a censored value": (channel(values=put(0, 5, 0.8)), SEEN),
    "kind of censoring": (channel(censoring=put(0, 5, RIGHT)), SEEN),
    "end of an interval": (channel(upper=put(1, 0, 2.4)), ALL),
    "limit of detection below": (channel(lowest=lambda v: v + 0.3), {"simulate"}),
    "limit of detection above": (channel(highest=lambda v: v - 1.2), {"simulate"}),
    "dose time": (dose("time", put(0, 0, 0.8)), ALL),
    "dose amount": (dose("amount", put(0, 0, 1.3)), ALL),
    "dose duration": (dose("duration", put(0, 0, 0.4)), ALL),
    "dose target": (dose("target", put(0, 0, 1)), ALL),
    "dose missing": (dose("mask", put(1, 1, False)), ALL),
    "amount of an event": (dose("amount", put(1, 0, 0.9)), ALL),
    "input value": (feed("value", put(1, 0, 0.9)), ALL),
    "input time": (feed("time", put(0, 1, 2.2)), ALL),
    "input linear": (feed("linear", lambda _: True), {"simulate", "score", "potential"}),  # one per design
    "input missing from a breakpoint on": (feed("mask", put(0, 1, False)), ALL),
}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(everything, Design.like(record()))


@pytest.fixture(scope="module")
def stages(model: Model) -> dict[str, Callable[[Experiments], Tensor]]:
    z = torch.full((1, model.z_size()), 0.3, dtype=torch.float64)
    drawn = model.simulate(200, seed=1).experiments
    scaling = scaling_of(model.channels, model.design, drawn)
    torch.manual_seed(0)
    networks = Networks(Architecture(8, 4, transforms=1, hidden=8), scaling, Layout.of(model))

    def simulate(data: Experiments) -> Tensor:
        made = model.simulate_at(z, data.expand((1,)), seed=3).experiments.channels["C"]
        assert made.values is not None
        assert made.censoring is not None
        return torch.cat([torch.where(made.mask, v, 0.0).flatten() for v in (made.values, made.censoring)])

    def read(data: Experiments) -> Tensor:
        with torch.no_grad():
            return networks.read(tokens(data, scaling)).each.flatten()

    return {
        "simulate": simulate,
        "score": lambda data: model.log_joint(z[:, None], data),
        "tokens": read,
        "potential": lambda data: Potential(model, data)(z[0]),
    }


@pytest.fixture(scope="module")
def before(stages: Mapping[str, Callable[[Experiments], Tensor]]) -> dict[str, Tensor]:
    return {stage: run(record()) for stage, run in stages.items()}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_record_holds_reaches_every_stage(
    name: str, stages: Mapping[str, Callable[[Experiments], Tensor]], before: Mapping[str, Tensor]
) -> None:
    change, felt = CHANGES[name]
    for stage, run in stages.items():
        same = torch.allclose(before[stage], run(change(record())), rtol=1e-6, atol=1e-7)
        assert same == (stage not in felt), f"{name} {'does not reach' if same else 'reaches'} {stage}"


def test_the_design_of_a_record_holds_all_of_it_and_comes_back_from_a_file() -> None:
    data = record()
    design = Design.like(data)
    assert design.outside(data) == []
    assert Design.from_json(json.loads(json.dumps(design.to_json()))) == design
    words = design.words()
    limits = ("lower limit of detection 0.9", "upper limit of detection 2.5")
    for part in ("sd 0.1", "depth 0.06", *limits, "C0", "dose into C", "dilute", "input feed"):
        assert part in words
    drawn = design.draw(300, seed=0)
    for k in range(40):
        one = drawn.at(k)
        assert design.outside(one.with_values({"C": one.times})) == []
    look = drawn.channels["C"]
    assert look.lowest is not None
    assert {float(v) for v in look.lowest.unique()} > {-torch.inf}
    assert 0.05 < float(drawn.after_dose.double().mean()) < 0.6
    assert drawn.inputs["feed"].value.shape[-1] == 3  # the breakpoints of both signals


OUTSIDE = {
    "condition 'C0' is 3 to 6, the design spans 1 to 2": lambda d: replace(d, conditions={"C0": 3 * d["C0"]}),
    "measured at 9, the design ends at 4.25": lambda d: replace(d, times=put(1, 5, 9.0)(d.times)),
    "the sd of channel 'C' is 0.1 to 0.3, the design has 0.1": channel(sd=put(0, 3, 0.3)),
    "the column 'depth' of channel 'C' is 0.1 to 2, the design spans 0.1 to 0.5": channel(
        columns=lambda c: {"depth": put(0, 3, 2.0)(c["depth"])}
    ),
    "lower limit of detection of channel 'C' is 0.5, the design has 0.9": channel(lowest=lambda v: v - 0.4),
    "upper limit of detection of channel 'C' is 2, the design has 2.5": channel(highest=lambda v: v - 0.5),
    "the time of a dose into 'C' is 0.2 to 3, the design spans 1 to 3": dose("time", put(0, 0, 0.2)),
    "the amount of a dose into 'C' is 0.8 to 7, the design spans 0.8 to 1": dose("amount", put(0, 0, 7.0)),
    "the duration of a dose into 'C' is 0 to 0.7, the design spans 0 to 0.5": dose("duration", put(1, 1, 0.7)),
    "input 'feed' is 5 at 2.5, the design spans 0.1 to 0.6 there": feed("value", put(1, 1, 5.0)),
    "input 'feed' is linear, the design's is not": feed("linear", lambda _: True),
    "input 'air' is not in the design": lambda d: replace(
        d, inputs=Signals({**d.inputs, "air": d.inputs["feed"]})
    ),
    "condition 'pH' is not in the design": lambda d: replace(d, conditions={**d.conditions, "pH": d["C0"]}),
}


@pytest.mark.parametrize("words", OUTSIDE)
def test_what_leaves_the_design_is_named_with_its_range(words: str) -> None:
    design = Design.like(record(), widen=0.0)
    found = design.outside(OUTSIDE[words](record()))
    assert any(words in sentence for sentence in found), found


def test_inputs_of_a_bank_are_interpolated_between_their_breakpoints(model: Model) -> None:
    """What the bank answers is what the solver gives, at fresh times and for every signal."""
    stored = build(model, 50, seed=2, show=False).window(0, 0)
    looks = model.design.draw_looks(stored.protocols, seed=3)
    by_bank = model.simulate_at(stored.z, looks, seed=4, solver=stored.rows(torch.arange(len(stored))))
    exact = model.simulate_at(stored.z, looks, seed=4)
    mine, theirs = (s.experiments.channels["C"].values for s in (by_bank, exact))
    assert mine is not None
    assert theirs is not None
    mask = looks.channels["C"].mask
    torch.testing.assert_close(mine[mask], theirs[mask], rtol=1e-4, atol=1e-4)


def test_one_data_set_of_several_has_no_padding() -> None:
    small = Experiments.on([[0.0, 1.0]], ["C"], {"C0": [1.0]}, names=["only"])
    small = small.with_values({"C": small.times})
    big = record()
    with pytest.raises(ExperimentError, match=r"some data sets have 'sd' .* in every row or in none"):
        stack([small, big])
    beside = {"sd": small.times + 1, "columns": {"depth": small.times}}
    one, two = stack([channel(**{k: lambda _, v=v: v for k, v in beside.items()})(small), big]).split()  # type: ignore[misc]
    assert one.names == (("only",),)
    assert one.times.shape == (1, 2)
    assert one.doses.time.shape == (1, 0)
    assert torch.equal(two.times, big.times)
    assert torch.equal(two.doses.amount, big.doses.amount)
    assert torch.equal(two.inputs["feed"].value, big.inputs["feed"].value)
    with pytest.raises(ExperimentError, match=r"names are .*, expected 2 different ones"):
        Experiments.on(TIMES, ["C"], names=["a", "a"])


def test_an_ode_that_reads_no_parameter_is_reported_too() -> None:
    def known(experiments: Experiments) -> None:
        sigma = pyro.sample("sigma", between(0.05, 0.2))
        y = odeint(fed, {"C": experiments["C0"]}, {"k": 0.5, "feed": 0.1}, experiments)
        observe("C", dist.Normal(y.C, sigma), experiments)

    looks = Experiments.on([[0.0, 1.0, 2.0]], ["C"], {"C0": [1.0]})
    data = looks.with_values({"C": torch.tensor([[1.0, 0.7, 0.5]]).double()})
    model = Model(known, Design.like(data))
    reported = report(model, data, torch.zeros(50, 1, dtype=torch.float64), seed=0)
    assert reported.predicted["C"].shape == (50, 1, 3)
    assert bool(torch.isfinite(reported.predicted["C"]).all())


def test_parameters_per_experiment_take_any_number_of_experiments() -> None:
    """Their density is one for all experiments: two to four in training, three in the data, in any order."""

    def grown(experiments: Experiments) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with experiments.plate():
            own = pyro.sample("own", dist.Normal(mean, 0.5))
        observe("C", dist.Normal(own + 0 * experiments.times, 0.3), experiments)

    look = Looks((0.0, 1.0, 2.0), (2, 4))
    model = Model(grown, Design({"C": look}, {}, (2, 4), horizon=2.5))
    small = Architecture(width=32, context=16, transforms=2, hidden=24)
    settings = Settings(simulations=2_000, schedule=Schedule(steps=400), batch=128, architecture=small)
    estimator = train(model, settings, seed=0, progress=False)
    looks = Experiments.on([[0.0, 1.0, 2.0]] * 3, ["C"], names=["a", "b", "c"])
    values = torch.tensor([[0.9, 1.1, 1.0], [0.1, -0.1, 0.0], [2.0, 2.2, 1.8]]).double()
    data = looks.with_values({"C": values})
    z = estimator.sample(estimator.reading(model, data), 4_000, seed=1)
    own = model.parameters(z, data)["own"][:, 0]
    # closed form: a conjugate hierarchy with known spreads, 3 values of sd 0.3 each
    weight = 0.5**2 / (0.5**2 + 0.3**2 / 3)
    spread = 0.5**2 + 0.3**2 / 3
    mean = float(values.mean(1).sum() / spread / (1 + 3 / spread))
    exact = weight * values.mean(1) + (1 - weight) * mean
    assert float((own.mean(0) - exact).abs().max()) < 0.1
    result = infer(model, data, estimator, budget=Budget(effective_size=1_000), progress=False)
    assert result["fit/computation"].item() in {"trusted", "corrected"}
    found = torch.tensor(result["posterior/own"].mean(("chain", "draw")).values)
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0)
    assert list(result["posterior/own"]["experiment"].values) == ["a", "b", "c"]
    swapped = data.map(lambda tensor: tensor.flip(0))
    back = estimator.log_density(z[..., [0, 3, 2, 1]], estimator.reading(model, swapped))
    torch.testing.assert_close(
        back, estimator.log_density(z, estimator.reading(model, data)), atol=1e-4, rtol=1e-4
    )
