"""The command line. `--help`, `--version` and `info` load neither torch nor sbi."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from ampost import __version__
from ampost.errors import AmpostError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Amortized inference for ODE models.",
)

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
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("ampost-demo"),
    seed: Annotated[int, typer.Option(help="Same seed, same machine, same result.")] = 0,
    simulations: Annotated[int, typer.Option(help="ODE solves to train from.")] = 20_000,
    seconds: Annotated[float, typer.Option(help="Most seconds of training.")] = 110.0,
) -> None:
    """Hare and lynx, from nothing to a corrected posterior. Example: ampost demo --out demo"""
    from ampost.correction import Budget
    from ampost.inference import Settings, infer
    from ampost.reporting import write
    from ampost.results import summary
    from ampost.training import Schedule
    from ampost.zoo import lotka_volterra

    data, model = lotka_volterra.data(), lotka_volterra.model()
    settings = Settings(simulations=simulations, schedule=Schedule(seconds=seconds))
    result = infer(model, data, seed=seed, budget=Budget(draws=4_000), settings=settings)
    typer.echo(summary(result).to_string(float_format=lambda x: f"{x:.4g}"))
    typer.echo("")
    typer.echo(result["fit"]["verdict"].item())
    for path in write(result, model, data, out):
        typer.echo(f"wrote {path}")


def main() -> None:
    """Run the command line; an error of ampost is one line and exit code 1."""
    try:
        app()
    except AmpostError as error:
        typer.echo(f"ampost: {error}", err=True)
        sys.exit(1)
