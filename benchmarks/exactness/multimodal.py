"""Are both modes of a posterior found, and do they weigh what quadrature says, if the network lost one?

Run: python benchmarks/exactness/multimodal.py
Two exponentials decay side by side, and only their sum is seen, so that their labels can be exchanged: two
modes of the same weight where both rates have the same prior, and of unequal ones where the priors differ. An
estimator is trained for each, and one more lacks the lighter mode: its draws there are mirrored. All are
corrected to an effective size of 10,000. The reference is a grid in z.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from targets import Target, show

from ampost import Budget, Design, Estimator, Experiments, Looks, Model, Schedule, Settings, observe, train
from ampost.correction import correct
from ampost.estimator import Reading

TIMES = tuple(0.5 * k for k in range(13))
APART = {"even": 0.0, "0.8 / 0.2": 0.55}  # between the means of the priors of the log rates
SEEDS = 3


def decays(apart: float) -> Callable[[Experiments], None]:
    """The sum of two decays, whose log rates have priors that are so far apart."""

    def program(experiments: Experiments) -> None:
        first = pyro.sample("first", dist.LogNormal(-0.7 + apart / 2, 0.8))
        second = pyro.sample("second", dist.LogNormal(-0.7 - apart / 2, 0.8))
        level = (-first * experiments.times).exp() + (-second * experiments.times).exp()
        observe("y", dist.Normal(level, 0.05), experiments)

    return program


@dataclass(frozen=True)
class OneSided(Estimator):
    """An estimator that knows only of one order of the rates; `apart` is between their priors, in sd."""

    apart: float = 0.0

    def _mirrored(self, z: Tensor) -> Tensor:
        # log rates exchanged
        return torch.stack([z[..., 1] - self.apart, z[..., 0] + self.apart], -1)

    def _known(self, z: Tensor) -> Tensor:
        return z[..., 0] + self.apart > z[..., 1]

    def sample(self, reading: Reading, draws: int, seed: int) -> Tensor:
        """Draws, those of the other order mirrored."""
        z = super().sample(reading, draws, seed)
        return torch.where(self._known(z)[..., None], z, self._mirrored(z))

    def log_density(self, z: Tensor, reading: Reading) -> Tensor:
        """The density of what `sample` draws."""
        both = torch.logaddexp(super().log_density(z, reading), super().log_density(self._mirrored(z), reading))
        return torch.where(self._known(z), both, -torch.inf)


def by_grid(model: Model, data: Experiments, apart: float) -> float:
    """The posterior probability that the first rate is the larger one."""
    axis = torch.linspace(-5, 5, 1_001, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weight = torch.softmax(model.log_joint(grid[:, None], data)[:, 0], 0)
    return float(weight[grid[:, 0] + apart > grid[:, 1]].sum())


def main() -> None:
    """Correct by both estimators of both models, and compare the weights of the modes."""
    torch.set_num_threads(1)
    rows = []
    for name, between in APART.items():
        apart = between / 0.8
        model = Model(decays(between), Design({"y": Looks(TIMES, (13, 13))}, {}, (1, 1), horizon=6.5))
        trained = train(model, Settings(5_000, Schedule(steps=1_000)), seed=0, progress=False)
        lost = OneSided(*(getattr(trained, field) for field in Estimator.__dataclass_fields__), apart=apart)
        for seed in range(SEEDS):
            truth = torch.tensor([[1.1 - apart / 2, -0.9 + apart / 2]], dtype=torch.float64)
            data = model.simulate_at(truth, model.design.draw(1, 0), seed).experiments.at(0)
            right = by_grid(model, data, apart)
            for told, estimator in (("right", trained), ("one mode lost", lost)):
                found = correct(model, data, estimator, seed, Budget(effective_size=10_000), show=False)
                weight, z = found.final.weights[:, 0], found.final.z[:, 0]
                share = float(weight[z[:, 0] + apart > z[:, 1]].sum())
                off = max(abs(share / right - 1), abs((1 - share) / (1 - right) - 1))
                how = "sampled" if found.sampled else "trusted" if found.network.trusted else "corrected"
                print(f"{name}, {told}, data set {seed}: {share:.3f}, by quadrature {right:.3f}; {how}")
                rows.append(
                    Target(f"{name}, {told}, {seed}: relative error of a mode's weight", off, most=0.05)
                )
    show(rows)


if __name__ == "__main__":
    main()
