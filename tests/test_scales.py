"""Units by trial: each quantity scaled alone, and densities of the data as they are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import Design, Doses, Experiments, Input, Model, between, check, observe, odeint
from ampost.experiments import LEFT
from ampost.scales import Scaled, candidates, counted, suspect


def fed(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"C": p.F - p.k * y.C}


def dosed(experiments: Experiments) -> None:
    k = pyro.sample("k", between(0.1, 1.0))
    start = {"C": experiments["C0"]}
    y = odeint(fed, start, {"k": k, "F": experiments.inputs["F"]}, experiments)
    observe("C", dist.Normal(y.C, 0.02), experiments)


@pytest.fixture(scope="module")
def data() -> Experiments:
    doses = Doses.at([2.0], [3.0], target="C")
    signal = Input.at([0.0, 4.0], [0.5, 1.5])
    at = Experiments.on(
        [[0.5, 1.0, 2.5, 3.0, 4.5, 6.0, 7.0]], ["C"], {"C0": [1.0]}, doses=doses, inputs={"F": signal}
    )
    model = Model(dosed, Design.like(at.with_values({"C": torch.ones(1, 7)})))
    return model.simulate(1, 0, at).experiments.at(0)


def named(data: Experiments, name: str, factor: float) -> Scaled:
    return next(c for c in candidates(data) if c.name == name and c.factor == pytest.approx(factor))


def test_each_candidate_changes_its_quantity_alone(data: Experiments) -> None:
    names = {(c.name, c.whose) for c in candidates(data)}
    assert names == {("C", "data"), ("C0", "values"), ("C", "doses"), ("F", "values"), ("time", "times")}
    later = named(data, "time", 60.0).record
    assert torch.equal(later.times, 60 * data.times)
    assert later.doses.time.tolist() == [[120.0]]
    assert later.inputs["F"].time.tolist() == [[0.0, 240.0]]
    assert torch.equal(later.doses.amount, data.doses.amount)
    assert named(data, "F", 1e-3).record.inputs["F"].value.tolist() == [[0.0005, 0.0015]]
    assert named(data, "C0", 1e3).record["C0"].item() == 1000.0
    amounts = [c for c in candidates(data) if c.whose == "doses"]
    assert [float(c.record.doses.amount) for c in amounts] == [3000.0, 0.003]
    values = named(data, "C", 1e3).record.channels["C"].values
    assert values is not None
    assert data.channels["C"].values is not None
    torch.testing.assert_close(values, 1000 * data.channels["C"].values)


def test_counts_are_not_scaled_but_values_that_happen_to_be_whole_are(data: Experiments) -> None:
    """Millimolar values in micromolar are whole numbers; counts are told by their noise."""

    def both(experiments: Experiments) -> None:
        rate = pyro.sample("rate", between(5.0, 50.0))
        observe("N", dist.Poisson(rate + 0 * experiments.times), experiments)
        observe("C", dist.Normal(rate + 0 * experiments.times, 1.0), experiments)

    looks = Experiments.on([[0.0, 1.0, 2.0]], ["N", "C"])
    whole = torch.tensor([[12.0, 9.0, 14.0]]).double()
    record = looks.with_values({"N": whole, "C": 1000 * whole})
    model = Model(both, Design.like(record))
    assert counted(model, record, seed=0) == {"N"}
    assert {c.name for c in candidates(record, {"N"}) if c.whose == "data"} == {"C"}
    found = suspect(model, record, conspicuous=True, seconds=5.0, seed=0)
    assert found is not None
    assert (found.name, found.whose) == ("C", "data")
    assert found.factor == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("name", "whose", "factor"),
    [
        ("C0", "values", 1e3),
        ("F", "values", 1e3),
        ("C", "doses", 1e3),
        ("C", "data", 1e3),
        ("time", "times", 1e3),
    ],
)
def test_the_quantity_that_was_scaled_is_found(data: Experiments, name: str, whose: str, factor: float) -> None:
    wrong = next(c for c in candidates(data) if (c.name, c.whose, c.factor) == (name, whose, factor)).record
    model = Model(dosed, Design.like(wrong))
    found = suspect(model, wrong, True, 20.0, seed=0)
    assert found is not None
    assert (found.name, found.whose) == (name, whose)
    assert found.factor < 0.1
    assert found.gain > 20


def test_two_quantities_that_cannot_be_told_apart_are_both_named() -> None:
    """Where the noise is a share of the value, only the ratio of a start and what is measured of it counts."""

    def ratio(experiments: Experiments) -> None:
        k = pyro.sample("k", dist.LogNormal(-1.0, 0.3))
        left = experiments["C0"] * (-k * experiments.times).exp()
        observe("C", dist.LogNormal(left.log(), 0.05), experiments)

    looks = Experiments.on([[0.0, 1.0, 2.0, 4.0]], ["C"], {"C0": [1.0]})
    right = torch.tensor([[1.02, 0.65, 0.46, 0.20]]).double()
    units = {"C": "mM", "C0": "mM"}
    wrong = looks.with_values({"C": 1000 * right})
    found = check(Model(ratio, Design.like(wrong), units), wrong).concerns
    assert found[0].startswith("C0 or C: the model explains the data far better")
    assert "the data of C divided by about 1,000 (the model takes mM; numbers in uM are 1,000" in found[0]
    assert found[0].endswith("these data cannot tell which: check the units of C0 and C.")
    assert not any("check the unit of C " in said for said in found[1:])
    good = looks.with_values({"C": right})
    assert not any("unit" in said for said in check(Model(ratio, Design.like(good), units), good).concerns)


def test_right_units_are_left_alone(data: Experiments) -> None:
    model = Model(dosed, Design.like(data))
    assert suspect(model, data, False, 20.0, seed=0) is None
    assert suspect(model, data, True, 20.0, seed=0) is None


def test_no_time_means_no_trial(data: Experiments) -> None:
    wrong = named(data, "C0", 1e3).record
    assert suspect(Model(dosed, Design.like(wrong)), wrong, True, 0.0, seed=0) is None


def test_the_density_is_that_of_the_data_as_they_are() -> None:
    """Scaling data and model's scale together changes nothing: the Jacobian cancels the density's factor."""

    def wide(experiments: Experiments) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        observe("C", dist.Normal(level + 0 * experiments.times, 1e3), experiments)

    values = 1000.0 + torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).double()
    censored = torch.tensor([[0, 0, 0, 0, LEFT, 0, 0, 0]])
    at = Experiments.on([[float(k) for k in range(8)]], ["C"]).with_values({"C": values})
    at = replace(at, channels={"C": replace(at.channels["C"], censoring=censored)})
    # the noise is 1,000 wide: values of 1,000 are fine, and a thousandth of them only seems to fit better
    assert suspect(Model(wide, Design.like(at)), at, True, 20.0, seed=0) is None
