"""What must be known while torch records what is done to tensors, as `potential` makes it do."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode

jobs: dict[int, Any] = {}  # of solves in what torch recorded, until whoever recorded lets them go


def truth(condition: Tensor) -> bool:
    """Whether a condition on data holds, also while torch records what is done to tensors."""
    if get_proxy_mode() is None:
        return bool(condition)
    with disable_proxy_modes_tracing():
        return bool(condition)
