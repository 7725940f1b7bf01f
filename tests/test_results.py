"""What results and pictures say: derived sites by experiment, what is known of them, true replicates."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import nbformat
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from nbclient import NotebookClient
from torch import Tensor

from ampost import Design, Experiments, Model, between, observe, odeint, plots, predict, results, summary
from ampost.experiments import INTERVAL, LEFT, Channel
from ampost.results import scalars, values

SIGMA = 0.2


def decay(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"C": -p.k * y.C}


def program(experiments: Experiments) -> None:
    middle = pyro.sample("middle", between(0.2, 2.0))
    with experiments.plate():
        own = pyro.sample("own", dist.Normal(0.0, 0.3))
    k = pyro.deterministic("k", middle * own.exp())
    pyro.deterministic("double", 2 * middle)
    pyro.deterministic("fixed", torch.tensor(0.3).double())
    y = odeint(decay, {"C": 1.0}, {"k": k}, experiments)
    pyro.deterministic("rate", k * y.C)
    observe("C", dist.Normal(y.C, SIGMA), experiments)


TIMES = [0.5, 1.0, 2.0]


def drawn_at(*names: str) -> tuple[Model, Experiments]:
    at = Experiments.on([TIMES] * len(names), ["C"], names=names)
    model = Model(program, Design.like(at.with_values({"C": torch.ones(len(names), 3)})))
    return model, model.simulate(1, 0, at).experiments.at(0)


def posterior(
    model: Model, data: Experiments, z: Tensor, weights: Tensor | None = None, mode: Tensor | None = None
) -> xr.DataTree:
    """A result of z (draw, z) with weighted draws that are these, and a mode."""
    fit: dict[str, Any] = {"computation": "given"}
    importance = None
    if weights is not None:
        importance = {"z": z, "log_weight": weights}
        fit["effective_size"] = {"middle": 50.0}
    if mode is not None:
        fit["map_z"] = results.by_label(model.parameters(mode[None, None], data))
    reported = results.report(model, data, z, seed=0)
    return results.build(model, data, z, reported, results.prior_draws(model, data, 20, 0), fit, importance)


@pytest.fixture(scope="module")
def made() -> xr.DataTree:
    model, data = drawn_at("A1", "B1")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 3, generator=generator).double()
    mode = torch.tensor([0.5, -0.2, 0.4]).double()
    return posterior(model, data, z, torch.randn(300, generator=generator).double(), mode)


def test_derived_sites_have_the_axes_of_their_meaning(made: xr.DataTree) -> None:
    dims = {str(name): v.dims[2:] for name, v in made["posterior"].data_vars.items()}
    assert dims == {
        "middle": (),
        "own": ("experiment",),
        "k": ("experiment",),
        "double": (),
        "fixed": (),
        "rate": ("experiment", "time"),
    }
    assert made["posterior"]["experiment"].to_numpy().tolist() == ["A1", "B1"]
    assert made["posterior"]["time"].to_numpy().tolist() == TIMES
    middle, own = values(made, "posterior", "middle"), values(made, "posterior", "own")
    np.testing.assert_allclose(values(made, "posterior", "k"), middle[..., None] * np.exp(own))


def test_the_summary_goes_by_names_of_experiments(made: xr.DataTree) -> None:
    table = summary(made)
    places = [f"rate[{e}, {t:g}]" for e in ("A1", "B1") for t in TIMES]
    assert list(table.index) == ["middle", "own[A1]", "own[B1]", "k[A1]", "k[B1]", "double", "fixed", *places]
    own = values(made, "posterior", "own")
    assert table.loc["own[B1]", "mean"] == pytest.approx(own[..., 1].mean())


def test_one_experiment_needs_no_name() -> None:
    model, data = drawn_at("A1")
    table = summary(posterior(model, data, torch.randn(20, 2).double()))
    assert list(table.index)[:3] == ["middle", "own", "k"]
    assert list(table["ESS"]) == [""] * len(table)
    assert list(table["MAP"]) == [""] * len(table)


def test_the_map_of_derived_sites_is_the_program_there(made: xr.DataTree) -> None:
    table = summary(made)
    middle, own = table.loc["middle", "MAP"], table.loc["own[B1]", "MAP"]
    assert table.loc["double", "MAP"] == pytest.approx(2 * middle)
    k = middle * np.exp(own)
    assert table.loc["k[B1]", "MAP"] == pytest.approx(k)
    assert table.loc["rate[B1, 2]", "MAP"] == pytest.approx(k * np.exp(-2 * k), rel=1e-4)


def test_effective_sizes_of_derived_sites_are_by_the_weights(made: xr.DataTree) -> None:
    table = summary(made)
    weight = torch.softmax(torch.tensor(values(made, "importance_samples", "log_weight")), 0).numpy()
    k = values(made, "posterior", "k")[0, :, 0]
    off = (k - (weight * k).sum()) ** 2
    assert table.loc["k[A1]", "ESS"] == pytest.approx((weight * off).sum() / (weight**2 * off).sum())
    assert table.loc["middle", "ESS"] == 50.0
    assert table.loc["own[A1]", "ESS"] == ""  # not given
    assert table.loc["fixed", "ESS"] == ""  # it does not vary
    assert "fixed" not in scalars(made, "effective_size")
    assert "nan" not in table.to_csv().lower()


def test_plates_of_the_program_keep_their_axes() -> None:
    def crossed(experiments: Experiments) -> None:
        with pyro.plate("kinds", 3, dim=-3), experiments.plate():
            own = pyro.sample("own", dist.Normal(0.0, 1.0))
        total = pyro.deterministic("total", own.sum(-3, keepdim=True))
        observe("C", dist.Normal(total + 0 * experiments.times, 0.1), experiments)

    at = Experiments.on([TIMES] * 2, ["C"], names=["A1", "B1"])
    model = Model(crossed, Design.like(at.with_values({"C": torch.ones(2, 3)})))
    data = model.simulate(1, 0, at).experiments.at(0)
    mode = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
    made = posterior(model, data, torch.randn(10, 6).double(), mode=mode)
    assert made["posterior"]["own"].dims[2:] == ("own_dim_0", "experiment")
    table = summary(made)
    assert "own[2, B1]" in table.index
    assert table.loc["total[B1]", "MAP"] == pytest.approx(
        sum(table.loc[f"own[{k}, B1]", "MAP"] for k in range(3))
    )


# ------------------------------------------------------------------------- replicates and pictures


def test_replicates_are_true_values_and_their_likelihood_that_of_what_is_reported() -> None:
    model, data = drawn_at("A1")
    seen = torch.tensor([[0.6, 0.5, 0.3]]).double()
    code = torch.tensor([[0, INTERVAL, LEFT]])
    censored = Channel(
        data.channels["C"].mask, seen, censoring=code, upper=torch.tensor([[0.0, 0.7, 0.0]]).double()
    )
    limited = replace(data, channels={"C": censored})
    z = torch.zeros(400, 2).double()
    told = results.report(model, limited, z, seed=0)
    free = results.report(model, replace(data, channels={"C": Channel(censored.mask, seen)}), z, seed=0)
    assert torch.equal(told.predicted["C"], free.predicted["C"])
    below = told.predicted["C"][:, 0, 2] < 0.3
    assert 0.2 < below.double().mean() < 0.9
    assert told.predicted["C"][below, 0, 2].unique().numel() > 10  # not the limit
    made = posterior(model, limited, z)
    figure = plots.predictive(made, limited)
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    middle = np.median(told.predicted["C"][:, 0].numpy(), axis=0)
    np.testing.assert_allclose(line.get_ydata(), middle)


def test_titles_say_whose_and_what_the_mark_is(made: xr.DataTree) -> None:
    model, _ = drawn_at("A1", "B1")
    alone = Experiments.on([TIMES], ["C"], names=["B1"])
    figure = plots.prediction(predict(made, alone, model=model, draws=20))
    assert "experiment B1" in figure.get_suptitle()
    said = plots.pairs(made).get_suptitle().replace("\n", " ")
    assert "the mark is the most probable point (MAP), on the scale where priors are normal" in said
    model, data = drawn_at("A1")
    assert "mark" not in plots.pairs(posterior(model, data, torch.randn(20, 2).double())).get_suptitle()


def test_pictures_show_in_a_plain_notebook() -> None:
    lines = [
        "import torch",
        "from ampost import Experiments",
        "from ampost.plots.seen import seen",
        "data = Experiments.on([[0.0, 1.0]], ['P']).with_values({'P': torch.tensor([[1.0, 2.0]]).double()})",
        "seen(data)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(lines))])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    (output,) = [o for o in notebook.cells[0].outputs if o.output_type == "execute_result"]
    assert output["data"]["image/png"].startswith("iVBOR")
