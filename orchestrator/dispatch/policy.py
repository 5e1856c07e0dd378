"""The scheduling policy as a pure state machine: no clock, no Ray, no files. It takes events and gives assignments.

One queue holds every kind of work. A task is ready once all that it requires is done. Ready tasks go out in the order
of their kinds (so that extraction runs when nothing is left to sample), the costliest of a kind first. A task that
fails, or whose worker dies, is queued again until it has failed `max_attempts` times; then it is quarantined and the
rest goes on. While there are other workers, a task does not go back to one that failed it: otherwise a node that fails
everything at once would use up the attempts of the whole queue. When the queue is empty, an idle worker takes a second
copy of the oldest task that runs much longer than similar tasks. Commits are idempotent, so the first copy counts.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from taugrid.orchestrator.task import Task

SPECULATION_SLOWNESS = 1.5
"""A running task is duplicated once it takes this many times as long as its cost and the finished tasks of its kind
suggest. Duplicating at once would run the last task of every healthy run twice, on cores that share memory; waiting
longer would keep more of a straggler's delay (docs/decisions.md, "Stragglers")."""


class Assignment(NamedTuple):
    """`worker` should do `task`; `speculative` if another worker is already doing it."""

    worker: str
    task: Task
    speculative: bool


class _Running(NamedTuple):
    key: str
    since: float


