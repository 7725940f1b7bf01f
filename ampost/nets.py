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


def pool(values: Tensor, mask: Tensor) -> Tensor:
    """(..., item, feature) over the unmasked items: mean, sum / (1 + sqrt(count)), log count."""
    weight = mask[..., None].to(values.dtype)
    count = weight.sum(-2)
    total = (values * weight).sum(-2)
    return torch.cat([total / count.clamp(min=1), total / (8 * (1 + count.sqrt())), torch.log1p(count)], -1)


class DeepSet(nn.Module):
    """Tokens (batch, experiment, token, feature), mask, conditions -> context (batch, context).

    With `local` experiments, their own embeddings join the context in order, since a model with a
    parameter per experiment must tell them apart.
    """

    def __init__(self, token: int, conditions: int, width: int, context: int, local: int = 0) -> None:
        super().__init__()
        self.token = perceptron(token, width, width)
        self.experiment = perceptron(2 * width + 1 + conditions, width, width)
        self.local = local
        self.out = perceptron(2 * width + 1 + local * width, width, context, hidden=1)

    def forward(self, tokens: Tensor, mask: Tensor, conditions: Tensor, live: Tensor) -> Tensor:
        """The context of each data set."""
        inner = pool(self.token(tokens), mask)
        each = self.experiment(torch.cat([inner, conditions], -1))
        pooled = pool(each, live)
        if self.local:
            pooled = torch.cat([pooled, each.flatten(-2)], -1)
        context: Tensor = self.out(pooled)
        return context
