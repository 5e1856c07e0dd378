"""The workers of a session with their tasks, and the remaining work. Pure: fed with events and heartbeats."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taugrid.orchestrator.task import Task


@dataclass
class WorkerState:
    since: float
    """The time when the worker was started or got its task."""
    joined: bool = False
    cooling_down: bool = False
    node: str = ""
    task: str | None = None
    next_task: str | None = None
    """The task that is queued behind the current one, if any."""
    fraction: float = 0.0
    """The fraction of its task that is done, by its last heartbeat."""
    doing: str = ""
    """What it does that is no progress, by its last heartbeat."""

    def begin(self, at: float, task: str | None) -> None:
        self.task, self.since, self.fraction, self.doing = task, at, 0.0, ""


@dataclass
class Workers:
    by_name: dict[str, WorkerState] = field(default_factory=dict)
    lost: int = 0
    nodes_cooling_down: set[str] = field(default_factory=set)

    def observe(self, at: float, event: Mapping[str, Any]) -> None:
        """Process a line of the events file. Events that are not about workers are ignored."""
        name, worker = event["event"], event.get("worker", "")
        if name == "starting":
            self.by_name[worker] = WorkerState(at)
        elif name == "worker":
            state = self.by_name.setdefault(worker, WorkerState(at))
            state.joined, state.node = True, event.get("node", "")
        elif name == "assigned":
            state = self.by_name.setdefault(worker, WorkerState(at))
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
        elif name in ("failed", "given back"):
            self.release(at, worker, event["task"])
        elif name in ("lost", "released"):
            self.lost += name == "lost"
            self.by_name.pop(worker, None)

    def heard(self, worker: str, fraction: float, doing: str = "") -> None:
        if (state := self.by_name.get(worker)) is not None:
            state.doing = doing
            state.fraction = fraction or state.fraction

    def release(self, at: float, worker: str, task: str | None = None) -> None:
        """Record that a worker's task has ended: `task`, or else the current one."""
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
    def starting(self) -> list[WorkerState]:
        return [state for state in self.by_name.values() if not state.joined]

    @property
    def running(self) -> dict[str, WorkerState]:
        """Task -> the worker with the most progress on it."""
        running: dict[str, WorkerState] = {}
        for state in self.by_name.values():
            if state.task is not None and (state.task not in running or running[state.task].fraction < state.fraction):
                running[state.task] = state
        return running


@dataclass
class Amount:
    tasks: int = 0
    cost: float = 0.0

    def add(self, tasks: int, cost: float) -> None:
        self.tasks += tasks
        self.cost += cost


@dataclass
class Todo:
    """The work that is to be done and done, by kind."""

    tasks: Mapping[str, Task] = field(default_factory=dict)
    """The tasks by key. Some are unknown if the session is watched from its directory."""
    all: dict[str, Amount] = field(default_factory=dict)
    """Kind -> the total amount of work."""
    done: dict[str, Amount] = field(default_factory=dict)
    open: dict[str, Amount] = field(default_factory=dict)
    """Kind -> what is neither done nor given up."""
    _closed: set[str] = field(default_factory=set)

    def begin(self, work: Iterable[Mapping[str, Any]]) -> None:
        """Begin with the field `work` of an event "to do".

        A session has several such events if cells grow. What it has done before no longer counts.
        """
        self._closed.clear()
        for amounts in (self.all, self.done):
            amounts.update({kind: Amount() for kind in amounts})
        for entry in work:
            kind = entry["kind"]
            self.all.setdefault(kind, Amount()).add(entry["tasks"], entry["cost"])
            self.done.setdefault(kind, Amount())
            self.open.setdefault(kind, Amount()).add(entry["tasks"], entry["cost"])

    def task(self, key: str) -> Task:
        """A task by its key: from the plan, or else of the average cost of its kind."""
        if key in self.tasks:
            return self.tasks[key]
        kind = key.split("/")[0]
        amount = self.all.get(kind, Amount())
        return Task(key, kind, amount.cost / max(1, amount.tasks))

    def finish(self, task: Task) -> bool:
        """Count a task as done. Returns False if it was counted before."""
        if task.key in self._closed:
            return False
        self.done.setdefault(task.kind, Amount()).add(1, task.cost)
        self._close(task)
        return True

    def give_up(self, key: str) -> Task | None:
        """Count a task as one that will not be done, and return it; None if it is unknown, or no longer open."""
        if (task := self.tasks.get(key)) is None or key in self._closed:
            return None
        self._close(task)
        return task

    @property
    def open_kinds(self) -> set[str]:
        return {kind for kind, amount in self.open.items() if amount.tasks > 0}

    def is_open(self, key: str) -> bool:
        return key not in self._closed

    def _close(self, task: Task) -> None:
        self._closed.add(task.key)
        if task.kind in self.open:
            self.open[task.kind].add(-1, -task.cost)
