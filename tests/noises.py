"""Distributions whose tails are known, with the same in scipy: for tests."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
from torch import Tensor

from ampost import TruncatedNormal

INF = math.inf
Make = Callable[..., Any]


def double(x: object) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def pair(logs: tuple[Tensor, Tensor]) -> list[float]:
    return [float(x) for x in logs]


# name: the distribution of its parameters, these, the same in scipy, points from the centre to far out
CONTINUOUS: dict[str, tuple[Make, tuple[float, ...], Any, tuple[float, ...]]] = {
    "Normal": (dist.Normal, (1.0, 0.5), st.norm(1.0, 0.5), (1.0, 1.7, -2.0, 9.0, -14.0, 16.0)),
    "LogNormal": (dist.LogNormal, (0.3, 0.7), st.lognorm(0.7, scale=math.exp(0.3)), (1.0, 2.0, 1e-8, 1e9)),
    "HalfNormal": (dist.HalfNormal, (2.0,), st.halfnorm(scale=2.0), (1.0, 3.0, 1e-9, 60.0)),
    "Laplace": (dist.Laplace, (1.0, 0.5), st.laplace(1.0, 0.5), (0.9, 1.5, -30.0, 20.0)),
    "Cauchy": (dist.Cauchy, (1.0, 0.5), st.cauchy(1.0, 0.5), (0.9, 1.5, -1e7, 1e9)),
    "HalfCauchy": (dist.HalfCauchy, (0.5,), st.halfcauchy(scale=0.5), (0.4, 1.5, 1e-9, 1e9)),
    "Logistic": (dist.Logistic, (1.0, 0.5), st.logistic(1.0, 0.5), (0.9, 1.5, -20.0, 20.0)),
    "Gumbel": (dist.Gumbel, (1.0, 0.5), st.gumbel_r(1.0, 0.5), (0.9, 2.5, -1.5, 30.0)),
    "Exponential": (dist.Exponential, (2.0,), st.expon(scale=0.5), (0.4, 1.5, 1e-12, 100.0)),
    "Weibull": (dist.Weibull, (2.0, 1.5), st.weibull_min(1.5, scale=2.0), (0.4, 2.5, 1e-12, 40.0)),
    "Uniform": (dist.Uniform, (-1.0, 2.0), st.uniform(-1.0, 3.0), (0.4, 1.5, -1.0 + 1e-6, 2.0 - 1e-6)),
    "TruncatedNormal": (
        lambda loc, scale: TruncatedNormal(loc, scale, 0.0),
        (1.0, 0.5),
        st.truncnorm(-2.0, INF, 1.0, 0.5),
        (0.4, 1.5, 1e-6, 9.0),
    ),
    "Gamma": (dist.Gamma, (2.5, 1.5), st.gamma(2.5, scale=1 / 1.5), (1.0, 2.5, 1e-9, 300.0)),
    "Beta": (dist.Beta, (2.5, 0.7), st.beta(2.5, 0.7), (0.4, 0.9, 1e-9, 1.0 - 1e-6)),
    "StudentT": (dist.StudentT, (2.5, 1.0, 0.5), st.t(2.5, 1.0, 0.5), (1.0, 0.9, 1.5, -1e7, 1e9)),
}
COUNTS: dict[str, tuple[Make, tuple[float, ...], Any, tuple[float, ...]]] = {
    "Poisson": (dist.Poisson, (7.3,), st.poisson(7.3), (0.0, 6.0, 12.0, 150.0)),
    "Binomial": (lambda p: dist.Binomial(30, p), (0.3,), st.binom(30, 0.3), (0.0, 8.0, 15.0, 29.0)),
    "NegativeBinomial": (
        lambda r, p: dist.NegativeBinomial(r, p),
        (2.5, 0.8),
        st.nbinom(2.5, 0.2),
        (0.0, 6.0, 22.0, 900.0),
    ),
    "GammaPoisson": (dist.GammaPoisson, (2.5, 0.25), st.nbinom(2.5, 0.2), (0.0, 6.0, 22.0, 900.0)),
    "Geometric": (dist.Geometric, (0.2,), st.nbinom(1, 0.2), (0.0, 3.0, 22.0, 900.0)),
}
each = pytest.mark.parametrize("name", [*CONTINUOUS, *COUNTS])
each_count = pytest.mark.parametrize("name", list(COUNTS))


def case(name: str) -> tuple[Make, tuple[Tensor, ...], Any, Tensor]:
    make, parameters, reference, points = {**CONTINUOUS, **COUNTS}[name]
    return make, tuple(double(p) for p in parameters), reference, double(points)
