"""A custom network that naps at each call while there is a file `slow` beside its weights, and counts calls in it."""

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

SECONDS = 0.02


def load(weights: str) -> Callable[[Tensor, Tensor], Tensor]:
    slow = Path(weights).with_name("slow")

    def network(x: Tensor, t: Tensor) -> Tensor:
        if slow.exists():
            with slow.open("a") as calls:
                calls.write(".")
            time.sleep(SECONDS)
        return 0.25 * x

    return network
