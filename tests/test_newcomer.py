"""A newcomer's first table, as it left the laboratory: check, infer and predict run without editing it."""

from pathlib import Path

import numpy as np
import pytest

from ampost import (
    Budget,
    Design,
    Experiments,
    Model,
    Refining,
    Schedule,
    Settings,
    check,
    infer,
    predict,
    read_table,
    summary,
)
from ampost.errors import UnitError
from ampost.results import values
from ampost.zoo.michaelis_menten import UNITS, michaelis_menten

# semicolons, decimal commas, units in headers, a blank, a value below a limit, two replicates, a zero at
# t = 0, two wells with different S0; vmax 0.6 mM/min, km 0.8 mM, error 0.03 mM
TABLE = """\
# plate 7, reader 2
Well;Time [min];P [mM];S0 [mM]
A1;0;0;1,5
A1;1;0,36;1,5
A1;1;0,41;1,5
A1;2;0,72;1,5
A1;3;;1,5
A1;4;1,19;1,5
A1;8;1,49;1,5
B1;0;<0,05;3
B1;1;0,47;3
B1;2;0,90;3
B1;4;1,72;3
B1;8;2,70;3
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lab") / "plate.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def data(table: Path) -> Experiments:
    return read_table(table, say=False)


def test_the_account_says_what_was_understood(table: Path) -> None:
    said: list[str] = []
    read_table(table, say=said.append)
    for words in (
        "12 rows",
        "11 measurements",
        "semicolons",
        "1 below a limit (0.05)",
        "missing: 1",
        "1 replicate",
    ):
        assert words in said[0]
    for words in ("'Well'", "2 experiments (A1, B1)", "condition", "S0"):
        assert words in said[0]


def test_a_first_table_is_checked_inferred_and_predicted_as_it_is(data: Experiments) -> None:
    model = Model(michaelis_menten, Design.like(data), {k: v for k, v in UNITS.items() if k != "S0"})
    assert model.units["S0"] == "mM"  # from the table's header
    found = check(model, data)
    assert found.inside["P"] > 0.95
    assert not found.outside
    settings = Settings(
        simulations=4_000, schedule=Schedule(steps=400), refining=Refining(2_000, Schedule(steps=300))
    )
    result = infer(model, data, settings=settings, budget=Budget(effective_size=1_000), progress=False)
    assert result["fit/computation"].item() in {"trusted", "corrected"}
    assert result["fit/data"].item() == "consistent"
    table = summary(result)
    assert list(table["unit"]) == ["mM/min", "mM", "mM"]
    for name, truth in (("vmax", 0.6), ("km", 0.8), ("sigma", 0.03)):
        assert abs(table["mean"][name] - truth) < 4 * table["sd"][name]
    assert int(result["censoring/P_censoring"].sum()) == 1
    fresh = Experiments.on([[0.0, 1.0]], ["P"], {"S0": [5.0]}, names=["C1"])
    with pytest.warns(UserWarning, match=r"condition 'S0' is 5, the design spans 1.125 to 3.375"):
        curves = predict(result, fresh, times=np.linspace(0, 8, 50))
    product = values(curves, "predictions_noiseless", "P")
    assert product.shape[-2:] == (1, 50)
    assert bool((np.diff(product, axis=-1) > -1e-9).all())
    noisy = values(curves, "predictions", "P")
    assert noisy.std((0, 1)).mean() > product.std((0, 1)).mean()


def test_a_unit_wrong_by_a_thousand_is_one_sentence_and_a_converted_one_is_nothing(table: Path) -> None:
    good = read_table(table, say=False)
    model = Model(michaelis_menten, Design.like(good), UNITS)
    wrong = read_table(_scaled(table, 1000.0, "mM"), say=False)
    sentence = " ".join(check(model, wrong).concerns)
    assert "P: the data are about 1,000 times larger" in sentence
    right = read_table(_scaled(table, 1000.0, "uM"), say=False)
    assert not any("times larger" in words for words in check(model, right).concerns)
    with pytest.raises(UnitError, match=r"'P'.*'g/L'.*'mM'"):
        model.prepare(read_table(_scaled(table, 1.0, "g/L"), say=False))


def _scaled(table: Path, factor: float, unit: str) -> Path:
    """The table with the product's values times `factor` and its header's unit replaced."""
    lines = []
    for line in table.read_text().splitlines():
        cells = line.split(";")
        if len(cells) == 4 and cells[0] in {"A1", "B1"} and cells[2]:
            mark = "<" if cells[2].startswith("<") else ""
            cells[2] = mark + f"{factor * float(cells[2].lstrip('<').replace(',', '.')):g}".replace(".", ",")
        lines.append(";".join(cells))
    path = table.with_name(f"plate_{factor:g}_{unit.replace('/', '')}.csv")
    path.write_text("\n".join(lines).replace("P [mM]", f"P [{unit}]") + "\n")
    return path
