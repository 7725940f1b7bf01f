"""The command line. `--help`, `--version`, `info`, `models` and `new` load neither torch nor sbi.

Exit codes: 0 done; 1 bad input, said in one line; 2 wrong usage; 3 done and written, but the
computation of a posterior failed, as its verdict says.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ampost import __version__, banking
from ampost.errors import AmpostError
from ampost.options import (
    By,
    Columns,
    Conditions,
    DosesTable,
    Files,
    InputsTable,
    Limits,
    ModelName,
    Out,
    Seed,
    Tables,
    folder_of,
    given,
    in_units,
    read,
    ready,
)

if TYPE_CHECKING:
    from ampost.experiments import Experiments
    from ampost.model import Model

FAILED = 3
TRIES = 20  # simulated data sets, of which one is compared
SIMULATIONS, SECONDS = 20_000, 200.0  # of `infer`, which `check` estimates

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Amortized inference for ODE models.",
    epilog="Exit codes: 0 done, 1 bad input, 2 wrong usage, 3 done, but the verdict says that it failed.",
)

app.add_typer(banking.app, name="bank")

LIBRARIES = (
    "torch",
    "pyro-ppl",
    "sbi",
    "numba",
    "numpy",
    "scipy",
    "arviz-base",
    "xarray",
    "pandas",
    "pint",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"ampost {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Amortized Bayesian inference for ODE models, checked against the true model."""


@app.command()
def info() -> None:
    """Versions of ampost and of the libraries it stands on. Example: ampost info"""
    typer.echo(f"ampost {__version__}, Python {sys.version.split()[0]}")
    for name in LIBRARIES:
        try:
            typer.echo(f"  {name} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"  {name} is not installed")


@app.command()
def models() -> None:
    """The models of the zoo, to use by --model. Example: ampost models"""
    from ampost import programs

    found = programs.listed()
    width = max(len(model.name) for model in found)
    for model in found:
        typer.echo(f"{model.name:{width}}  {model.words}{' Has data.' if model.has_data else ''}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the two files: letters, digits and _.")],
    folder: Annotated[Path, typer.Option(help="Where to write them.")] = Path(),
) -> None:
    """Write a commented model file and a table that run as they are. Example: ampost new growth"""
    from ampost.starting import start

    for path in start(name, folder):
        typer.echo(f"wrote {path}")
    where = folder / name
    typer.echo(f"next: ampost check {where}.py {where}.csv")


@app.command()
def check(
    files: Files = None,
    model: ModelName = None,
    conditions: Conditions = None,
    doses: DosesTable = None,
    inputs: InputsTable = None,
    by: By = None,
    column: Columns = None,
    limit: Limits = None,
    out: Out = None,
    seed: Seed = 0,
) -> None:
    """Does the model fit the table, before any training? Example: ampost check growth.py growth.csv"""
    had = given(files, model)
    source, built, data = ready(had, Tables(conditions, doses, inputs, by, column, limit))
    from ampost import programs
    from ampost.checking import check as checked
    from ampost.learning import Settings
    from ampost.reporting import folders, opened, picture
    from ampost.training import Schedule

    settings = Settings(simulations=SIMULATIONS, schedule=Schedule(seconds=SECONDS))

    folder = opened(folder_of(out, source))
    for label, record in folders(data).items():
        with programs.telling(source.path):
            told = checked(built, record, seed, settings)
        typer.echo(f"Data set {record.datasets[0]}\n{told}" if label else str(told))
        typer.echo(f"wrote {picture(told.figure, folder / label / 'check.png')}")


