"""The amortized estimator: tokens -> DeepSet -> context -> quantile head and density over z.

The density q(z | context) is built by sbi's factory from configuration alone, trained by our loop
on -log q (neural posterior estimation: its minimiser over all q is the posterior), and handed back
to sbi users by `to_sbi`. The one door to sbi.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ampost import files
from ampost.bank import Bank
from ampost.design import Design, tuples
from ampost.errors import EstimatorError
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.nets import DeepSet, perceptron
from ampost.seeds import derive, seeded
from ampost.tokens import Scaling, scaling_of, tokens
from ampost.training import FitReport, Schedule, fit

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks; `density` is the name of a builder in sbi's `posterior_nn`."""

    width: int = 96
    context: int = 64
    density: str = "zuko_maf"
    transforms: int = 5
    hidden: int = 64


class _Networks(nn.Module):
    def __init__(self, sizes: Architecture, token: int, conditions: int, z: int, local: int) -> None:
        super().__init__()
        self.embedding = DeepSet(token, conditions, sizes.width, sizes.context, local)
        self.point = perceptron(sizes.context, sizes.width, z * len(QUANTILES), hidden=1)
        self.density = _density(sizes, z)


def _density(sizes: Architecture, z: int) -> nn.Module:
    """sbi's density estimator over z given a context; argument checks stay as they were."""
    # importing sbi (through zuko) switches argument checks off for the whole process
    kinds: tuple[Any, ...] = (torch.distributions.Distribution, pyro.distributions.Distribution)
    checks = [getattr(kind, "_validate_args", None) for kind in kinds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sbi.neural_nets import posterior_nn
    for kind, check in zip(kinds, checks, strict=True):
        if check is not None:
            kind._validate_args = check
    build = posterior_nn(
        sizes.density,
        z_score_theta="none",
        z_score_x="none",
        hidden_features=sizes.hidden,
        num_transforms=sizes.transforms,
        embedding_net=nn.Identity(),
    )
    density: nn.Module = build(torch.randn(8, z), torch.randn(8, sizes.context))
    return density


def _close(mine: list[str], theirs: list[str]) -> bool:
    """Whether two behaviours agree but for the error of a solver."""
    pairs = [(float(a), float(b)) for a, b in zip(mine, theirs, strict=False)]
    return len(mine) == len(theirs) and all(abs(a - b) <= 1e-3 * (1 + abs(b)) for a, b in pairs)


@dataclass(frozen=True)
class Estimator:
    """A trained network with what it needs to read data: scaling, design, fingerprint, report.

    It carries no program: loading runs no code.
    """

    networks: _Networks
    architecture: Architecture
    scaling: Scaling
    design: Design
    fingerprint: Mapping[str, Any]
    report: FitReport
    z_size: int
    local: int
    solves: int

    def context(self, data: Experiments) -> Tensor:
        """The context (dataset, context) of each data set, embedded once."""
        with torch.no_grad():
            context: Tensor = self.networks.embedding(*tokens(data, self.scaling))
        return context

    def quantiles(self, data: Experiments) -> Tensor:
        """Posterior quantiles `QUANTILES` of z, (dataset, z, quantile), by one pass."""
        with torch.no_grad():
            out: Tensor = self.networks.point(self.context(data))
        return out.reshape(len(out), self.z_size, len(QUANTILES)).double()

    def sample(self, context: Tensor, draws: int, seed: int) -> Tensor:
        """Draws z (draw, dataset, z) from the density at `context`."""
        with torch.no_grad(), seeded(seed):
            density: Any = self.networks.density
            drawn: Tensor = density.sample((draws,), condition=context)
        return drawn.double()

    def log_density(self, z: Tensor, context: Tensor) -> Tensor:
        """log q(z | context), (draw, dataset)."""
        density: Any = self.networks.density
        with torch.no_grad():
            value: Tensor = density.log_prob(z.float(), condition=context)
        return torch.nan_to_num(value.double(), nan=-torch.inf)

    def belongs_to(self, model: Model) -> None:
        """Raise EstimatorError unless this estimator was trained for `model`'s behaviour."""
        mine, theirs = self.fingerprint, model.fingerprint(self.design)
        for part in ("sites", "channels", "behaviour"):
            same = _close(mine[part], theirs[part]) if part == "behaviour" else mine[part] == theirs[part]
            if not same:
                raise EstimatorError(
                    f"the estimator was trained for another model: its {part} are {mine[part]}, "
                    f"those of {model.name!r} are {theirs[part]}; train again for this model"
                )

    def save(self, path: str | Path) -> None:
        """Write to one file: safetensors with a JSON header, atomic, checksummed."""
        header = {
            "architecture": asdict(self.architecture),
            "scaling": asdict(self.scaling),
            "design": self.design.to_json(),
            "fingerprint": self.fingerprint,
            "report": asdict(self.report),
            "z_size": self.z_size,
            "local": self.local,
            "solves": self.solves,
        }
        files.save(path, "estimator", header, self.networks.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> Estimator:
        """Read what `save` wrote."""
        header, tensors = files.load(path, "estimator")
        sizes = Architecture(**header["architecture"])
        scaling = Scaling(**tuples(header["scaling"]))
        networks = _Networks(sizes, scaling.token, len(scaling.conditions), header["z_size"], header["local"])
        networks.load_state_dict(tensors)
        networks.eval()
        return cls(
            networks,
            sizes,
            scaling,
            Design.from_json(header["design"]),
            header["fingerprint"],
            FitReport(**tuples(header["report"])),
            header["z_size"],
            header["local"],
            header["solves"],
        )

    def to_sbi(self) -> Any:  # noqa: ANN401 - sbi's DirectPosterior
        """sbi's posterior over z; its x is this estimator's context of a data set."""
        from sbi.inference.posteriors import DirectPosterior

        prior = torch.distributions.MultivariateNormal(torch.zeros(self.z_size), torch.eye(self.z_size))
        return DirectPosterior(self.networks.density, prior)


def train_estimator(
    model: Model,
    bank: Bank,
    schedule: Schedule,
    seed: int,
    architecture: Architecture | None = None,
    batch: int = 256,
    show: bool | None = None,
) -> Estimator:
    """Train on the bank, with fresh times, masks and noise in every batch.

    The loss is -log q(z | context), plus the pinball loss of the quantile head, whose share in the
    context fades to zero at 70 % of the schedule. Batch k is a function of (seed, k).
    """
    if len(bank) < 2 * batch:
        raise EstimatorError(f"the bank has {len(bank)} rows, a batch needs {batch}; simulate more rows")
    sizes = architecture or Architecture()
    held_out = max(batch, min(2_000, len(bank) // 10))
    shown = _batch(model, bank, torch.arange(held_out), derive(seed, "validation"))
    scaling = scaling_of(model.channels, model.design, shown[1])
    local = model.design.experiments[1] if any(s.local for s in model.sites()) else 0
    with seeded(derive(seed, "weights")):
        networks = _Networks(sizes, scaling.token, len(scaling.conditions), model.z_size(), local)
    levels = torch.tensor(QUANTILES)
    check_tokens = tokens(shown[1], scaling)

    def batch_at(k: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        chosen = derive(seed, "rows", k)
        generator = torch.Generator().manual_seed(chosen)
        index = torch.randint(held_out, len(bank), (batch,), generator=generator)
        z, looks = _batch(model, bank, index, derive(seed, "batch", k))
        return z.float(), tokens(looks, scaling)

    def loss(given: tuple[Tensor, tuple[Tensor, ...]], done: float) -> Tensor:
        z, seen = given
        context = networks.embedding(*seen)
        density: Any = networks.density
        share = max(0.0, 1.0 - done / 0.7)
        mixed = context.detach() + share * (context - context.detach())
        guess = networks.point(mixed).reshape(len(z), z.shape[1], len(QUANTILES))
        missed = z[..., None] - guess
        pinball = torch.maximum(levels * missed, (levels - 1) * missed).sum((1, 2)).mean()
        total: Tensor = density.loss(z, context).mean() + pinball
        return total

    def validation() -> float:
        density: Any = networks.density
        return float(density.loss(shown[0].float(), networks.embedding(*check_tokens)).mean())

    with seeded(derive(seed, "training")):
        report = fit(networks, loss, batch_at, validation, schedule, show)
    return Estimator(
        networks,
        sizes,
        scaling,
        model.design,
        model.fingerprint(),
        report,
        model.z_size(),
        local,
        len(bank) + bank.failures,
    )


def _batch(model: Model, bank: Bank, index: Tensor, seed: int) -> tuple[Tensor, Experiments]:
    """z and freshly observed data of the bank's rows `index`."""
    looks = model.design.draw_looks(bank.protocols.at(index), derive(seed, "looks"))
    z = bank.z[index]
    drawn = model.simulate_at(z, looks, derive(seed, "noise"), solver=bank.rows(index))
    return z, drawn.experiments
