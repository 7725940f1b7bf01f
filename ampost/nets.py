"""Networks: a perceptron and the nested, masked DeepSet over tokens, with or without attention.

Tokens pool within an experiment, conditions join, experiments pool. Pooling gives a mean, a sum on
a logarithmic scale and the count; masks are explicit, so padding and order change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def perceptron(inputs: int, width: int, outputs: int, hidden: int = 2) -> nn.Sequential:
    """Fully connected layers with SiLU between."""
    layers: list[nn.Module] = [nn.Linear(inputs, width), nn.SiLU()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def pooled(net: nn.Module, items: Tensor, mask: Tensor) -> Tensor:
    """`net` of the unmasked items (..., item, feature), pooled: mean, sum / (1 + sqrt(count)), log count."""
    there = mask.flatten().nonzero()[:, 0]
    values = net(items.flatten(0, -2).index_select(0, there))
    count = mask.sum(-1, keepdim=True).to(values)
    total = values.new_zeros(mask.shape[:-1].numel(), values.shape[-1])
    total = total.index_add(0, there // mask.shape[-1], values).reshape(*mask.shape[:-1], -1)
    return torch.cat([total / count.clamp(min=1), total / (8 * (1 + count.sqrt())), torch.log1p(count)], -1)


def encoder(inputs: int, width: int) -> nn.Sequential:
    """Two layers for items that are pooled; a third, linear one would only add to what follows the pooling."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


class DeepSet(nn.Module):
    """Tokens (batch, experiment, token, feature), mask, conditions -> context, and an embedding per experiment.

    The context is (batch, context), the embeddings (batch, experiment, width).
    """

    def __init__(self, token: int, conditions: int, width: int, context: int) -> None:
        super().__init__()
        self.token = encoder(token, width)
        self.experiment = perceptron(2 * width + 1 + conditions, width, width)
        self.out = perceptron(2 * width + 1, width, context, hidden=1)

    def forward(self, tokens: Tensor, mask: Tensor, conditions: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """The context of each data set and the embedding of each of its experiments."""
        inner = self.pool(tokens, mask)
        each: Tensor = self.experiment(torch.cat([inner, conditions], -1))
        context: Tensor = self.out(pooled(nn.Identity(), each, live))
        return context, each

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The tokens of each experiment in (..., 2 * width + 1) numbers."""
        return pooled(self.token, tokens, mask)


class AttentionSet(DeepSet):
    """A DeepSet whose tokens are pooled by their mean and, in place of the sum, by attention.

    Each of `HEADS` learnt queries weighs the tokens of an experiment by a softmax, and gives the mean of its
    share of their features.
    """

    HEADS = 8

    def __init__(self, token: int, conditions: int, width: int, context: int) -> None:
        super().__init__(token, conditions, width, context)
        self.query = nn.Linear(width, self.HEADS)

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The tokens of each experiment in (..., 2 * width + 1) numbers."""
        there = mask.flatten().nonzero()[:, 0]
        values = self.token(tokens.flatten(0, -2).index_select(0, there))
        groups, owner = mask.shape[:-1].numel(), there // mask.shape[-1]
        score = self.query(values)
        highest = score.new_full((groups, self.HEADS), -torch.inf)
        highest = highest.scatter_reduce(0, owner[:, None].expand_as(score), score.detach(), "amax")
        weight = (score - highest.index_select(0, owner)).exp()
        heads = values.unflatten(1, (self.HEADS, -1)) * weight[..., None]
        over = weight.new_zeros(groups, self.HEADS).index_add(0, owner, weight).clamp(min=1e-12)
        attended = heads.new_zeros(groups, *heads.shape[1:]).index_add(0, owner, heads) / over[..., None]
        count = mask.sum(-1, keepdim=True).to(values)
        mean = values.new_zeros(groups, values.shape[-1]).index_add(0, owner, values)
        mean = mean.reshape(*mask.shape[:-1], -1) / count.clamp(min=1)
        return torch.cat([mean, attended.reshape(*mask.shape[:-1], -1), torch.log1p(count)], -1)


EMBEDDINGS: Mapping[str, type[DeepSet]] = {"mean": DeepSet, "attention": AttentionSet}
