"""The amortized estimator: tokens -> DeepSet -> context -> quantile head and density over z.

The density q(z | context) is built by sbi's factory from configuration alone, trained by our loop
on -log q (neural posterior estimation: its minimiser over all q is the posterior), and handed back
to sbi users by `to_sbi`. The one door to sbi.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ampost import files
from ampost.architecture import Architecture
from ampost.behaviour import difference
from ampost.design import Design, tuples
from ampost.errors import EstimatorError, UnsupportedError
from ampost.experiments import Experiments
from ampost.laplace import highest
from ampost.model import Model
from ampost.nets import EMBEDDINGS, perceptron
from ampost.ridges import Ridge, ridge, sharp_of
from ampost.seeds import seeded
from ampost.tokens import Scaling, tokens
from ampost.training import FitReport

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOG_2PI = math.log(2 * math.pi)
STARTS = 127  # of the search for a mode, beside the median
LEAST = 0.01  # share of the density given the context alone, beside the one about the mode


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
    """What the networks read in data: the context, the embedding of each experiment, which are live.

    Of a refined estimator also the coordinates about the mode.
    """

    context: Tensor
    each: Tensor
    live: Tensor
    ridge: Ridge | None = None


class Networks(nn.Module):
    """Embedding, point heads and densities; those of local parameters are shared by all experiments.

    With `traced` there is a head for the parameters whose trajectory is nearest. With `refined` a second
    density stands in coordinates about the mode, where the posterior is nearly standard normal; the two are
    mixed, so that the first one covers what the mode leaves out.
    """

    def __init__(
        self, sizes: Architecture, scaling: Scaling, layout: Layout, traced: bool = False, refined: bool = False
    ) -> None:
        super().__init__()
        self.layout, self.traced = layout, traced
        shared, local = layout.shared, layout.local
        embedding = EMBEDDINGS[sizes.pooling]
        self.embedding = embedding(scaling.token, len(scaling.conditions), sizes.width, sizes.context)
        heads = len(QUANTILES) + int(traced)
        if shared:
            self.point: Any = perceptron(sizes.context, sizes.width, shared * heads, hidden=1)
            self.density: Any = _density(sizes, shared, sizes.context)
        if local:
            known = sizes.width + sizes.context
            self.local_point: Any = perceptron(known, sizes.width, local * heads, hidden=1)
            self.local_density: Any = _density(sizes, local, sizes.width + shared)
        self.refinement: Refinement | None = None
        if refined:
            self.refine(sizes)

    def refine(self, sizes: Architecture) -> Refinement:
        """A second density, not trained yet."""
        self.refinement = Refinement(sizes, self.layout.shared)
        return self.refinement

    def read(self, seen: tuple[Tensor, ...]) -> Reading:
        """The reading of tokens, mask, conditions and live experiments."""
        context, each = self.embedding(*seen)
        return Reading(context, each, seen[3])

    def points(self, reading: Reading, share: float = 1.0) -> Tensor:
        """Quantiles of z and, where `traced`, the z of the nearest trajectory: (dataset, z, quantile).

        Only `share` of their gradient reaches the embedding.
        """
        context, each = (v.detach() + share * (v - v.detach()) for v in (reading.context, reading.each))
        datasets, experiments = each.shape[:2]
        shared, own = self.layout.places(experiments)
        heads = len(QUANTILES) + int(self.traced)
        out = context.new_zeros(datasets, shared.numel() + own.numel(), heads)
        if shared.numel():
            out[:, shared] = self.point(context).reshape(datasets, -1, heads)
        if own.numel():
            both = torch.cat([each, context[:, None].expand(*each.shape[:2], context.shape[-1])], -1)
            out[:, own] = self.local_point(both).reshape(datasets, *own.shape, heads)
        return out

    def log_density(self, z: Tensor, reading: Reading) -> Tensor:
        """log q(z | data) of z (draw, dataset, z); the parameters of padding experiments follow N(0, 1)."""
        wide = self.wide_log_density(z.float(), reading)
        if self.refinement is None:
            return wide
        assert reading.ridge is not None
        known = self.refinement.known(self.refinement.features(reading.context, reading.ridge))
        standard = reading.ridge.standard(z.double()).float()
        sharp = self.refinement.density.log_prob(standard, condition=known)
        return self.refinement.mixed(wide, sharp + reading.ridge.log_scale.float(), known)

    def wide_log_density(self, z: Tensor, reading: Reading) -> Tensor:
        """log q(z | data) by the density given the context alone."""
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
        if self.refinement is None:
            return self.wide_sample(reading, draws)
        assert reading.ridge is not None
        known = self.refinement.known(self.refinement.features(reading.context, reading.ridge))
        wide = torch.rand(draws, len(known)) < self.refinement.share(known)
        z = reading.ridge.back(self.refinement.density.sample((draws,), condition=known).double())
        most = int(wide.sum(0).max())
        if most:
            # the first draws of the other density, as many as a data set asks for
            place = (wide.cumsum(0) - 1).clamp(min=0)[..., None].expand_as(z)
            z = torch.where(wide[..., None], self.wide_sample(reading, most).double().gather(0, place), z)
        return z

    def wide_sample(self, reading: Reading, draws: int) -> Tensor:
        """Draws z (draw, dataset, z) of the density given the context alone."""
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

    def spread(self, reading: Reading, draws: int) -> Tensor:
        """Draws (draw, dataset, z) of shared parameters, from the same noise for each data set.

        So a data set has the same draws whatever others are read with it.
        """
        noise = torch.randn(draws, 1, self.layout.shared).expand(-1, len(reading.context), -1)
        return _pushed(self.density, noise, reading.context)

    def _known(self, z_shared: Tensor, reading: Reading) -> Tensor:
        """What the local density is given: (draw, dataset, experiment, embedding and shared z)."""
        shape = (*z_shared.shape[:-1], reading.each.shape[1])
        each = reading.each.expand(*shape, reading.each.shape[-1])
        return torch.cat([each, z_shared[..., None, :].expand(*shape, z_shared.shape[-1])], -1)


class Refinement(nn.Module):
    """A density about the mode, in coordinates that follow the ridge there, and its share.

    It is given the context, the mode and the scales of the coordinates.
    """

    def __init__(self, sizes: Architecture, z: int) -> None:
        super().__init__()
        known = sizes.context + 2 * z + 1 + sharp_of(z)
        self.density: Any = _density(sizes, z, known)
        self.gate = perceptron(known, 32, 1, hidden=1)
        self.register_buffer("middle", torch.zeros(known))
        self.register_buffer("spread", torch.ones(known))

    def scale_by(self, seen: Tensor) -> None:
        """Take the scales of what the density is given from examples (dataset, feature), as `features` are."""
        self.middle, self.spread = seen.mean(0), seen.std(0).clamp(min=1e-6)

    def features(self, context: Tensor, about: Ridge) -> Tensor:
        """What is known of each data set (dataset, feature), unscaled."""
        found = about.laplace
        scales = found.factor.diagonal(dim1=-2, dim2=-1).log()
        further = found.decrement.clamp(max=1e6).log1p()[:, None]
        known = (context, found.mode, scales, about.width.log(), further)
        return torch.cat([value.float() for value in known], -1)

    def known(self, features: Tensor) -> Tensor:
        """What the density is given (dataset, feature)."""
        scaled: Tensor = (features - self.middle) / self.spread
        return scaled

    def share(self, known: Tensor) -> Tensor:
        """The share (dataset,) of draws that come from the density given the context alone."""
        share: Tensor = LEAST + (1 - LEAST) * torch.sigmoid(self.gate(known)[..., 0] - 2)
        return share

    def mixed(self, wide: Tensor, sharp: Tensor, known: Tensor) -> Tensor:
        """The log density of the mixture of both."""
        share = self.share(known)
        return torch.logaddexp(share.log() + wide, torch.log1p(-share) + sharp)


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
        num_transforms=sizes.transforms,
        embedding_net=nn.Identity(),
        **_shape(sizes),
    )
    density: nn.Module = build(torch.randn(8, z), torch.randn(8, known))
    return density


def _pushed(density: Any, noise: Tensor, condition: Tensor) -> Tensor:  # noqa: ANN401 - sbi's estimator
    """Standard normal noise (draw, dataset, z) through the flow of a density: zuko's, or nflows'."""
    if not hasattr(density.net, "_transform"):
        pushed: Tensor = density.net(condition).transform.inv(noise)
        return pushed
    flat = noise.reshape(-1, noise.shape[-1])
    found: Tensor = density.net._transform.inverse(flat, context=condition.repeat(len(noise), 1))[0]
    return found.reshape(noise.shape)


def _shape(sizes: Architecture) -> dict[str, Any]:
    """The networks inside a density, as its builder wants them told: zuko's take a list of layers."""
    if not sizes.density.startswith("zuko"):
        return {"hidden_features": sizes.hidden, "num_blocks": sizes.layers}
    shape: dict[str, Any] = {"hidden_features": [sizes.hidden] * sizes.layers}
    return shape if sizes.passes is None else shape | {"passes": sizes.passes}


