"""Correction: proposals, weights against the exact log joint, k-hat, and equally weighted draws.

Everything carries a data-set axis: z (draw, dataset, z), weights (draw, dataset). Weights stay in
log space. Adaptation shapes the proposal; then it is frozen and a final round of fresh draws alone
carries every diagnostic.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ampost.axes import Latent, PerDraw
from ampost.seeds import derive, seeded

MOST = 10.0  # components of a fitted mixture
WIDE = 0.2  # share of one that is as wide as all of them
MOVES = 5  # steps that every draw takes where some are drawn twice; as often again while some still are
EXPECTED = 100  # steps of expectation and maximisation to the likeliest shares
LogDensity = Callable[[Tensor], Tensor]
Sampler = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Component:
    """One part of a proposal: its share (dataset,), how to draw (count, seed) and its log density."""

    name: str
    share: Tensor
    sample: Sampler
    log_density: LogDensity


@dataclass(frozen=True)
class Draws:
    """One round: draws with log proposal, log joint, log weight, and the component each came from."""

    z: Latent
    log_proposal: PerDraw
    log_joint: PerDraw
    log_weight: PerDraw
    component: Tensor

    @property
    def weights(self) -> Tensor:
        """Normalised weights, (draw, dataset)."""
        return torch.softmax(self.log_weight, 0).nan_to_num(0.0)


def student(mean: Tensor, factor: Tensor, degrees: float, share: Tensor) -> Component:
    """A multivariate Student-t component per data set: mean (dataset, z), Cholesky factor of its scale."""
    datasets, size = mean.shape

    def sample(count: int, seed: int) -> Tensor:
        with seeded(seed):
            normal = torch.randn(count, datasets, size, dtype=torch.float64)
            chi2 = torch.distributions.Chi2(torch.tensor(degrees, dtype=torch.float64))
            spread = (chi2.sample(torch.Size((count, datasets))) / degrees).rsqrt()
        return mean + (factor @ (normal * spread[..., None])[..., None])[..., 0]

    def log_density(z: Tensor) -> Tensor:
        centred = torch.linalg.solve_triangular(factor, (z - mean)[..., None], upper=False)[..., 0]
        norm = (
            math.lgamma((degrees + size) / 2)
            - math.lgamma(degrees / 2)
            - 0.5 * size * math.log(degrees * math.pi)
        )
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return norm - log_det - 0.5 * (degrees + size) * torch.log1p(centred.square().sum(-1) / degrees)

    return Component("student", share, sample, log_density)


def fitted_mixture(
    z: Tensor, log_weight: Tensor, degrees: float, seed: int, effective: float = math.inf
) -> list[Component]:
    """Student-t components that follow weighted draws z (draw, dataset, z): one, or up to ten if they bend.

    Among several, one is as wide as all draws, which guards the tails. Centres and scales come from
    scikit-learn's Gaussian mixture in whitened z, fitted to resampled draws; the number of components is what
    their effective size can carry, which is at most `effective`.
    """
    datasets, size = z.shape[1:]
    mean, factor = weighted_moments(z, log_weight)
    numbers = size * (size + 3) / 2
    count = int(min(MOST, max(1.0, min(effective, float(kish(log_weight).min())) / (5 * numbers))))
    if count == 1:
        return [student(mean, factor, degrees, torch.ones(datasets, dtype=torch.float64))]
    index, _ = resample(log_weight, min(500 * count, len(z)), seed)
    chosen = z.gather(0, index[..., None].expand(*index.shape, size))
    white = torch.linalg.solve_triangular(factor, (chosen - mean)[..., None], upper=False)[..., 0]
    fits = [_gaussians(white[:, d], count, seed) for d in range(datasets)]
    shares, centres, scales = (torch.stack(parts, 1) for parts in zip(*fits, strict=True))
    centres = mean + (factor @ centres[..., None])[..., 0]
    narrow = [
        student(centre, factor @ scale, degrees, (1 - WIDE) * share)
        for share, centre, scale in zip(shares, centres, scales, strict=True)
    ]
    return [*narrow, student(mean, factor, degrees, torch.full((datasets,), WIDE, dtype=torch.float64))]


def _gaussians(white: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shares (count,), centres (count, z) and Cholesky factors (count, z, z) of a Gaussian mixture."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(count, reg_covar=1e-2, random_state=seed % 2**32, n_init=2, tol=1e-2)
    with warnings.catch_warnings():
        # a fit that has not converged is a worse proposal, not a wrong one
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(white.numpy())
    scales = torch.linalg.cholesky(torch.as_tensor(mixture.covariances_))
    return torch.as_tensor(mixture.weights_), torch.as_tensor(mixture.means_), 1.1 * scales


def log_mixture(z: Tensor, components: list[Component]) -> Tensor:
    """Log density of the mixture, (draw, dataset)."""
    parts = [c.share.log() + c.log_density(z) for c in components]
    return torch.logsumexp(torch.stack(parts), 0)


def likeliest(components: list[Component], z: Tensor) -> list[Component]:
    """The components with the shares under which draws z (draw, dataset, z) are likeliest, in sum as before."""
    parts = torch.stack([c.log_density(z) for c in components])
    share = torch.stack([c.share for c in components])
    total = share.sum(0)
    for _ in range(EXPECTED):
        share = total * torch.softmax(parts + share.log()[:, None], 0).mean(1)
    return [replace(c, share=s) for c, s in zip(components, share, strict=True)]


def draw_round(components: list[Component], log_joint: LogDensity, count: int, seed: int) -> Draws:
    """`count` draws stratified over the components (shares equal over data sets), weighted."""
    z, origin = stratified(components, count, seed)
    # deterministic mixture weights (Owen and Zhou 2000): the mixture of the shares actually drawn
    drawn = [int(number) for number in torch.bincount(origin, minlength=len(components))]
    used = [shared(c, n / count) for c, n in zip(components, drawn, strict=True) if n]
    return weighed(z, log_mixture(z, used), log_joint(z), origin)


def stratified(components: list[Component], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` draws (draw, dataset, z) by the shares (equal over data sets), and the component each is of."""
    shares = torch.stack([c.share for c in components]).mean(1)
    numbers = (shares / shares.sum() * count).round().long()
    numbers[0] += count - numbers.sum()
    used = [(k, c, n) for k, (c, n) in enumerate(zip(components, numbers.tolist(), strict=True)) if n > 0]
    z = torch.cat([c.sample(n, derive(seed, c.name, k)) for k, c, n in used])
    return z, torch.arange(len(components)).repeat_interleave(numbers)


