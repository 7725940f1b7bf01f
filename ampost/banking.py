"""`ampost bank`: what a bank of simulations holds. No program is needed, and none is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ampost.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor

    from ampost.bank import Origin

app = typer.Typer(no_args_is_help=True, help="Banks of simulations: what an estimator is trained on.")

APART = 0.2  # a parameter of failed draws is told where its distribution differs this much from the prior's
TOLD = 3  # parameters for each reason


@app.callback()
def common() -> None:
    """Banks of simulations: what an estimator is trained on."""


@app.command()
def info(folder: Annotated[Path, typer.Argument(help="The folder of a bank.")]) -> None:
    """Rows, failures and where they lie, size, accuracy, damage. Example: ampost bank info growth-bank"""
    typer.echo(account(folder))


def account(folder: Path) -> str:
    """A bank in words; every shard is read, and its checksum verified."""
    from ampost import files
    from ampost.bank import REMEDY, TOP, origin_of, path_of

    origin = origin_of(folder)
    headers: list[dict[str, Any]] = []
    failed: list[tuple[Tensor, Tensor]] = []
    damage: list[str] = []
    for k in range(origin.shards):
        try:
            header, tensors = files.load(path_of(folder, k), "shard")
        except FileError as error:
            damage.append(str(error))
            continue
        if header["bank"] != origin.identity:
            damage.append(f"{path_of(folder, k).name!r} is of another bank")
            continue
        headers.append(header)
        if header["failures"]:
            failed.append((tensors["failed status"], tensors["failed parameters"]))
    rows, failures = (sum(header[name] for header in headers) for name in ("rows", "failures"))
    shards = [path for path in (path_of(folder, k) for k in range(origin.shards)) if path.exists()]
    size = sum(path.stat().st_size for path in (folder / TOP, *shards))
    lines = [
        f"Bank {str(folder)!r} of {origin.model!r}, seed {origin.seed}",
        f"  {rows:,} rows in {len(headers)} of {origin.shards} shards, {failures:,} simulations failed",
        *_regions(origin, failed, rows + failures),
        f"  {size / 1e6:,.1f} MB on disk, {size / max(1, rows):,.0f} bytes a row",
        f"  {origin.knots} knots an experiment, and two at each dose, end of an infusion and breakpoint",
        f"  {_accuracy([error for header in headers for error in header['errors']])}",
    ]
    lines += [f"  {sentence}" for sentence in damage]
    lines.append(f"  to mend it: {REMEDY}" if damage else "  all shards are whole")
    return "\n".join(lines)


def _accuracy(errors: list[float]) -> str:
    """The error of the dense output, as it was measured when the shards were made."""
    import torch

    if not errors:
        return "the error of the dense output was not measured: there is no ODE, or no row"
    values = torch.tensor(errors, dtype=torch.float64)
    middle, most = (float(values.quantile(level)) for level in (0.5, 0.99))
    return (
        f"worst error half-way between knots, in sd of the noise: median {middle:.2g}, 99 % below {most:.2g}, "
        f"largest {float(values.max()):.2g} (of {len(values):,} experiments)"
    )


def _regions(origin: Origin, failed: list[tuple[Tensor, Tensor]], total: int) -> list[str]:
    """For each reason, how many failed and in which parameters they differ from all draws."""
    import torch

    from ampost.ode.problem import Status

    if not failed:
        return []
    status, parameters = (torch.cat(parts) for parts in zip(*failed, strict=True))
    lines = []
    for code in status.unique().tolist():
        some = parameters[status == code]
        where = [_where(origin, name, some[:, p]) for p, name in enumerate(origin.quantiles)]
        limit = max(APART, 1.63 / len(some) ** 0.5)  # what differs by chance once in a hundred
        told = [words for apart, words in sorted(where, reverse=True) if apart > limit][:TOLD]
        lines.append(f"    {len(some):,} {Status(code).name} ({len(some) / total:.2%}): {Status(code).remedy}")
        lines += [f"      at {words}" for words in told] or [
            "      no parameter tells them from the other draws"
        ]
    return lines


def _where(origin: Origin, name: str, values: Tensor) -> tuple[float, str]:
    """How far the distribution of `values` is from the prior's, and where they lie: 90 % of them."""
    import numpy as np
    import torch

    quantiles: Any = np.asarray(origin.quantiles[name])
    place = torch.from_numpy(np.interp(values.numpy(), quantiles, np.linspace(0.0, 1.0, len(quantiles))))
    ordered = place.sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    apart = float(torch.maximum((ordered - steps[:-1]).abs(), (ordered - steps[1:]).abs()).max())
    (low, high), (first, last) = ([float(v.quantile(level)) for level in (0.05, 0.95)] for v in (values, place))
    unit = f" {origin.units[name]}" if name in origin.units else ""
    return apart, f"{name} {low:.3g} to {high:.3g}{unit}: the {first:.0%} to {last:.0%} quantiles of all draws"
