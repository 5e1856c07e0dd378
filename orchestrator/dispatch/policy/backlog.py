"""The tasks of a run: which are ready, in which order they are assigned, and which are done or quarantined. Pure.

Ready tasks are assigned in the order of their kinds, the costliest of a kind first. A worker prefers, of a kind, those
that required only what it did itself, the last first: it may still have what it made. A task that has failed goes
behind all that have not, so that a few hopeless ones can't delay the others.

A run may have a million tasks, so each is one number here: its place in that order.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from taugrid.orchestrator.task import Task


class Backlog:
    """All tasks of a run.

    `kinds` are the names of the kinds of tasks, in the order in which they are assigned.

    Raises:
        ValueError: if two tasks share a key, a kind is unknown, or a task requires one that isn't given.
    """

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
        """The number of tasks that are ready and wait."""
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

        None if there is none.
        """
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
        """`key` is done, by `worker`; tasks that required nothing else are ready."""
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
        """Never try `key` again, queued or not.

        Tasks that require it, even indirectly, are unreachable, or ready if they can do without.
        """
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
    """The tasks of one kind that have failed and wait for a retry, searched by the places where they have not failed.

    A task is its number in the order of assignment. Tasks that failed at the same places share a queue, and a search
    skips whole queues: ten thousand tasks that one bad node failed cost one step, not ten thousand.
    """

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
