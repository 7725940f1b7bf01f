"""Checks of model and data: statistics of residuals, p-values that are uniform where nothing is wrong."""

import pytest
import torch

from ampost import checks


def test_contexts_like_the_others_are_rarely_called_unlike() -> None:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        every = torch.randn(801, 64, generator=generator)
        found.append(checks.p_value(*checks.distances(every[0], every[1:])))
    p = torch.tensor(found)
    assert 0.01 <= float((p < 0.05).double().mean()) <= 0.1
    assert 0.4 <= float(p.mean()) <= 0.6


def test_a_context_far_off_is_called_unlike() -> None:
    every = torch.randn(801, 64, generator=torch.Generator().manual_seed(0))
    assert checks.p_value(*checks.distances(every[0] + 3.0, every[1:])) == pytest.approx(1 / 401)


def test_a_p_value_is_the_share_of_replicates_that_are_as_bad() -> None:
    replicated = torch.arange(99.0)
    assert checks.p_value(torch.tensor(10.0), replicated) == pytest.approx((1 + 89) / 100)
    assert checks.p_value(torch.tensor(torch.inf), replicated) == pytest.approx(0.01)
    some = torch.where(replicated < 50, torch.nan, replicated)
    assert checks.p_value(torch.tensor(98.0), some) == pytest.approx(2 / 50)
    assert checks.p_value(torch.tensor(torch.nan), replicated) != checks.p_value(torch.tensor(1.0), replicated)


def test_holm_adjusts_for_those_that_are_known() -> None:
    nan = float("nan")
    found = checks.holm([0.01, nan, 0.04, 0.03])
    assert found[0] == pytest.approx(0.03)
    assert found[1] != found[1]
    assert found[2:] == pytest.approx([0.06, 0.06])


def test_statistics_of_residuals_go_by_time_and_within_experiments() -> None:
    nan = torch.nan
    residual = torch.tensor([[[1.0, -1.0, nan, 1.0, -1.0], [2.0, nan, nan, nan, nan]]])
    times = torch.tensor([[[0.0, 2.0, 9.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]]])
    # in time: 1, 1, -1, -1
    assert checks.chi_square(residual).tolist() == [8.0]
    assert checks.largest(residual).tolist() == [2.0]
    assert checks.autocorrelation(residual, times).tolist() == pytest.approx([1 / 8])
    assert checks.runs(residual, times).tolist() == [1.0]
    few = torch.where(torch.arange(5) < 2, residual[:, :1], nan)
    assert bool(torch.isnan(checks.runs(few, times[:, :1])).all())
    assert bool(torch.isnan(checks.largest(torch.full((1, 1, 3), nan))).all())
