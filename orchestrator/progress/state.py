"""The progress of a session, from its tasks, events and heartbeats, or of a stage without tasks, such as training.

No clock, no files, no terminal.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from taugrid.orchestrator.progress.workers import Amount, Todo, Workers, WorkerState
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind
from taugrid.words import counted, duration, quantity
from taugrid.workers.training.log import TrainingProgress

REFRESH_SECONDS = 1.0
"""The minimum time between two updates of the bars: each visits all workers, and there are hundreds of events."""

WINDOW_SECONDS = 60.0
"""A rate is the average over this many of the last seconds."""


class ProgressSnapshot(NamedTuple):
    name: str
    """Empty: no work is left."""
    done: float
    total: float
    unit: str
    rate: float | None = None
    """Units per second."""
    images_rate: float | None = None
    left: str = ""
    """The remaining time as text; empty: unknown."""
    workers: int = 0
    note: str = ""
    doing: str = ""
    """What workers do that is no progress, as text."""

    @property
    def line(self) -> str:
        doing = f" ({self.doing})" if self.doing else ""
        workers = f"{counted(self.workers, 'worker')}{doing}" if self.workers else ""
        if not self.name:
            return ", ".join(filter(None, [workers, self.note]))
        amount = f"{quantity(self.done)} of {quantity(self.total)} {self.unit}"
        rate = "" if self.rate is None else f"{quantity(self.rate)}/s"
        images = "" if self.images_rate is None else f"{quantity(self.images_rate)} images/s"
        return f"{self.name}: {', '.join(filter(None, [amount, rate, images, self.left, workers, self.note]))}"


class _Percent(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(f"{percent(task.completed, task.total or 0.0):>4}")


def new_bars(clock: Callable[[], float]) -> Bars:
    """Bars that measure rates by `clock`, to be shown as a part of another live view."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), _Percent()
    return Bars(*columns, auto_refresh=False, speed_estimate_period=WINDOW_SECONDS, get_time=clock, expand=True)


def percent(done: float, total: float) -> str:
    """A share in percent; never 100 before all is done."""
    share = done / total if total else 0.0
    return f"{min(int(share * 100), 100 if done >= total else 99)}%"


class Stage:
    """One bar, for work that is not divided into tasks."""

    def __init__(self, name: str, total: float, unit: str, clock: Callable[[], float], waits: bool) -> None:
        """`waits`: the clock starts at the first `update`; until then, workers are starting."""
        self.bars = new_bars(clock)
        self._bar = self.bars.add_task(name, start=not waits, total=total)
        self._unit, self._workers, self._note = unit, 0, ""
        self.since = clock()
        """The time when it was announced."""

    @property
    def has_begun(self) -> bool:
        return self.bars.tasks[0].started

    def update(self, done: float, workers: int, note: str) -> None:
        """Set what is done. Work that was done before the clock started does not count towards the rate."""
        if not self.has_begun:
            self.bars.reset(self._bar, completed=int(done))
        self._workers, self._note = workers, note
        self.bars.update(self._bar, completed=done)

    def snapshot(self) -> ProgressSnapshot:
        bar = self.bars.tasks[0]
        left = "" if bar.time_remaining is None else f"{duration(bar.time_remaining)} left"
        of = bar.description, bar.completed, bar.total or 0.0, self._unit
        return ProgressSnapshot(*of, bar.speed, left=left, workers=self._workers, note=self._note)


def name_of_trainings(called: Sequence[str]) -> str:
    """What one bar for the trainings of these models is called."""
    return f"training {called[0]}" if len(called) == 1 else f"training {counted(len(called), 'model')}"


def note_of_trainings(running: Mapping[str, TrainingProgress], models: int, trained: int) -> str:
    """What the bar of `models` trainings says beside their steps; `running` is by what the models are called."""
    losses = sorted(at.loss for at in running.values())
    shown = "loss " + " to ".join(f"{loss:.4f}" for loss in sorted({losses[0], losses[-1]}))
    if len(running) > 1:
        shown = f"{len(running)} at a time, {shown}"
    elif models > 1:
        shown = f"{next(iter(running))}: {shown}"
    return ", ".join(filter(None, [shown, f"{trained} trained" if trained else ""]))


@dataclass
class GridCell:
    row: str
    column: str
    total: float
    """The total of network evaluations."""
    done: float = 0.0
    value: float | None = None
    """The score."""
    note: str = ""
    """The text that is shown if there will be no score."""


