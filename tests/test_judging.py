"""What a final round says of itself, on rounds whose faults are known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ampost.importance import Draws, halves_apart, weighed
from ampost.judging import alike, judged


def log_normal(z: Tensor, sd: float = 1.0) -> Tensor:
    return torch.distributions.Normal(0.0, sd).log_prob(z).sum(-1)


def round_of(count: int, sd: float = 1.2, size: int = 2, seed: int = 0) -> Draws:
    """Draws of N(0, sd^2) that propose for N(0, 1), all of the proposal's first component."""
    z = sd * torch.randn(count, 1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weighed(z, log_normal(z, sd), log_normal(z), torch.zeros(count, dtype=torch.long))


def test_a_good_round_has_no_fault() -> None:
    said = judged(round_of(6_000))
    assert said.faults == ()
    assert said.smallest > 4_000
    assert said.failed == 0


def test_too_few_draws_are_a_fault() -> None:
    faults = judged(round_of(2_500)).faults
    assert len(faults) == 1
    assert faults[0].startswith("only 2500 draws")


def test_a_narrow_proposal_has_a_high_khat() -> None:
    faults = judged(round_of(6_000, sd=0.25, size=1)).faults
    assert any(fault.startswith("k-hat") for fault in faults)


def test_one_draw_that_carries_much_is_named() -> None:
    good = round_of(6_000)
    weight = good.log_weight.clone()
    weight[17] = weight.logsumexp(0) - 3.0
    faults = judged(replace(good, log_weight=weight)).faults
    assert any("one draw carries 4.7% of the weight" in fault for fault in faults)


def test_halves_that_differ_are_named() -> None:
    good = round_of(6_000)
    assert float(halves_apart(good).max()) < 3
    z = good.z.clone()
    z[::2, :, 1] += 0.2
    said = judged(replace(good, z=z))
    assert said.apart == pytest.approx(0.2 / (2 / 3_000) ** 0.5, rel=0.3)
    assert any("two halves" in fault for fault in said.faults)


def test_halves_are_as_far_apart_as_chance_has_it() -> None:
    apart = torch.cat([halves_apart(round_of(1_000, size=4, seed=k)) for k in range(200)]).flatten()
    assert 0.2 < float((apart > 1).double().mean()) < 0.45  # 0.32 of a normal
    assert float((apart > 3).double().mean()) < 0.02


def test_failures_count_but_for_those_of_the_prior() -> None:
    good = round_of(6_000)
    joint, weight = good.log_joint.clone(), good.log_weight.clone()
    joint[:120], weight[:120] = -torch.inf, -torch.inf
    faults = judged(replace(good, log_joint=joint, log_weight=weight)).faults
    assert faults == ("the model fails at 2.0% of the draws",)
    component = good.component.clone()
    component[:120] = 1
    assert judged(replace(good, log_joint=joint, log_weight=weight, component=component)).faults == ()


def test_nothing_possible_is_a_fault_and_no_crash() -> None:
    good = round_of(6_000)
    none = torch.full_like(good.log_joint, -torch.inf)
    said = judged(weighed(good.z, good.log_proposal, none, good.component))
    assert len(said.faults) >= 3


def test_a_network_is_alike_where_means_and_widths_are() -> None:
    final = round_of(20_000)
    network = torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert alike(network, final)
    assert not alike(network + torch.tensor([0.0, 0.2]), final)
    assert not alike(1.2 * network, final)
