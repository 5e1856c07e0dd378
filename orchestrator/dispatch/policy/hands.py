"""Who has what in hand: the workers that idle, those that are at a task, and their second tasks. Pure.

It keeps count and decides nothing. Everything is found by worker or by key, so no event costs a search.
"""

from typing import NamedTuple

from taugrid.orchestrator.dispatch.policy.pace import Running
from taugrid.orchestrator.task import Task


class Finished(NamedTuple):
    running: Running
    overtook: bool
    """It was the second, and ended before the first."""


class LetGo(NamedTuple):
    running: Running | None
    waited: str | None
    """The key of its second task."""


class Hands:
    """The workers of a run. One that is at a task may have a second, which it begins by itself."""

    def __init__(self) -> None:
        self.idle: dict[str, None] = {}
        """The workers that are at nothing, an ordered set."""
        self.running: dict[str, Running] = {}
        """Worker -> the task that it is at."""
        self.keys: dict[str, str] = {}
        """Worker -> the key of the task that it is at."""
        self.runners: dict[str, list[str]] = {}
        """Key -> the workers that are at it, of tasks that somebody is at."""
        self.single: dict[str, None] = {}
        """The workers that are at a task and may get a second, an ordered set."""
        self.behind: dict[str, str] = {}
        """Key of a second task -> the worker that has it."""
        self._second: dict[str, Task] = {}  # the other way round

    def __len__(self) -> int:
        return len(self.idle) + len(self.running)

    def __contains__(self, key: str) -> bool:
        """Whether a worker has the task, as its first or its second."""
        return key in self.runners or key in self.behind

    def of(self, worker: str) -> list[str]:
        """The keys of the tasks that `worker` has, the one that it is at first."""
        first = [self.keys[worker]] if worker in self.keys else []
        return first + ([self._second[worker].key] if worker in self._second else [])

    def join(self, worker: str) -> None:
        """`worker` is new, and idle."""
        if worker in self.idle or worker in self.running:
            raise ValueError(f"worker {worker!r} joined twice")
        self.idle[worker] = None

    def begin(self, worker: str, task: Task, now: float) -> None:
        """`worker`, which was at nothing, is at `task` from now on."""
        self.idle.pop(worker, None)
        self.running[worker] = Running(task, now, now)
        self.keys[worker] = task.key
        self.runners.setdefault(task.key, []).append(worker)
        self.single[worker] = None

    def give_second(self, worker: str, task: Task) -> None:
        """`worker` begins `task` once the first no longer computes."""
        del self.single[worker]
        self._second[worker], self.behind[task.key] = task, worker

    def bring_forward(self, worker: str, key: str | None, now: float) -> bool:
        """If `key` is the second task of `worker`, which has overtaken the first, let it be the first. True if so."""
        if key is None or self.behind.get(key) != worker:
            return False
        first = self._release(worker).task
        self._go_on(worker, now)
        self.give_second(worker, first)
        return True

    def finish(self, worker: str, key: str | None, now: float) -> Finished:
        """`worker` is through with `key` (None: the one that it was at), and goes on with the other one or idles."""
        overtook = self.bring_forward(worker, key, now)
        running = self._release(worker)
        self._go_on(worker, now)
        if overtook:
            del self.single[worker]  # a third would beat for the first, which may hang
        return Finished(running, overtook)

    def lose(self, worker: str) -> LetGo:
        waited = self._second.pop(worker, None)
        if waited is not None:
            del self.behind[waited.key]
        running = self._release(worker) if worker in self.running else None
        self.idle.pop(worker, None)
        return LetGo(running, waited.key if waited else None)

    def _go_on(self, worker: str, now: float) -> None:
        """`worker`, which is at nothing, begins its second task or idles."""
        if (task := self._second.pop(worker, None)) is None:
            self.idle[worker] = None
        else:
            del self.behind[task.key]
            self.begin(worker, task, now)

    def _release(self, worker: str) -> Running:
        key, running = self.keys.pop(worker), self.running.pop(worker)
        self.single.pop(worker, None)
        self.runners[key].remove(worker)
        if not self.runners[key]:
            del self.runners[key]
        return running
