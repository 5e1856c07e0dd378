"""The health of workers and nodes: who is benched, for how long, and which nodes are fit. Pure, as policy.py.

A worker is benched after `FAILURES_IN_A_ROW` failures, for a time that doubles each time. A node is benched when all
its workers are, or when its workers keep dying. A benched worker comes back by passing `hello`, on probation: one more
failure benches it again. A task that it does clears its record and its node's.

Failures that only tasks may be to blame for are weak evidence: they bench, but never make a node unfit. Errors of the
surroundings, refused hellos and tasks that failed here and were done elsewhere are strong evidence: benched for those
again and again, a node is unfit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

FAILURES_IN_A_ROW = 3
"""One failure may be the task's, two a coincidence."""

FIRST_BENCH_SECONDS = 1.0
"""Long enough for a mount to be back after a blip; the bench is doubled each time."""

LONGEST_BENCH_SECONDS = 60.0
"""A node whose mount is back after an hour should not wait for another."""

BENCHES_UNTIL_UNFIT = 3
"""After so many in a row on strong evidence, the run no longer counts on a node: it ends if no other is fit. While
another is, the node goes on being asked to say hello."""

ABSENT_SECONDS = 120.0
"""How long a node without workers still counts as fit: a worker that was killed is back there within seconds, and its
node must not look as if it could not do what a bad node failed."""


class Benching(NamedTuple):
    """A worker was benched."""

    worker: str
    node: str
    seconds: float
    whole_node: bool
    """No worker of the node may work now."""


@dataclass
class _Worker:
    node: str
    failures: int = 0
    benches: int = 0
    until: float | None = None
    """None: not benched."""
    strong: bool = False
    reason: str = ""
    asked: bool = False
    """It has been asked to say hello, and has not answered."""


@dataclass
class _Node:
    proven: bool = False
    losses: int = 0
    benches: int = 0
    until: float = 0.0
    """Workers that join before are benched."""
    convictions: int = 0
    left: float = 0.0
    """When its last worker was gone."""


class Health:
    """What is known of every worker and node. Times are seconds on the dispatcher's clock."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._nodes: dict[str, _Node] = {}

    def joined(self, worker: str, node: str, now: float) -> None:
        """`worker` is ready on `node`; on a node whose workers keep dying it begins on the bench."""
        found = self._nodes.setdefault(node, _Node())
        record = self._workers[worker] = _Worker(node)
        if now < found.until:
            record.until, record.reason = found.until, "workers of this node keep dying"

    def left(self, worker: str, now: float, with_its_node: bool = False) -> None:
        """`worker` is gone. The loss of its node's other workers may be heard later."""
        node = self._workers.pop(worker).node
        if any(other.node == node for other in self._workers.values()):
            return
        if with_its_node:
            del self._nodes[node]
        else:
            self._nodes[node].left = now

    def succeeded(self, worker: str) -> None:
        """`worker` did a task: its record and its node's are clear."""
        record = self._workers[worker]
        self._workers[worker] = _Worker(record.node)
        self._nodes[record.node] = _Node(proven=True)

    def failed(self, worker: str, now: float, reason: str, strong: bool) -> Benching | None:
        """`worker` failed a task that may not be to blame."""
        record = self._workers[worker]
        record.failures += 1
        record.reason, record.strong = reason, strong or record.strong
        limit = FAILURES_IN_A_ROW if record.benches == 0 else 1
        return self._bench(worker, now) if record.failures >= limit else None

    def refused(self, worker: str, now: float, reason: str) -> Benching:
        """`worker` did not pass its hello."""
        record = self._workers[worker]
        record.reason, record.strong = reason, True
        return self._bench(worker, now)

    def lost(self, worker: str, now: float, reason: str) -> Benching | None:
        """`worker` died, and its task may not be to blame. Call `left` afterwards."""
        name = self._workers[worker].node
        node = self._nodes[name]
        node.losses += 1
        if node.losses < FAILURES_IN_A_ROW:
            return None
        seconds = _seconds(node.benches)
        node.benches += 1
        node.until, node.proven = now + seconds, False
        for record in self._workers.values():
            if record.node == name and record.until is None:
                record.until, record.reason = node.until, reason
        return Benching(worker, name, seconds, True)

    def convict(self, node: str) -> None:
        """A task that `node` failed was done elsewhere."""
        if node in self._nodes:  # it may be gone
            self._nodes[node].convictions += 1
            if self._nodes[node].convictions >= FAILURES_IN_A_ROW:
                for record in self._workers.values():
                    if record.node == node:
                        record.strong = True

    def _bench(self, worker: str, now: float) -> Benching:
        record = self._workers[worker]
        seconds = _seconds(record.benches)
        record.until = now + seconds
        record.benches += 1
        record.failures, record.asked = 0, False
        whole_node = self._all(record.node, lambda other: other.until is not None)
        if whole_node:
            self._nodes[record.node].proven = False
        return Benching(worker, record.node, seconds, whole_node)

    def readmitted(self, worker: str) -> None:
        """`worker` passed its hello."""
        record = self._workers[worker]
        record.until, record.asked = None, False

    def node(self, worker: str) -> str:
        """Where `worker` is."""
        return self._workers[worker].node

    def may_work(self, worker: str) -> bool:
        """Whether `worker` is not benched."""
        return self._workers[worker].until is None

    def rank(self, worker: str) -> tuple[bool, int, int]:
        """The healthiest first."""
        record = self._workers[worker]
        return not self._nodes[record.node].proven, record.benches, record.failures

    def due(self, now: float, at_once: bool) -> list[str]:
        """The benched workers that should say hello now, which are then asked.

        `at_once`: nobody works, though there is work. Then it makes no sense to sit out a bench on weak evidence.
        """
        due = [
            name
            for name, record in self._workers.items()
            if record.until is not None
            and not record.asked
            and (record.until <= now or (at_once and not record.strong))
        ]
        for name in due:
            self._workers[name].asked = True
        return due

    def fit(self, now: float) -> set[str]:
        """The nodes that were not benched on strong evidence since their last task; those just without workers too."""
        here = {record.node for record in self._workers.values()}
        able = {record.node for record in self._workers.values() if not (record.strong and record.benches)}
        return able | {
            name for name, node in self._nodes.items() if name not in here and now - node.left < ABSENT_SECONDS
        }

    def proven(self) -> set[str]:
        """The nodes that did a task and were not benched since."""
        return {name for name, node in self._nodes.items() if node.proven}

    def unfit(self) -> dict[str, str]:
        """Node -> why the run no longer counts on it."""
        here = {record.node for record in self._workers.values()}
        return {node: self._last(node) for node in here if self._all(node, _is_unfit)}

    def _all(self, node: str, holds: Callable[[_Worker], bool]) -> bool:
        return all(holds(record) for record in self._workers.values() if record.node == node)

    def _last(self, node: str) -> str:
        return next(record.reason for record in self._workers.values() if record.node == node)


def _is_unfit(record: _Worker) -> bool:
    return record.strong and record.until is not None and record.benches >= BENCHES_UNTIL_UNFIT


def _seconds(benches: int) -> float:
    return min(LONGEST_BENCH_SECONDS, FIRST_BENCH_SECONDS * 2.0 ** min(benches, 16))
