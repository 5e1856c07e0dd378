"""The tasks of a run: what is ready, in which order, and what came of them. Pure, as policy.py.

Ready tasks go out in the order of their kinds, the costliest of a kind first. A task that has failed goes behind all
that have not, so that a few hopeless ones can't keep the rest waiting.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Sequence

from taugrid.orchestrator.task import Task


class Backlog:
    """All tasks of a run.

    `kinds` are the names of the kinds of tasks, in the order in which they go out.

    Raises:
        ValueError: if two tasks share a key, a kind is unknown, or a task requires one that isn't given.
    """

    def __init__(self, tasks: Iterable[Task], kinds: Sequence[str]) -> None:
        self.tasks: dict[str, Task] = {}
        for task in tasks:
            if task.key in self.tasks or task.kind not in kinds:
                raise ValueError(f"task {task.key!r} is given twice or is of unknown kind {task.kind!r}")
            self.tasks[task.key] = task
        self._priority = {kind: place for place, kind in enumerate(kinds)}
        self._order = {key: place for place, key in enumerate(self.tasks)}
        self._missing = {task.key: set(task.requires) for task in self.tasks.values()}
        self._dependents: dict[str, list[str]] = {key: [] for key in self.tasks}
        for task in self.tasks.values():
            for requirement in task.requires:
                if requirement not in self.tasks:
                    raise ValueError(f"task {task.key!r} requires {requirement!r}, which is not a task")
                self._dependents[requirement].append(task.key)
        self._queue: list[tuple[bool, int, float, int, str]] = []
        self.done: set[str] = set()
        self.quarantined: set[str] = set()
        self.unreachable: set[str] = set()  # require something quarantined, directly or indirectly
        for key, missing in self._missing.items():
            if not missing:
                self.add(key)

    def __len__(self) -> int:
        """The number of tasks that are ready and wait."""
        return len(self._queue)

    @property
    def finished(self) -> bool:
        """Whether nothing is left that can be done."""
        return len(self.done) + len(self.quarantined) + len(self.unreachable) == len(self.tasks)

    def add(self, key: str, after_all: bool = False) -> None:
        """Queue a task; `after_all`: behind those that have not failed."""
        task = self.tasks[key]
        heapq.heappush(self._queue, (after_all, self._priority[task.kind], -task.cost, self._order[key], key))

    def take(self, suits: Callable[[str], bool]) -> str | None:
        """Remove and return the first task that suits, or None."""
        passed_over, found = [], None
        while self._queue and found is None:
            entry = heapq.heappop(self._queue)
            if suits(entry[-1]):
                found = entry[-1]
            else:
                passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(self._queue, entry)
        return found

    def complete(self, key: str) -> None:
        """`key` is done; what waited for it alone is ready."""
        self.done.add(key)
        for dependent in self._dependents[key]:
            self._missing[dependent].discard(key)
            if not self._missing[dependent] and dependent not in self.quarantined:
                self.add(dependent)

    def remove(self, keys: Collection[str]) -> None:
        """Take those of `keys` out of the queue that are in it."""
        self._queue = [entry for entry in self._queue if entry[-1] not in keys]
        heapq.heapify(self._queue)

    def quarantine(self, key: str) -> None:
        """Give up `key`, which is not queued, and all that require it, directly or indirectly."""
        self.quarantined.add(key)
        frontier = [key]
        while frontier:
            for dependent in self._dependents[frontier.pop()]:
                if dependent not in self.unreachable and dependent not in self.quarantined:
                    self.unreachable.add(dependent)
                    frontier.append(dependent)
