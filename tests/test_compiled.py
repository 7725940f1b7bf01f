"""The compiled engine: what is traced, its derivatives, and what goes to the torch solver instead."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ampost import Compiled, Doses, Eager, Experiments, Input, answering, failures, odeint, recording, rodas
from ampost.errors import OdeError
from ampost.ode import functions
from ampost.ode.problem import Status
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


def test_a_captured_tensor_is_refused_and_keeps_its_gradient_in_the_torch_solver() -> None:
    captured = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def decay(t: Any, y: Any, p: Any) -> dict[str, Any]:
        return {"A": -captured * y.A}

    with pytest.raises(OdeError, match=r"reads the tensor 'captured' from outside .line \d+ of test_compiled"):
        odeint(decay, {"A": 1.0}, {}, LOOKS)
    with answering(Eager(rtol=1e-9, atol=1e-11)):
        y = odeint(decay, {"A": 1.0}, {}, LOOKS)
    (slope,) = torch.autograd.grad(y.A.sum(), captured)
    exact = -(LOOKS.times * torch.exp(-0.7 * LOOKS.times)).sum()
    torch.testing.assert_close(slope, exact, rtol=1e-7, atol=0.0)


k = [1.0, 2.0]  # named like the parameter below, and none of its business


def test_globals_that_are_named_like_parameters_do_not_matter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = odeint(lambda t, y, p: {"A": -p.k * y.A}, {"A": 1.0}, {"k": 0.7}, LOOKS)
    torch.testing.assert_close(y.A, torch.exp(-0.7 * LOOKS.times), rtol=1e-6, atol=1e-6)


def test_a_steep_sigmoid_has_a_finite_derivative() -> None:
    slopes = []
    for solver in (Compiled(), Compiled(methods=(rodas,)), Eager()):
        steep = torch.tensor(300.0, dtype=torch.float64, requires_grad=True)
        with answering(solver):
            y = odeint(
                lambda t, y, p: {"A": torch.sigmoid(p.steep * (t - 50.0)) - y.A},
                {"A": 1.0},
                {"steep": steep},
                LOOKS,
            )
        slopes += torch.autograd.grad(y.A.sum(), steep)
    assert torch.equal(torch.stack(slopes), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("solver", [Compiled(), Eager()], ids=["compiled", "eager"])
def test_an_estimated_dose_before_the_start_fails_its_row(solver: Any) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    doses = Doses(0.5 * one, one, 0 * one, one.long() * 0, one.bool(), ("A",))
    lag = torch.tensor([0.2, -1.0], dtype=torch.float64).reshape(2, 1, 1)
    looks = Experiments.on(LOOKS.times, ["A"], doses=doses)
    with answering(solver):
        y = odeint(lambda t, y, p: {"A": -y.A}, {"A": 0.0}, {}, looks, doses=doses.delayed(lag))
    assert y.status[:, 0].tolist() == [Status.OK, Status.DOSE_BEFORE_START]
    assert bool(torch.isnan(y.A[1, 0, 1:]).all())


def test_a_reduction_over_trajectories_is_refused() -> None:
    with pytest.raises(OdeError, match="none that joins trajectories"):
        odeint(lambda t, y, p: {"A": -torch.max(y.A)}, {"A": 1.0}, {}, LOOKS)


def test_a_snippet_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = Input(
        *(torch.tensor([v], dtype=torch.float64) for v in ([0.0, 1.0], [1.0, 5.0])), torch.ones(1, 2) > 0
    )
    with recording() as record:
        odeint(blowing, {"A": 1.0}, {"F": signal}, LOOKS)
    (failure,) = failures(*record.solved[0])
    assert failure.status == Status.EXPLODED
    assert abs(failure.time - 1.0) < 1e-3
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: None)
    with recording() as again:
        exec(failure.snippet, {"blowing": blowing, "print": lambda y: y})
    assert again.solved[0][1].status.tolist() == [Status.EXPLODED]
    torch.testing.assert_close(again.solved[0][1].reached, record.solved[0][1].reached)


def blowing(t: Any, y: Any, p: Any) -> dict[str, Any]:
    return {"A": p.F * y.A**2}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: odeint(lambda y, t, p: {"A": -y.A}, {"A": 1.0}, {}, LOOKS), r"the arguments are \(t, y, p\)"),
        (lambda: odeint(lambda y, p: {"A": -y.A}, {"A": 1.0}, {}, LOOKS), r"the arguments are \(t, y, p\)"),
        (
            lambda: odeint(lambda t, y, p: {"A": -p["k"]}, {"A": 1.0}, {"k": 1.0}, LOOKS),
            r"write y.name and p.name",
        ),
        (
            lambda: odeint(falling, {"A": 1.0}, {"k": torch.ones(3, 1)}, LOOKS),
            r"'k' .* experiment axis is 3 for 1 experiment.*\(draw, 1, 1\)",
        ),
        (
            lambda: odeint(falling, {"A": 1.0}, {"k": 1.0}, LOOKS, events={"e": lambda y, p: {}}, doses=ONE),
            r"event 'e' .* cannot be called.*\(y, p, amount\)",
        ),
        (
            lambda: odeint(falling, {"A": 1.0}, {"k": 1.0}, LOOKS, doses=replace(ONE, target=ONE.target + 3)),
            r"target number 3, expected one of 0 to 0 for the targets A",
        ),
        (lambda: odeint(falling, {"A": 1.0}, {"k": 1.0}, [0.0, 1.0]), r"are a list, expected Experiments"),  # type: ignore[arg-type]
    ],
)
def test_a_newcomers_mistakes_are_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(OdeError, match=words):
        call()


def falling(t: Any, y: Any, p: Any) -> dict[str, Any]:
    return {"A": -p.k * y.A}


ONE = Doses.at([1.0], 2.0, "A")


def test_inputs_and_doses_are_made_from_lists() -> None:
    feed = Input.at([0.0, 1.0], [1.0, 3.0])
    looks = Experiments.on(LOOKS.times, ["A"], doses=ONE, inputs={"feed": feed})
    y = odeint(lambda t, y, p: {"A": p.F}, {"A": 0.0}, {"F": looks.inputs["feed"]}, looks)
    t = LOOKS.times
    exact = torch.where(t <= 1, t, 3 * t - 2) + torch.where(t > 1, 2.0, 0.0)
    torch.testing.assert_close(y.A, exact, rtol=1e-9, atol=1e-9)