def read(networks: Networks, model: Model, data: Experiments, seen: tuple[Tensor, ...]) -> Reading:
    """The reading of data and their tokens, with the coordinates about the mode where they are used."""
    reading = networks.read(seen)
    if networks.refinement is None:
        return reading
    return replace(reading, ridge=about_mode(networks, model, data, reading))


def about_mode(networks: Networks, model: Model, data: Experiments, reading: Reading) -> Ridge:
    """The coordinates about the mode of each data set.

    The search starts from the medians of the point head and draws given the context.
    """
    median = networks.points(reading)[..., QUANTILES.index(0.5)]
    with seeded(0):
        starts = torch.cat([median[None], networks.spread(reading, STARTS)])
    return ridge(model, data, highest(model, data, starts.double().clamp(-4, 4)))


@dataclass(frozen=True)
class Teaching:
    """What an estimator learnt from: ODE solves, the share of rows by the proxy, and how that was off.

    `proxy_error` is the 90 % quantile over held-out draws of the proxy's error, in units of the noise, summed
    in squares over the measured points. `overfitting` is the validation loss of the density given the context
    less its loss on the bank's rows with fresh noise, in nats (the density about the mode sees no bank).
    """

    solves: int
    proxy_share: float = 0.0
    proxy_error: float = math.nan
    overfitting: float = math.nan