class Dispatcher:
    """Decides which worker gets which task. Times are seconds on any one clock and only serve to find stragglers.

    `kinds` are the names of the kinds of tasks, in the order in which they go out.

    Raises:
        ValueError: if two tasks share a key, a kind is unknown, or a task requires one that isn't given.
    """

    def __init__(self, tasks: Iterable[Task], kinds: Sequence[str], max_attempts: int = 3) -> None:
        self._tasks: dict[str, Task] = {}
        for task in tasks:
            if task.key in self._tasks or task.kind not in kinds:
                raise ValueError(f"task {task.key!r} is given twice or is of unknown kind {task.kind!r}")
            self._tasks[task.key] = task
        self._priority = {kind: place for place, kind in enumerate(kinds)}
        self._max_attempts = max_attempts
        self._order = {key: place for place, key in enumerate(self._tasks)}
        self._missing = {task.key: set(task.requires) for task in self._tasks.values()}
        self._dependents: dict[str, list[str]] = {key: [] for key in self._tasks}
        for task in self._tasks.values():
            for requirement in task.requires:
                if requirement not in self._tasks:
                    raise ValueError(f"task {task.key!r} requires {requirement!r}, which is not a task")
                self._dependents[requirement].append(task.key)
        self._queue: list[tuple[int, float, int, str]] = []
        self._idle: dict[str, None] = {}  # an ordered set
        self._running: dict[str, _Running] = {}
        self._runners: dict[str, set[str]] = {}
        self._failed_on: dict[str, set[str]] = {}
        self._paces: dict[str, list[float]] = {kind: [] for kind in kinds}
        self.attempts: dict[str, int] = dict.fromkeys(self._tasks, 0)
        self.done: set[str] = set()
        self.quarantined: set[str] = set()
        self.unreachable: set[str] = set()  # require something quarantined, directly or indirectly
        for key, missing in self._missing.items():
            if not missing:
                self._enqueue(key)

    @property
    def finished(self) -> bool:
        """Whether nothing is left that can be done. Superfluous copies may still be running."""
        return len(self.done) + len(self.quarantined) + len(self.unreachable) == len(self._tasks)

    @property
    def running(self) -> Mapping[str, str]:
        """Worker -> key of its current task."""
        return {worker: running.key for worker, running in self._running.items()}

    @property
    def workers(self) -> int:
        """Number of workers that have joined and are not lost."""
        return len(self._idle) + len(self._running)

    def worker_joined(self, worker: str) -> None:
        """`worker` is ready for work."""
        if worker in self._idle or worker in self._running:
            raise ValueError(f"worker {worker!r} joined twice")
        self._idle[worker] = None

    def assign(self, now: float) -> list[Assignment]:
        """Assign tasks to idle workers, as far as there are any; they count as running from `now`."""
        assignments = []
        for worker in list(self._idle):
            key, speculative = self._next_ready(worker), False
            if key is None and not self._queue:
                key, speculative = self._straggler(now), True
            if key is None:
                continue
            del self._idle[worker]
            self._running[worker] = _Running(key, now)
            self._runners.setdefault(key, set()).add(worker)
            assignments.append(Assignment(worker, self._tasks[key], speculative))
        return assignments

    def succeeded(self, worker: str, now: float) -> bool:
        """`worker` finished its task. True if it was the first to do so."""
        key, since = self._release(worker)
        self._idle[worker] = None
        if key in self.done:
            return False
        self.done.add(key)
        task = self._tasks[key]
        self._paces[task.kind].append((now - since) / max(task.cost, 1e-12))
        for dependent in self._dependents[key]:
            self._missing[dependent].discard(key)
            if not self._missing[dependent]:
                self._enqueue(dependent)
        return True

    def failed(self, worker: str) -> bool:
        """`worker` failed its task but is alive. True if the task is now quarantined."""
        key, _ = self._release(worker)
        self._idle[worker] = None
        self._failed_on.setdefault(key, set()).add(worker)
        return self._charge(key)

    def worker_lost(self, worker: str) -> bool:
        """`worker` is gone, and its work with it. True if its task is now quarantined."""
        if worker in self._idle:
            del self._idle[worker]
            return False
        key, _ = self._release(worker)
        return self._charge(key)

    def _enqueue(self, key: str) -> None:
        task = self._tasks[key]
        heapq.heappush(self._queue, (self._priority[task.kind], -task.cost, self._order[key], key))

    def _next_ready(self, worker: str) -> str | None:
        """The first task in the queue, skipping those that `worker` failed while other workers did not."""
        passed_over, found = [], None
        while self._queue and found is None:
            entry = heapq.heappop(self._queue)
            if self._suits(worker, entry[-1]):
                found = entry[-1]
            else:
                passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(self._queue, entry)
        return found

    def _suits(self, worker: str, key: str) -> bool:
        failed_on = self._failed_on.get(key, set())
        return worker not in failed_on or all(w in failed_on for w in (*self._idle, *self._running))

    def _straggler(self, now: float) -> str | None:
        late = [
            (running.since, running.key)
            for running in self._running.values()
            if running.key not in self.done and self._may_be_copied(running.key) and self._is_late(running, now)
        ]
        return min(late)[1] if late else None

    def _may_be_copied(self, key: str) -> bool:
        """One copy at a time, and none once the attempts are used up: failing copies must come to an end too."""
        return len(self._runners[key]) == 1 and self.attempts[key] < self._max_attempts

    def _is_late(self, running: _Running, now: float) -> bool:
        task = self._tasks[running.key]
        paces = self._paces[task.kind]
        return bool(paces) and now - running.since > SPECULATION_SLOWNESS * median(paces) * task.cost

    def _release(self, worker: str) -> _Running:
        running = self._running.pop(worker)
        self._runners[running.key].discard(worker)
        return running

    def _charge(self, key: str) -> bool:
        """Count a failed attempt. Queue the task again, unless a copy is still running or it failed too often."""
        if key in self.done:
            return False
        self.attempts[key] += 1
        if self._runners[key]:
            return False
        if self.attempts[key] < self._max_attempts:
            self._enqueue(key)
            return False
        self.quarantined.add(key)
        self.unreachable = self._closure(self.quarantined)
        return True

    def _closure(self, keys: set[str]) -> set[str]:
        """All tasks that require any of `keys`, directly or indirectly."""
        found: set[str] = set()
        frontier = list(keys)
        while frontier:
            for dependent in self._dependents[frontier.pop()]:
                if dependent not in found:
                    found.add(dependent)
                    frontier.append(dependent)
        return found