class LiveState:
    """A session, fed with the lines of its events file (`observe`) and heartbeats (`heard`). Times are in seconds."""

    def __init__(self, kinds: Mapping[str, type[WorkKind]]) -> None:
        """`kinds` are by name, in the order of their priorities."""
        self.kinds = kinds
        self.stages: Sequence[str] = ()
        self.trainings: set[str] | None = None
        """The ids of the models that are being trained; None: none had to be."""
        self.ended = False
        self.workers = Workers()
        self.todo = Todo()
        self.cells: dict[str, GridCell] = {}
        self.metric = ""
        """The heading of the cells' values; empty if they have none."""
        self._now = 0.0
        self.bars = new_bars(lambda: self._now)
        self._bars: dict[str, TaskID] = {}
        self._images = self.bars.add_task("images", total=None, visible=False)
        self._images_done = 0

    def expect(self, tasks: Mapping[str, Task]) -> None:
        """Set the tasks by key."""
        self.todo.tasks = tasks

    def show_cells(self, cells: Mapping[str, GridCell], metric: str) -> None:
        """Show these cells. The bars also count what was done before the session."""
        self.cells, self.metric = dict(cells), metric

    def observe(self, at: float, event: Mapping[str, Any]) -> None:
        name, worker = event["event"], event.get("worker", "")
        if name == "session":
            self.stages = event["stages"]
        elif name in ("train", "training waits", "trained", "training failed"):
            before = self.trainings or set()
            self.trainings = before | {event["model"]} if name == "train" else before - {event["model"]}
        elif name == "to do":
            self.todo.begin(event["work"])
            for kind in (kind for kind in self.kinds if kind in self.todo.all and kind not in self._bars):
                self._bars[kind] = self.bars.add_task(self.kinds[kind].activity, total=None)
        elif name == "end":
            self.ended = True
        elif "committed" in event and worker in self.workers.by_name:
            self._did(at, worker, event)
        for key in _given_up(event):
            if (task := self.todo.give_up(key)) is not None and (cell := self._cell(task)) is not None:
                cell.note = "failed"
        self.workers.observe(at, event)
        self._refresh_if_due(at)

    def heard(self, at: float, worker: str, fraction: float, doing: str = "") -> None:
        self.workers.heard(worker, fraction, doing)
        self._refresh_if_due(at)

    def score(self, cell: str, value: float | None) -> None:
        if cell in self.cells:
            self.cells[cell].value = value

    def _did(self, at: float, name: str, event: Mapping[str, Any]) -> None:
        worker = self.workers.by_name[name]
        if worker.task is not None and event["committed"]:
            task = self.todo.task(worker.task)
            if self.todo.is_open(task.key) and task.kind in self.kinds and self.kinds[task.kind].counts_images:
                self._images_done += event["images"]  # what is given back too: the job of its rest has only the others
            finished = not event.get("given_back") and self.todo.finish(task)
            if finished and (cell := self._cell(task)) is not None and self.runs_network(task.kind):
                cell.done += task.cost
        self.workers.release(at, name)

    def _cell(self, task: Task) -> GridCell | None:
        return None if task.cell is None else self.cells.get(task.cell.id)

    def runs_network(self, kind: str) -> bool:
        """Whether a kind of work runs the network, so that its cost is in network evaluations."""
        return kind in self.kinds and self.kinds[kind].unit == NETWORK_EVALUATIONS

    def _refresh_if_due(self, at: float) -> None:
        if self._bars and at - self._now >= REFRESH_SECONDS:
            self.refresh(at)

    def refresh(self, at: float) -> None:
        self._now = at
        under_way = list(self._under_way)
        for name, bar in self._bars.items():
            done, total = self._amounts(name, under_way)
            self.bars.update(bar, total=total, completed=done)
        begun = sum(share * self.kinds[task.kind].images(task) for task, share in under_way if task.kind in self.kinds)
        self.bars.update(self._images, completed=self._images_done + begun)

    @property
    def has_begun(self) -> bool:
        some_done = any(amount.tasks for amount in self.todo.done.values())
        return some_done or any(worker.task for worker in self.workers.by_name.values())

    @property
    def running(self) -> dict[str, WorkerState]:
        return {key: worker for key, worker in self.workers.running.items() if self.todo.is_open(key)}

    @property
    def _under_way(self) -> Iterator[tuple[Task, float]]:
        """The tasks that workers are doing, and the share of each that is done, by their heartbeats."""
        for key, worker in self.running.items():
            yield self.todo.task(key), worker.fraction

    @property
    def begun(self) -> Counter[str]:
        """Cell -> network evaluations that are done in unfinished tasks."""
        evaluations = Counter[str]()
        for task, share in self._under_way:
            if task.cell is not None and self.runs_network(task.kind):
                evaluations[task.cell.id] += int(task.cost * share)
        return evaluations

    @property
    def main(self) -> str | None:
        """The kind of work that a line is about: the first that is under way, else the first that is not done."""
        still_open = [name for name in self.kinds if name in self.todo.open_kinds]
        under_way = {key.split("/")[0] for key in self.running}
        begun = [name for name in still_open if self.todo.done[name].tasks or name in under_way]
        return next(iter([*begun, *still_open]), None)

    def _amounts(self, kind: str, under_way: Sequence[tuple[Task, float]]) -> tuple[float, float]:
        """The done and the total amount of a kind of work, in its unit.

        Network evaluations are counted over the cells, as in the table: with what earlier sessions did.
        """
        if self.kinds[kind].finished_noun:
            return self.finished(kind)
        begun = sum(task.cost * share for task, share in under_way if task.kind == kind)
        if self.cells and self.runs_network(kind):
            done, total = sum(cell.done for cell in self.cells.values()), self.evaluations
        else:
            done, total = self.todo.done[kind].cost, self.todo.all[kind].cost
        return min(done + begun, total), total

    @property
    def evaluations(self) -> float:
        """The network evaluations of all cells, with what earlier sessions did, as the bar counts them."""
        return sum(cell.total for cell in self.cells.values())

    def finished(self, kind: str) -> tuple[int, int]:
        """The number of finished tasks of a kind, and their total; of cells, if the table shows scores."""
        scored = [cell.value is not None for cell in self.cells.values()]
        if any(scored):
            return sum(scored), len(scored)
        return self.todo.done.get(kind, Amount()).tasks, self.todo.all[kind].tasks

    @property
    def _finished_in_words(self) -> str:
        """The numbers of finished tasks of the kinds that are always counted."""
        names = [name for name, kind in self.kinds.items() if kind.finished_noun and name in self.todo.all]
        return ", ".join("{} of {} {}".format(*self.finished(name), self.kinds[name].finished_noun) for name in names)

    def snapshot(self, at: float) -> ProgressSnapshot:
        self.refresh(at)
        workers, left = self.workers.joined, self.left
        if self.main is None:
            return ProgressSnapshot("", 0.0, 0.0, "", workers=workers, note=self._finished_in_words)
        kind, bar = self.kinds[self.main], self.bars.tasks[self._bars[self.main]]
        of = kind.activity, bar.completed, bar.total or 0.0, kind.finished_noun or kind.unit
        if kind.finished_noun:  # the line counts the tasks itself, a few a minute
            return ProgressSnapshot(*of, left=left, workers=workers)
        images = self.bars.tasks[self._images].speed if kind.counts_images else None
        return ProgressSnapshot(*of, bar.speed, images, left, workers, self._finished_in_words, self._doing_in_words)

    @property
    def _doing_in_words(self) -> str:
        """What workers do that is no progress, such as compiling; their number too unless all of them do."""
        doing = Counter(worker.doing for worker in self.running.values() if worker.doing)
        joined = self.workers.joined
        return ", ".join(what if count == joined else f"{count} {what}" for what, count in doing.items())

    @property
    def left(self) -> str:
        """The time that the rest of the main kind takes at its rate, and what comes after it; empty if unknown."""
        if self.main is None or not (rate := self.bars.tasks[self._bars[self.main]].speed):
            return ""
        rest = self.todo.open[self.main]
        begun = sum(task.cost * share for task, share in self._under_way if task.kind == self.main)
        seconds = rest.tasks / rate if self.kinds[self.main].finished_noun else (rest.cost - begun) / rate
        under_way = {self.main, *(key.split("/")[0] for key in self.running)}
        later = [name for name in self.kinds if name in self.todo.open_kinds and not self.todo.done[name].tasks]
        others = dict.fromkeys(self.kinds[name].activity for name in later if name not in under_way)
        time = duration(seconds) if seconds >= 1 else "less than 1 s"
        return " then ".join(filter(None, [f"{time} left", " and ".join(others)]))


def _given_up(event: Mapping[str, Any]) -> Sequence[str]:
    """The tasks that will not be done, according to an event."""
    if event["event"] == "given up":
        return list(event["tasks"])
    return [event["task"]] if event["event"] == "failed" and event["quarantined"] else []