@app.command()
def infer(
    files: Files = None,
    model: ModelName = None,
    conditions: Conditions = None,
    doses: DosesTable = None,
    inputs: InputsTable = None,
    by: By = None,
    column: Columns = None,
    limit: Limits = None,
    out: Out = None,
    seed: Seed = 0,
    estimator: Annotated[
        Path | None,
        typer.Option(help="Trained estimator: loaded if it is there, else trained and saved there."),
    ] = None,
    simulations: Annotated[int, typer.Option(min=256, help="Trajectories to train from.")] = SIMULATIONS,
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of training to aim at.")] = SECONDS,
    draws: Annotated[int, typer.Option(min=1, help="Posterior draws.")] = 1_000,
) -> None:
    """The posterior, in a folder. Example: ampost infer growth.py growth.csv --out growth-results

    It writes draws (posterior.nc), summary.csv, verdict.json and pictures; of several data sets, one
    folder each. The estimator is kept in estimator.ampost: with --estimator it answers at once.
    """
    had = given(files, model)
    source, built, data = ready(had, Tables(conditions, doses, inputs, by, column, limit))
    from xarray import DataTree

    from ampost import programs, reporting
    from ampost.correction import Budget
    from ampost.inference import infer as inferred
    from ampost.learning import Settings
    from ampost.training import Schedule

    settings = Settings(simulations=simulations, schedule=Schedule(seconds=seconds))
    folder = reporting.opened(folder_of(out, source))
    used = folder / "estimator.ampost" if estimator is None else estimator
    failed, results = False, dict[str, DataTree]()
    with nullcontext() if estimator else reporting.set_aside(used):  # an earlier one is perhaps another model's
        for label, record in reporting.folders(in_units(data, built)).items():
            with programs.telling(source.path):
                result = inferred(built, record, used, seed, Budget(draws=draws), settings)
            if not results:
                reporting.write_data(data, folder)
            results[record.datasets[0]] = result
            typer.echo(f"\nData set {record.datasets[0]}\n" if label else "")
            failed |= _shown(result, built, record, folder / label)
    if len(results) > 1:
        typer.echo(f"wrote {reporting.write_summaries(results, folder)}")
    typer.echo(f"the estimator is {used}; use it for more data by --estimator {used}")
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def train(
    files: Files = None,
    model: ModelName = None,
    conditions: Conditions = None,
    doses: DosesTable = None,
    inputs: InputsTable = None,
    by: By = None,
    column: Columns = None,
    limit: Limits = None,
    out: Annotated[Path, typer.Option(help="The trained estimator.")] = Path("estimator.ampost"),
    bank: Annotated[
        Path | None, typer.Option(help="Folder that keeps the simulations, to use again and add to.")
    ] = None,
    simulations: Annotated[int, typer.Option(min=256, help="Trajectories to train from.")] = SIMULATIONS,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of training; the density about the mode has its own.")
    ] = 4_000,
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of training to aim at.")] = float("inf"),
    proxy: Annotated[bool, typer.Option(help="Learn a proxy of the ODE, and train on it too.")] = False,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Leave out the density about the mode, which takes a million ODE solves."),
    ] = False,
    seed: Seed = 0,
) -> None:
    """An estimator for a model and its design. Example: ampost train --model sir_influenza --out sir.ampost

    Stopped at any moment, the same command goes on where it was. With data the design is that of the data.
    """
    had = given(files, model)
    started = out.with_name(f"{out.name}.part")
    if out.exists() and not started.exists():
        raise typer.BadParameter(f"{out} is there already and is complete (no {started}): delete it first")
    from ampost import programs
    from ampost.inference import train as trained
    from ampost.learning import Settings
    from ampost.proxy import ProxySettings
    from ampost.refining import Refining
    from ampost.training import Schedule

    source = programs.load(had.model)
    data = read(had, Tables(conditions, doses, inputs, by, column, limit)) if had.data else None
    built = programs.model_of(source, programs.data_of(source) if data is None and source.own else data)
    settings = Settings(
        simulations=simulations,
        schedule=Schedule(steps=steps, seconds=seconds),
        proxy=ProxySettings() if proxy else None,
        refining=None if plain else Refining(),
    )
    with programs.telling(source.path):
        made = trained(built, settings, seed, bank=bank, checkpoint=started, out=out)
    if not out.exists():
        typer.echo("stopped before the first validation, nothing is written; the same command goes on")
        raise typer.Exit(FAILED)
    stopped = "stopped early; the same command goes on" if made.interrupted else "trained"
    typer.echo(f"{stopped}: validation loss {made.loss:.3f} after {made.seconds:.0f} s, {made.solves:,} solves")
    teaching = made.teaching
    typer.echo(
        f"the loss on the bank's own rows is {teaching.overfitting:.3f} lower; simulate more where that is much"
    )
    if proxy:
        typer.echo(
            f"the proxy taught {teaching.proxy_share:.0%} of the steps; 90 % of its trajectories are within "
            f"{teaching.proxy_error:.2g} sd of the noise, all points together; wrote it beside the estimator"
        )
    typer.echo(f"wrote {out}; use it by ampost infer ... --estimator {out}")


