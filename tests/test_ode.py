"""Every solver against closed forms: accuracy, doses, gradients, failures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import lambertw

from ampost import Compiled, Eager, Experiments, answering, odeint
from ampost.errors import OdeError
from ampost.experiments import Doses
from ampost.ode.problem import Status
from ampost.zoo.lotka_volterra import predation
from ampost.zoo.michaelis_menten import kinetics


@pytest.fixture(autouse=True, params=[Compiled, Eager], ids=["compiled", "eager"])
def solver(request: Any) -> Any:
    torch.set_default_dtype(torch.float64)
    with answering(request.param()):
        yield request.param
    torch.set_default_dtype(torch.float32)


def test_michaelis_menten_by_lambert_w() -> None:
    looks = Experiments.on(torch.linspace(0, 10, 21).expand(2, 21), ["P"], {"S0": [1.0, 2.0]})
    vmax, km = torch.rand(50, 1, 1) + 0.2, torch.rand(50, 1, 1) + 0.2
    y = odeint(kinetics, {"S": looks["S0"], "P": 0.0}, {"vmax": vmax, "km": km}, looks)
    start = looks["S0"]
    inside = start / km * torch.exp((start - vmax * looks.times) / km)
    exact = km * torch.as_tensor(lambertw(inside.numpy()).real)
    assert y.S.shape == (50, 2, 21)
    assert float((y.S - exact).abs().max()) < 2e-5


def test_rows_of_a_batch_equal_rows_alone() -> None:
    # rejected steps reorder the rows of a batch: parameters must follow
    torch.manual_seed(0)
    looks = Experiments.on(torch.arange(21.0)[None], ["hare"])
    rates = {
        "birth": 0.2 + 1.5 * torch.rand(30, 1, 1),
        "hunt": 0.01 + 0.1 * torch.rand(30, 1, 1),
        "death": 0.2 + 1.5 * torch.rand(30, 1, 1),
        "gain": 0.01 + 0.1 * torch.rand(30, 1, 1),
    }
    together = odeint(predation, {"hare": 30.0, "lynx": 4.0}, rates, looks)
    for k in (0, 11, 29):
        p = {n: float(v[k]) for n, v in rates.items()}

        def f(t: float, y: np.ndarray, p: dict[str, float] = p) -> list[float]:
            return [(p["birth"] - p["hunt"] * y[1]) * y[0], (p["gain"] * y[0] - p["death"]) * y[1]]

        exact = solve_ivp(f, (0, 20), [30.0, 4.0], t_eval=range(21), rtol=1e-10, atol=1e-12).y
        np.testing.assert_allclose(together.hare[k, 0], exact[0], rtol=1e-3)
        alone = odeint(
            predation,
            {"hare": 30.0, "lynx": 4.0},
            {n: v[k : k + 1] for n, v in rates.items()},
            looks,
        )
        torch.testing.assert_close(together.states[k], alone.states[0], rtol=1e-9, atol=1e-9)


def absorption(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"depot": -p.ka * y.depot, "central": p.ka * y.depot - p.ke * y.central}


TIMES = torch.tensor([[0.0, 0.5, 1.0, 3.0, 5.0, 5.3, 8.0, 24.0]], dtype=torch.float64)
DOSES = Doses(
    time=torch.tensor([[0.0, 5.0]], dtype=torch.float64),
    amount=torch.tensor([[2.0, 3.0]], dtype=torch.float64),
    duration=torch.tensor([[0.0, 2.0]], dtype=torch.float64),
    target=torch.tensor([[0, 1]]),
    mask=torch.ones(1, 2, dtype=torch.bool),
    targets=("depot", "central"),
)


def _dosed(ka: torch.Tensor, ke: torch.Tensor, lag: torch.Tensor) -> torch.Tensor:
    looks = Experiments.on(TIMES, ["central"], doses=DOSES)
    rates = {"ka": ka, "ke": ke}
    y = odeint(absorption, {"depot": 0.0, "central": 0.0}, rates, looks, doses=looks.doses.delayed(lag))
    return y.central


def _exact(ka: torch.Tensor, ke: torch.Tensor, lag: torch.Tensor) -> torch.Tensor:
    since = (TIMES - lag).clamp(min=0)
    oral = 2 * ka / (ka - ke) * (torch.exp(-ke * since) - torch.exp(-ka * since))
    since = TIMES - 5 - lag
    during = 1.5 / ke * (1 - torch.exp(-ke * since.clamp(min=0)))
    past = 1.5 / ke * (1 - torch.exp(-2 * ke)) * torch.exp(-ke * (since - 2).clamp(min=0))
    return oral + torch.where(since < 0, 0.0, torch.where(since < 2, during, past))


def test_bolus_and_infusion_with_an_estimated_lag() -> None:
    given = [torch.tensor(v, requires_grad=True) for v in (1.5, 0.1, 0.3)]
    solved, exact = _dosed(*given), _exact(*given)
    torch.testing.assert_close(solved, exact, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad(solved.square().sum(), given)
    truth = torch.autograd.grad(exact.square().sum(), given)
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)


def test_a_measurement_at_a_dose_is_taken_before_it() -> None:
    looks = Experiments.on([[0.0, 1.0, 1.0, 2.0]], ["A"])
    after = torch.tensor([[False, False, True, False]])
    looks = Experiments(**{**looks.__dict__, "after_dose": after})
    one = torch.ones(1, 1)
    doses = Doses(one, 5 * one, 0 * one, one.long() * 0, one.bool(), ("A",))
    y = odeint(lambda t, y, p: {"A": 0 * y.A}, {"A": 1.0}, {}, looks, doses=doses)
    torch.testing.assert_close(y.A, torch.tensor([[1.0, 1.0, 6.0, 6.0]]))


def test_failures_are_rows() -> None:
    looks = Experiments.on([[0.0, 0.5, 2.0]], ["A"])
    start = torch.tensor([0.1, 1.0, float("nan")]).reshape(3, 1, 1)
    y = odeint(lambda t, y, p: {"A": y.A**2}, {"A": start}, {}, looks)
    assert y.status[:, 0].tolist()[0] == Status.OK
    assert all(s != Status.OK for s in y.status[1:, 0].tolist())
    assert torch.isfinite(y.A[0]).all()
    assert torch.isnan(y.A[1, 0, 2])
    assert "prior" in Status.NOT_FINITE.remedy
    few = answering(Eager(max_steps=3))(
        lambda: odeint(kinetics, {"S": 1.0, "P": 0.0}, {"vmax": 1.0, "km": 0.1}, looks)
    )()
    assert few.status.tolist() == [Status.TOO_MANY_STEPS]


def test_bad_problems_are_refused_by_name() -> None:
    looks = Experiments.on([[0.0, 1.0]], ["A"])
    with pytest.raises(OdeError, match="one slope for each state"):
        odeint(lambda t, y, p: {"B": y.A}, {"A": 1.0}, {}, looks)
    with pytest.raises(OdeError, match="one scalar per trajectory"):
        odeint(lambda t, y, p: {"A": torch.ones(7)}, {"A": 1.0}, {}, looks)
    with pytest.raises(OdeError, match=r"'k'.*shape"):
        odeint(lambda t, y, p: {"A": -p.k * y.A}, {"A": 1.0}, {"k": torch.ones(4)}, looks)
    with pytest.raises(OdeError, match="hide an attribute"):
        odeint(lambda t, y, p: {"times": y.times}, {"times": 1.0}, {}, looks)
    with pytest.raises(OdeError, match="rtol"):
        Eager(rtol=-1.0)
    one = torch.ones(1, 1)
    doses = Doses(one, one, 0 * one, one.long() * 0, one.bool(), ("elsewhere",))
    with pytest.raises(OdeError, match="elsewhere"):
        odeint(lambda t, y, p: {"A": -y.A}, {"A": 1.0}, {}, looks, doses=doses)


def washout(t: Any, y: Any, p: Any) -> Mapping[str, Any]:
    return {"drug": -p.rate * y.drug}


def test_doses_at_other_times_in_every_row_follow_the_closed_form() -> None:
    # the rows reach their doses one after the other, so each restart concerns a part of the batch
    torch.manual_seed(0)
    times = torch.linspace(0.0, 6.0, 13, dtype=torch.float64).expand(5, 13)
    when = 5.0 * torch.rand(5, 2, dtype=torch.float64)
    amount = 1.0 + torch.rand(5, 2, dtype=torch.float64)
    zero = torch.zeros_like(when)
    doses = Doses(when, amount, zero, zero.long(), torch.ones_like(when).bool(), ("drug",))
    looks = Experiments.on(times, ["drug"], doses=doses)
    rate = torch.tensor([[0.3], [0.5], [0.7], [0.9], [1.1]], dtype=torch.float64)
    y = odeint(washout, {"drug": 0.5}, {"rate": rate}, looks)
    since = times[:, None] - when[..., None]
    given = torch.where(since > 0, amount[..., None] * torch.exp(-rate[..., None] * since), 0.0)
    torch.testing.assert_close(y.drug, 0.5 * torch.exp(-rate * times) + given.sum(1), rtol=1e-6, atol=1e-7)
    assert y.status.tolist() == [0] * 5
