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
    cooling_down: bool = False
    node: str = ""
    task: str | None = None
    next_task: str | None = None
    """The task that it goes on with, if it has one already."""
    first: TaskProgress | None = None
    """The first heartbeat that reported some of its task as done: loading and warming up come before."""
    last: TaskProgress | None = None
    warm: set[str] = field(default_factory=set)
    """The rate keys of the tasks that it has done: what such tasks need is loaded."""

    def begin(self, at: float, task: str | None) -> None:
        self.task, self.since, self.first, self.last = task, at, None, None

    @property
    def fraction(self) -> float:
        """How much of its task is done, by its last heartbeat."""
        return self.last.fraction if self.last else 0.0


@dataclass
class Workers:
    by_name: dict[str, WorkerState] = field(default_factory=dict)
    lost: int = 0
    nodes_cooling_down: set[str] = field(default_factory=set)

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
            state.joined, state.cooling_down = True, False
            self.nodes_cooling_down.discard(event.get("node", ""))
            if state.task is None:
                state.begin(at, event["task"])
            else:
                state.next_task = event["task"]
        elif name == "benched":
            if worker in self.by_name:
                self.by_name[worker].cooling_down = True
            if event.get("whole_node"):
                self.nodes_cooling_down.add(event["node"])
        elif name == "failed":
            self.release(at, worker, event["task"])
        elif name in ("lost", "released"):
            self.lost += name == "lost"
            self.by_name.pop(worker, None)

    def heard(self, at: float, worker: str, fraction: float) -> None:
        state = self.by_name.get(worker)
        if state is not None and fraction > 0:
            state.last = TaskProgress(at, fraction)
            state.first = state.first or state.last

    def release(self, at: float, worker: str, task: str | None = None) -> None:
        """A worker's task has ended: `task`, or the one that it was doing."""
        state = self.by_name.get(worker)
        if state is not None and task is not None and task == state.next_task:
            state.next_task = None
        elif state is not None:
            following, state.next_task = state.next_task, None
            state.begin(at, following)

    def is_cooling_down(self, state: WorkerState) -> bool:
        """Whether a worker gets no tasks for a time, alone or with its node."""
        return state.cooling_down or state.node in self.nodes_cooling_down

    @property
    def joined(self) -> int:
        return sum(state.joined for state in self.by_name.values())

    @property
    def usable(self) -> int:
        """How many have joined and get tasks."""
        return sum(state.joined and not self.is_cooling_down(state) for state in self.by_name.values())

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
