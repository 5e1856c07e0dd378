"""How far a session is, from its plan, its events and its heartbeats alone: no clock, no files, no terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taugrid.orchestrator.progress.remaining import Span
from taugrid.orchestrator.progress.stage import Speed, Standing
from taugrid.orchestrator.progress.todo import Amount, KnownTask, Todo
from taugrid.orchestrator.progress.workforce import WorkerState, Workforce
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind
from taugrid.words import duration

FAILED = "failed"


@dataclass
class GridCell:
    row: str
    column: str
    total: float
    """Network evaluations in all."""
    done: float = 0.0
    value: float | None = None
    """Its score."""
    note: str = ""
    """What is shown if there will be no score."""


@dataclass
class LiveState:
    """A driver session. `observe` takes the lines of its events file, `heard` its heartbeats; times are in seconds."""

    kinds: Mapping[str, type[WorkKind]]
    """By name, in the order of their priorities."""
    stages: Sequence[str] = ()
    trainings: set[str] | None = None
    """The ids of the models that are being trained; None: none had to be."""
    ended: bool = False
    workforce: Workforce = field(default_factory=Workforce)
    todo: Todo = field(default_factory=Todo)
    cells: dict[str, GridCell] = field(default_factory=dict)
    metric: str = ""
    """The heading of the cells' values; empty if they have none."""
    _earlier: Mapping[tuple[str, str], float] = field(default_factory=dict)
    _measured: list[str] = field(default_factory=list)  # the kinds of work that the next two are of
    _speed: Speed = field(default_factory=Speed)
    _images: Speed = field(default_factory=Speed)
    _images_done: int = 0

    def expect(self, items: Mapping[str, KnownTask], earlier: Mapping[tuple[str, str], float]) -> None:
        """Take the tasks by key, and the seconds per unit of cost in earlier sessions, by pace and device."""
        self.todo.items, self._earlier = items, earlier

    def show_cells(self, cells: Mapping[str, GridCell], metric: str) -> None:
        """Show these cells. The bar also counts what was done before the session."""
        self.cells, self.metric = dict(cells), metric

    def observe(self, at: float, event: Mapping[str, Any]) -> None:
        """Take a line of the events file."""
        name, worker = event["event"], event.get("worker", "")
        if name == "session":
            self.stages = event["stages"]
        elif name in ("train", "training waits", "trained", "training failed"):
            before = self.trainings or set()
            self.trainings = before | {event["model"]} if name == "train" else before - {event["model"]}
        elif name == "to do":
            self.todo.begin(event["work"])
        elif name == "worker":
            for (pace, device), seconds in self._earlier.items():
                if device == event["device"]:
                    self.todo.rates.expect(pace, seconds)
        elif name == "end":
            self.ended = True
        elif "committed" in event and worker in self.workforce.by_name:
            self._did(at, worker, event)
        for key in _given_up(event):
            if (item := self.todo.give_up(key)) is not None and item.cell in self.cells:
                self.cells[item.cell].note = FAILED
        self.workforce.observe(at, event)
        self._read(at)

    def heard(self, at: float, worker: str, fraction: float) -> None:
        self.workforce.heard(at, worker, fraction)
        self._read(at)

    def score(self, cell: str, value: float | None) -> None:
        if cell in self.cells:
            self.cells[cell].value = value

    def _did(self, at: float, name: str, event: Mapping[str, Any]) -> None:
        worker = self.workforce.by_name[name]
        if worker.task is not None and event["committed"]:
            item = self.todo.item(worker.task, event)
            self._measure(at, worker, item, event)
            if self.todo.finish(worker.task, item):
                self._images_done += item.images
                if item.cell in self.cells and self._is_evaluations(item.kind):
                    self.cells[item.cell].done += item.cost
        self.workforce.release(at, name)

    def _measure(self, at: float, worker: WorkerState, item: KnownTask, event: Mapping[str, Any]) -> None:
        """Learn from a finished task how long such tasks take."""
        if worker.first is not None:
            span = Span(at - worker.first.at, (1 - worker.first.fraction) * item.cost)
            self.todo.rates.add(item.pace, span)
        else:
            span = Span(event.get("seconds", at - worker.since), item.cost)
            self.todo.rates.add(item.pace, span, is_cold=item.pace not in worker.warm)
        worker.warm.add(item.pace)

    def _is_evaluations(self, kind: str) -> bool:
        return kind in self.kinds and self.kinds[kind].unit == NETWORK_EVALUATIONS

    def _read(self, at: float) -> None:
        if not self._speed.is_due(at) or not self.has_begun:
            return  # most events: what follows looks at all workers
        if (kinds := self.main) != self._measured:
            self._measured, self._speed, self._images = kinds, Speed(), Speed()
        self._speed.read(at, self.bar.done)
        begun = sum(worker.fraction * self.item(key).images for key, worker in self.running.items())
        self._images.read(at, self._images_done + begun)

    @property
    def has_begun(self) -> bool:
        some_done = any(amount.tasks for amount in self.todo.done.values())
        return some_done or any(worker.task for worker in self.workforce.by_name.values())

    @property
    def running(self) -> dict[str, WorkerState]:
        return {key: worker for key, worker in self.workforce.running.items() if self.todo.is_open(key)}

    def item(self, key: str) -> KnownTask:
        """A task by its key, which tells at least its kind."""
        return self.todo.items.get(key) or KnownTask(key.split("/")[0], 0.0, "")

    @property
    def _under_way(self) -> Iterator[tuple[KnownTask, float]]:
        """The tasks in hand, and how much of each one's cost is done, by their heartbeats."""
        for key, worker in self.running.items():
            item = self.item(key)
            yield item, item.cost * worker.fraction

    def done(self, kind: str) -> float:
        """How much of a kind of work is done, in its unit, with what heartbeats report."""
        done = self.todo.done.get(kind, Amount()).cost
        return done + sum(cost for item, cost in self._under_way if item.kind == kind)

    @property
    def begun(self) -> Counter[str]:
        """Cell -> network evaluations that are done in the tasks in hand."""
        found = Counter[str]()
        for item, cost in self._under_way:
            if item.cell is not None and self._is_evaluations(item.kind):
                found[item.cell] += int(cost)
        return found

    @property
    def main(self) -> list[str]:
        """The kinds of work that the bar counts: all in network evaluations, from the first until all are done.

        Before and after, it is the first kind that is not done.
        """
        evaluations = [name for name in self.todo.all if self._is_evaluations(name)]
        is_open = any(name in self.todo.open_kinds for name in evaluations)
        has_begun = any(self.done(name) for name in evaluations)
        first = [name for name in self.kinds if name in self.todo.open_kinds][:1]
        return evaluations if is_open and (has_begun or first[0] in evaluations) else first

    @property
    def bar(self) -> Standing:
        """How much is done of how much, with what earlier sessions did."""
        if not (kinds := self.main):
            return Standing("", 0.0, 0.0, "")
        kind = self.kinds[kinds[0]]
        if kind.finished:
            return Standing(kind.activity, *self.finished(kind.name), kind.finished)
        return Standing(kind.activity, *self.amounts(kinds), kind.unit)

    def amounts(self, kinds: Sequence[str]) -> tuple[float, float]:
        """How much is done of some kinds of work, and how much there is, in their unit.

        Network evaluations are counted over the cells, as in the table: with what earlier sessions did.
        """
        if self.cells and all(map(self._is_evaluations, kinds)):
            done = sum(cell.done for cell in self.cells.values()) + self.begun.total()
            total = self.evaluations
        else:
            done, total = sum(map(self.done, kinds)), sum(self.todo.all[name].cost for name in kinds)
        return min(done, total), total

    @property
    def evaluations(self) -> float:
        """The network evaluations of all cells, with what earlier sessions did, as the bar counts them."""
        return sum(cell.total for cell in self.cells.values())

    def finished(self, kind: str) -> tuple[int, int]:
        """How many cells are scored, and how many there are: all that the table shows if it shows scores."""
        scored = [cell.value is not None for cell in self.cells.values()]
        if any(scored):
            return sum(scored), len(scored)
        return self.todo.done[kind].tasks, self.todo.all[kind].tasks

    @property
    def _finished_in_words(self) -> str:
        """How many tasks are done of the kinds that are always counted."""
        names = [name for name, kind in self.kinds.items() if kind.finished and name in self.todo.all]
        return ", ".join("{} of {} {}".format(*self.finished(name), self.kinds[name].finished) for name in names)

    def standing(self, at: float) -> Standing:
        bar = self.bar._replace(workers=self.workforce.joined, left=self.left(at))
        if any(self.kinds[name].finished for name in self.main):
            return bar  # which counts them itself, a few a minute
        if self.main != self._measured:
            return bar._replace(note=self._finished_in_words)  # the last rate is that of other work
        counts = any(self.kinds[name].counts_images for name in self.main)
        images = self._images.per_second if counts else None
        return bar._replace(note=self._finished_in_words, rate=self._speed.per_second, images_rate=images)

    def left(self, at: float) -> str:
        """The remaining time in words, and the work that it leaves out; empty if too little is known yet."""
        known = {key: worker for key, worker in self.running.items() if key in self.todo.items}
        seconds, unknown = self.todo.left(known, self.workforce.usable, at)
        if seconds is None or any(map(self._is_evaluations, unknown)):
            return ""
        others = dict.fromkeys(self.kinds[name].activity for name in unknown if name in self.kinds)
        time = duration(seconds) if seconds >= 1 else "less than 1 s"
        return " then ".join(filter(None, [f"{time} left", " and ".join(others)]))


def _given_up(event: Mapping[str, Any]) -> Sequence[str]:
    """The tasks that an event says will not be done."""
    if event["event"] == "given up":
        return list(event["tasks"])
    return [event["task"]] if event["event"] == "failed" and event["quarantined"] else []
