"""How fast tasks of a kind are done, and which running ones are late. Pure."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from taugrid.orchestrator.task import Task

SPECULATION_SLOWNESS = 1.5
"""A running task is late once it takes this many times as long as its cost and the finished tasks of its kind suggest.
Duplicating at once would run the last task of every healthy run twice, on cores that share memory; waiting longer would
keep more of a straggler's delay (docs/decisions.md, "Stragglers")."""

SILENT_SECONDS = 60.0
"""A job beats once a second. One that was silent for so long may hang: it is late, whatever its kind's pace."""


@dataclass(slots=True)
class Running:
    task: Task
    since: float
    heard: float
    """When its last heartbeat came, or it began."""

    def is_silent(self, now: float) -> bool:
        """Whether it may hang."""
        return now - self.heard > SILENT_SECONDS


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
        """None: of no number."""
        if not self._lower:
            return None
        lower = -self._lower[0]
        return lower if len(self._lower) > len(self._upper) else (lower + self._upper[0]) / 2


class Pace:
    """Seconds for each unit of cost, by kind of task, as the finished ones took them."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._taken = {kind: Median() for kind in kinds}

    def add(self, task: Task, seconds: float) -> None:
        self._taken[task.kind].add(seconds / max(task.cost, 1e-12))

    def late(self, running: Iterable[Running], now: float) -> list[Running]:
        """Those that take much longer than their kind does, or are silent; the oldest first."""
        limits = {
            kind: float("inf") if (usual := taken.value) is None else SPECULATION_SLOWNESS * usual
            for kind, taken in self._taken.items()
        }
        late = [
            one
            for one in running
            if now - one.since > limits[one.task.kind] * one.task.cost or now - one.heard > SILENT_SECONDS
        ]
        return sorted(late, key=lambda one: (one.since, one.task.key))
