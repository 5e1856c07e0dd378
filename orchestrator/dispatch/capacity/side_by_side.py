"""Whether another training begins beside those under way. What each takes stays as if it were the only one.

Fewer CPUs for each would be other numbers of threads, and so other last digits of the weights.
"""

from typing import NamedTuple

from taugrid.config import Cluster
from taugrid.orchestrator.dispatch.capacity.nodes import Size, free, memory_here
from taugrid.orchestrator.dispatch.capacity.resources import Trainers

HELPERS_BYTES = 500 * 2**20
"""Memory of the driver's node for Ray Train's controller and its three helpers of one training: 470 MB were measured
(docs/decisions.md)."""


class UnderWay(NamedTuple):
    """Numbers of trainings."""

    all: int
    """That have begun and not ended."""
    starting: int
    """Of these, those whose workers may not have their places yet."""


def another_fits(wanted: Trainers, under_way: UnderWay, cluster: Cluster, may_grow: bool) -> bool:
    """Whether a training that wants so much begins now. If there is no other, it does, and waits for room itself.

    An elastic training counts with all its workers. With `cluster.trainings` on a cluster that `may_grow`, it begins
    without room, because only what waits there is heard by Ray's autoscaler.
    """
    if not under_way.all:
        return True
    if cluster.trainings is None:
        if under_way.all >= memory_here() // HELPERS_BYTES:
            return False
    elif under_way.all >= cluster.trainings:
        return False
    elif may_grow:
        return True
    size = Size(wanted.cpus, wanted.gpus)
    room = sum(node.room(size) for node in free(cluster.label_selector))
    return room >= wanted.most * (under_way.starting + 1)
