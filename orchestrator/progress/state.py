"""How far a session is: its work by kind, its cells with their scores, its workers. No clock, no files, no terminal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind


class Busy(NamedTuple):
    """What a worker with a task does, by its last heartbeat."""

    task: Task
    fraction: float
    """How much of the task is done."""
    doing: str = ""
    """What is no progress, such as compiling."""


class Workers(NamedTuple):
    """The workers of a session by what they do."""

    busy: Sequence[Busy] = ()
    idle: int = 0
    cooling_down: int = 0
    starting: int = 0
    waited: float = 0.0
    """How long the first of them has been starting, in seconds."""
    lost: int = 0

    @property
    def joined(self) -> int:
        return len(self.busy) + self.idle + self.cooling_down


@dataclass
class KindProgress:
    """How far one kind of work is, with what earlier sessions did."""

    kind: type[WorkKind]
    total: float
    """In finished tasks if the kind has a noun for them, else in its unit; without what was given up."""
    done: float
    """In finished tasks."""
    open: int
    """The number of tasks that are neither done nor given up."""
    images: float = 0.0
    """Images of finished tasks, if they are counted."""
    begun: float = 0.0
    """What is done in unfinished tasks."""
    begun_images: float = 0.0
    has_begun: bool = False
    """Whether a worker has had a task."""

    def amount(self, task: Task) -> float:
        """What a task of this kind adds to `done`."""
        return 1.0 if self.kind.finished_noun else task.cost

    def images_of(self, task: Task) -> float:
        return task.cost / task.cell.nfe if self.kind.counts_images and task.cell is not None else 0.0


@dataclass
class GridCell:
    """A cell as a part of the table; `total`, `done` and `begun` are network evaluations."""

    row: str
    column: str
    total: float
    done: float = 0.0
    begun: float = 0.0
    """What is done in unfinished tasks."""
    value: float | None = None
    """The score."""
    failed: bool = False


@dataclass
class SessionState:
    """A session as it is shown."""

    work: Mapping[str, KindProgress] = field(default_factory=dict)
    """By name of the kind, in the order of their priorities."""
    cells: Mapping[str, GridCell] = field(default_factory=dict)
    metric: str = ""
    """The heading of the cells' scores; empty if they have none."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """The tasks that are neither done nor given up."""
    read_score: Callable[[str], float | None] = lambda cell: None
    """Returns the score on disk of a cell, by its id."""
    workers: Workers = field(default_factory=Workers)

    def finish(self, key: str) -> None:
        """Count a task as done."""
        task = self.tasks.pop(key)
        work, cell = self.work[task.kind], self._cell(task)
        work.done += work.amount(task)
        work.images += work.images_of(task)
        work.open -= 1
        work.has_begun = True
        if cell is not None and work.kind.unit == NETWORK_EVALUATIONS:
            cell.done += task.cost

    def give_up(self, key: str) -> None:
        """A task will not be done."""
        task = self.tasks.pop(key)
        work, cell = self.work[task.kind], self._cell(task)
        work.total -= work.amount(task)
        work.open -= 1
        if cell is not None:
            cell.failed = True

    def hear(self, workers: Workers) -> None:
        """Take over what the workers do now. Of several copies of a task the most advanced counts."""
        self.workers = workers
        for work in self.work.values():
            work.begun = work.begun_images = 0.0
        for cell in self.cells.values():
            cell.begun = 0.0
        copies = sorted(workers.busy, key=lambda busy: busy.fraction)
        for busy in {busy.task.key: busy for busy in copies if busy.task.key in self.tasks}.values():
            work = self.work[busy.task.kind]
            work.has_begun = True
            work.begun += 0.0 if work.kind.finished_noun else busy.fraction * busy.task.cost
            work.begun_images += busy.fraction * work.images_of(busy.task)
            if work.kind.unit == NETWORK_EVALUATIONS and (its := self._cell(busy.task)) is not None:
                its.begun += busy.fraction * busy.task.cost

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
