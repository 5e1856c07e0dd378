"""Whether another training begins beside those under way, and how long one waits for nodes.

What each takes stays as if it were the only one: fewer CPUs would be fewer threads, and other last digits of weights.
"""

import time
from typing import NamedTuple

from taugrid.config import Cluster
from taugrid.errors import UserError
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.dispatch.capacity import Size, Trainers, free
from taugrid.words import duration
from taugrid.workers.ray_compat import memory_here
from taugrid.workers.training.spec import TrainingSpec

ROOM_SECONDS = 5.0
"""How often a training that waits for room looks whether nodes have joined."""

HELPERS_BYTES = 500 * 2**20
"""What Ray Train's controller and its three helpers of one training take of the driver's memory. Each imports ray.train
and pandas; 470 MB were measured (docs/decisions.md)."""

HELPERS_SHARE = 0.5
"""The most of the driver's memory that they take together, unless `cluster.trainings` says how many there are."""


class UnderWay(NamedTuple):
    all: int
    """Trainings that have begun and not ended."""
    starting: int
    """Of these, those whose workers may not have their places yet."""


def most_at_once(cluster: Cluster) -> int:
    """The most trainings at a time, however much room there is for their workers."""
    return cluster.trainings or max(1, int(memory_here() * HELPERS_SHARE) // HELPERS_BYTES)


def another_fits(wanted: Trainers, under_way: UnderWay, cluster: Cluster, may_grow: bool) -> bool:
    """Whether a training that wants so much begins now. If there is no other, it does, and waits for room itself.

    An elastic training counts with all its workers. With `cluster.trainings` on a cluster that `may_grow`, it begins
    without room, because only what waits there is heard by Ray's autoscaler.
    """
    if not under_way.all or (cluster.trainings is not None and may_grow):
        return True
    size = Size(wanted.cpus, wanted.gpus)
    room = sum(node.capacity(size) for node in free(cluster.label_selector))
    return room >= wanted.most * (under_way.starting + 1)


class WaitForRoom:
    """Whether a training that has not begun has waited longer for nodes than `cluster.max_wait_seconds`."""

    def __init__(self, spec: TrainingSpec, cluster: Cluster) -> None:
        self._size = Size(spec.cpus_per_worker, spec.gpus_per_worker)
        self._fewest, self._cluster = spec.train.fewest_workers, cluster
        self._looked_at = self._room_at = time.monotonic()

    def too_long(self) -> UserError | None:
        """The error to end with, if nodes for the fewest workers have been missing for too long."""
        now, limit = time.monotonic(), self._cluster.max_wait_seconds
        if now - self._looked_at < ROOM_SECONDS:
            return None
        self._looked_at = now
        if capacity.total_capacity(self._size, self._cluster) >= self._fewest:
            self._room_at = now
        if now - self._room_at < limit:
            return None
        then = f", nor has one joined in {duration(limit)} (cluster.max_wait_seconds)"
        return capacity.no_capacity(self._size, self._cluster.label_selector, then)
