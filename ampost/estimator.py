"""The amortized estimator: tokens -> DeepSet -> context -> quantile head and density over z.

The density q(z | context) is built by sbi's factory from configuration alone, trained by our loop
on -log q (neural posterior estimation: its minimiser over all q is the posterior), and handed back
to sbi users by `to_sbi`. The one door to sbi.
"""

from __future__ import annotations

import math
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
from ampost.errors import EstimatorError, UnsupportedError
from ampost.experiments import Experiments
from ampost.model import Model
from ampost.nets import DeepSet, perceptron
from ampost.seeds import derive, seeded
from ampost.tokens import Scaling, scaling_of, tokens
from ampost.training import FitReport, Schedule, fit

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks; `density` is the name of a builder in sbi's `posterior_nn`."""

    width: int = 96
    context: int = 64
    density: str = "zuko_maf"
    transforms: int = 5
    hidden: int = 64


@dataclass(frozen=True)
class Layout:
    """Where shared and local parameters stand in z: per site whether it is local, plates to its left, size.

    A local site has a value per experiment (`experiments.plate()`); given the shared parameters its posterior
    depends on that experiment's data alone.
    """

    sites: tuple[tuple[bool, int, int], ...]

    @classmethod
    def of(cls, model: Model) -> Layout:
        """The layout of a model's sites."""

        def number(shape: tuple[int, ...]) -> int:
            return int(torch.Size(shape).numel())

        return cls(tuple((s.local, number(s.batch[:-2]), number(s.z_event)) for s in model.sites()))

    @property
    def shared(self) -> int:
        """The number of shared coordinates of z."""
        return sum(left * size for local, left, size in self.sites if not local)

    @property
    def local(self) -> int:
        """The number of local coordinates of z per experiment."""
        return sum(left * size for local, left, size in self.sites if local)

    def places(self, experiments: int) -> tuple[Tensor, Tensor]:
        """Indices into z: (shared,) and (experiment, local)."""
        shared, own, start = [], [], 0
        for local, left, size in self.sites:
            number = left * size * (experiments if local else 1)
            index = torch.arange(start, start + number)
            if local:
                own.append(index.reshape(left, experiments, size).movedim(1, 0).reshape(experiments, -1))
            else:
                shared.append(index)
            start += number
        none = torch.zeros(0, dtype=torch.long)
        return (
            torch.cat([none, *shared]),
            torch.cat([none.reshape(1, 0).expand(experiments, 0), *own], -1),
        )


@dataclass(frozen=True)
class Reading:
    """What the networks read in data: the context, the embedding of each experiment, which are live."""

    context: Tensor
    each: Tensor
    live: Tensor


