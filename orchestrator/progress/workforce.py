"""The workers of a session, and what each is doing. Pure: fed with lines of the events file and with heartbeats."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TaskProgress(NamedTuple):
    at: float
    fraction: float


@dataclass
class WorkerState:
    since: float
    """When it was started or got its task."""
    joined: bool = False
    benched: bool = False
    node: str = ""
    task: str | None = None
    second: str | None = None
    """The task that it will go on with, if it has one in hand already."""
    first: TaskProgress | None = None
    """The first heartbeat that reported some of its task as done: loading and warming up come before."""
    last: TaskProgress | None = None
    warm: set[str] = field(default_factory=set)
    """The paces of the tasks that it has done: what such tasks need is loaded."""

    def begin(self, at: float, task: str | None) -> None:
        self.task, self.since, self.first, self.last = task, at, None, None

    @property
    def fraction(self) -> float:
        """How much of its task is done, by its last heartbeat."""
        return self.last.fraction if self.last else 0.0


@dataclass
class Workforce:
    by_name: dict[str, WorkerState] = field(default_factory=dict)
    lost: int = 0
    benched_nodes: set[str] = field(default_factory=set)
    """None of whose workers gets work."""

    def observe(self, at: float, event: Mapping[str, Any]) -> None:
        """Take a line of the events file. Those that are not about workers are ignored."""
        name, worker = event["event"], event.get("worker", "")
        if name == "starting":
            self.by_name[worker] = WorkerState(at)
        elif name == "worker":
            state = self._worker(at, worker)
            state.joined, state.node = True, event.get("node", "")
        elif name == "assigned":
            state = self._worker(at, worker)
            state.joined, state.benched = True, False
            self.benched_nodes.discard(event.get("node", ""))
            if state.task is None:
                state.begin(at, event["task"])
            else:
                state.second = event["task"]
        elif name == "benched":
            self._benched(worker, event)
        elif name == "failed":
            self.release(at, worker, event["task"])
        elif name in ("lost", "released"):
            self.lost += name == "lost"
            self.by_name.pop(worker, None)

    def _benched(self, worker: str, event: Mapping[str, Any]) -> None:
        if worker in self.by_name:
            self.by_name[worker].benched = True
        if event.get("whole_node"):
            self.benched_nodes.add(event["node"])

    def is_benched(self, state: WorkerState) -> bool:
        """Whether a worker gets no work for a time, it or its whole node."""
        return state.benched or state.node in self.benched_nodes

    def heard(self, at: float, worker: str, fraction: float) -> None:
        state = self.by_name.get(worker)
        if state is not None and fraction > 0:
            state.last = TaskProgress(at, fraction)
            state.first = state.first or state.last

    def release(self, at: float, worker: str, task: str | None = None) -> None:
        """A worker's task has ended: `task`, or the one that it was at."""
        state = self.by_name.get(worker)
        if state is not None and task is not None and task == state.second:
            state.second = None
        elif state is not None:
            following, state.second = state.second, None
            state.begin(at, following)

    @property
    def joined(self) -> int:
        return sum(state.joined for state in self.by_name.values())

    @property
    def usable(self) -> int:
        """How many have joined and get work."""
        return sum(state.joined and not self.is_benched(state) for state in self.by_name.values())

    @property
    def starting(self) -> list[WorkerState]:
        """Those that have not joined yet."""
        return [state for state in self.by_name.values() if not state.joined]

    @property
    def running(self) -> dict[str, WorkerState]:
        """Task -> the worker that is farthest with it."""
        found: dict[str, WorkerState] = {}
        for state in self.by_name.values():
            if state.task is not None and (state.task not in found or found[state.task].fraction < state.fraction):
                found[state.task] = state
        return found

    def _worker(self, at: float, worker: str) -> WorkerState:
        return self.by_name.setdefault(worker, WorkerState(at))
