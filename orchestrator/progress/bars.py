"""Progress bars and their text: one for each kind of work of a session, or one for a stage such as a training."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from taugrid.words import counted, duration, quantity
from taugrid.workers.training.log import TrainingProgress

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

    @property
    def line(self) -> str:
        workers = counted(self.workers, "worker") if self.workers else ""
        if not self.name:
            return ", ".join(filter(None, [workers, self.note]))
        amount = f"{quantity(self.done)} of {quantity(self.total)} {self.unit}"
        rate = "" if self.rate is None else f"{quantity(self.rate)}/s"
        images = "" if self.images_rate is None else f"{quantity(self.images_rate)} images/s"
        return f"{self.name}: {', '.join(filter(None, [amount, rate, images, self.left, workers, self.note]))}"


class _Percent(ProgressColumn):
    def render(self, task: Task) -> Text:
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

    def __init__(self, name: str, total: float, unit: str, clock: Callable[[], float]) -> None:
        self.bars = new_bars(clock)
        self._bar = self.bars.add_task(name, start=False, total=total)
        self._unit, self._workers, self._note = unit, 0, ""
        self.since = clock()
        """The time when it began."""

    @property
    def has_begun(self) -> bool:
        """Whether work goes on. Before, workers start."""
        return self.bars.tasks[0].started

    def started(self, done: float) -> None:
        """Work continues from `done`. Anything before (starting workers, an earlier session) is not in the rate."""
        if not self.has_begun:
            self.bars.reset(self._bar, completed=int(done))

    def update(self, done: float, workers: int, note: str) -> None:
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
