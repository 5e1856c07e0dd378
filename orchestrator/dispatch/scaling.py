"""How many workers there should be, on which nodes, and what is said while no node has room for one.

On an embedded cluster their number is given. A cluster that the run joined is looked at again and again.
"""

import time
from collections.abc import Collection, Mapping, Set
from typing import NamedTuple

from taugrid.errors import RunFailed
from taugrid.orchestrator.dispatch.capacity import Node, Size, no_capacity
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.pool import Pool
from taugrid.words import counted, duration

LOOK_SECONDS = 5.0
"""How often Ray is asked which nodes there are: a node that joins gets work soon, one that drains no more of it."""

TELL_SECONDS = 60.0
"""How often the user is told that there is no worker that is fit, and what is waited for."""


class Counts(NamedTuple):
    """Numbers of workers."""

    full: int
    """Those that do all kinds of tasks."""
    cpu_only: int
    """Those without a GPU beside others with one, which do only some kinds."""


def demand(openings: Mapping[str, int], cpu_kinds: Collection[str], busy: Counts, capacity: Counts) -> Counts:
    """How many workers the tasks want: those that are `busy`, and one for each task that could start.

    `openings` is kind -> tasks that could start; `capacity` is how many workers fit on the nodes that are there. Tasks
    of `cpu_kinds` go to workers without a GPU, as far as they fit. The rest of them employ full workers that fit too,
    but ask for no node with a GPU, unless no worker without one fits at all.
    """
    light = sum(number for kind, number in openings.items() if kind in cpu_kinds)
    full = busy.full + sum(openings.values()) - light
    cpu_only = min(light, max(0, capacity.cpu_only - busy.cpu_only))
    left = light - cpu_only
    if capacity.cpu_only:
        left = min(left, max(0, capacity.full - full))
    return Counts(full + left, busy.cpu_only + cpu_only)


class Scaling:
    """The nodes of a cluster as the worker manager sees them.

    Without `most`, there are as many workers as fit on the nodes, at least one. If the cluster is not `elastic`, there
    are `most` from beginning to end. Workers without a GPU do only `cpu_kinds`, on nodes without one.
    """

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        most: int | None,
        elastic: bool,
        cpu_kinds: Set[str],
        max_wait_seconds: float,
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._most = most
        self.elastic = elastic
        self.cpu_kinds = cpu_kinds
        self._max_wait_seconds = max_wait_seconds
        self._nodes: dict[str, Node] = {}  # by id
        self._looked = float("-inf")
        self._some_since = self._told = time.monotonic()  # when there was last a worker, or word of it
        self._was_some = False  # whether there ever was one

    def look(self, now: float, at_once: bool = False) -> list[str]:
        """Ask Ray which nodes there are. Returns the ids of those that have begun to drain."""
        if not self.elastic or (now - self._looked < LOOK_SECONDS and not at_once):
            return []
        first, before = self._looked == float("-inf"), self.draining
        self._looked = now
        self._nodes = {node.id: node for node in self._pool.nodes()}
        if first and not self._fit:
            self._told = now - TELL_SECONDS  # what is waited for is told at once
        self._dispatcher.health.draining(self.draining)
        return sorted(self.draining - before)

    @property
    def draining(self) -> set[str]:
        """The ids of nodes."""
        return {node.id for node in self._nodes.values() if node.draining}

    @property
    def avoided(self) -> set[str]:
        """The ids of the nodes on which no further worker should be started."""
        return self._dispatcher.health.unfit().keys() | self.draining if self.elastic else set()

    @property
    def _fit(self) -> list[Node]:
        """The nodes on which workers may be started."""
        avoided = self.avoided
        return [node for node in self._nodes.values() if node.id not in avoided]

    @property
    def large(self) -> list[Node]:
        """Those of them that are large enough for a worker."""
        return [node for node in self._fit if node.capacity(self._pool.size)]

    def keeps(self, node: str) -> bool:
        """Whether a node was there at the last look, and will stay."""
        return not self.elastic or (node in self._nodes and not self._nodes[node].draining)

    def wanted(self, now: float, busy: Counts) -> Counts:
        """How many workers there should be on nodes that are fit, where `busy` work."""
        if not self.elastic:
            return Counts(self._most or 1, 0)
        full = sum(node.capacity(self._pool.size) for node in self.large)
        capacity = Counts(full, sum(self.cpu_only_capacity.values()))
        found = demand(self._dispatcher.openings(now), self.cpu_kinds, busy, capacity)
        return found._replace(full=min(self._most or max(1, full), found.full))

    @property
    def cpu_only_capacity(self) -> dict[str, int]:
        """Node id -> how many workers without a GPU fit there; nodes that are fit and have no GPU."""
        if not self.elastic or self._pool.cpu_only is None:
            return {}
        size = Size(self._pool.cpu_only.cpus, 0)
        return {node.id: node.capacity(size) for node in self._fit if not node.gpus}

    def wait(self, now: float, none_there: bool, unfit: bool) -> str | None:
        """What to tell the user while no worker is there for a task that could start, or all are on `unfit` nodes.

        Raises:
            UserError: if none came in time, and no node was ever large enough.
            RunFailed: if none came in time, and all such nodes are full or gone.
        """
        self._was_some = self._was_some or not none_there
        if not none_there and not unfit:
            self._some_since = self._told = now
            return None
        if self.elastic and none_there and now - self._some_since >= self._max_wait_seconds:
            raise self._too_long()
        if now - self._told < TELL_SECONDS:
            return None
        self._told = now
        if not self.elastic:
            return f"no worker for {TELL_SECONDS:.0f} s: starting one is slow"
        large, fit = len(self.large), " that is fit" if unfit else ""
        full = f"{counted(large, 'node')}{fit} and large enough {'is' if large == 1 else 'are'} full"
        why = full if large else f"no node{fit} is large enough"
        limit = duration(self._max_wait_seconds)
        return f"waiting for room for a worker of {self._pool.size}: {why}; at most {limit} (cluster.max_wait_seconds)"

    def _too_long(self) -> Exception:
        size, large = self._pool.size, len(self.large)
        waited = f"in {duration(self._max_wait_seconds)} (cluster.max_wait_seconds)"
        if large:
            return RunFailed(
                f"no room for a worker of {size} {waited}: the cluster's {counted(large, 'node')} of that size "
                f"{'is' if large == 1 else 'are'} full; run the same command again when there is room"
            )
        if self._was_some:
            return RunFailed(
                f"no worker fits on the cluster any more: each takes {size}, no node has as much, and none has joined "
                f"{waited}; run the same command again when one is there"
            )
        return no_capacity(size, self._pool.selector, f", nor has one joined {waited}")
