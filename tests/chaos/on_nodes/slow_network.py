"""A custom network that keeps a shard running for some tenths of a second and no CPU busy.

As long as there is a file `hold` beside its weights, it waits; if there is `fast`, it does not.
"""

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

SECONDS = 0.01


def load(weights: str) -> Callable[[Tensor, Tensor], Tensor]:
    scale, hold, fast = float(Path(weights).read_text()), *(Path(weights).with_name(name) for name in ("hold", "fast"))

    def network(x: Tensor, t: Tensor) -> Tensor:
        if not fast.exists():
            time.sleep(SECONDS)
        while hold.exists():
            time.sleep(SECONDS)
        return scale * x

    return network
