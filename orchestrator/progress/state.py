"""How far a session is: its work by kind, its cells with their scores, its workers. No clock, no files, no terminal."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind


class Busy(NamedTuple):
    """What a worker with a task does, by its last heartbeat."""

    task: Task
    fraction: float  # how much of the task is done
    doing: str = ""  # what is no progress, such as compiling


class SessionSnapshot(NamedTuple):
    """What the loop knows of a session: its tasks, by their keys, and its workers by what they do."""

    done: Set[str] = frozenset()
    given_up: Set[str] = frozenset()
    busy: Sequence[Busy] = ()
    idle: int = 0
    cooling_down: int = 0
    starting: int = 0
    waited: float = 0.0  # how long the first of them has been starting, in seconds
    lost: int = 0

    @property
    def joined(self) -> int:
        return len(self.busy) + self.idle + self.cooling_down


@dataclass
class KindProgress:
    """How far one kind of work is, with what earlier sessions did."""

    kind: type[WorkKind]
    total: float  # in finished tasks if the kind has a noun for them, else in its unit; without what was given up
    done: float  # in finished tasks
    open: int  # the number of tasks that are neither done nor given up
    begun: float = 0.0  # what is done in unfinished tasks
    has_begun: bool = False  # whether a worker has had a task

    def amount(self, task: Task) -> float:
        """What a task of this kind adds to `done`."""
        return 1.0 if self.kind.finished_noun else task.cost

    def images(self, task: Task) -> float:
        """The images of a task, if its kind counts them."""
        return task.cost / task.cell.nfe if self.kind.counts_images and task.cell is not None else 0.0


@dataclass
class GridCell:
    """A cell as a part of the table; `total`, `done` and `begun` are network evaluations."""

    row: str
    column: str
    total: float
    done: float = 0.0
    begun: float = 0.0  # what is done in unfinished tasks
    value: float | None = None  # the score
    failed: bool = False


@dataclass
class SessionState:
    """A session as it is shown."""

    work: Mapping[str, KindProgress] = field(default_factory=dict)
    """By name of the kind, in the order of their priorities."""
    cells: Mapping[str, GridCell] = field(default_factory=dict)
    metric: str = ""  # the heading of the cells' scores; empty if they have none
    tasks: dict[str, Task] = field(default_factory=dict)  # the tasks that are neither done nor given up
    read_score: Callable[[str], float | None] = lambda cell: None  # returns the score on disk of a cell, by its id
    images_done: float = 0.0
    images: float = 0.0  # images of this session, also those of unfinished tasks
    last: SessionSnapshot = field(default_factory=SessionSnapshot)

    def new_scores(self, snapshot: SessionSnapshot) -> dict[str, float | None]:
        """The scores that were not there before a snapshot, by cell."""
        done = (self.tasks[key] for key in self.tasks.keys() & snapshot.done)
        cells = [task.cell.id for task in done if task.kind == "score" and task.cell is not None]
        return {cell: self.read_score(cell) for cell in cells if cell in self.cells}

    def hear(self, snapshot: SessionSnapshot, scores: Mapping[str, float | None]) -> None:
        """Take over how far the session is. Of several copies of a task the most advanced counts."""
        self.last = snapshot
        for name, value in scores.items():
            self.cells[name].value = value
        for key in self.tasks.keys() & snapshot.done:
            task = self.tasks.pop(key)
            work, its = self.work[task.kind], self._cell(task)
            work.done += work.amount(task)
            self.images_done += work.images(task)
            work.open -= 1
            work.has_begun = True
            if its is not None and work.kind.unit == NETWORK_EVALUATIONS:
                its.done += task.cost
        for key in self.tasks.keys() & snapshot.given_up:
            task = self.tasks.pop(key)
            work, its = self.work[task.kind], self._cell(task)
            work.total -= work.amount(task)
            work.open -= 1
            if its is not None:
                its.failed = True
        for work in self.work.values():
            work.begun = 0.0
        for cell in self.cells.values():
            cell.begun = 0.0
        self.images = self.images_done
        copies = sorted(snapshot.busy, key=lambda busy: busy.fraction)
        for task, fraction, _ in {busy.task.key: busy for busy in copies if busy.task.key in self.tasks}.values():
            work, its = self.work[task.kind], self._cell(task)
            work.begun += 0.0 if work.kind.finished_noun else fraction * task.cost
            work.has_begun = True
            self.images += fraction * work.images(task)
            if its is not None and work.kind.unit == NETWORK_EVALUATIONS:
                its.begun += fraction * task.cost

    def _cell(self, task: Task) -> GridCell | None:
        return None if task.cell is None else self.cells.get(task.cell.id)

    @property
    def evaluations(self) -> float:
        """The network evaluations of all cells, with what earlier sessions did."""
        return sum(cell.total for cell in self.cells.values())

    @property
    def main(self) -> str | None:
        """The kind of work that a line is about: the first that has begun, else the first that is not done."""
        still_open = [name for name, work in self.work.items() if work.open]
        return next(iter([*(name for name in still_open if self.work[name].has_begun), *still_open]), None)