class _Networks(nn.Module):
    """Embedding, quantile heads and densities; those of local parameters are shared by all experiments."""

    def __init__(self, sizes: Architecture, scaling: Scaling, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        shared, local = layout.shared, layout.local
        self.embedding = DeepSet(scaling.token, len(scaling.conditions), sizes.width, sizes.context)
        if shared:
            self.point: Any = perceptron(sizes.context, sizes.width, shared * len(QUANTILES), hidden=1)
            self.density: Any = _density(sizes, shared, sizes.context)
        if local:
            known = sizes.width + sizes.context
            self.local_point: Any = perceptron(known, sizes.width, local * len(QUANTILES), hidden=1)
            self.local_density: Any = _density(sizes, local, sizes.width + shared)

    def read(self, seen: tuple[Tensor, ...]) -> Reading:
        """The reading of tokens, mask, conditions and live experiments."""
        context, each = self.embedding(*seen)
        return Reading(context, each, seen[3])

    def quantiles(self, reading: Reading, share: float = 1.0) -> Tensor:
        """Quantiles (dataset, z, quantile); only `share` of their gradient reaches the embedding."""
        context, each = (v.detach() + share * (v - v.detach()) for v in (reading.context, reading.each))
        datasets, experiments = each.shape[:2]
        shared, own = self.layout.places(experiments)
        out = context.new_zeros(datasets, shared.numel() + own.numel(), len(QUANTILES))
        if shared.numel():
            out[:, shared] = self.point(context).reshape(datasets, -1, len(QUANTILES))
        if own.numel():
            both = torch.cat([each, context[:, None].expand(*each.shape[:2], context.shape[-1])], -1)
            out[:, own] = self.local_point(both).reshape(datasets, *own.shape, len(QUANTILES))
        return out

    def log_density(self, z: Tensor, reading: Reading) -> Tensor:
        """log q(z | data) of z (draw, dataset, z); the parameters of padding experiments follow N(0, 1)."""
        shared, own = self.layout.places(reading.each.shape[1])
        z_shared, z_own = z[..., shared], z[..., own]
        total = z.new_zeros(z.shape[:-1])
        if shared.numel():
            total = total + self.density.log_prob(z_shared, condition=reading.context)
        if own.numel():
            known = self._known(z_shared, reading)
            flat = known.reshape(-1, known.shape[-1]), z_own.reshape(1, -1, own.shape[1])
            each = self.local_density.log_prob(flat[1], condition=flat[0]).reshape(known.shape[:-1])
            apart = -0.5 * (z_own.square() + LOG_2PI).sum(-1)
            total = total + torch.where(reading.live, each, apart).sum(-1)
        return total

    def sample(self, reading: Reading, draws: int) -> Tensor:
        """Draws z (draw, dataset, z)."""
        datasets, experiments = reading.each.shape[:2]
        shared, own = self.layout.places(experiments)
        z = torch.zeros(draws, datasets, shared.numel() + own.numel())
        if shared.numel():
            z[..., shared] = self.density.sample((draws,), condition=reading.context)
        if own.numel():
            known = self._known(z[..., shared], reading)
            drawn = self.local_density.sample((1,), condition=known.reshape(-1, known.shape[-1]))
            drawn = drawn.reshape(*known.shape[:-1], -1)
            z[..., own] = torch.where(reading.live[..., None], drawn, torch.randn_like(drawn))
        return z

    def _known(self, z_shared: Tensor, reading: Reading) -> Tensor:
        """What the local density is given: (draw, dataset, experiment, embedding and shared z)."""
        shape = (*z_shared.shape[:-1], reading.each.shape[1])
        each = reading.each.expand(*shape, reading.each.shape[-1])
        return torch.cat([each, z_shared[..., None, :].expand(*shape, z_shared.shape[-1])], -1)


def _density(sizes: Architecture, z: int, known: int) -> nn.Module:
    """sbi's density estimator over z given `known` numbers; argument checks stay as they were."""
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
    density: nn.Module = build(torch.randn(8, z), torch.randn(8, known))
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
    solves: int

    def reading(self, data: Experiments) -> Reading:
        """What the networks read in each data set, embedded once."""
        with torch.no_grad():
            return self.networks.read(tokens(data, self.scaling))

    def context(self, data: Experiments) -> Tensor:
        """The context (dataset, context) of each data set."""
        return self.reading(data).context

    def quantiles(self, data: Experiments) -> Tensor:
        """Posterior quantiles `QUANTILES` of z, (dataset, z, quantile), by one pass."""
        with torch.no_grad():
            return self.networks.quantiles(self.reading(data)).double()

    def sample(self, reading: Reading, draws: int, seed: int) -> Tensor:
        """Draws z (draw, dataset, z) from the density given a reading of the data."""
        with torch.no_grad(), seeded(seed):
            return self.networks.sample(reading, draws).double()

    def log_density(self, z: Tensor, reading: Reading) -> Tensor:
        """log q(z | data), (draw, dataset)."""
        with torch.no_grad():
            value = self.networks.log_density(z.float(), reading)
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
            "layout": asdict(self.networks.layout),
            "solves": self.solves,
        }
        files.save(path, "estimator", header, self.networks.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> Estimator:
        """Read what `save` wrote."""
        header, tensors = files.load(path, "estimator")
        sizes = Architecture(**header["architecture"])
        scaling = Scaling(**tuples(header["scaling"]))
        networks = _Networks(sizes, scaling, Layout(**tuples(header["layout"])))
        networks.load_state_dict(tensors)
        networks.eval()
        return cls(
            networks,
            sizes,
            scaling,
            Design.from_json(header["design"]),
            header["fingerprint"],
            FitReport(**tuples(header["report"])),
            header["solves"],
        )

    def to_sbi(self) -> Any:  # noqa: ANN401 - sbi's DirectPosterior
        """sbi's posterior over z; its x is this estimator's context of a data set."""
        from sbi.inference.posteriors import DirectPosterior

        layout = self.networks.layout
        if layout.local:
            raise UnsupportedError(
                "an estimator with parameters per experiment has two densities, which sbi's DirectPosterior "
                "cannot hold; use Estimator.sample and Estimator.log_density"
            )
        prior = torch.distributions.MultivariateNormal(torch.zeros(layout.shared), torch.eye(layout.shared))
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
        raise EstimatorError(
            f"the bank has {len(bank)} rows, expected at least {2 * batch}: a batch of {batch} to train on and "
            f"one to validate; simulate more, or make the batch smaller"
        )
    sizes = architecture or Architecture()
    held_out = max(batch, min(2_000, len(bank) // 10))
    shown = _batch(model, bank, torch.arange(held_out), derive(seed, "validation"))
    scaling = scaling_of(model.channels, model.design, shown[1])
    with seeded(derive(seed, "weights")):
        networks = _Networks(sizes, scaling, Layout.of(model))
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
        reading = networks.read(seen)
        missed = z[..., None] - networks.quantiles(reading, max(0.0, 1.0 - done / 0.7))
        pinball = torch.maximum(levels * missed, (levels - 1) * missed).sum((1, 2)).mean()
        return pinball - networks.log_density(z[None], reading).mean()

    def validation() -> float:
        return -float(networks.log_density(shown[0].float()[None], networks.read(check_tokens)).mean())

    with seeded(derive(seed, "training")):
        report = fit(networks, loss, batch_at, validation, schedule, show)
    return Estimator(
        networks,
        sizes,
        scaling,
        model.design,
        model.fingerprint(),
        report,
        len(bank) + bank.failures,
    )


def _batch(model: Model, bank: Bank, index: Tensor, seed: int) -> tuple[Tensor, Experiments]:
    """z and freshly observed data of the bank's rows `index`."""
    looks = model.design.draw_looks(bank.protocols.at(index), derive(seed, "looks"))
    z = bank.z[index]
    drawn = model.simulate_at(z, looks, derive(seed, "noise"), solver=bank.rows(index))
    return z, drawn.experiments
