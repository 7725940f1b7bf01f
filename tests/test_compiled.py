"""The compiled engine: what is traced, its derivatives, and what goes to the torch solver instead."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ampost import Compiled, Eager, Experiments, answering, odeint
from ampost.errors import OdeError
from ampost.ode import functions
from ampost.ode.trace import NotTraceableError, Rates

LOOKS = Experiments.on(torch.linspace(0.0, 2.0, 9)[None].double(), ["A"])

SLOPES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "hill": lambda t, y, p: {"A": -(y.A**p.k) / (0.5 + y.A**p.k)},
    "where, kinked": lambda t, y, p: {"A": torch.where(y.A > 0.5, -p.k * y.A, -0.2 * p.k)},
    "clamp, kinked": lambda t, y, p: {"A": -p.k * torch.clamp(y.A, min=0.7) + y.A.clamp(0.1, 0.9)},
    "forced": lambda t, y, p: {"A": torch.sin(3 * t) * p.k - (9 + y.A).sqrt() + 3 + torch.exp(-t)},
    "softplus": lambda t, y, p: {"A": -torch.nn.functional.softplus(p.k * y.A) + torch.sigmoid(y.A)},
    "powers": lambda t, y, p: {"A": 1 / (1 + y.A**2) - y.A**3 + 2**-y.A + p.k / y.A.square()},
    "logs": lambda t, y, p: {"A": torch.log1p(y.A) - torch.log10(y.A + p.k) + y.A.tanh().abs()},
    "extremes, kinked": lambda t, y, p: {"A": torch.maximum(y.A, p.k) - 2 * torch.minimum(y.A, t + p.k)},
    "gates": lambda t, y, p: {"A": torch.where((t > 0.5) & ~(y.A > 3.0), -p.k, 0.0) - torch.erf(y.A)},
}


@pytest.mark.parametrize("name", SLOPES)
def test_values_and_gradients_equal_the_torch_solvers(name: str) -> None:
    answers = []
    for solver in (Compiled(rtol=1e-9, atol=1e-11), Eager(rtol=1e-9, atol=1e-11)):
        k = torch.tensor([0.8, 1.3, 2.1], dtype=torch.float64).reshape(3, 1, 1).requires_grad_()
        start = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
        with answering(solver), warnings.catch_warnings():
            warnings.simplefilter("error")
            y = odeint(SLOPES[name], {"A": start}, {"k": k}, LOOKS)
        (y.A * torch.arange(9.0)).sum().backward()
        answers.append((y.A.detach(), k.grad, start.grad))
    # a step across a kink is wrong by more than its error estimate says, in either solver
    rtol = 2e-3 if "kinked" in name else 2e-6
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 10)


def test_gradients_equal_the_closed_form() -> None:
    rate = torch.tensor([[[0.3]], [[1.7]]], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[[2.0]], [[0.5]]], dtype=torch.float64, requires_grad=True)
    with answering(Compiled(rtol=1e-9, atol=1e-12)):
        y = odeint(lambda t, y, p: {"A": -p.k * y.A}, {"A": start}, {"k": rate}, LOOKS)
    ours = torch.autograd.grad(y.A.square().sum(), (rate, start))
    exact = torch.autograd.grad((start * torch.exp(-rate * LOOKS.times)).square().sum(), (rate, start))
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=0)


def test_a_second_derivative_is_refused() -> None:
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y = odeint(lambda t, y, p: {"A": -p.k * y.A}, {"A": 1.0}, {"k": rate}, LOOKS)
    with pytest.raises(OdeError, match="second derivative"):
        torch.autograd.grad(y.A.sum(), rate, create_graph=True)


def test_functions_made_in_the_program_are_not_mixed_up() -> None:
    def decay(power: int) -> Callable[[Any, Any, Any], Any]:
        return lambda t, y, p: {"A": -(y.A**power)}

    first, second, again = (odeint(decay(k), {"A": 1.0}, {}, LOOKS).A for k in (1, 2, 1))
    torch.testing.assert_close(first, torch.exp(-LOOKS.times), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, 1 / (1 + LOOKS.times), rtol=1e-5, atol=1e-6)
    assert torch.equal(first, again)


def test_functions_made_anew_in_each_run_are_compiled_once() -> None:
    def solve(rate: float) -> torch.Tensor:
        def speed(x: Any) -> Any:
            return rate * x

        return odeint(lambda t, y, p: {"A": -speed(y.A)}, {"A": 1.0}, {}, LOOKS).A

    before = len(functions._known)
    answers = [solve(rate) for rate in (0.5, 0.7, 0.5, 0.7)]
    assert len(functions._known) == before + 2
    torch.testing.assert_close(answers[3], torch.exp(-0.7 * LOOKS.times), rtol=1e-6, atol=1e-6)
    assert torch.equal(answers[0], answers[2])


def test_what_has_no_scalar_form_is_solved_by_torch_with_a_warning() -> None:
    captured = torch.tensor(0.7, dtype=torch.float64)
    with pytest.warns(UserWarning, match="not compiled.*reads the Tensor"):
        y = odeint(lambda t, y, p: {"A": -captured * y.A}, {"A": 1.0}, {}, LOOKS)
    torch.testing.assert_close(y.A, torch.exp(-0.7 * LOOKS.times), rtol=1e-6, atol=1e-6)
    with pytest.warns(UserWarning, match=r"torch\.lgamma"):
        odeint(lambda t, y, p: {"A": -torch.lgamma(2 + y.A)}, {"A": 1.0}, {}, LOOKS)


@pytest.mark.parametrize(
    ("slope", "words"),
    [
        (lambda t, y, p: {"A": y.A if y.A > 0 else 0.0}, "branch on a value"),
        (lambda t, y, p: {"A": float(y.A)}, "Python number"),
        (lambda t, y, p: {"A": y.A * torch.ones(())}, "captured tensor"),
        (lambda t, y, p: {"A": y.A.cumsum(0)}, "cumsum"),
    ],
)
def test_what_cannot_be_traced_is_named(slope: Callable[[Any, Any, Any], Any], words: str) -> None:
    with pytest.raises(NotTraceableError, match=words):
        Rates(slope, ["A"], [])
