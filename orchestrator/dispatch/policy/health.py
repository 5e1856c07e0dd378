"""Who is to blame for failures: which workers and nodes cool down or are unfit, and which tasks are given up. Pure.

Failures that only tasks may be to blame for are weak evidence: they cause a cooldown, but never make a node unfit.
Errors of the environment, failed health checks and tasks that failed here and were done elsewhere are strong evidence:
a node that cools down for those again and again is unfit. A worker comes back by passing its health check, on
probation: one more failure, and it cools down again. A task that it does clears its record and its node's.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass, field
from typing import NamedTuple

# Enough to quarantine a task while no node has done any: it is likelier that all tasks fail than that all nodes do.
UNPROVEN_NODES = 8

FAILURES_IN_A_ROW = 3  # one failure may be the task's, two a coincidence

FIRST_COOLDOWN_SECONDS = 1.0  # long enough for a mount to be back after a blip; it is doubled each time

MAX_COOLDOWN_SECONDS = 60.0  # a node whose mount is back after an hour should not wait for a second hour

COOLDOWNS_UNTIL_UNFIT = 3  # in a row on strong evidence; its health goes on being checked while another node is fit

# How long a node without workers still counts as usable: a killed worker is back there within seconds.
ABSENT_SECONDS = 120.0


class Cooldown(NamedTuple):
    worker: str
    node: str
    seconds: float
    whole_node: bool  # whether no worker of the node may work now


@dataclass(slots=True)
class _Worker:
    node: str
    takes: frozenset[str]  # the kinds of tasks that it does
    failures: int = 0
    cooldowns: int = 0
    until: float | None = None  # when its cooldown ends; None: it has none
    strong: bool = False
    reason: str = ""
    is_checked: bool = False  # whether its health is being checked

    @property
    def is_unfit(self) -> bool:
        return self.strong and self.until is not None and self.cooldowns >= COOLDOWNS_UNTIL_UNFIT


@dataclass(slots=True)
class _Node:
    workers: dict[str, None] = field(default_factory=dict)  # an ordered set
    taken: frozenset[str] = frozenset()  # the kinds of tasks that its workers took, at any time
    proven: bool = False
    losses: int = 0
    cooldowns: int = 0
    until: float = 0.0  # workers that join before then begin with a cooldown
    blamed: int = 0  # tasks that failed here and were done elsewhere
    left: float = 0.0  # when its last worker was gone


class Health:
    """The records of all workers and nodes. Times are seconds on the dispatcher's clock."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._nodes: dict[str, _Node] = {}
        self._draining: frozenset[str] = frozenset()
        self.cooling: dict[str, None] = {}  # the workers whose cooldown has an end, in the order in which it began

    def joined(self, worker: str, node: str, now: float, takes: frozenset[str]) -> None:
        """`worker` is ready on `node`; on a node whose workers keep dying it begins with a cooldown."""
        node_record = self._nodes.setdefault(node, _Node())
        record = self._workers[worker] = _Worker(node, takes)
        node_record.workers[worker] = None
        node_record.taken |= takes
        if now < node_record.until:
            self._cool(worker, node_record.until)
            record.reason = "workers of this node keep dying"

    def left(self, worker: str, now: float, with_its_node: bool = False) -> None:
        """`worker` is gone. The loss of its node's other workers may be reported later."""
        name = self._workers.pop(worker).node
        node = self._nodes[name]
        self.cooling.pop(worker, None)
        del node.workers[worker]
        if node.workers:
            return
        if with_its_node:
            del self._nodes[name]
        else:
            node.left = now

    def set_draining(self, nodes: Collection[str]) -> None:
        """Give the workers of these nodes, which will soon be gone, no new task."""
        self._draining = frozenset(nodes)

    def succeeded(self, worker: str) -> None:
        """`worker` did a task: its record and its node's are clear."""
        record = self._workers[worker]
        node = self._nodes[record.node]
        self._workers[worker] = _Worker(record.node, record.takes)
        self._nodes[record.node] = _Node(node.workers, node.taken, proven=True)
        self.cooling.pop(worker, None)

    def failed(self, worker: str, now: float, reason: str, strong: bool) -> Cooldown | None:
        """`worker` failed a task that may not be to blame. If it cools down already, it had that task before."""
        record = self._workers[worker]
        if record.until is not None:
            return None
        record.failures += 1
        record.reason, record.strong = reason, strong or record.strong
        limit = FAILURES_IN_A_ROW if record.cooldowns == 0 else 1
        return self._cool_down(worker, now) if record.failures >= limit else None

    def unhealthy(self, worker: str, now: float, reason: str) -> Cooldown:
        """`worker` did not pass its health check, or refused a task for what such a check would find."""
        record = self._workers[worker]
        record.reason, record.strong = reason, True
        return self._cool_down(worker, now)

    def lost(self, worker: str, now: float, reason: str) -> Cooldown | None:
        """`worker` died, and its task may not be to blame. Call `left` afterwards."""
        name = self._workers[worker].node
        node = self._nodes[name]
        node.losses += 1
        if node.losses < FAILURES_IN_A_ROW:
            return None
        seconds = _seconds(node.cooldowns)
        node.cooldowns += 1
        node.until, node.proven = now + seconds, False
        for other in node.workers:
            if other not in self.cooling:
                self._cool(other, node.until)
                self._workers[other].reason = reason
        return Cooldown(worker, name, seconds, True)

    def blame(self, name: str) -> None:
        """A task that failed on a node was done elsewhere."""
        if (node := self._nodes.get(name)) is not None:  # it may be gone
            node.blamed += 1
            if node.blamed >= FAILURES_IN_A_ROW:
                for worker in node.workers:
                    self._workers[worker].strong = True

    def _cool_down(self, worker: str, now: float) -> Cooldown:
        record = self._workers[worker]
        seconds = _seconds(record.cooldowns)
        self._cool(worker, now + seconds)
        record.cooldowns += 1
        record.failures, record.is_checked = 0, False
        node = self._nodes[record.node]
        whole_node = all(other in self.cooling for other in node.workers)
        node.proven = node.proven and not whole_node
        return Cooldown(worker, record.node, seconds, whole_node)

    def readmitted(self, worker: str) -> None:
        record = self._workers[worker]
        record.until, record.is_checked = None, False
        self.cooling.pop(worker, None)

    def node(self, worker: str) -> str:
        return self._workers[worker].node

    def takes(self, worker: str) -> frozenset[str]:
        return self._workers[worker].takes

    def available(self, workers: Iterable[str], kinds: Set[str]) -> list[str]:
        """Those of `workers` that may be given a task of `kinds` now, the healthiest first."""
        if not kinds:
            return []
        available = [worker for worker in workers if worker not in self.cooling and self._serves(worker, kinds)]
        records, nodes = self._workers, self._nodes
        return sorted(
            available,
            key=lambda w: (not nodes[records[w].node].proven, records[w].cooldowns, records[w].failures),
        )

    def may_become_available(self, workers: Iterable[str], kinds: Set[str]) -> bool:
        """Whether any of `workers` may be given a task of `kinds`, now or once its cooldown is over."""
        unfit = self.broken_nodes()
        records = {worker: self._workers[worker] for worker in workers if self._serves(worker, kinds)}
        return any(record.node not in unfit or not record.is_unfit for record in records.values())

    def _serves(self, worker: str, kinds: Set[str]) -> bool:
        record = self._workers[worker]
        return record.node not in self._draining and not record.takes.isdisjoint(kinds)

    def due_for_health_check(self, now: float, at_once: bool, busy: Collection[str] = ()) -> list[str]:
        """The workers whose health should be checked now, and then is: their cooldown is over, and they are not `busy`.
        `at_once`: no worker has a task, though there are some. Then it makes no sense to wait on weak evidence."""
        due = []
        for worker in self.cooling:
            record = self._workers[worker]
            is_over = record.until is not None and (record.until <= now or (at_once and not record.strong))
            if is_over and not record.is_checked and worker not in busy:
                record.is_checked = True
                due.append(worker)
        return due

    def usable_nodes(self, now: float, kind: str) -> set[str]:
        """The nodes that count when a task of this kind is blamed, among them those just without workers. They don't
        drain, and have a worker without a cooldown on strong evidence since its last task."""
        usable = {
            record.node
            for record in self._workers.values()
            if kind in record.takes and not (record.strong and record.cooldowns)
        }
        absent = {
            name
            for name, node in self._nodes.items()
            if not node.workers and now - node.left < ABSENT_SECONDS and kind in node.taken
        }
        return (usable | absent) - self._draining

    def proven(self) -> set[str]:
        return {name for name, node in self._nodes.items() if node.proven}

    def broken_nodes(self) -> dict[str, str]:
        """Unfit node -> why. Workers of fewer kinds of tasks don't count: a GPU may be broken where CPUs are well."""
        unfit = dict.fromkeys(record.node for worker in self.cooling if (record := self._workers[worker]).is_unfit)
        reasons = {}
        for node in unfit:
            records = [self._workers[worker] for worker in self._nodes[node].workers]
            most = max(len(record.takes) for record in records)
            able = [record for record in records if len(record.takes) == most]
            if all(record.is_unfit for record in able):
                reasons[node] = able[0].reason
        return reasons

    def _cool(self, worker: str, until: float) -> None:
        self._workers[worker].until = until
        self.cooling[worker] = None


