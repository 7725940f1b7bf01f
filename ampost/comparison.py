"""Several answers to one question side by side: cost, best log joint, means and sds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ampost.errors import ArgumentError
from ampost.results import scalars, values


@dataclass(frozen=True)
class Comparison:
    """`results` has one entry per result; `parameters` one per (result, parameter).

    `results`: seconds, ODE solves and gradients (NaN where a method counts none), best log joint,
    smallest effective size, and the label of the computation. `parameters`: mean, sd, how far the
    mean is off that of the first result in its sds, and the ratio of the sds.
    """

    results: xr.Dataset
    parameters: xr.Dataset

    def __str__(self) -> str:
        parts = [_text(self.results.to_dataframe())]
        for name, title in (
            ("mean", "mean"),
            ("sd", "sd"),
            ("off", "mean less the first's, in its sds"),
            ("ratio", "sd over the first's"),
        ):
            parts.append(f"{title}\n{_text(self.parameters[name].to_pandas())}")
        return "\n\n".join(parts)


def compare(results: Mapping[str, xr.DataTree]) -> Comparison:
    """Put results of `infer`, `baselines.nuts` and `baselines.fit` for one data set side by side.

    The first is what the others are measured against. Seconds leave out the training of an
    estimator, which is paid once.

    Raises:
        ArgumentError: fewer than two results, or results without a common parameter.
    """
    if len(results) < 2:
        raise ArgumentError(f"compare got {len(results)} result(s), expected two or more, by name")
    draws = {name: _flat(result) for name, result in results.items()}
    first = next(iter(results))
    shared = [p for p in draws[first] if all(p in d for d in draws.values())]
    if not shared:
        raise ArgumentError(
            f"the results {', '.join(results)} have no parameter in common; compare results of one model"
        )
    overview = {
        "seconds": [_entry(r, "seconds") for r in results.values()],
        "solves": [_entry(r, "solves") for r in results.values()],
        "gradients": [_entry(r, "gradients") for r in results.values()],
        "best_log_joint": [_entry(r, "best_log_joint") for r in results.values()],
        "effective_size": [_effective(r) for r in results.values()],
        "computation": [str(r["fit/computation"].item()) for r in results.values()],
    }
    mean = np.array([[draws[m][p].mean() for p in shared] for m in results])
    sd = np.array([[draws[m][p].std() for p in shared] for m in results])
    table = {"mean": mean, "sd": sd, "off": (mean - mean[0]) / sd[0], "ratio": sd / sd[0]}
    axes = ("result", "parameter")
    return Comparison(
        xr.Dataset({k: (("result",), v) for k, v in overview.items()}, {"result": list(results)}),
        xr.Dataset({k: (axes, v) for k, v in table.items()}, {"result": list(results), "parameter": shared}),
    )


def _flat(result: xr.DataTree) -> dict[str, np.ndarray]:
    """Draws of every scalar entry of the posterior, all chains together."""
    out: dict[str, np.ndarray] = {}
    for name in result["posterior"].data_vars:
        drawn = values(result, "posterior", name)
        wide = drawn.reshape(drawn.shape[0] * drawn.shape[1], -1)
        for k in range(wide.shape[1]):
            out[str(name) if wide.shape[1] == 1 else f"{name}[{k}]"] = wide[:, k]
    return out


def _entry(result: xr.DataTree, name: str) -> float:
    return float(values(result, "fit", name)) if name in result["fit"] else float("nan")


def _effective(result: xr.DataTree) -> float:
    """The smallest effective size: by the weights, or by the chains; a normal approximation has none."""
    known = scalars(result, "effective_size")
    return min(known.values()) if known else float("nan")


def _text(table: Any) -> str:  # noqa: ANN401 - a pandas DataFrame
    table.columns.name = table.index.name = None
    return str(table.to_string(float_format=lambda x: f"{x:.4g}", na_rep="-"))
