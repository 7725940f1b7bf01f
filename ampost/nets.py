"""Networks: a perceptron and the nested, masked DeepSet over tokens.

Tokens pool within an experiment, conditions join, experiments pool. Pooling gives a mean, a sum on
a logarithmic scale and the count; masks are explicit, so padding and order change nothing.
"""

from __future__ import annotations

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


class DeepSet(nn.Module):
    """Tokens (batch, experiment, token, feature), mask, conditions -> context, and an embedding per experiment.

    The context is (batch, context), the embeddings (batch, experiment, width).
    """

    def __init__(self, token: int, conditions: int, width: int, context: int) -> None:
        super().__init__()
        self.token = perceptron(token, width, width)
        self.experiment = perceptron(2 * width + 1 + conditions, width, width)
        self.out = perceptron(2 * width + 1, width, context, hidden=1)

    def forward(self, tokens: Tensor, mask: Tensor, conditions: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """The context of each data set and the embedding of each of its experiments."""
        inner = pooled(self.token, tokens, mask)
        each: Tensor = self.experiment(torch.cat([inner, conditions], -1))
        context: Tensor = self.out(pooled(nn.Identity(), each, live))
        return context, each