@dataclass(frozen=True)
class Estimator:
    """A trained network with what it needs to read data: scaling, design, fingerprint, report, teaching.

    It carries no program: loading runs no code.
    """

    networks: Networks
    architecture: Architecture
    scaling: Scaling
    design: Design
    fingerprint: Mapping[str, Any]
    report: FitReport
    teaching: Teaching
    refining: FitReport | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return self.report.seconds + (0.0 if self.refining is None else self.refining.seconds)

    @property
    def solves(self) -> int:
        """ODE solves spent on training."""
        return self.teaching.solves

    @property
    def interrupted(self) -> bool:
        """Whether training was stopped before its end."""
        return self.report.interrupted or (self.refining is not None and self.refining.interrupted)

    @property
    def loss(self) -> float:
        """The validation loss, -log q of the true parameters, in nats."""
        return self.report.best if self.refining is None else self.refining.best

    def reading(self, model: Model, data: Experiments) -> Reading:
        """What the networks read in each data set, embedded once; the mode is found on the model itself."""
        with torch.no_grad():
            return read(self.networks, model, data, tokens(data, self.scaling))

    def context(self, data: Experiments) -> Tensor:
        """The context (dataset, context) of each data set."""
        with torch.no_grad():
            return self._read(data).context

    def quantiles(self, data: Experiments) -> Tensor:
        """Posterior quantiles `QUANTILES` of z, (dataset, z, quantile), by one pass."""
        with torch.no_grad():
            found = self.networks.points(self._read(data))[..., : len(QUANTILES)].double()
        return found.sort(-1).values  # each is learnt by itself, and close ones may change places

    def nearest(self, data: Experiments) -> Tensor:
        """The z (dataset, z) whose noiseless trajectory should be nearest to the true one."""
        if not self.networks.traced:
            raise EstimatorError(
                "this estimator was trained without a reconstruction loss; train with "
                "Settings(proxy=ProxySettings(), reconstruction=True)"
            )
        with torch.no_grad():
            return self.networks.points(self._read(data))[..., -1].double()

    def _read(self, data: Experiments) -> Reading:
        return self.networks.read(tokens(data, self.scaling))

    def sample(self, reading: Reading, draws: int, seed: int) -> Tensor:
        """Draws z (draw, dataset, z) from the density given a reading of the data."""
        with torch.no_grad(), seeded(seed):
            return self.networks.sample(reading, draws).double()

    def log_density(self, z: Tensor, reading: Reading) -> Tensor:
        """log q(z | data), (draw, dataset)."""
        with torch.no_grad():
            value = self.networks.log_density(z, reading)
        return torch.nan_to_num(value.double(), nan=-torch.inf)

    def belongs_to(self, model: Model) -> None:
        """Raise EstimatorError unless this estimator was trained for `model`'s behaviour."""
        differs = difference(self.fingerprint, model, self.design)
        if differs is not None:
            raise EstimatorError(
                f"the estimator was trained for another model: {differs}; train again for this model, or, if "
                f"only priors or noise differ, give infer(..., trained_for=...) the one that it was trained for"
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
            "teaching": asdict(self.teaching),
            "traced": self.networks.traced,
            "refining": None if self.refining is None else asdict(self.refining),
        }
        files.save(path, "estimator", header, self.networks.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> Estimator:
        """Read what `save` wrote."""
        header, tensors = files.load(path, "estimator")
        sizes = Architecture(**header["architecture"])
        refined = header["refining"] is not None
        scaling = Scaling(**tuples(header["scaling"]))
        networks = Networks(sizes, scaling, Layout(**tuples(header["layout"])), header["traced"], refined)
        networks.load_state_dict(tensors)
        networks.eval()
        return cls(
            networks,
            sizes,
            scaling,
            Design.from_json(header["design"]),
            header["fingerprint"],
            FitReport(**tuples(header["report"])),
            Teaching(**header["teaching"]),
            FitReport(**tuples(header["refining"])) if refined else None,
        )

    def to_sbi(self) -> Any:  # noqa: ANN401 - sbi's DirectPosterior
        """sbi's posterior over z; its x is this estimator's context of a data set.

        Of a refined estimator it is the density given the context alone: the other one needs the model.
        """
        from sbi.inference.posteriors import DirectPosterior

        layout = self.networks.layout
        if layout.local:
            raise UnsupportedError(
                "an estimator with parameters per experiment has two densities, which sbi's DirectPosterior "
                "cannot hold; use Estimator.sample and Estimator.log_density"
            )
        prior = torch.distributions.MultivariateNormal(torch.zeros(layout.shared), torch.eye(layout.shared))
        return DirectPosterior(self.networks.density, prior)
