"""A custom network that keeps a shard running for some tenths of a second and no CPU busy."""

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

SECONDS = 0.01


def load(weights: str) -> Callable[[Tensor, Tensor], Tensor]:
    scale = float(Path(weights).read_text())

    def network(x: Tensor, t: Tensor) -> Tensor:
        time.sleep(SECONDS)
        return scale * x

    return network