def weighed(z: Tensor, log_proposal: Tensor, log_joint: Tensor, component: Tensor) -> Draws:
    """Draws with their weights; a draw whose log joint is not finite weighs nothing."""
    weight = torch.where(torch.isfinite(log_joint), log_joint - log_proposal, -torch.inf)
    return Draws(z, log_proposal, log_joint, weight, component)


def joined(first: Draws, second: Draws) -> Draws:
    """Two rounds from the same frozen proposal as one."""
    names = Draws.__dataclass_fields__
    return Draws(*(torch.cat([getattr(first, n), getattr(second, n)]) for n in names))


def shared(component: Component, share: float) -> Component:
    """The component with another share of the mixture."""
    return replace(component, share=torch.full_like(component.share, share))


def temper(log_weight: Tensor, target: float) -> Tensor:
    """Log weights flattened, per data set, until their effective size reaches `target`."""
    reach = min(target, 0.5 * log_weight.shape[0])
    low = torch.zeros(log_weight.shape[1], dtype=torch.float64)
    high = torch.ones_like(low)
    power = torch.where(kish(log_weight) >= reach, 1.0, 0.5)
    finite = torch.isfinite(log_weight)
    for _ in range(40):
        good = kish(torch.where(finite, log_weight * power, -torch.inf)) >= reach
        low, high = torch.where(good, power, low), torch.where(good, high, power)
        power = torch.where(power == 1.0, power, (low + high) / 2)
    return torch.where(finite, log_weight * power, -torch.inf)


