"""The tasks of a run: those that wait, which are ready and in which order, and those in flight. Pure.

Ready tasks are assigned in the order of their kinds, the costliest of a kind first. A worker prefers, of a kind, those
that required only what it did itself, the last first: it may still have what it made. A task that has failed goes
behind all that have not, so that a few hopeless ones can't delay the others.

A run may have a million tasks, so each is one number here: its place in that order. Nothing here costs a search.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from taugrid.orchestrator.task import Task

SILENT_SECONDS = 60.0  # a job has a heartbeat once a second; one that was silent for this long is late, and may hang


COMMIT_SECONDS = 5.0  # how long before its node is taken away a worker must stop, to write what it keeps


class Backlog:
    """All tasks of a run; `kinds` are in the order in which they are assigned. Raises `ValueError` if two tasks share a
    key, a kind is unknown, or a task requires one that isn't given."""

    def __init__(self, tasks: Iterable[Task], kinds: Sequence[str]) -> None:
        priority = {kind: rank for rank, kind in enumerate(kinds)}
        self._tasks = list(tasks)
        for task in self._tasks:
            if task.kind not in priority:
                raise ValueError(f"task {task.key!r} is of unknown kind {task.kind!r}")
        self._tasks.sort(key=lambda task: (priority[task.kind], -task.cost))  # equals stay in order
        self._ranks: dict[str, int] = {}
        self._missing = [len(task.requires) for task in self._tasks]
        self._dependents: dict[int, list[int]] = {}
        self._fresh: dict[str, list[int]] = {kind: [] for kind in kinds}  # heaps
        self._is_fresh = bytearray(len(self._tasks))  # whether it waits in one of them
        self._own: dict[tuple[str, str], list[int]] = {}  # worker and kind -> tasks that only required what it did
        self._retries = {kind: Retries() for kind in kinds}
        self._ready = dict.fromkeys(kinds, 0)
        self.done: set[str] = set()
        self.quarantined: set[str] = set()
        self.unreachable: set[str] = set()  # require something quarantined, directly or indirectly
        for rank, task in enumerate(self._tasks):
            if self._ranks.setdefault(task.key, rank) != rank:
                raise ValueError(f"task {task.key!r} is given twice")
        for rank, task in enumerate(self._tasks):
            for requirement in task.requires:
                if requirement not in self._ranks:
                    raise ValueError(f"task {task.key!r} requires {requirement!r}, which is not a task")
                self._dependents.setdefault(self._ranks[requirement], []).append(rank)
            if not task.requires:
                self._add(rank)

    def __len__(self) -> int:
        return sum(self._ready.values())

    @property
    def ready(self) -> dict[str, int]:
        """Kind -> the number of its tasks that are ready and wait, if there are any."""
        return {kind: count for kind, count in self._ready.items() if count}

    @property
    def kinds(self) -> set[str]:
        return set(self.ready)

    @property
    def finished(self) -> bool:
        return len(self.done) + len(self.quarantined) + len(self.unreachable) == len(self._tasks)

    def task(self, key: str) -> Task:
        return self._tasks[self._ranks[key]]

    def add(self, key: str, failed_at: Collection[str] = ()) -> None:
        """Queue a task. If it has `failed_at` nodes and workers, it goes behind all that have not failed."""
        self._add(self._ranks[key], failed_at)

    def _add(self, rank: int, failed_at: Collection[str] = ()) -> None:
        kind = self._tasks[rank].kind
        self._ready[kind] += 1
        if failed_at:
            self._retries[kind].add(rank, frozenset(failed_at))
        else:
            self._is_fresh[rank] = True
            heapq.heappush(self._fresh[kind], rank)

    def take(self, kinds: Collection[str], place: str | None = None, worker: str = "") -> str | None:
        """Remove and return the first task of `kinds` for `worker` that has not failed at `place`, a node or a worker.
        None if there is none."""
        for kind in self._fresh:
            if kind in kinds and (key := self.take_fresh(kind, worker)) is not None:
                return key
        for kind, retries in self._retries.items():
            if retries and kind in kinds and (again := retries.take(place)) is not None:
                self._ready[kind] -= 1
                return self._tasks[again].key
        return None

    def take_fresh(self, kind: str, worker: str = "") -> str | None:
        """Remove and return the first task of `kind` for `worker` that has not failed anywhere, if there is one."""
        queue, own = self._fresh[kind], self._own.get((worker, kind))
        while queue:
            rank = own.pop() if own else heapq.heappop(queue)
            if self._is_fresh[rank]:  # not removed meanwhile
                self._is_fresh[rank] = False
                self._ready[kind] -= 1
                return self._tasks[rank].key
        return None

    def complete(self, key: str, worker: str = "") -> None:
        """`key` is done; tasks that required nothing else are ready."""
        self.done.add(key)
        dependents = self._dependents.pop(self._ranks[key], [])
        for dependent in reversed(dependents):  # the last of `_own` is the first that is taken
            if self._meet(dependent) and len(self._tasks[dependent].requires) == 1:
                self._own.setdefault((worker, self._tasks[dependent].kind), []).append(dependent)

    def _meet(self, dependent: int) -> bool:
        """Note that a task needs to wait for one less; returns whether it is ready now."""
        self._missing[dependent] -= 1
        if self._missing[dependent] or self._tasks[dependent].key in self.quarantined:
            return False
        self._add(dependent)
        return True

    def quarantine(self, key: str) -> None:
        """Never try `key` again, queued or not. Tasks that require it, even indirectly, are unreachable, or ready if
        they can do without."""
        rank = self._ranks[key]
        kind = self._tasks[rank].kind
        if self._is_fresh[rank] or self._retries[kind].remove(rank):
            self._is_fresh[rank] = False
            self._ready[kind] -= 1
        self.quarantined.add(key)
        frontier = [rank]
        while frontier:
            required = frontier.pop()
            for dependent in [*self._dependents.get(required, ())]:
                name = self._tasks[dependent].key
                if self._tasks[dependent].does_without:
                    self._dependents[required].remove(dependent)  # it may still finish
                    self._meet(dependent)
                elif name not in self.unreachable and name not in self.quarantined:
                    self.unreachable.add(name)
                    frontier.append(dependent)


