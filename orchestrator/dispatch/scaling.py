"""How many workers there should be, on which nodes, and what is said while no node has room for one.

On an embedded cluster their number is given. A cluster that the run joined is polled for nodes.
"""

import time
from collections.abc import Mapping, Set
from math import inf

from taugrid.config import Cluster
from taugrid.errors import RunFailed
from taugrid.orchestrator.dispatch.capacity import Node, no_capacity
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.pool import Pool
from taugrid.words import counted, duration

POLL_SECONDS = 5.0
"""How often Ray is polled for nodes: a node that joins gets work soon, and one that drains gets no more."""

MESSAGE_SECONDS = 60.0
"""How often a message says that no worker is usable, and why."""


class Scaling:
    """The nodes of a cluster, and how many workers there should be on them.

    `elastic` means that the run joined a running cluster, whose nodes may come and go. Without `max_workers`, there are
    then as many workers as fit on the nodes, at least one. An embedded cluster has `max_workers` from beginning to end.
    Scorers are workers without a GPU, in a pool whose other workers have one; they do only tasks of the kinds `scored`.
    """

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        max_workers: int | None,
        elastic: bool,
        scored: Set[str],
        config: Cluster,
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._max_workers = max_workers
        self.elastic = elastic
        self.scored = scored
        self._config = config
        self._max_wait_seconds = config.max_wait_seconds
        self._nodes: dict[str, Node] = {}  # by id
        self.gone_at: dict[str, float] = {}
        """The ids of the nodes that drain until a known time, each with that time on this process's clock."""
        self._polled_at = float("-inf")
        self._last_worker_at = self._last_message_at = time.monotonic()
        self._had_worker = False

    def poll_nodes(self, now: float, at_once: bool = False) -> list[str]:
        """Get the cluster's nodes from Ray. Returns the ids of those that have begun to drain."""
        if not self.elastic and (self._pool.scorer is None or self._nodes):
            return []
        if now - self._polled_at < POLL_SECONDS and not at_once:
            return []
        is_first, before = self._polled_at == float("-inf"), self.draining
        self._polled_at = now
        if (nodes := self._pool.nodes()) is None:
            return []
        self._nodes = {node.id: node for node in nodes}
        self.gone_at = {node.id: now + node.seconds_left for node in nodes if node.draining and node.seconds_left < inf}
        if is_first and not self._usable:
            self._last_message_at = now - MESSAGE_SECONDS  # so that the first message comes at once
        self._dispatcher.health.set_draining(self.draining)
        return sorted(self.draining - before)

    @property
    def draining(self) -> set[str]:
        return {node.id for node in self._nodes.values() if node.draining}

    @property
    def avoided(self) -> set[str]:
        """The ids of the nodes on which no further worker should be started."""
        return self._dispatcher.health.broken_nodes().keys() | self.draining if self.elastic else set()

    @property
    def _usable(self) -> list[Node]:
        """The nodes on which workers may be started."""
        avoided = self.avoided
        return [node for node in self._nodes.values() if node.id not in avoided]

    @property
    def large(self) -> list[Node]:
        """The usable nodes that are large enough for a worker."""
        return [node for node in self._usable if node.capacity(self._pool.size)]

    def keeps(self, node: str) -> bool:
        """Whether a node was present at the last poll and does not drain."""
        return not self.elastic or (node in self._nodes and not self._nodes[node].draining)

    def wanted(self, now: float, busy: Mapping[bool, int], has_scorer: bool) -> dict[bool, int]:
        """How many workers there should be on usable nodes: False -> those of all kinds of tasks, True -> scorers.

        On a cluster that was joined, one for each task that could start, besides those that are `busy`. Scores alone
        must not make an autoscaler buy GPUs: for them there is one worker of all kinds, until a scorer is there.
        """
        places, ready = self.scorer_places, self._dispatcher.demand_by_kind(now)
        scores = sum(ready[kind] for kind in self.scored) if places else 0
        scorers = min(sum(places.values()), busy[True] + scores)
        if not self.elastic:
            return {False: self._max_workers or 1, True: scorers}
        others = max(busy[False] + ready.total() - scores, int(scores > 0 and not has_scorer))
        most = self._max_workers or max(1, sum(node.capacity(self._pool.size) for node in self.large))
        return {False: min(most, others), True: scorers}

    @property
    def scorer_places(self) -> dict[str, int]:
        """Node id -> the most scorers that it should have, for usable nodes.

        They take no CPUs as Ray counts. On a node with GPUs, half of its CPUs are left to other workers.
        """
        if self._pool.scorer is None:
            return {}
        most, on_cpu_nodes = self._config.score.workers_per_node, self._config.use_cpus
        nodes = self._usable if self.elastic else self._nodes.values()
        places = {
            node.id: min(most, int(node.cpus) // 2) if node.gpus else int(node.cpus) * on_cpu_nodes for node in nodes
        }
        return {node: number for node, number in places.items() if number}

    def waiting_message(self, now: float, no_worker: bool, all_unfit: bool) -> str | None:
        """A message for the user, every `MESSAGE_SECONDS` while the run waits for a worker; else None.

        Args:
            now: the time.
            no_worker: there is no worker for any task that could start.
            all_unfit: there are workers, but all of them are on unfit nodes.

        Raises:
            UserError: if no worker started in time, and no node of a cluster that was joined was ever large enough.
            RunFailed: if no worker started in time for any other reason.
        """
        self._had_worker = self._had_worker or not no_worker
        if not no_worker and not all_unfit:
            self._last_worker_at = self._last_message_at = now
            return None
        if no_worker and now - self._last_worker_at >= self._max_wait_seconds:
            raise self._waited_too_long()
        if now - self._last_message_at < MESSAGE_SECONDS:
            return None
        self._last_message_at = now
        if not self.elastic:
            return f"no worker for {MESSAGE_SECONDS:.0f} s: starting one is slow"
        large = len(self.large)
        why = f"full: {counted(large, 'node')} large enough" if large else "no node is large enough"
        limit = duration(self._max_wait_seconds)
        return f"waiting for room for a worker of {self._pool.size}: {why}; at most {limit} (cluster.max_wait_seconds)"

    def _waited_too_long(self) -> Exception:
        waited = f"in {duration(self._max_wait_seconds)} (cluster.max_wait_seconds)"
        if not self.elastic:
            return RunFailed(f"no worker started {waited}; see Ray's logs, or set cluster.max_wait_seconds higher")
        if self.large or self._had_worker:
            again = "run the same command again when there is"
            return RunFailed(f"no room for a worker of {self._pool.size} {waited}; {again}")
        return no_capacity(self._pool.size, self._config, f", nor has one joined {waited}")