def weighted_moments(z: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean (dataset, z) and Cholesky factor of the covariance, with a little added.

    Where no draw has weight all have the same.
    """
    weight = torch.softmax(log_weight, 0).nan_to_num(1 / len(z))[..., None]
    mean = (weight * z).sum(0)
    centred = z - mean
    cov = torch.einsum("sd,sdi,sdj->dij", weight[..., 0], centred, centred)
    diagonal = cov.diagonal(dim1=-2, dim2=-1)
    ridge = torch.diag_embed(1e-3 * diagonal + 1e-8)
    return mean, torch.linalg.cholesky(cov + ridge)


def kish(log_weight: Tensor) -> Tensor:
    """Kish's effective size 1 / sum w^2 per data set; 0 where every weight is zero."""
    top = log_weight.max(0).values
    scaled = torch.exp(log_weight - torch.where(torch.isfinite(top), top, 0.0))
    size = scaled.sum(0).square() / scaled.square().sum(0)
    return torch.where(torch.isfinite(top), size, 0.0)


def effective_sizes(draws: Draws) -> Tensor:
    """Effective size of each coordinate's mean, (dataset, z): variance over squared weighted error."""
    w = draws.weights[..., None]
    mean = (w * draws.z).sum(0)
    centred = (draws.z - mean).square()
    return (w * centred).sum(0) / (w.square() * centred).sum(0).clamp(min=1e-300)


def halves_apart(draws: Draws) -> Tensor:
    """How far the means of two halves are apart in combined standard errors, (dataset, z).

    Every other draw makes a half, so that both have the components in the same shares. NaN where one half
    has no weight.
    """
    means, errors = [], []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        z, w = draws.z[half], torch.softmax(draws.log_weight[half], 0)[..., None]
        means.append((w * z).sum(0))
        errors.append((w.square() * (z - means[-1]).square()).sum(0))
    apart: Tensor = (means[0] - means[1]).abs() / (errors[0] + errors[1]).sqrt().clamp(min=1e-300)
    return apart


def log_evidence(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Log mean of the raw weights and its standard deviation (delta method), (dataset,)."""
    count = log_weight.shape[0]
    value = torch.logsumexp(log_weight, 0) - math.log(count)
    error = (1.0 / kish(log_weight).clamp(min=1e-300) - 1.0 / count).clamp(min=0.0).sqrt()
    return value, error


def khat(log_weight: Tensor) -> Tensor:
    """Pareto shape of the largest weights per data set (Vehtari et al., JMLR 25 (2024) 72).

    The tail is the largest min(0.2 S, 3 sqrt S) weights; its generalised Pareto shape is
    estimated after Zhang and Stephens (2009) with the weak prior of the paper. Constant weights
    give -inf, all weight on fewer than five draws +inf.
    """
    return torch.tensor([_khat(column.numpy()) for column in log_weight.detach().T], dtype=torch.float64)


def _khat(log_weight: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    count = len(log_weight)
    finite = np.isfinite(log_weight)
    if not finite.any():
        return math.inf
    ordered = np.sort(np.where(finite, log_weight, -np.inf)) - log_weight[finite].max()
    tail = int(min(0.2 * count, 3 * math.sqrt(count)))
    if tail < 5:
        return math.inf
    cut = ordered[-tail - 1]
    weights = np.exp(ordered[-tail:])
    excess = weights - np.exp(cut)
    if ordered[-1] - max(cut, -1e300) < 1e-10:
        return -math.inf
    if (weights > 1e-12).sum() < 5:
        return math.inf
    return _pareto_shape(excess[excess > 0])


def _pareto_shape(excess: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Zhang and Stephens' posterior-mean estimate of the shape of sorted positive excesses."""
    n = len(excess)
    if n < 5:
        return math.inf
    grid = 30 + int(math.sqrt(n))
    index = np.arange(1, grid + 1)
    quarter = excess[int(n / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (index - 0.5))) / 3 / quarter
    shapes = np.log1p(-theta[:, None] * excess).mean(1)
    profile = n * (np.log(-theta / shapes) - shapes - 1)
    with np.errstate(over="ignore"):  # an overflow means a weight of exactly zero
        weight = 1 / np.exp(profile - profile[:, None]).sum(1)
    chosen = float((theta * weight).sum())
    shape = float(np.log1p(-chosen * excess).mean())
    return (n * shape + 10 * 0.5) / (n + 10)


def resample(log_weight: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` indices by systematic resampling (draw, dataset), and which repeat an earlier one."""
    weights = torch.softmax(log_weight, 0)
    datasets = weights.shape[1]
    with seeded(seed):
        start = torch.rand(datasets, dtype=torch.float64)
    points = (torch.arange(count, dtype=torch.float64)[:, None] + start) / count
    ends = weights.cumsum(0)
    ends = ends / ends[-1]
    index = torch.searchsorted(ends.T.contiguous(), points.T.contiguous()).T.clamp(max=len(weights) - 1)
    again = torch.zeros_like(index, dtype=torch.bool)
    again[1:] = index[1:] == index[:-1]
    return index, again


def equally_weighted(
    draws: Draws,
    log_joint: LogDensity,
    count: int,
    seed: int,
    steps: int = MOVES,
    solves: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Equally weighted draws z (count, dataset, z) without duplicates, and their log joint, in random order.

    Where systematic resampling leaves duplicates, every draw takes steps that leave the posterior
    invariant: as many as so many `solves` allow, and one at least.
    """
    index, again = resample(draws.log_weight, count, derive(seed, "resample"))
    with seeded(derive(seed, "order")):
        index = index[torch.randperm(count)]
    wide = index[..., None].expand(*index.shape, draws.z.shape[-1])
    z, joint = draws.z.gather(0, wide), draws.log_joint.gather(0, index)
    if not bool(again.any()):
        return z, joint
    mean, factor = weighted_moments(draws.z, temper(draws.log_weight, 10.0 * z.shape[-1]))
    # all draws move, not the repeats alone: which draws repeat depends on where they are, and moving
    # a subset chosen by its place would not leave the posterior invariant
    rho, each = 0.8, min(steps, max(1, int(min(solves / count, steps))))
    for k in range(MOVES if steps else 0):
        if k and (k + 1) * each * count > solves:
            break
        z, joint, _ = move(z, joint, log_joint, mean, factor, each, derive(seed, "move", k), rho)
        if all(len(z[:, d].unique(dim=0)) == count for d in range(z.shape[1])):
            break
        rho /= 2  # some draws stay where they are: shorter steps
    return z, joint


def move(
    z: Tensor,
    joint: Tensor,
    target: LogDensity,
    mean: Tensor,
    factor: Tensor,
    steps: int,
    seed: int,
    rho: float = 0.5,
) -> tuple[Tensor, Tensor, float]:
    """Preconditioned Crank-Nicolson steps in z whitened by `mean` and `factor`, all rows at once.

    z' = m + sqrt(1 - rho^2) (z - m) + rho L xi leaves N(m, L L') invariant, so the ratio of target
    to that reference decides (Cotter et al., Statistical Science 28 (2013) 424). `rho` follows the
    acceptance rate during the first half of the steps only. Returns z, its target and the last
    acceptance rate.
    """

    def reference(x: Tensor) -> Tensor:
        u: Tensor = torch.linalg.solve_triangular(factor, (x - mean)[..., None], upper=False)[..., 0]
        return -0.5 * u.square().sum(-1)

    rate = 0.0
    excess = joint - reference(z)
    with seeded(seed):
        for step in range(steps):
            noise = (factor @ torch.randn_like(z)[..., None])[..., 0]
            proposed = mean + math.sqrt(1 - rho**2) * (z - mean) + rho * noise
            there = target(proposed)
            gain = there - reference(proposed)
            accept = torch.rand_like(gain).log() < gain - excess
            accept &= torch.isfinite(there)
            rate = float(accept.double().mean())
            z = torch.where(accept[..., None], proposed, z)
            joint, excess = torch.where(accept, there, joint), torch.where(accept, gain, excess)
            if step < steps // 2:
                rho = min(0.95, max(0.05, rho * math.exp(rate - 0.3)))
    return z, joint, rate
