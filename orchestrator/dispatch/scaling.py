"""Where a crew's workers may be, how many there should be, and what is told while there is room for none.

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


class Crowd(NamedTuple):
    full: int
    """Those that do all kinds of tasks."""
    spare: int
    """Those without a GPU, which do only some kinds."""


def demand(openings: Mapping[str, int], spare_kinds: Collection[str], busy: Crowd, room: Crowd) -> Crowd:
    """How many workers the tasks want: those that are `busy`, and one for each that could start.

    `openings` is kind -> tasks that could start; `room` is how many workers fit on the nodes that are there. Tasks of
    `spare_kinds` go to spare workers, as far as there is room. What is left of them employs full workers that fit too,
    but asks for no node with a GPU, unless there is no room for a spare worker at all.
    """
    light = sum(number for kind, number in openings.items() if kind in spare_kinds)
    full = busy.full + sum(openings.values()) - light
    spare = min(light, max(0, room.spare - busy.spare))
    left = light - spare
    if room.spare:
        left = min(left, max(0, room.full - full))
    return Crowd(full + left, busy.spare + spare)


LOOK_SECONDS = 5.0
"""How often Ray is asked which nodes there are: a node that joins gets work soon, one that drains no more of it."""

TELL_SECONDS = 60.0
"""How often the user is told that there is no worker that is fit, and what is waited for."""


class Room:
    """The nodes of a cluster as a crew sees them.

    Without `most`, there are as many workers as fit on the nodes, at least one. If the cluster is not `elastic`, there
    are `most` from beginning to end. Spare workers are for nodes without GPUs and do only `spare_kinds`.
    """

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        most: int | None,
        elastic: bool,
        spare_kinds: Set[str],
        max_wait_seconds: float,
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._most = most
        self.elastic = elastic
        self.spare_kinds = spare_kinds
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
        if first and not self.fit:
            self._told = now - TELL_SECONDS  # what is waited for is told at once
        self._dispatcher.draining(self.draining)
        return sorted(self.draining - before)

    @property
    def draining(self) -> set[str]:
        """The ids of the nodes that will be taken away."""
        return {node.id for node in self._nodes.values() if node.draining}

    @property
    def avoided(self) -> set[str]:
        """The ids of the nodes on which no further worker should be started."""
        return self._dispatcher.avoided() | self.draining if self.elastic else set()

    @property
    def fit(self) -> list[Node]:
        """The nodes on which workers may be started."""
        avoided = self.avoided
        return [node for node in self._nodes.values() if node.id not in avoided]

    @property
    def large(self) -> list[Node]:
        """Those of them that are large enough for a worker."""
        return [node for node in self.fit if node.capacity(self._pool.size)]

    def keeps(self, node: str) -> bool:
        """Whether a node was there at the last look, and will stay."""
        return not self.elastic or (node in self._nodes and not self._nodes[node].draining)

    def wanted(self, now: float, busy: Crowd) -> Crowd:
        """How many workers there should be on nodes that are fit, where `busy` work."""
        if not self.elastic:
            return Crowd(self._most or 1, 0)
        room = Crowd(sum(node.capacity(self._pool.size) for node in self.large), sum(self.spare_rooms.values()))
        full, spare = demand(self._dispatcher.openings(now), self.spare_kinds, busy, room)
        return Crowd(min(self._most or max(1, room.full), full), spare)

    @property
    def spare_rooms(self) -> dict[str, int]:
        """Node id -> how many spare workers fit there; nodes that are fit and have no GPU."""
        if not self.elastic or self._pool.spare is None:
            return {}
        size = Size(self._pool.spare.cpus, 0)
        return {node.id: node.capacity(size) for node in self.fit if not node.gpus}

    def wait(self, now: float, nobody: bool, unfit: bool) -> str | None:
        """What to tell the user while `nobody` is there for a task that could start, or all are on `unfit` nodes.

        Raises:
            UserError: if nobody came in time, and no node was ever large enough.
            RunFailed: if nobody came in time, and all such nodes are full or gone.
        """
        self._was_some = self._was_some or not nobody
        if not nobody and not unfit:
            self._some_since = self._told = now
            return None
        if self.elastic and nobody and now - self._some_since >= self._max_wait_seconds:
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
        waited, large = duration(self._max_wait_seconds), len(self.large)
        if not large and self._was_some:
            return RunFailed(
                f"no worker fits on the cluster any more: each takes {self._pool.size}, no node has as much, and none "
                f"has joined in {waited} (cluster.max_wait_seconds); run the same command again when one is there"
            )
        if not large:
            return no_capacity(
                self._pool.size, self._pool.selector, f", nor has one joined in {waited} (cluster.max_wait_seconds)"
            )
        return RunFailed(
            f"no room for a worker of {self._pool.size} in {waited} (cluster.max_wait_seconds): the cluster's "
            f"{counted(large, 'node')} of that size {'is' if large == 1 else 'are'} full; run the same command again "
            "when there is room"
        )
