"""Designs: what is drawn agrees with the likelihood, data lie inside their own design, doses keep order."""

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest

from ampost import (
    Design,
    DosePlan,
    Doses,
    Experiments,
    Input,
    Looks,
    Model,
    between,
    infer,
    observe,
    odeint,
    train,
)
from ampost.alarms import alarms
from ampost.bank import build
from ampost.calibration import inside_band
from ampost.errors import DesignError, ExperimentError, TrainingError
from ampost.inference import Settings
from ampost.mcmc import smc
from ampost.plans import dose_numbers
from ampost.stacking import stack
from ampost.tokens import scaling_of, tokens
from ampost.training import Schedule

TIMES = tuple(float(k) for k in range(6))


def level(experiments: Experiments) -> None:
    """A level, seen six times with a known error."""
    mean = pyro.sample("mean", dist.Normal(1.0, 1.0))
    observe("C", dist.Normal(mean + 0 * experiments.times, 1.0), experiments)


def counted(experiments: Experiments) -> None:
    rate = pyro.sample("rate", between(2.0, 12.0))
    observe("C", dist.Poisson(rate + 0 * experiments.times), experiments)


@pytest.mark.parametrize("program", [level, counted])
@pytest.mark.parametrize(
    "look",
    [
        Looks(TIMES, (2, 6), lowest=(0.5, 2.0)),
        Looks(TIMES, (2, 6), highest=(3.0, 6.0)),
        Looks(TIMES, (2, 6), width=(1.0, 4.5), intervals=1.0),
        Looks(TIMES, (2, 6), width=(1.0, 4.5), intervals=0.5, lowest=(0.0, 3.0), highest=(3.0, 9.0)),
    ],
    ids=["below", "above", "intervals", "all"],
)
def test_what_is_reported_agrees_with_its_likelihood(program: Any, look: Looks) -> None:
    """Exact posteriors on a grid: the true parameter falls anywhere in them, whatever was hidden."""
    model = Model(program, Design({"C": look}, {}, (1, 1), horizon=5.5))
    drawn = model.simulate(1_000, seed=1)
    grid = torch.linspace(-5.5, 5.5, 301, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        joint = model.log_joint(grid.expand(-1, 1_000, 1), drawn.experiments)
    mass = torch.softmax(joint, 0)
    below = (mass * (grid[..., 0] < drawn.z[None, :, 0])).sum(0)
    assert bool(torch.isfinite(joint.max(0).values).all())
    assert kstest(below.numpy(), "uniform").pvalue > 1e-3
    assert inside_band(below, 0.01)


def dosed(targets: list[list[int]], names: tuple[str, ...] = ("depot", "central")) -> Experiments:
    """One experiment per list of targets, a dose at each whole time."""
    width = max(len(t) for t in targets)
    mask = torch.tensor([[n < len(t) for n in range(width)] for t in targets])
    code = torch.tensor([[*t, *[0] * (width - len(t))] for t in targets])
    time = torch.arange(width).double().expand(len(targets), width)
    doses = Doses(time, torch.ones_like(time), torch.zeros_like(time), code, mask, names)
    looks = Experiments.on([[0.5, 9.0]] * len(targets), ["C"], doses=doses)
    return looks.with_values({"C": looks.times})


@pytest.mark.parametrize(
    "targets",
    [[[0], [1]], [[0, 0], [0]], [[0, 1], [1, 0], [0]], [[0, 0, 1], [0, 1], [1], [0, 0, 0], []]],
    ids=["either", "one more", "orders", "many"],
)
def test_schedules_are_drawn_as_they_occur(targets: list[list[int]]) -> None:
    data = dosed(targets)
    design = Design.like(data)
    assert design.outside(data) == []
    drawn = design.draw_protocols(4_000, seed=0)
    doses = drawn.doses
    code = torch.where(doses.mask, doses.target, -1).reshape(-1, doses.mask.shape[-1])
    names = [doses.targets.index(n) if n in doses.targets else -1 for n in data.doses.targets]
    order = doses.time.reshape(-1, doses.mask.shape[-1]).argsort(dim=-1, stable=True)
    rows = [[names.index(c) for c in row if c >= 0] for row in code.gather(-1, order).tolist()]
    for wanted in targets:
        share = sum(row == wanted for row in rows) / len(rows)
        assert share == pytest.approx(targets.count(wanted) / len(targets), abs=0.03)
    least, most = dose_numbers(design.doses)
    assert (least, most) == (min(map(len, targets)), max(map(len, targets)))


def test_fewer_doses_rows_or_channels_than_ever_drawn_lie_outside() -> None:
    data = dosed([[0, 0], [0, 0]])
    design = Design.like(data)
    fewer = replace(data, doses=replace(data.doses, mask=data.doses.mask & torch.tensor([True, False])))
    assert "1 doses in an experiment, the design has 2" in " ".join(design.outside(fewer))
    blind = replace(data, channels={"C": replace(data.channels["C"], mask=torch.zeros(2, 2).bool())})
    assert "channel 'C' is not measured in some experiment" in " ".join(design.outside(blind))
    late = replace(data, after_dose=torch.ones(2, 2).bool())
    assert "some looks come after a dose" in " ".join(design.outside(late))
    assert "times begin at -1" in " ".join(design.outside(replace(data, times=data.times - 1.5)))
    many = Design({"C": Looks(tuple(map(float, range(100))), (80, 100))}, {}, (2, 2), 100.0, design.doses)
    assert "has 2 times, the design has at least 24" in " ".join(many.outside(data))


def test_a_bank_answers_doses_that_the_program_delays() -> None:
    """Knots stand where the program puts the doses, not where the table has them."""

    def lagged(experiments: Experiments) -> None:
        lag = pyro.sample("lag", dist.Uniform(0.1, 0.9))
        doses = experiments.doses.delayed(lag)
        y = odeint(lambda t, y, p: {"A": -0.3 * y.A}, {"A": 0.0}, {}, experiments, doses=doses)
        observe("A", dist.Normal(y.A, 0.01), experiments)

    plans = tuple(DosePlan("A", (float(k), float(k)), (10.0, 10.0)) for k in range(3))
    design = Design({"A": Looks(tuple(0.1 * k for k in range(40)), (30, 40))}, {}, (1, 1), 4.0, plans)
    model = Model(lagged, design)
    stored = build(model, 200, seed=0, show=False).window(0, 0)
    looks = design.draw_looks(stored.protocols, seed=1)
    both = (
        model.simulate_at(stored.z, looks, 2, solver=solver).experiments.channels["A"]
        for solver in (stored.rows(torch.arange(200)), None)
    )
    mine, theirs = (channel.values[channel.mask] for channel in both if channel.values is not None)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_a_covariate_that_is_constant_in_new_data_is_read_as_one() -> None:
    looks = Experiments.on([[0.0, 1.0, 2.0]], ["C"])
    data = looks.with_values({"C": torch.tensor([[0.9, 1.1, 1.0]]).double()})
    depth = torch.tensor([[0.2, 0.4, 0.6]]).double()
    varied = replace(data, channels={"C": replace(data.channels["C"], columns={"depth": depth})})
    design = Design.like(varied)
    scaling = scaling_of(("C",), design, varied)
    constant = replace(data, conditions={"depth": torch.tensor([[0.4]]).double()})
    column = replace(varied, channels={"C": replace(varied.channels["C"], columns={"depth": 0 * depth + 0.4})})
    assert design.outside(constant) == []
    torch.testing.assert_close(tokens(constant, scaling)[0], tokens(column, scaling)[0])


def test_stacked_inputs_keep_how_they_are_read() -> None:
    looks = Experiments.on([[0.0, 1.0]], ["C"])
    linear = replace(looks, inputs=type(looks.inputs)({"F": Input.at([0.0, 1.0], [1.0, 2.0], linear=True)}))
    assert stack([looks, linear]).inputs["F"].linear
    held = replace(looks, inputs=type(looks.inputs)({"F": Input.at([0.0, 1.0], [1.0, 2.0])}))
    with pytest.raises(ExperimentError, match="'F' is linear in some data sets and held in others"):
        stack([held, linear])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"values": float("inf")}, r"value of channel 'C' is inf at time 1 in experiment '1'"),
    "sd of 0": ({"sd": 0.0}, r"sd of channel 'C' is 0 at time 1 .* above 0"),
    "sd of nan": ({"sd": float("nan")}, r"sd of channel 'C' is nan"),
    "code": ({"censoring": 7}, r"censoring of channel 'C' is 7 .* expected 0 to 3 \(none, left"),
    "interval": ({"censoring": 3}, r"upper end of an interval of channel 'C' is nan"),
    "column": ({"columns": float("nan")}, r"column 'depth' of channel 'C' is nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_that_no_noise_can_score_are_named(name: str) -> None:
    looks = Experiments.on([[0.0, 1.0, 2.0]], ["C"])
    data = looks.with_values({"C": torch.ones(1, 3).double()})
    model = Model(level, Design.like(data))
    ((part, value),), words = BAD[name][0].items(), BAD[name][1]
    code = part == "censoring"
    column = torch.zeros(1, 3).long() if code else torch.ones(1, 3).double()
    column[0, 1] = value
    changed: Any = {"depth": column} if part == "columns" else column
    with pytest.raises(ExperimentError, match=words):
        model.prepare(replace(data, channels={"C": replace(data.channels["C"], **{part: changed})}))
    with pytest.raises(ExperimentError, match="time is nan"):
        model.prepare(replace(data, times=data.times * torch.nan))


def test_constructors_name_what_does_not_fit() -> None:
    with pytest.raises(ExperimentError, match=r"amounts have shape \(3,\) and times \(1, 2\)"):
        Doses.at([0.0, 1.0], [1.0, 2.0, 3.0], "A")
    signal = Input.at([0.0, 2.0], [[1.0, 2.0], [3.0, 4.0]])
    assert signal.time.shape == (2, 2)
    with pytest.raises(ExperimentError, match="condition 'S0' has 3 values for 2 experiment"):
        Experiments.on([[0.0], [1.0]], ["P"], {"S0": [1.0, 2.0, 3.0]})
    with pytest.raises(ExperimentError, match="the text 'PX', expected a list"):
        Experiments.on([[0.0]], "PX")
    with pytest.raises(ExperimentError, match="values of channel 'P' are none"):
        Experiments.on([[0.0]], ["P"]).with_values({})


def test_data_that_no_parameters_explain_are_failed_by_infer_and_never_consistent() -> None:
    def short(experiments: Experiments) -> None:
        mean = pyro.sample("mean", dist.Uniform(0.0, 1.0))
        observe("C", dist.Uniform(0 * experiments.times, mean + 0 * experiments.times), experiments)

    looks = Experiments.on([[0.0, 1.0]], ["C"])
    model = Model(short, Design({"C": Looks((0.0, 1.0), (1, 2))}, {}, (1, 1), 1.5))
    estimator = train(
        model, Settings(1_200, Schedule(steps=60), batch=64, refining=None), seed=0, progress=False
    )
    data = looks.with_values({"C": torch.tensor([[0.3, 0.5]]).double()})
    far = replace(data, channels={"C": replace(data.channels["C"], values=torch.tensor([[0.3, 5.0]]).double())})
    model_of_far = replace(model, design=Design.like(far))
    with pytest.raises(ExperimentError, match=r"value 5 at time 1 .* outside the support of its noise Uniform"):
        infer(model_of_far, far, estimator, progress=False)
    z = torch.zeros(2, dtype=torch.float64)[: model.z_size(1)]
    found = alarms(model, far, z, estimator, seed=0)
    assert found.misfit
    assert "does not explain C" in str(found)
    nothing = smc(torch.zeros(50, 1, 2).double(), lambda z: (z.sum(-1), z.sum(-1) - torch.inf), seed=0)
    assert not nothing.complete
    assert nothing.stages == 0


def planned(**other: Any) -> Design:
    """A design with looks at times 1 and 2, changed by `other`."""
    chosen: dict[str, Any] = {"experiments": (1, 1), "horizon": 2.0, **other}
    return Design(channels={"C": Looks((1.0, 2.0), (1, 2))}, conditions={}, **chosen)


def test_noise_that_is_never_finite_is_told_before_training() -> None:
    def program(experiments: Experiments) -> None:
        k = pyro.sample("k", dist.LogNormal(0.0, 1.0))
        observe("C", dist.Normal(k * 1e300 * 1e300 + 0 * experiments.times, 0.1), experiments)

    settings = Settings(100, Schedule(steps=5), batch=16)
    with pytest.raises(TrainingError, match=r"all 2000 simulated data sets fail: channel 'C' is drawn as inf"):
        train(Model(program, planned()), settings, progress=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DosePlan("A", (0.0, 1.0), (1.0, 2.0), presence=0.5), r"presence=.* is 0.5, expected a range"),
        (lambda: DosePlan("A", (2.0, 1.0), (1.0, 2.0)), r"time=.* is \(2.0, 1.0\), expected a range"),
        (lambda: Looks((), (1, 2)), r"times=\(\)\): expected at least one time"),
        (lambda: Looks((2.0, 1.0), (1, 2)), "in rising order"),
        (
            lambda: planned(horizon=1.5),
            r"'C' is looked at at time 2, outside the design from start=0 to horizon=1.5",
        ),
        (lambda: planned(start=1.2), r"time 1, outside .* move the start, or leave that time out"),
        (lambda: planned(horizon=-1.0), r"start=0, horizon=-1\): expected a horizon"),
        (lambda: planned(horizon=math.inf), r"expected a horizon that is finite"),
        (lambda: planned(experiments=(2, 1)), r"experiments=\(2, 1\)\): expected the least and the largest"),
        (lambda: planned(experiments=(0, 1)), r"at least 1"),
        (lambda: Looks((1.0, 2.0), (1, 2), sd=0.1), r"sd=.* is 0.1, expected a range \(low, high\)"),
    ],
)
def test_a_plan_names_what_is_no_range(make: Any, words: str) -> None:
    with pytest.raises(DesignError, match=words):
        make()