def _seconds(cooldowns: int) -> float:
    return min(MAX_COOLDOWN_SECONDS, FIRST_COOLDOWN_SECONDS * 2.0 ** min(cooldowns, 16))


@dataclass(slots=True)
class TaskHistory:
    errors: Counter[str] = field(default_factory=Counter)  # node -> how often it raised an error of its own there
    losses: Counter[str] = field(default_factory=Counter)  # node -> how many workers died of it, or hung, there
    # With no other worker lost in between: where workers die all the time, a death says little about the task.
    losses_in_a_row: int = 0
    # Nodes and workers where it failed, for whatever reason: it goes elsewhere if it can.
    failed_at: set[str] = field(default_factory=set)

    @property
    def attempts(self) -> int:
        return self.errors.total() + self.losses.total()

    @property
    def evidence(self) -> Counter[str]:
        """Node -> failures that count together. Beside errors, a single death may be an accident."""
        if not self.errors:
            return self.losses
        return self.errors + Counter({node: count for node, count in self.losses.items() if count > 1})


def suffices(failures: Counter[str], max_attempts: int, usable: Set[str], proven: Set[str]) -> bool:
    """Whether a task is to blame for its `failures` by node: on min(`max_attempts`, usable nodes) nodes.

    On a single node, there must be `max_attempts`. One of the nodes must be `proven`, or all may be bad. A task that
    has failed on every usable node needs no such witness, nor does one that has failed on `UNPROVEN_NODES` where no
    node is proven yet."""
    tried = failures.keys() & usable
    if len(tried) < max(1, min(max_attempts, len(usable))):
        return False
    if len(tried) == 1 and failures[next(iter(tried))] < max_attempts:
        return False
    if tried == usable:
        return True
    if witnesses := proven & usable:
        return bool(tried & witnesses)
    return len(tried) >= UNPROVEN_NODES
