"""Units: texts that people write, their meaning, and records converted to the units of a model."""

from dataclasses import replace

import pytest
import torch

from ampost.design import Design
from ampost.errors import UnitError
from ampost.experiments import Channel, Doses, Experiments, Input
from ampost.units import assumed, converted, converted_design, meaning, refuse_meaningless, scale

PAIRS = [
    ("mg/l", "g/L", 1e-3, 0.0),
    ("µM", "mM", 1e-3, 0.0),  # the micro sign
    ("μM", "mM", 1e-3, 0.0),  # the Greek letter
    ("uM", "nM", 1e3, 0.0),
    ("hours", "h", 1.0, 0.0),
    ("min", "h", 1 / 60, 0.0),
    ("h^-1", "1/h", 1.0, 0.0),
    ("h⁻¹", "1/min", 1 / 60, 0.0),
    ("h−1", "/h", 1.0, 0.0),
    ("g L-1 h-1", "g/(L h)", 1.0, 0.0),
    ("cm3", "mL", 1.0, 0.0),
    ("°C", "K", 1.0, 273.15),
    ("degC", "degF", 1.8, 32.0),
    ("°C/h", "K/min", 1 / 60, 0.0),
    ("%", "1", 0.01, 0.0),
    ("-", "", 1.0, 0.0),
    ("% of saturation", "%", 1.0, 0.0),
    ("% (w/v)", "g/L", 10.0, 0.0),
    ("OD600", "OD", 1.0, 0.0),
    ("10^6 cells/mL", "cells/mL", 1e6, 0.0),
    ("10⁶ cells/mL", "cells/uL", 1e3, 0.0),
    ("cells/100 mL", "cells/mL", 0.01, 0.0),
    ("CFU/mL", "CFU/L", 1e3, 0.0),
    ("1000 pelts", "pelts", 1e3, 0.0),
    ("people", "persons", 1.0, 0.0),
    ("number of flies", "number of flies", 1.0, 0.0),
    ("mmol/gDW/h", "mmol/g/h", 1.0, 0.0),
    ("C-mmol/L", "Cmol/L", 1e-3, 0.0),
    ("mMol/Liter", "mM", 1.0, 0.0),
    ("mmol/Liter", "mM", 1.0, 0.0),
    ("mMol", "mol", 1e-3, 0.0),
    ("µMol/mL", "Mol/L", 1e-3, 0.0),
    ("MOL/Litre", "M", 1.0, 0.0),
    ("C-mMol/L", "Cmol/L", 1e-3, 0.0),
    ("mLiter", "Liters", 1e-3, 0.0),
    ("Min", "s", 60.0, 0.0),
    ("mg/kg", "ug/g", 1.0, 0.0),
    ("L/h/kg", "mL/min/kg", 1000 / 60, 0.0),
    ("IU/mL", "IU/L", 1e3, 0.0),
    ("U/mL", "U/L", 1e3, 0.0),
    ("counts", "count", 1.0, 0.0),
    ("rpm", "rpm", 1.0, 0.0),
]
APART = [("pH", "pH H"), ("cells", "CFU"), ("counts", "1"), ("OD", "1"), ("OD", "OD540"), ("C", "°C")]


def record() -> Experiments:
    """Everything that can have a unit, in a record of two experiments."""
    plain = Experiments.on(
        [[0.0, 30.0, 60.0], [0.0, 45.0, 90.0]],
        ["P"],
        {"S0": [100.0, 200.0], "T": [20.0, 37.0]},
        Doses(
            *(torch.tensor([[15.0, 20.0]] * 2, dtype=torch.float64), torch.tensor([[5.0, 7.0]] * 2).double()),
            *(torch.tensor([[6.0, 0.0]] * 2).double(), torch.tensor([[0, 1]] * 2)),
            *(torch.ones(2, 2, dtype=torch.bool), ("S", "pulse")),
        ),
        {"feed": Input.at([[0.0, 30.0]] * 2, [[1.0, 2.0]] * 2)},
    )
    values = torch.tensor([[100.0, 200.0, 300.0], [400.0, 500.0, 600.0]], dtype=torch.float64)
    channel = Channel(
        mask=torch.ones(2, 3, dtype=torch.bool),
        values=values,
        sd=values / 10,
        censoring=torch.full((2, 3), 3),
        upper=values + 50,
        columns={"stirring": values},
        lowest=torch.full((2, 3), -torch.inf, dtype=torch.float64),
        highest=values + 1000,
        width=torch.full((2, 3), 50.0, dtype=torch.float64),
    )
    units = {"time": "min", "P": "mg/L", "S0": "uM", "T": "°C", "stirring": "rpm", "feed": "mL/h"}
    return replace(
        plain, channels={"P": channel}, start=-30.0, units=units | {"dose S": "umol/L", "dose pulse": "mL"}
    )


