"""The nodes of the connected cluster, and how many workers of a size fit on each.

Counting is exact. Ray counts in ten-thousandths, and so do we, rounding down: a third is 0.3333, of which three fit.
"""

import os
import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from math import ceil
from typing import NamedTuple

RAYS_UNITS = 10_000
"""Into so many parts Ray divides a CPU or a GPU."""


class Size(NamedTuple):
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return " and ".join(
            f"{amount:g} {noun}{'' if amount == 1 else 's'}" for amount, noun in zip(self, ("CPU", "GPU"), strict=True)
        )


class Node(NamedTuple):
    """A node that is alive, and what all of it amounts to."""

    id: str
    cpus: float
    gpus: float
    draining: bool = False
    """It will be taken away: Ray places nothing more on it."""
    taken: Size = Size(0, 0)
    """What something takes of it, where that was asked."""

    def room(self, size: Size) -> int:
        """How many workers fit on it beside what is `taken`. A part of a GPU can't span two GPUs.

        Ray does not tell how much of which GPU is taken. It counts as taken by workers of this size, as it is by
        trainings side by side.
        """
        cpus, gpus = map(exact, size)
        fits = []
        if cpus:
            fits.append((exact(self.cpus) - exact(self.taken.cpus)) // cpus)
        if 0 < gpus < 1:
            fits.append(int(self.gpus) * (1 // gpus) - ceil(exact(self.taken.gpus) / gpus))
        elif gpus:
            fits.append((exact(self.gpus) - exact(self.taken.gpus)) // gpus)
        return int(max(0, min(fits, default=0)))


def exact(amount: float) -> Fraction:
    """The decimal fraction that a number is written as, in Ray's units: 0.2 as a float is a bit more than a fifth."""
    return Fraction(Fraction(str(amount)) * RAYS_UNITS // 1, RAYS_UNITS)


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nodes(selector: Mapping[str, str] | None = None) -> list[Node]:
    """The nodes that are alive and have the labels that `selector` asks for."""
    import ray

    draining = _draining()
    return [
        Node(node["NodeID"], has.get("CPU", 0), has.get("GPU", 0), node["NodeID"] in draining)
        for node in ray.nodes()
        if node["Alive"] and selects(selector or {}, node["Labels"])
        for has in [node["Resources"]]
    ]


def free(selector: Mapping[str, str]) -> list[Node]:
    """The nodes that stay and have these labels, with what is taken of them now. Ray knows it a moment late."""
    from ray._private.state import available_resources_per_node

    left = available_resources_per_node()
    staying = [node for node in nodes(selector) if not node.draining and node.id in left]
    return [node._replace(taken=_taken(node, left[node.id])) for node in staying]


def _taken(node: Node, left: Mapping[str, float]) -> Size:
    """What is taken of a node, in Ray's units: floats would make 0.6000001 of 1 - 0.4."""
    amounts = zip((node.cpus, node.gpus), ("CPU", "GPU"), strict=True)
    return Size(*(round((total - left.get(name, 0)) * RAYS_UNITS) / RAYS_UNITS for total, name in amounts))


def memory_here() -> int:
    """Bytes of memory of this machine or container, whose limit Ray knows better than Python does."""
    from ray._common.utils import get_system_memory

    return int(get_system_memory())


def _draining() -> Collection[str]:
    """The ids of nodes with a notice of pre-emption, or that `ray drain-node` or an autoscaler drains.

    Ray has no public call for it; Ray Train and Ray Data use this one.
    """
    from ray._private.state import state

    found: dict[str, int] = state.get_draining_nodes()
    return found.keys()


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether Ray's label selector takes a node with these labels. A label that is not there equals nothing."""
    for key, condition in selector.items():
        names = re.sub(r"^!?(in\(([^)]*)\))?", r"\2", condition)
        is_one = labels.get(key) in [name.strip() for name in names.split(",")]
        if is_one == condition.startswith("!"):
            return False
    return True
