"""The three optima against closed forms, and the words for what data do not determine."""

from collections.abc import Callable
from math import exp

import pyro
import pyro.distributions as dist
import pytest
import torch

from ampost import Experiments, Model, observe
from ampost.design import Design
from ampost.optima import Optima, optima

TIMES = [0.0, 1.0, 2.0, 3.0]


def found(program: Callable[[Experiments], None], values: list[float]) -> Optima:
    """The optima of one data set of one channel."""
    at = Experiments.on([TIMES[: len(values)]], ["y"])
    data = at.with_values({"y": torch.tensor([values], dtype=torch.float64)})
    model = Model(program, Design.like(data))
    return optima(model, model.prepare(data), torch.zeros(2, model.z_size(), dtype=torch.float64))


def test_of_a_line_they_are_what_algebra_says() -> None:
    def line(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        b = pyro.sample("b", dist.Normal(1.0, 3.0))
        observe("y", dist.Normal(a + b * experiments.times, 0.5), experiments)

    y = [0.3, 1.1, 2.9, 3.2]
    at = found(line, y)
    t, seen = torch.tensor(TIMES).double(), torch.tensor(y).double()
    x = torch.stack([torch.full_like(t, 2.0), 3.0 * t], -1) / 0.5
    information = x.T @ x + torch.eye(2)
    mode = torch.linalg.solve(information, x.T @ ((seen - t) / 0.5))
    least_squares = torch.linalg.lstsq(x, (seen - t)[:, None] / 0.5).solution[:, 0]
    torch.testing.assert_close(at.map_z.z, mode, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(at.map.z, mode, atol=1e-5, rtol=1e-5)  # a straight map moves no mode
    torch.testing.assert_close(at.mle.z, least_squares, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(at.information, information, atol=1e-4, rtol=1e-4)
    values = torch.linalg.eigvalsh(information)
    assert at.condition == pytest.approx(float(values[-1] / values[0]), rel=1e-3)
    assert at.left == ()
    assert "determine all" in str(at)


def test_on_the_scale_of_the_user_a_mode_is_another_one() -> None:
    def program(experiments: Experiments) -> None:
        k = pyro.sample("k", dist.LogNormal(0.5, 0.8))
        observe("y", dist.Normal(k.log() + 0 * experiments.times, 0.5), experiments)

    at = found(program, [1.4])
    variance = 1 / (1 / 0.8**2 + 1 / 0.5**2)
    middle = variance * (0.5 / 0.8**2 + 1.4 / 0.5**2)  # log k is normal

    def k(z: torch.Tensor) -> float:
        return exp(0.5 + 0.8 * float(z))

    assert k(at.map_z.z) == pytest.approx(exp(middle), rel=1e-4)
    assert k(at.map.z) == pytest.approx(exp(middle - variance), rel=1e-4)
    assert k(at.mle.z) == pytest.approx(exp(1.4), rel=1e-4)


def test_what_only_the_prior_tells_apart_is_named() -> None:
    def program(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Normal(0.0, 1.0))
        d = pyro.sample("d", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(a + b + d * experiments.times, 0.1), experiments)

    at = found(program, [0.5, 0.6, 0.7, 0.8])
    assert len(at.left) == 2
    assert all(abs(way.added) < 1e-3 for way in at.left)
    named = {name for way in at.left for name, _ in way.parts}
    assert named == {"a", "b", "c"}
    said = str(at)
    assert "leave to the prior" in said
    assert "d (" not in said


def test_a_likelihood_that_rises_for_ever_has_no_maximum() -> None:
    def program(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(torch.sigmoid(a) + 0 * experiments.times, 0.1), experiments)

    at = found(program, [1.5, 1.4])
    assert not at.bounded
    assert "no maximum" in str(at)
    assert at.map_z.converged
    assert bool(torch.isfinite(at.mle.z).all())


def test_a_model_that_fails_about_the_optimum_says_so() -> None:
    def program(experiments: Experiments) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal((a.clamp(max=0.0) * 0).sqrt() * torch.nan + a, 1.0), experiments)

    at = found(program, [0.0])
    assert "not known" in str(at)
    assert at.condition != at.condition