TO = {
    "time": "h",
    "P": "g/L",
    "S0": "mM",
    "T": "K",
    "stirring": "1/s",
    "feed": "L/h",
    "S": "mM",
    "pulse": "L",
    "vmax": "mM/h",
}


@pytest.mark.parametrize(("given", "wanted", "factor", "offset"), PAIRS)
def test_what_people_write_is_understood_and_converted(
    given: str, wanted: str, factor: float, offset: float
) -> None:
    assert scale(given, wanted) == (pytest.approx(factor, rel=1e-14), pytest.approx(offset, rel=1e-12))


@pytest.mark.parametrize("unit", ["mg/Ll", "foo", "hourz", "g/(L", "1/0", "OD540", "g5", "mg L substrate"])
def test_a_unit_without_meaning_is_refused_with_its_name_and_the_fix(unit: str) -> None:
    with pytest.raises(UnitError, match="has no meaning") as refused:
        refuse_meaningless({"time": "h", "P": unit})
    assert f"the unit of 'P' is {unit!r}" in str(refused.value)
    assert "number of flies" in str(refused.value)


@pytest.mark.parametrize(
    ("unit", "guess"), [("mg/Ll", "'mg/L'"), ("hourz", "'hours'"), ("cels/ml", "'cells/mL'")]
)
def test_a_misspelt_unit_is_answered_with_near_ones(unit: str, guess: str) -> None:
    with pytest.raises(UnitError, match="did you mean") as refused:
        meaning(unit)
    assert guess in str(refused.value)


@pytest.mark.parametrize("unit", ["log10(CFU/mL)", "ln g/L", "log CFU"])
def test_a_logarithm_is_refused(unit: str) -> None:
    with pytest.raises(UnitError, match="logarithm"):
        meaning(unit, "N")


def test_a_factor_that_is_not_above_zero_is_refused() -> None:
    with pytest.raises(UnitError, match="a factor of 0"):
        meaning("0 g")


@pytest.mark.parametrize(("given", "wanted"), APART)
def test_things_of_another_kind_are_never_taken_for_each_other(given: str, wanted: str) -> None:
    with pytest.raises(UnitError):
        scale(given, wanted)


def test_ph_is_not_the_picohenry_of_si() -> None:
    with pytest.raises(UnitError, match="different dimensions"):
        scale("pH", "H")


def test_mass_against_amount_names_the_molar_mass_and_a_false_friend_its_meaning() -> None:
    with pytest.raises(UnitError, match=r"'P' is in 'g/L' .* 'mM' .* molar mass .* convert the column"):
        scale("g/L", "mM", "P")
    with pytest.raises(UnitError, match="'C' is coulomb, write '°C'"):
        scale("C", "°C", "T")


def test_every_part_of_a_record_is_converted() -> None:
    before, after = record(), converted(record(), TO)
    was, now = before.channels["P"], after.channels["P"]
    assert torch.allclose(after.times, before.times / 60)
    assert after.start == pytest.approx(-0.5)
    for name in ("values", "sd", "upper", "highest", "width"):
        assert torch.allclose(getattr(now, name), getattr(was, name) / 1000), name
    assert now.lowest is not None
    assert bool((now.lowest == -torch.inf).all())
    assert torch.equal(now.mask, was.mask)
    assert torch.allclose(now.columns["stirring"], was.columns["stirring"] / 60)
    assert after.conditions["S0"].flatten().tolist() == pytest.approx([0.1, 0.2])
    assert after.conditions["T"].flatten().tolist() == pytest.approx([293.15, 310.15])
    assert torch.allclose(after.doses.time, before.doses.time / 60)
    assert torch.allclose(after.doses.duration, before.doses.duration / 60)
    assert after.doses.amount[0].tolist() == pytest.approx([0.005, 0.007])
    assert torch.allclose(after.inputs["feed"].time, before.inputs["feed"].time / 60)
    assert after.inputs["feed"].value[0].tolist() == pytest.approx([0.001, 0.002])
    wanted = {**{k: v for k, v in TO.items() if k in before.units}, "dose S": "mM", "dose pulse": "L"}
    assert after.units == wanted


