"""How fast tasks of a kind are done, and which running ones are late. Pure, as policy.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from taugrid.orchestrator.task import Task

SPECULATION_SLOWNESS = 1.5
"""A running task is late once it takes this many times as long as its cost and the finished tasks of its kind suggest.
Duplicating at once would run the last task of every healthy run twice, on cores that share memory; waiting longer would
keep more of a straggler's delay (docs/decisions.md, "Stragglers")."""

SILENT_SECONDS = 60.0
"""A job beats once a second. One that was silent for so long may hang: it is late, whatever its kind's pace."""


@dataclass
class Running:
    """A task that a worker is at."""

    key: str
    since: float
    heard: float
    """When its last heartbeat came, or it began."""

    def is_silent(self, now: float) -> bool:
        """Whether it may hang."""
        return now - self.heard > SILENT_SECONDS


class Pace:
    """Seconds for each unit of cost, by kind of task, as the finished ones took them."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        self._medians: dict[str, float] = {}

    def add(self, task: Task, seconds: float) -> None:
        """A task took so long."""
        self._taken[task.kind].append(seconds / max(task.cost, 1e-12))
        self._medians.pop(task.kind, None)

    def is_late(self, task: Task, running: Running, now: float) -> bool:
        """Whether a running task takes much longer than its kind does, or is silent."""
        if running.is_silent(now):
            return True
        if not self._taken[task.kind]:
            return False
        if task.kind not in self._medians:
            self._medians[task.kind] = median(self._taken[task.kind])
        return now - running.since > SPECULATION_SLOWNESS * self._medians[task.kind] * task.cost