@app.command()
def predict(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE.py RESULT.nc",
            help="The model (this runs the file), and the posterior.nc of ampost infer.",
        ),
    ] = None,
    model: ModelName = None,
    times: Annotated[
        str | None, typer.Option(help="start:stop:step, or 0,1,2.5 (default: up to the end of the design).")
    ] = None,
    conditions: Conditions = None,
    doses: DosesTable = None,
    inputs: InputsTable = None,
    out: Annotated[Path | None, typer.Option(help="Folder (default: that of RESULT.nc).")] = None,
    name: Annotated[str, typer.Option(help="Name of the files written.")] = "predictions",
    draws: Annotated[int, typer.Option(min=1, help="Posterior draws to predict from.")] = 1_000,
    seed: Seed = 0,
) -> None:
    """Bands at other times, or for the experiments of new tables. Example:
    ampost predict growth.py growth-results/posterior.nc --conditions new.csv --times 0:24:0.1

    Without --conditions, --doses and --inputs the experiments are those of the data.
    """
    had = given(files, model, result=True)
    assert had.result is not None
    from ampost import asking, programs, reporting
    from ampost.prediction import predict as predicted

    result, source = reporting.read(had.result), programs.load(had.model)
    asked = bool(conditions or doses or inputs)
    data, fitted = None, None
    if programs.needs_data(source) or not asked:
        data, fitted = reporting.data_of(had.result)
    built = programs.model_of(source, data)
    grid = asking.grid(times, built.design)
    looks = asking.looks(conditions, doses, inputs, built) if asked or fitted is None else fitted
    with programs.telling(source.path):
        told = predicted(result, in_units(looks, built), grid, built, seed, draws)
    folder = out or Path(had.result).parent
    for path in reporting.write_prediction(told, None if asked else fitted, folder, name):
        typer.echo(f"wrote {path}")


@app.command()
def simulate(
    files: Files = None,
    model: ModelName = None,
    conditions: Conditions = None,
    doses: DosesTable = None,
    inputs: InputsTable = None,
    by: By = None,
    column: Columns = None,
    limit: Limits = None,
    out: Out = None,
    count: Annotated[int, typer.Option(min=1, help="Data sets to simulate.")] = 1,
    seed: Seed = 0,
) -> None:
    """Simulated data sets and their true parameters. Example: ampost simulate --model sir_influenza --count 3

    Without data the experiments are drawn from the design of the model, else they are those of the (first)
    data set.
    """
    had = given(files, model)
    from ampost import programs, reporting

    source = programs.load(had.model)
    data = read(had, Tables(conditions, doses, inputs, by, column, limit)) if had.data else None
    like = programs.data_of(source) if data is None and source.own else data
    built = programs.model_of(source, like)
    looks = None if data is None else in_units(data, built).split()[0]
    with programs.telling(source.path):
        drawn = built.simulate(count, seed, looks)
    written = reporting.write_simulation(drawn, built, folder_of(out, source) / "simulated")
    for path in written:
        typer.echo(f"wrote {path}")
    tables = {path.stem: path for path in written if path.suffix == ".csv"}
    further = "".join(f" --{kind} {tables[kind]}" for kind in reporting.FURTHER if kind in tables)
    start = f"--model {had.model}" if model else had.model
    typer.echo(f"next: ampost infer {start} {tables['measurements']}{further}")


