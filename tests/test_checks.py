"""Checks of model and data: statistics of residuals, p-values that are uniform where nothing is wrong."""

import pytest
import torch

from ampost import checks


def test_a_context_like_the_others_is_rarely_far_from_them() -> None:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        every = torch.randn(801, 64, generator=generator)
        far = checks.distances(every[:401], every[401:])
        found.append(float(checks.p_values(far[:1], far[1:, None])[0]))
    p = torch.tensor(found)
    assert 0.01 <= float((p < 0.05).double().mean()) <= 0.1
    assert 0.4 <= float(p.mean()) <= 0.6
    every[0] += 3.0
    far = checks.distances(every[:401], every[401:])
    assert float(checks.p_values(far[:1], far[1:, None])[0]) == pytest.approx(1 / 401)


def test_a_p_value_is_the_share_of_replicates_that_are_as_bad() -> None:
    replicated = torch.arange(99.0)[:, None].expand(-1, 3)
    p, adjusted = checks.p_values(torch.tensor([10.0, torch.inf, torch.nan]), replicated)
    assert p[:2].tolist() == pytest.approx([(1 + 89) / 100, 0.01])
    assert torch.isnan(p[2])
    assert torch.isnan(adjusted[2])
    some = torch.where(replicated < 50, torch.nan, replicated)[:, :1]
    assert float(checks.p_values(torch.tensor([98.0]), some)[0]) == pytest.approx(0.02)


def test_adjusted_p_values_are_uniform_however_statistics_go_together() -> None:
    generator = torch.Generator().manual_seed(1)
    for together in (0.0, 0.9):
        smallest = []
        for _ in range(400):
            common = together**0.5 * torch.randn(201, 1, generator=generator)
            every = common + (1 - together) ** 0.5 * torch.randn(201, 6, generator=generator)
            smallest.append(float(checks.p_values(every[0], every[1:])[1].min()))
        share = float((torch.tensor(smallest) < 0.1).double().mean())
        assert 0.06 <= share <= 0.14
    p, adjusted = checks.p_values(torch.zeros(6).index_fill(0, torch.tensor([4]), 9.0), every[1:])
    assert float(adjusted[4]) < 0.05
    assert bool((adjusted >= p).all())


def test_statistics_of_residuals_go_by_time_and_within_experiments() -> None:
    nan = torch.nan
    residual = torch.tensor([[[1.0, -1.0, nan, 1.0, -1.0], [2.0, nan, nan, nan, nan]]])
    times = torch.tensor([[[0.0, 2.0, 9.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]]])
    # in time: 1, 1, -1, -1
    assert checks.chi_square(residual).tolist() == [8.0]
    assert checks.largest(residual).tolist() == [2.0]
    assert checks.autocorrelation(residual, times).tolist() == pytest.approx([1 / 8])
    assert checks.runs(residual, times).tolist() == [1.0]
    line = torch.arange(5.0)[None, None]
    assert checks.trend(line - 2.0, line).tolist() == pytest.approx([1.0], abs=1e-4)
    waves = torch.tensor([[[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]]])
    assert float(checks.trend(waves, torch.arange(8.0)[None, None])) < 0.1
    few = torch.where(torch.arange(5) < 2, residual[:, :1], nan)
    assert bool(torch.isnan(checks.runs(few, times[:, :1])).all())
    assert bool(torch.isnan(checks.largest(torch.full((1, 1, 3), nan))).all())
