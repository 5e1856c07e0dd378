"""The tasks in flight: which workers have them, since when, and which of them are late. Pure.

It keeps records and decides nothing. They are stored by worker and by key, so no event costs a search.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from taugrid.orchestrator.task import Task

# A running task is late once it takes this many times as long as its cost and the finished tasks of its kind suggest.
# Copying it at once would run the last task of every healthy run twice, on cores that share memory; waiting longer
# would keep more of a straggler's delay (docs/decisions.md, "Stragglers").
SPECULATION_SLOWNESS = 1.5

# A job has a heartbeat once a second. One that was silent for this long may hang: it is late, however fast its kind is.
SILENT_SECONDS = 60.0


# How long before its node is taken away a worker must stop: it still has to write and upload what it keeps. The driver
# may see the stop's answer half a second late, and so the node's end.
COMMIT_SECONDS = 5.0


@dataclass(slots=True)
class Running:
    task: Task
    since: float
    heartbeat: float  # when its last heartbeat came, or it began
    fraction: float = 0.0  # how much of it was done at its last heartbeat; 0: not known
    doing: str = ""  # what its worker did then that is no progress, such as compiling

    @property
    def key(self) -> str:
        return self.task.key

    def is_silent(self, now: float) -> bool:
        """Whether it may hang."""
        return now - self.heartbeat > SILENT_SECONDS

    def must_stop(self, now: float, gone_at: float, batches: int) -> bool:
        """Whether to stop it now, because its node will be gone before it ends: after the last batch that it can keep.

        A first job's loading and compiling count as time of its batches, so that it may stop early.

        Args:
            now: the time.
            gone_at: when its node is taken away.
            batches: how many batches it has. Those that are complete are kept when it is stopped.
        """
        limit = gone_at - COMMIT_SECONDS
        if now >= limit or not self.fraction:
            return now >= limit
        fit = int((limit - self.since) / max(self.heartbeat - self.since, 1e-3) * self.fraction * batches)
        return fit < batches and fit <= int(self.fraction * batches)


class InFlight:
    """The workers of a run and their tasks: the one that a worker runs, and perhaps one queued behind it."""

    def __init__(self) -> None:
        self.idle: dict[str, None] = {}  # the workers that have no task, an ordered set
        self.running: dict[str, Running] = {}  # worker -> the task that it runs
        # Worker -> the task that it begins by itself once the first only writes or is done.
        self.queued: dict[str, Task] = {}
        self.may_queue: dict[str, None] = {}  # the workers that may get a task to queue, an ordered set
        self._holders: dict[str, list[str]] = {}  # key -> the workers that run the task or have queued it

    def __len__(self) -> int:
        return len(self.idle) + len(self.running)

    def __contains__(self, key: str) -> bool:
        return key in self._holders

    def keys(self, worker: str) -> list[str]:
        """The keys of the tasks of `worker`, first of the one that it runs."""
        running = [self.running[worker].key] if worker in self.running else []
        return [*running, self.queued[worker].key] if worker in self.queued else running

    def copies(self, key: str) -> dict[str, Running]:
        """The workers that run the task `key`, in the order in which they began."""
        holders = self._holders.get(key, ())
        return {worker: self.running[worker] for worker in holders if self.running[worker].key == key}

    def is_queued(self, key: str) -> bool:
        """Whether the task is queued behind another."""
        return len(self._holders.get(key, ())) > len(self.copies(key))

    @property
    def oldest(self) -> float:
        """Since when the task runs that has run longest; infinity if none runs."""
        return min((running.since for running in self.running.values()), default=float("inf"))

    def join(self, worker: str) -> None:
        """`worker` is new, and idle."""
        if worker in self.idle or worker in self.running:
            raise ValueError(f"worker {worker!r} joined twice")
        self.idle[worker] = None

    def begin(self, worker: str, task: Task, now: float) -> None:
        """`worker`, which ran nothing, runs `task` from now on."""
        self.idle.pop(worker, None)
        self.running[worker] = Running(task, now, now)
        self._holders.setdefault(task.key, []).append(worker)
        self.may_queue[worker] = None

    def queue(self, worker: str, task: Task) -> None:
        del self.may_queue[worker]
        self.queued[worker] = task
        self._holders.setdefault(task.key, []).append(worker)

    def finish(self, worker: str, key: str | None, now: float) -> tuple[Running, bool]:
        """`worker` is through with `key` (None: the task that it runs), and goes on with the other one or idles.

        Returns the task, and whether it was queued behind the other one and ended before it.
        """
        queued = self.queued.pop(worker, None)
        running = self._release(worker)
        if queued is None:
            self.idle[worker] = None
            return running, False
        self._drop(queued.key, worker)
        if key != queued.key:
            self.begin(worker, queued, now)
            return running, False
        self.begin(worker, running.task, now)
        del self.may_queue[worker]  # the heartbeats of a third would be taken for the first's, which may hang
        return Running(queued, now, now), True

    def lose(self, worker: str) -> list[str]:
        """`worker` is gone. Returns the keys of the tasks that it had, first of the one that it ran."""
        keys = self.keys(worker)
        if (queued := self.queued.pop(worker, None)) is not None:
            self._drop(queued.key, worker)
        if worker in self.running:
            self._release(worker)
        self.idle.pop(worker, None)
        return keys

    def _release(self, worker: str) -> Running:
        running = self.running.pop(worker)
        self.may_queue.pop(worker, None)
        self._drop(running.key, worker)
        return running

    def _drop(self, key: str, worker: str) -> None:
        holders = self._holders[key]
        holders.remove(worker)
        if not holders:
            del self._holders[key]


class Median:
    """The median of numbers that come one by one."""

    def __init__(self) -> None:
        self._lower: list[float] = []  # a heap of the negative lower half, which has the middle one of an odd number
        self._upper: list[float] = []  # a heap

    def add(self, number: float) -> None:
        middle = -heapq.heappushpop(self._lower, -number)
        heapq.heappush(self._upper, middle)
        if len(self._upper) > len(self._lower):
            heapq.heappush(self._lower, -heapq.heappop(self._upper))

    @property
    def value(self) -> float | None:
        """The median; None before the first number."""
        if not self._lower:
            return None
        lower = -self._lower[0]
        return lower if len(self._lower) > len(self._upper) else (lower + self._upper[0]) / 2


class Throughput:
    """Seconds for each unit of cost, by kind of task, as the finished ones took them."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._taken = {kind: Median() for kind in kinds}

    def add(self, task: Task, seconds: float) -> None:
        self._taken[task.kind].add(seconds / max(task.cost, 1e-12))

    def late(self, running: Iterable[Running], now: float) -> list[Running]:
        """Those that take much longer than their kind does, or are silent; the oldest first."""
        usual = {kind: taken.value for kind, taken in self._taken.items()}
        limits = {kind: float("inf") if each is None else SPECULATION_SLOWNESS * each for kind, each in usual.items()}
        late = [one for one in running if now - one.since > limits[one.task.kind] * one.task.cost or one.is_silent(now)]
        return sorted(late, key=lambda one: (one.since, one.key))
