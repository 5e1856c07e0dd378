"""The workers of a session with their tasks, and the remaining work. Pure: fed with events and heartbeats."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taugrid.orchestrator.rates import Rates, Span, Waiting, seconds_left
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import WorkKind


class TaskProgress(NamedTuple):
    at: float
    fraction: float


@dataclass
class WorkerState:
    since: float
    """The time when the worker was started or got its task."""
    cpu_only: bool = False
    """Whether it only does tasks that run no network, beside workers with a GPU."""
    joined: bool = False
    cooling_down: bool = False
    node: str = ""
    task: str | None = None
    next_task: str | None = None
    """The task that is queued behind the current one, if any."""
    first: TaskProgress | None = None
    """The first heartbeat with progress on the task, after loading and warming up."""
    last: TaskProgress | None = None
    doing: str = ""
    """What it does that is no progress, by its last heartbeat."""
    warm: set[str] = field(default_factory=set)
    """The rate keys of finished tasks, whose networks are loaded."""

    def begin(self, at: float, task: str | None) -> None:
        self.task, self.since, self.first, self.last, self.doing = task, at, None, None, ""

    @property
    def fraction(self) -> float:
        """The fraction of its task that is done, by its last heartbeat."""
        return self.last.fraction if self.last else 0.0


@dataclass
class Workers:
    by_name: dict[str, WorkerState] = field(default_factory=dict)
    lost: int = 0
    nodes_cooling_down: set[str] = field(default_factory=set)

    def observe(self, at: float, event: Mapping[str, Any]) -> None:
        """Process a line of the events file. Events that are not about workers are ignored."""
        name, worker = event["event"], event.get("worker", "")
        if name == "starting":
            self.by_name[worker] = WorkerState(at, event.get("cpu_only", False))
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

    def heard(self, at: float, worker: str, fraction: float, doing: str = "") -> None:
        state = self.by_name.get(worker)
        if state is not None:
            state.doing = doing
        if state is not None and fraction > 0:
            state.last = TaskProgress(at, fraction)
            state.first = state.first or state.last

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
    def usable(self) -> tuple[int, int]:
        """The numbers of workers that joined and get tasks: those for all kinds of tasks, and the CPU-only ones."""
        usable = [state for state in self.by_name.values() if state.joined and not self.is_cooling_down(state)]
        cpu_only = sum(state.cpu_only for state in usable)
        return len(usable) - cpu_only, cpu_only

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


class Left(NamedTuple):
    seconds: float | None
    """None: unknown yet."""
    unknown: tuple[str, ...] = ()
    """The kinds of work that `seconds` does not include, because their rates are unknown."""


@dataclass
class Todo:
    """The work that is to be done and done, by kind, and the remaining time."""

    kinds: Mapping[str, type[WorkKind]]
    tasks: Mapping[str, Task] = field(default_factory=dict)
    """The tasks by key. Some are unknown if the session is watched from its directory."""
    all: dict[str, Amount] = field(default_factory=dict)
    """Kind -> the total amount of work."""
    done: dict[str, Amount] = field(default_factory=dict)
    rates: Rates = field(default_factory=Rates)
    _open: dict[tuple[str, str], Amount] = field(default_factory=dict)  # kind and rate key -> what is not done
    _closed: set[str] = field(default_factory=set)

    def begin(self, work: Iterable[Mapping[str, Any]]) -> None:
        """Begin with the field `work` of an event "to do", where a rate key is called `pace`.

        A session has several such events if cells grow. What it has done before no longer counts, but its rates stay.
        """
        self._closed.clear()
        for amounts in (self.all, self.done):
            amounts.update({kind: Amount() for kind in amounts})
        for entry in work:
            amount = entry["tasks"], entry["cost"]
            self.all.setdefault(entry["kind"], Amount()).add(*amount)
            self.done.setdefault(entry["kind"], Amount())
            self._open.setdefault((entry["kind"], entry["pace"]), Amount()).add(*amount)

    def task(self, key: str) -> Task:
        """A task by its key: from the plan, or else of the average cost of its kind."""
        if key in self.tasks:
            return self.tasks[key]
        kind = key.split("/")[0]
        amount = self.all.get(kind, Amount())
        return Task(key, kind, amount.cost / max(1, amount.tasks))

    def rate_key(self, task: Task) -> str:
        if task.key in self.tasks:
            return self.kinds[task.kind].rate_key(task)
        return next((key for kind, key in self._open if kind == task.kind), task.kind)

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
        return {kind for (kind, _), amount in self._open.items() if amount.tasks > 0}

    def is_open(self, key: str) -> bool:
        return key not in self._closed

    def _close(self, task: Task) -> None:
        self._closed.add(task.key)
        if (amount := self._open.get((task.kind, self.rate_key(task)))) is not None:
            amount.add(-1, -task.cost)

    def left(self, running: Mapping[str, WorkerState], usable: tuple[int, int], at: float) -> Left:
        """The time that `Workers.usable` need for the rest; `running` are the known tasks that they are doing.

        What runs no network is left to CPU-only workers, if there are any.
        """
        in_flight = [(self.tasks[key], worker) for key, worker in running.items()]
        rates = self._rates(in_flight)
        begun: tuple[list[float], list[float]] = ([], [])  # of workers for all kinds, and of CPU-only ones
        waiting: tuple[list[Waiting], list[Waiting]] = ([], [])
        unknown, taken = [], Counter[tuple[str, str]]()

        def on_cpus(kind: str) -> bool:
            return bool(usable[1]) and kind in self.kinds and not self.kinds[kind].needs_network

        for task, worker in in_flight:
            key = self.rate_key(task)
            taken[task.kind, key] += 1
            if (rate := rates.get(key)) is not None:
                last_seen = worker.last.at if worker.last else worker.since
                begun[on_cpus(task.kind)].append(
                    max(0.0, (1 - worker.fraction) * task.cost * rate - max(0.0, at - last_seen))
                )
        for (kind, key), amount in self._open.items():
            seconds = rates[key]
            if amount.tasks > 0 and seconds is None:
                unknown.append(kind)
            elif amount.tasks > taken[kind, key] and seconds is not None:
                group = Waiting(amount.tasks - taken[kind, key], amount.cost / amount.tasks * seconds)
                waiting[on_cpus(kind)].append(group)
        todo = [(b, w, workers) for b, w, workers in zip(begun, waiting, usable, strict=True) if b or w]
        if not todo or not all(workers for *_, workers in todo):
            return Left(None, tuple(unknown))
        return Left(max(seconds_left(b, w, max(workers, len(b))) for b, w, workers in todo), tuple(unknown))

    def _rates(self, running: Iterable[tuple[Task, WorkerState]]) -> dict[str, float | None]:
        """Seconds per unit of cost by rate key, with what heartbeats report."""
        measured: dict[str, list[Span]] = {}
        for task, worker in running:
            if worker.first and worker.last:
                done = (worker.last.fraction - worker.first.fraction) * task.cost
                measured.setdefault(self.rate_key(task), []).append(Span(worker.last.at - worker.first.at, done))
        return {key: self.rates.seconds(key, measured.get(key, ())) for _, key in self._open}
