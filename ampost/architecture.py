"""The sizes and kinds of an estimator's networks, and how they grow with the model."""

from __future__ import annotations

from dataclasses import dataclass

from ampost.errors import EstimatorError
from ampost.nets import EMBEDDINGS, AttentionSet

DENSITIES = ("zuko_maf", "zuko_nsf", "zuko_nice", "maf", "nsf")  # builders of sbi that draw and score quickly
BY_PASSES = ("zuko_maf", "zuko_nsf")  # those that are couplings, if asked


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks; `density` is the name of a builder in sbi's `posterior_nn`.

    `pooling` of measurements is "mean" (DeepSet) or "attention". Each transform of the density is shaped by a
    network of `layers` layers of `hidden` units. With two `passes` it is a coupling, which draws quickly;
    without a number it is autoregressive.
    """

    width: int = 96
    context: int = 64
    density: str = "zuko_maf"
    transforms: int = 5
    hidden: int = 64
    layers: int = 2
    passes: int | None = None
    pooling: str = "attention"

    def __post_init__(self) -> None:
        if self.density not in DENSITIES:
            raise EstimatorError(
                f"Architecture(density={self.density!r}): expected one of {', '.join(DENSITIES)}"
            )
        for name in ("width", "context", "transforms", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise EstimatorError(f"Architecture({name}={getattr(self, name)}): expected at least 1")
        if self.passes is not None and (self.passes < 1 or self.density not in BY_PASSES):
            raise EstimatorError(
                f"Architecture(density={self.density!r}, passes={self.passes}): expected one pass or more, of "
                f"{' or '.join(BY_PASSES)}; leave passes out"
            )
        if self.pooling == "attention" and self.width % AttentionSet.HEADS:
            raise EstimatorError(
                f"Architecture(width={self.width}) cannot be shared by the {AttentionSet.HEADS} heads of "
                f"attention; take a multiple of {AttentionSet.HEADS}, or pooling='mean'"
            )
        if self.pooling not in EMBEDDINGS:
            raise EstimatorError(
                f"Architecture(pooling={self.pooling!r}): expected one of {', '.join(EMBEDDINGS)}"
            )

    @classmethod
    def suited(cls, parameters: int, channels: int) -> Architecture:
        """The default sizes for a model of so many parameters and channels.

        Context and density have four numbers to a parameter, 64 to 256 of them, the embedding sixteen to a
        channel, 96 to 192: see docs/training.md for what was measured.
        """
        room = _round(4 * parameters, 64, 256)
        return cls(width=_round(16 * channels, 96, 192), context=room, hidden=room)


def _round(size: int, least: int, most: int) -> int:
    """The next multiple of eight, between two bounds."""
    return min(max(-(-size // 8) * 8, least), most)
