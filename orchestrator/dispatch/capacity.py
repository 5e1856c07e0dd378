"""The nodes of the connected cluster, a worker's size, and how many workers fit.

Counting is exact. As Ray does, it counts in ten-thousandths, rounding down: a third is 0.3333, of which three fit.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Set
from fractions import Fraction
from functools import cache, lru_cache
from math import inf
from typing import Any, NamedTuple

from taugrid.config import Cluster
from taugrid.errors import UserError, last_line
from taugrid.versions import torch_is_for_gpus
from taugrid.words import counted
from taugrid.workers import ray_compat

RAYS_UNITS = 10_000  # parts into which Ray divides a CPU or a GPU

ASK_SECONDS = 60.0  # for nodes to report whether torch can use their GPUs; later, workers' health checks find out


class Size(NamedTuple):
    cpus: float
    gpus: float

    def __str__(self) -> str:
        cpus, gpus = "CPU" if self.cpus == 1 else "CPUs", "GPU" if self.gpus == 1 else "GPUs"
        return f"{self.cpus:g} {cpus} and {self.gpus:g} {gpus}"


class Node(NamedTuple):
    """A node that is alive, and its total resources."""

    id: str
    cpus: float
    gpus: float
    draining: bool = False  # it will be taken away: Ray places nothing more on it
    memory: float = inf  # bytes, as Ray counts them
    seconds_left: float = inf  # until it is taken away, if that is known

    def capacity(self, size: Size) -> int:
        """How many workers fit on it if nothing else runs there. A fraction of a GPU can't span two GPUs."""
        cpus, gpus = map(exact, size)
        fits = [exact(self.cpus) // cpus] if cpus else []
        if gpus:
            fits.append(int(self.gpus) * (1 // gpus) if gpus < 1 else exact(self.gpus) // gpus)
        return int(min(fits, default=0))


@lru_cache(maxsize=1024)  # twice a second for each node
def exact(amount: float) -> Fraction:
    """The decimal fraction that a number is written as, in Ray's units: 0.2 as a float is a bit more than a fifth."""
    return Fraction(Fraction(str(amount)) * RAYS_UNITS // 1, RAYS_UNITS)


def available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nodes(selector: Mapping[str, str] | None = None) -> list[Node]:
    """The nodes that are alive and have the labels that `selector` asks for."""
    import ray

    draining = ray_compat.draining_nodes()
    return [
        Node(id, has.get("CPU", 0), has.get("GPU", 0), id in draining, has.get("memory", inf), left)
        for node in ray.nodes()
        if node["Alive"] and selects(selector or {}, node["Labels"])
        for id, has in [(node["NodeID"], node["Resources"])]
        for left in [draining.get(id, inf)]
    ]


class Answer(NamedTuple):
    node: str
    value: Any = None
    error: str = ""  # why there is no value


def ask_nodes(
    question: Callable[[Any], Any], about: Any, seconds: float, ids: Set[str] | None = None, late: Any = None
) -> Iterator[Answer]:
    """What `question(about)` returns on the nodes `ids` (None: on all), with `seconds` for all of them together. `late`
    is the value of those that do not answer in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for alive in [node for node in ray.nodes() if node["Alive"] and (ids is None or node["NodeID"] in ids)]:
        there = NodeAffinitySchedulingStrategy(alive["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(question)
        asked[task.remote(about)] = str(alive["NodeName"])
    in_time = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)[0]
    for answer, node in asked.items():
        if answer not in in_time:
            ray.cancel(answer, force=True)
            yield Answer(node, late, f"no answer within {seconds:.0f} s")
            continue
        try:
            yield Answer(node, ray.get(answer))
        except ray.exceptions.RayError as error:
            yield Answer(node, error=last_line(error))


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether Ray's label selector takes a node with these labels. A label that is not there equals nothing."""
    for key, condition in selector.items():
        names = re.sub(r"^!?(in\(([^)]*)\))?", r"\2", condition)
        is_one = labels.get(key) in [name.strip() for name in names.split(",")]
        if is_one == condition.startswith("!"):
            return False
    return True


def staying(cluster: Cluster) -> list[Node]:
    """The nodes on which Ray may place workers: those that drain take no more."""
    return [node for node in nodes(cluster.label_selector) if not node.draining]


def worker_size(cluster: Cluster) -> Size:
    """The size of one worker. Without `cluster.gpus_per_worker`: a GPU, if any node has one that its torch can use."""
    gpus = cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if torch_uses_gpus(frozenset(node.id for node in staying(cluster) if node.gpus >= 1)) else 0.0
    return Size(float(exact(cluster.cpus_per_worker)), float(exact(gpus)))


@cache
def torch_uses_gpus(ids: frozenset[str]) -> bool:
    """Whether torch on one of these nodes can use its GPUs; those that do not answer in time count as able. Ray counts
    GPUs that torch may not be built for, and Apple's, which taugrid does not use."""
    if not ids:
        return False
    # Whether a GPU is there is not asked: Ray hides it from tasks without one.
    return any(answer.value for answer in ask_nodes(lambda _: torch_is_for_gpus(), None, ASK_SECONDS, ids, late=True))


def total_capacity(size: Size, cluster: Cluster) -> int:
    """How many workers of `size` the nodes that stay could hold, if nothing else ran there."""
    return sum(node.capacity(size) for node in staying(cluster))


def embedded_workers(cluster: Cluster) -> int:
    """The number of workers to start on an embedded cluster: as many as configured, or else as fit."""
    size = worker_size(cluster)
    if (capacity := total_capacity(size, cluster)) < 1:
        raise no_capacity(size, cluster)
    return min(cluster.workers, capacity) if cluster.workers else capacity


def no_capacity(size: Size, cluster: Cluster, then: str = "") -> UserError:
    """The error where no node is large enough for a worker, or where none has a GPU at all."""
    if size.gpus and not any(node.gpus for node in nodes()):
        return UserError(
            f"no worker fits on the cluster: each takes {size}, and no GPU was found; set cluster.gpus_per_worker: 0 "
            "to compute on CPUs, or join a cluster with GPUs (--address)"
        )
    selector = cluster.label_selector
    labels = f" with the labels {dict(selector)}" if selector else ""
    keys = ", or change cluster.label_selector" if selector else ""
    return UserError(
        f"no worker fits on the cluster: each takes {size}, and no node{labels} has as much{then}; "
        f"lower cluster.cpus_per_worker or cluster.gpus_per_worker{keys}"
    )


class Trainers(NamedTuple):
    """The workers of a training, or their minimum and maximum, and what each takes."""

    workers: int | tuple[int, int]
    cpus: float
    gpus: float


def trainers(cluster: Cluster, workers: int | tuple[int, int], may_grow: bool = False) -> Trainers:
    """The training workers that the cluster has room for, up to `workers`. Fewer change nothing but rounding.

    Without GPUs, each takes its full share of the CPUs. With [minimum, maximum], Ray Train decides how many there are,
    now and later; each has the size that `cluster` sets, so that one fits wherever that much is free. On a cluster that
    `may_grow`, Ray Train waits for the minimum, and a number that does not fit yet becomes [1, number]: training begins
    with the workers that fit, and Ray's autoscaler gets a request for the others.

    When Ray Train counts how many workers fit, it ignores labels, and that a fraction of a GPU can't span two GPUs. It
    would start workers that can't be placed. There the number is fixed: as many as fit now, or all if none fits.

    Raises `UserError` if not even one fits, or fewer than the minimum, and the cluster can't grow."""
    own = {name: value for name, value in cluster.train if value is not None}
    cluster = cluster.model_copy(update=own)
    size = worker_size(cluster)
    capacity = total_capacity(size, cluster)
    if capacity < 1 and not may_grow:
        raise no_capacity(size, cluster)
    if not isinstance(workers, int):
        if capacity < workers[0] and not may_grow:
            raise UserError(
                f"train.workers: {list(workers)} needs room for {counted(workers[0], 'worker')} of {size}, "
                f"but the cluster fits {capacity}; lower it or cluster.cpus_per_worker, or add nodes"
            )
        return Trainers(workers, *size)
    if may_grow and capacity < workers and workers > 1 and not 0 < size.gpus < 1 and not cluster.label_selector:
        return Trainers((1, workers), *size)
    workers = min(workers, capacity or workers)
    cpus = size.cpus
    if not size.gpus and capacity and "cpus_per_worker" not in own:
        shares = range(int(max(node.cpus for node in staying(cluster))), int(cpus), -1)
        cpus = next((float(c) for c in shares if total_capacity(Size(c, 0), cluster) >= workers), cpus)
    return Trainers(workers, cpus, size.gpus)