def test_a_batch_of_data_sets_is_converted_as_each_of_them_is() -> None:
    together = converted(record().expand((3,)), TO)
    alone = converted(record(), TO)
    assert torch.equal(together.at(1).doses.amount, alone.doses.amount)
    assert torch.equal(together.at(1).times, alone.times)


def test_a_standard_deviation_has_no_zero_to_move() -> None:
    warm = replace(record(), units={"P": "°C"})
    after = converted(warm, {"P": "K"}).channels["P"]
    assert after.values is not None
    assert after.sd is not None
    assert float(after.values[0, 0]) == pytest.approx(373.15)
    assert float(after.sd[0, 0]) == pytest.approx(10.0)
    assert after.width is not None
    assert float(after.width[0, 0]) == pytest.approx(50.0)


def test_equal_texts_leave_every_number_as_it_is() -> None:
    data = record()
    mine = {("S" if k == "dose S" else k.removeprefix("dose ")): v for k, v in data.units.items()}
    same = converted(data, mine)
    assert same.times is data.times
    assert same.channels["P"].values is data.channels["P"].values
    assert same.doses.amount is data.doses.amount
    assert same.inputs["feed"].value is data.inputs["feed"].value
    assert converted(converted(data, TO), TO).times.tolist() == converted(data, TO).times.tolist()


def test_what_has_no_unit_in_the_data_is_the_models_and_is_listed() -> None:
    data = replace(record(), units={"time": "min", "P": "g/L"})
    after = converted(data, TO)
    assert after.channels["P"].values is data.channels["P"].values
    assert after.conditions["T"] is data.conditions["T"]
    assert after.units["T"] == "K"
    assert assumed(data, TO) == ["S0", "T", "stirring", "feed", "dose S", "dose pulse"]
    assert assumed(after, TO) == []


def test_a_unit_in_the_data_that_the_model_does_not_state_is_refused() -> None:
    for name, units in (("P", {"time": "h"}), ("time", {})):
        with pytest.raises(UnitError, match=rf"model gives no unit for '{name}'.*Model\(units"):
            converted(replace(record(), units={"time": "min", "P": "g/L"}), units)
    with pytest.raises(UnitError, match=r"'dose S' in 'umol/L', but the model gives no unit for 'S'"):
        converted(record(), {k: v for k, v in TO.items() if k != "S"})


def test_a_condition_whose_name_begins_with_dose_keeps_its_name() -> None:
    plain = Experiments.on([[0.0]], ["P"], {"dose rate": [3.0]})
    data = replace(plain, units={"dose rate": "mg/h"})
    assert converted(data, {"dose rate": "g/h"})["dose rate"].item() == pytest.approx(0.003)


def test_amounts_on_scales_with_other_zeros_are_refused() -> None:
    data = replace(record(), units={"dose S": "°C"})
    with pytest.raises(UnitError, match="a level or a difference"):
        converted(data, {"S": "K"})


def test_a_meaningless_unit_of_the_data_or_the_model_is_named() -> None:
    with pytest.raises(UnitError, match="unit of 'P' is 'florps'"):
        converted(replace(record(), units={"P": "florps"}), {"P": "g/L"})
    with pytest.raises(UnitError, match="unit of 'vmax' is 'florps'"):
        converted(record(), TO | {"vmax": "florps"})


def test_the_design_around_data_is_converted_as_the_data_are() -> None:
    after = converted_design(Design.like(record()), TO)
    like = Design.like(converted(record(), TO))
    assert after.units == like.units
    assert after.horizon == pytest.approx(like.horizon)
    assert after.conditions["S0"] == pytest.approx(like.conditions["S0"])
    assert after.channels["P"].times == pytest.approx(like.channels["P"].times)
    assert [plan.amount for plan in after.doses] == [pytest.approx(plan.amount) for plan in like.doses]


def test_a_design_keeps_units_that_the_model_does_not_state() -> None:
    design = Design.like(replace(record(), units={"P": "mg/L", "T": "°C"}))
    after = converted_design(design, {"P": "g/L"})
    assert after.units == {"P": "g/L", "T": "°C"}
    assert after.conditions == design.conditions