Places = frozenset[str]  # names of nodes and workers


class Retries:
    """The tasks of one kind that have failed and wait for a retry, searched by the places where they have not failed. A
    task is its number in the order of assignment. Tasks that failed at the same places share a queue, and a search
    skips whole queues: ten thousand tasks that one bad node failed cost one step, not ten thousand."""

    def __init__(self) -> None:
        self._places: dict[int, Places] = {}  # of those that wait
        self._queues: dict[Places, list[int]] = {}  # heaps
        self._heads: list[tuple[int, Places]] = []  # a heap of the first of each queue, and of some that were first
        self._failed_at: Counter[str] = Counter()  # how many that wait have failed at a place

    def __len__(self) -> int:
        return len(self._places)

    def add(self, task: int, places: Places) -> None:
        """Queue a task that failed at `places`."""
        self._places[task] = places
        self._failed_at.update(places)
        queue = self._queues.setdefault(places, [])
        heapq.heappush(queue, task)
        if queue[0] == task:
            heapq.heappush(self._heads, (task, places))

    def remove(self, task: int) -> bool:
        """Take a task out for good. False if it isn't queued."""
        if (places := self._places.pop(task, None)) is None:
            return False
        self._failed_at.subtract(places)
        return True

    def take(self, place: str | None) -> int | None:
        """Remove and return the first task that has not failed at `place` (None: wherever it failed); or None."""
        if place is not None and self._failed_at[place] == len(self):
            return None
        passed_over, taken = [], None
        while self._heads and taken is None:
            task, places = heapq.heappop(self._heads)
            queue = self._queues.get(places)
            if queue is None or queue[0] != task:
                continue  # it is no longer the first of them
            if place in places and task in self._places:
                passed_over.append((task, places))
                continue
            heapq.heappop(queue)
            if queue:
                heapq.heappush(self._heads, (queue[0], places))
            else:
                del self._queues[places]
            if self.remove(task):
                taken = task
        for head in passed_over:
            heapq.heappush(self._heads, head)
        return taken


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
        return now - self.heartbeat > SILENT_SECONDS

    def must_stop(self, now: float, gone_at: float, batches: int) -> bool:
        """Whether to stop it now, after the last batch that it can keep, because its node is gone before it ends. A
        first job's loading and compiling count as time of its batches, so that it may stop early."""
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
        return len(self._holders.get(key, ())) > len(self.copies(key))

    def join(self, worker: str) -> None:
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
        Returns the task, and whether it was queued behind the other one and ended before it."""
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
        if not self._lower:
            return None
        lower = -self._lower[0]
        return lower if len(self._lower) > len(self._upper) else (lower + self._upper[0]) / 2
