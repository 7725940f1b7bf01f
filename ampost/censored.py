"""A noise whose values are known exactly, or only to lie below, above or between limits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions import MaskedDistribution, TorchDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import constraints

from ampost.errors import ExperimentError, UnsupportedError
from ampost.experiments import INTERVAL, LEFT, RIGHT
from ampost.tails import Logs, anywhere, before, counts, log_cumulative, other

NARROW = 1e-5  # where log P(X <= x) changes less than this, P is the density in the middle times the width


class _Counts(constraints._Real):
    """{whole numbers, and any limit between them}: what is reported of counts."""

    is_discrete = True


class Censored(TorchDistribution):
    """What is reported of draws of `noise`: `censoring` none, LEFT, RIGHT or INTERVAL per entry.

    The shapes of the noise's batch, of `censoring` (codes of `ampost.experiments`) and of `upper`
    broadcast. Of a left-censored entry the value is the limit that the draw is below, of a right-censored
    one that it is above, of an interval the lower end, and `upper` the other; counts may equal both ends.
    Draws are those of the noise.

    Raises:
        UnsupportedError: the noise has events, or its tails are not known; the latter when scored.
        ExperimentError: an interval without `upper` (when arguments are validated).
    """

    arg_constraints = {}  # noqa: RUF012  (torch reads a class attribute)

    def __init__(
        self,
        noise: TorchDistribution,
        censoring: Tensor,
        upper: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if noise.event_shape:
            raise UnsupportedError(
                f"{type(noise).__name__} has events of shape {tuple(noise.event_shape)}; censoring needs a "
                f"noise of one number per measurement, without to_event"
            )
        ends = () if upper is None else (upper.shape,)
        shape = torch.broadcast_shapes(noise.batch_shape, censoring.shape, *ends)
        self.base_dist = noise.expand(shape)
        self.censoring = censoring.expand(shape)
        self.upper = None if upper is None else upper.expand(shape)
        super().__init__(shape, validate_args=validate_args)
        if self._validate_args and upper is None and bool((censoring == INTERVAL).any()):
            raise ExperimentError(
                "a measurement is censored to an interval, but there is no upper end; give `upper`, and the "
                "lower end as the value"
            )

    def expand(self, batch_shape: Iterable[int], _instance: Censored | None = None) -> Censored:
        new: Censored = self._get_checked_instance(Censored, _instance)  # type: ignore[no-untyped-call]
        shape = torch.Size(batch_shape)
        new.base_dist = self.base_dist.expand(shape)
        new.censoring = self.censoring.expand(shape)
        new.upper = None if self.upper is None else self.upper.expand(shape)
        super(Censored, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.base_dist.has_rsample)

    @constraints.dependent_property
    def support(self) -> Any:  # noqa: ANN401 - torch's constraints share no type
        return _Counts() if counts(self.base_dist) else constraints.real

    def sample(self, sample_shape: Iterable[int] = ()) -> Tensor:
        drawn: Tensor = self.base_dist.sample(torch.Size(sample_shape))
        return drawn

    def rsample(self, sample_shape: Iterable[int] = ()) -> Tensor:
        drawn: Tensor = self.base_dist.rsample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, or log probability of what is known, per entry; -inf where it is impossible."""
        if self._validate_args:
            self._validate_sample(value)
        noise, mask = self.base_dist, None
        while isinstance(noise, MaskedDistribution):
            mask = noise._mask if mask is None else mask & noise._mask
            noise = noise.base_dist
        scored = self._log_prob(noise, value.double())
        return scored if mask is None else scale_and_mask(scored, mask=mask)

    def _log_prob(self, noise: TorchDistribution, value: Tensor) -> Tensor:
        left, right, interval = (self.censoring == code for code in (LEFT, RIGHT, INTERVAL))
        exact = ~(left | right | interval)
        somewhere = anywhere(noise)
        start = torch.where(right, value, before(noise, value))
        start = torch.where(exact, somewhere, start)
        below, above = log_cumulative(noise, start)
        point = torch.where(exact, value, somewhere)
        if self.upper is None:
            between = torch.full_like(below, math.nan)
            density = noise.log_prob(point)
        else:
            end = torch.where(interval, self.upper, start)
            between, narrow = _log_between((below, above), log_cumulative(noise, end))
            narrow = narrow & interval & (end > start) & (not counts(noise))
            density = noise.log_prob(torch.where(narrow, 0.5 * (start + end), point))
            width = torch.where(narrow, end - start, 1.0)
            between = torch.where(narrow, density + width.log(), between)
        censored = torch.where(left, below, torch.where(right, above, between))
        return torch.where(exact, density, censored)


def _log_between(start: Logs, end: Logs) -> tuple[Tensor, Tensor]:
    """log P(start < X <= end) from the logs of both tails at either, on the side where they are small.

    Second, where the interval is so narrow that the difference of the logs has lost digits.
    """
    lower = end[0] <= start[1]
    large, small = torch.where(lower, end[0], start[1]), torch.where(lower, start[0], end[1])
    some = small > -math.inf
    difference = torch.where(some, large - torch.where(some, small, 0.0), math.inf)
    possible = difference > 0.0
    between = large + other(-torch.where(possible, difference, 1.0))
    return torch.where(possible, between, -math.inf), difference < NARROW
