"""p-values of the checks of model and data: uniform where nothing is wrong, small where it is."""

import pytest
import torch

from ampost.checks import misfit, unlike


def test_contexts_like_the_others_are_rarely_called_unlike() -> None:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        every = torch.randn(801, 64, generator=generator)
        found.append(unlike(every[0], every[1:]))
    p = torch.tensor(found)
    assert 0.01 <= float((p < 0.05).double().mean()) <= 0.1
    assert 0.4 <= float(p.mean()) <= 0.6


def test_a_context_far_off_is_called_unlike() -> None:
    every = torch.randn(801, 64, generator=torch.Generator().manual_seed(0))
    assert unlike(every[0] + 3.0, every[1:]) == pytest.approx(1 / 401)


def test_a_misfit_is_the_share_of_replicates_that_are_as_bad() -> None:
    observed = torch.full((99,), 10.0)
    assert misfit(observed, torch.arange(99.0)) == pytest.approx((1 + 89) / 100)
    assert misfit(observed, torch.zeros(99)) == pytest.approx(0.01)
    assert misfit(torch.full((99,), torch.inf), torch.zeros(99)) == pytest.approx(0.01)
