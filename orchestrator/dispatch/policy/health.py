"""The health of workers and nodes: who is benched, for how long, and which nodes are fit. Pure.

A worker is benched after `FAILURES_IN_A_ROW` failures, for a time that doubles each time. A node is benched when all
its workers are, or when its workers keep dying. A benched worker comes back by passing `hello`, on probation: one more
failure benches it again. A task that it does clears its record and its node's.

Failures that only tasks may be to blame for are weak evidence: they bench, but never make a node unfit. Errors of the
surroundings, refused hellos and tasks that failed here and were done elsewhere are strong evidence: benched for those
again and again, a node is unfit.

The driver asks after every event who may work and which nodes are unfit, so those are kept up to date by `_note`.
"""

from collections.abc import Collection, Iterable, Set
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
    worker: str
    node: str
    seconds: float
    whole_node: bool
    """No worker of the node may work now."""


@dataclass(slots=True)
class _Worker:
    node: str
    takes: frozenset[str]
    """The kinds of tasks that it does."""
    failures: int = 0
    benches: int = 0
    until: float | None = None
    """None: not benched."""
    strong: bool = False
    reason: str = ""
    asked: bool = False
    """It has been asked to say hello, and has not answered."""


@dataclass(slots=True)
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
        self._here: dict[str, dict[str, None]] = {}  # node -> its workers, an ordered set
        self._taken: dict[str, frozenset[str]] = {}  # node -> the kinds of tasks that its workers did, at any time
        self._draining: frozenset[str] = frozenset()
        self._benched: dict[str, None] = {}  # an ordered set
        self._unfit: set[str] = set()  # workers
        self._unfit_nodes: dict[str, str] | None = {}  # None: not known at present

    def joined(self, worker: str, node: str, now: float, takes: frozenset[str]) -> None:
        """`worker` is ready on `node`; on a node whose workers keep dying it begins on the bench."""
        found = self._nodes.setdefault(node, _Node())
        record = self._workers[worker] = _Worker(node, takes)
        self._here.setdefault(node, {})[worker] = None
        self._taken[node] = self._taken.get(node, takes) | takes
        if now < found.until:
            record.until, record.reason = found.until, "workers of this node keep dying"
        self._unfit_nodes = None
        self._note(worker)

    def left(self, worker: str, now: float, with_its_node: bool = False) -> None:
        """`worker` is gone. The loss of its node's other workers may be heard later."""
        node = self._workers.pop(worker).node
        self._benched.pop(worker, None)
        self._unfit.discard(worker)
        self._unfit_nodes = None
        del self._here[node][worker]
        if self._here[node]:
            return
        del self._here[node]
        if with_its_node:
            del self._nodes[node], self._taken[node]
        else:
            self._nodes[node].left = now

    def draining(self, nodes: Collection[str]) -> None:
        """`nodes`, and no others, will soon be gone."""
        self._draining = frozenset(nodes)

    def succeeded(self, worker: str) -> None:
        """`worker` did a task: its record and its node's are clear."""
        record = self._workers[worker]
        self._workers[worker] = _Worker(record.node, record.takes)
        self._nodes[record.node] = _Node(proven=True)
        self._note(worker)

    def failed(self, worker: str, now: float, reason: str, strong: bool) -> Benching | None:
        """`worker` failed a task that may not be to blame. If it is benched, it had that task in hand before."""
        record = self._workers[worker]
        if record.until is not None:
            return None
        record.failures += 1
        record.reason, record.strong = reason, strong or record.strong
        self._note(worker)
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
        for other in self._here[name]:
            record = self._workers[other]
            if record.until is None:
                record.until, record.reason = node.until, reason
                self._note(other)
        return Benching(worker, name, seconds, True)

    def convict(self, node: str) -> None:
        """A task that `node` failed was done elsewhere."""
        if node in self._nodes:  # it may be gone
            self._nodes[node].convictions += 1
            if self._nodes[node].convictions >= FAILURES_IN_A_ROW:
                for worker in self._here.get(node, ()):
                    self._workers[worker].strong = True
                    self._note(worker)

    def _bench(self, worker: str, now: float) -> Benching:
        record = self._workers[worker]
        seconds = _seconds(record.benches)
        record.until = now + seconds
        record.benches += 1
        record.failures, record.asked = 0, False
        self._note(worker)
        whole_node = all(other in self._benched for other in self._here[record.node])
        if whole_node:
            self._nodes[record.node].proven = False
        return Benching(worker, record.node, seconds, whole_node)

    def readmitted(self, worker: str) -> None:
        """`worker` passed its hello."""
        record = self._workers[worker]
        record.until, record.asked = None, False
        self._note(worker)

    def node(self, worker: str) -> str:
        return self._workers[worker].node

    def takes(self, worker: str) -> frozenset[str]:
        """The kinds of tasks that `worker` does."""
        return self._workers[worker].takes

    def able(self, workers: Iterable[str], kinds: Set[str]) -> list[str]:
        """Those of `workers` that may be given a task of `kinds`, the healthiest first: not benched, and to stay."""
        if not kinds:
            return []
        able = [worker for worker in workers if worker not in self._benched and self._serves(worker, kinds)]
        return sorted(able, key=self._rank)

    def may_yet(self, workers: Iterable[str], kinds: Set[str]) -> bool:
        """Whether any of `workers` may be given a task of `kinds`, now or once its bench is over."""
        return any(self._workers[worker].node not in self.unfit() and self._serves(worker, kinds) for worker in workers)

    def _serves(self, worker: str, kinds: Set[str]) -> bool:
        record = self._workers[worker]
        return record.node not in self._draining and not record.takes.isdisjoint(kinds)

    def _rank(self, worker: str) -> tuple[bool, int, int]:
        """The healthiest first."""
        record = self._workers[worker]
        return not self._nodes[record.node].proven, record.benches, record.failures

    def due(self, now: float, at_once: bool, busy: Collection[str] = ()) -> list[str]:
        """The benched workers that should say hello now, which are then asked. Those that are `busy` are not.

        `at_once`: nobody works, though there is work. Then it makes no sense to sit out a bench on weak evidence.
        """
        benched = [(name, self._workers[name]) for name in self._benched]
        due = [
            name
            for name, record in benched
            if record.until is not None
            and not record.asked
            and name not in busy
            and (record.until <= now or (at_once and not record.strong))
        ]
        for name in due:
            self._workers[name].asked = True
        return due

    def fit(self, now: float, kind: str) -> set[str]:
        """The nodes that do tasks of this kind and were not benched on strong evidence since their last task.

        Nodes that drain are not among them; those just without workers are.
        """
        able = {
            record.node
            for record in self._workers.values()
            if kind in record.takes and not (record.strong and record.benches)
        }
        absent = {
            name
            for name, node in self._nodes.items()
            if name not in self._here and now - node.left < ABSENT_SECONDS and kind in self._taken[name]
        }
        return (able | absent) - self._draining

    def proven(self) -> set[str]:
        """The nodes that did a task and were not benched since."""
        return {name for name, node in self._nodes.items() if node.proven}

    def unfit(self) -> dict[str, str]:
        """Node -> why the run no longer counts on it. Not to be changed."""
        if self._unfit_nodes is None:
            nodes = dict.fromkeys(self._workers[worker].node for worker in self._unfit)
            unfit = [node for node in nodes if self._unfit.issuperset(self._here[node])]
            self._unfit_nodes = {node: self._workers[next(iter(self._here[node]))].reason for node in unfit}
        return self._unfit_nodes

    def _note(self, worker: str) -> None:
        record = self._workers[worker]
        if record.until is None:
            self._benched.pop(worker, None)
        else:
            self._benched[worker] = None
        was_unfit, is_unfit = worker in self._unfit, _is_unfit(record)
        if is_unfit:
            self._unfit.add(worker)
        else:
            self._unfit.discard(worker)
        if was_unfit or is_unfit:
            self._unfit_nodes = None


def _is_unfit(record: _Worker) -> bool:
    return record.strong and record.until is not None and record.benches >= BENCHES_UNTIL_UNFIT


def _seconds(benches: int) -> float:
    return min(LONGEST_BENCH_SECONDS, FIRST_BENCH_SECONDS * 2.0 ** min(benches, 16))