@app.command()
def compare(
    files: Files = None,
    model: ModelName = None,
    conditions: Conditions = None,
    doses: DosesTable = None,
    inputs: InputsTable = None,
    by: By = None,
    column: Columns = None,
    limit: Limits = None,
    out: Out = None,
    seed: Seed = 0,
    estimator: Annotated[
        Path | None,
        typer.Option(help="Trained estimator: loaded if it is there, else trained and saved there."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of training to aim at.")] = 60.0,
    draws: Annotated[
        int, typer.Option(min=4, help="Draws of each chain of NUTS, after as many of warm-up.")
    ] = 500,
    chains: Annotated[int, typer.Option(min=1, help="Chains of NUTS.")] = 4,
    starts: Annotated[int, typer.Option(min=1, help="Starts of the fit.")] = 10,
) -> None:
    """Network, correction, fit and NUTS on one data set. Example: ampost compare --model michaelis_menten

    Without data it is that of the model, else one that is simulated. It prints cost and agreement, and writes
    tables and pictures of marginals and of the ends of the fit.
    """
    had = given(files, model)
    from ampost import programs, reporting
    from ampost.comparison import compare_methods
    from ampost.inference import ready as trained
    from ampost.learning import Settings
    from ampost.training import Schedule

    source = programs.load(had.model)
    data = read(had, Tables(conditions, doses, inputs, by, column, limit)) if had.data else None
    data = programs.data_of(source) if data is None and source.own else data
    built = programs.model_of(source, data)
    folder = reporting.opened(folder_of(out, source))
    with programs.telling(source.path):
        if data is None:
            typer.echo(f"the data set is simulated from {built.name}, seed {seed}")
            drawn = built.simulate(TRIES, seed)
            record = drawn.experiments.at(int(drawn.failed.int().argmin()))  # the first that did not fail
        else:
            record = in_units(data, built).split()[0]
        settings = Settings(SIMULATIONS, Schedule(seconds=seconds))
        used = trained(built, record, estimator or folder / "estimator.ampost", settings, seed, None)
        told = compare_methods(
            built, record, used, seed, starts=starts, draws=draws, warmup=draws, chains=chains
        )
    typer.echo(str(told))
    for path in reporting.write_comparison(told, folder):
        typer.echo(f"wrote {path}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("ampost-demo"),
    seed: Seed = 0,
    simulations: Annotated[int, typer.Option(help="Trajectories to train from.")] = 20_000,
    seconds: Annotated[float, typer.Option(help="Seconds of training to aim at.")] = 110.0,
) -> None:
    """Hare and lynx, from nothing to a corrected posterior. Example: ampost demo --out demo"""
    from ampost.correction import Budget
    from ampost.inference import infer as inferred
    from ampost.learning import Settings
    from ampost.training import Schedule
    from ampost.zoo import lotka_volterra

    data, built = lotka_volterra.data(), lotka_volterra.model()
    settings = Settings(simulations=simulations, schedule=Schedule(seconds=seconds))
    result = inferred(built, data, seed=seed, budget=Budget(draws=4_000), settings=settings)
    if _shown(result, built, data, out):
        raise typer.Exit(FAILED)


def _shown(result: object, built: Model, data: Experiments, folder: Path) -> bool:
    """Print and write a result; whether its computation failed."""
    import xarray as xr

    from ampost.reporting import without_predictions, write
    from ampost.results import summary

    assert isinstance(result, xr.DataTree)
    typer.echo(summary(result).to_string(float_format=lambda x: f"{x:.4g}"))
    typer.echo("")
    typer.echo(result["fit"]["verdict"].item())
    for path in without_predictions(folder):
        typer.echo(f"removed {path}, which was of an earlier posterior")
    for path in write(result, built, data, folder):
        typer.echo(f"wrote {path}")
    return bool(result["fit"]["computation"].item() == "failed")


def main() -> None:
    """Run the command line; an error of ampost is one line and exit code 1."""
    warnings.formatwarning = lambda message, *rest, **more: f"ampost: warning: {message}\n"
    try:
        app()
    except (AmpostError, OSError) as error:
        typer.echo(f"ampost: {error}", err=True)
        sys.exit(1)
