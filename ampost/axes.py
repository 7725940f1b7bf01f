"""The names of tensor axes.

Every measured thing stands on `(..., experiment, time)`: both right axes always exist, also for
one experiment, and everything left of them is a batch (draws, data sets). Inside the ODE engine
the leading axes are flattened to `row`.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Series = Float[Tensor, "*batch experiment time"]
SeriesMask = Bool[Tensor, "*batch experiment time"]
SeriesCode = Int[Tensor, "*batch experiment time"]
PerExperiment = Float[Tensor, "*batch experiment 1"]
PerDose = Float[Tensor, "*batch experiment dose"]
PerDoseMask = Bool[Tensor, "*batch experiment dose"]
PerDoseCode = Int[Tensor, "*batch experiment dose"]
States = Float[Tensor, "*batch experiment time state"]
RowStates = Float[Tensor, "row time state"]
RowTimes = Float[Tensor, "row time"]
RowMask = Bool[Tensor, "row time"]
RowStart = Float[Tensor, "row state"]
RowStatus = Int[Tensor, " row"]
Latent = Float[Tensor, "draw dataset z"]
PerDraw = Float[Tensor, "draw dataset"]
