"""Asks Ray Train whether the nodes of a training's workers will be taken away."""

import time

import ray.train
from ray.train.collective import broadcast_from_rank_zero

LOOK_SECONDS = 1.0
"""How often the workers ask: each time is a barrier over them, of some milliseconds. Spot nodes get 30 s or more."""


class Notice:
    """A notice that a worker's node will be taken away. All ranks make it, and call it after the same steps.

    Only rank 0's clock and knowledge count, so that all ranks leave after the same step.
    """

    def __init__(self) -> None:
        self._next = 0  # the first step after which they ask
        self._every = 1
        self._asked = time.perf_counter()

    def is_given(self, step: int) -> bool:
        """Whether to leave after `step`."""
        if step < self._next:
            return False
        if ray.train.get_preemption_info() is not None:
            return True
        now = time.perf_counter()
        fit = int(self._every * LOOK_SECONDS / max(now - self._asked, 1e-9))
        self._every = broadcast_from_rank_zero(max(1, min(fit, 2 * self._every)))  # the first steps may be quick
        self._next, self._asked = step + self._every, now
        return False
