"""One stage with one bar, such as a training or `verify`: how far it is, in words. Pure."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taugrid.words import counted, duration, quantity
from taugrid.workers.training.log import TrainingProgress

WINDOW_SECONDS = 60.0
"""A rate is the average over this many of the last seconds."""

SAMPLE_SECONDS = 1.0
"""The least time between two readings."""


class Reading(NamedTuple):
    at: float
    done: float


class Speed:
    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()

    def is_due(self, at: float) -> bool:
        return not self._readings or at - self._readings[-1].at >= SAMPLE_SECONDS

    def read(self, at: float, done: float) -> None:
        readings = self._readings
        readings.append(Reading(at, done))
        while len(readings) > 2 and at - readings[1].at >= WINDOW_SECONDS:
            readings.popleft()

    @property
    def per_second(self) -> float | None:
        """None: not known yet."""
        if len(self._readings) < 2:
            return None
        first, last = self._readings[0], self._readings[-1]
        return (
            (last.done - first.done) / (last.at - first.at) if last.at > first.at and last.done > first.done else None
        )


class Standing(NamedTuple):
    name: str
    """Empty: no work is left."""
    done: float
    total: float
    unit: str
    rate: float | None = None
    """Units a second."""
    images_rate: float | None = None
    left: str = ""
    """The remaining time in words; empty: not known."""
    workers: int = 0
    note: str = ""

    @property
    def amount(self) -> str:
        return f"{quantity(self.done)} of {quantity(self.total)} {self.unit}"

    @property
    def rates(self) -> list[str]:
        """How fast it goes, as far as that is known."""
        images = "" if self.images_rate is None else f"{quantity(self.images_rate)} images/s"
        return [text for text in ("" if self.rate is None else f"{quantity(self.rate)}/s", images) if text]

    @property
    def line(self) -> str:
        """All of it, for a log."""
        workers = counted(self.workers, "worker") if self.workers else ""
        if not self.name:  # all that was to do is done
            return ", ".join(filter(None, [workers, self.note]))
        parts = [self.amount, *self.rates, self.left, workers, self.note]
        return f"{self.name}: {', '.join(filter(None, parts))}"


class Stage:
    def __init__(self, name: str, total: float, unit: str, at: float) -> None:
        self._standing = Standing(name, 0.0, total, unit)
        self._speed = Speed()
        self.since = at
        """When it began."""
        self.has_begun = False
        """Whether work goes on. Before, workers start."""

    def started(self, at: float, done: float) -> None:
        """Work continues from `done`. Anything before (starting workers, an earlier session) is not in the rate."""
        if not self.has_begun:
            self.has_begun = True
            self._speed.read(at, done)
            self._standing = self._standing._replace(done=done)

    def update(self, at: float, done: float, workers: int, note: str) -> None:
        self._standing = self._standing._replace(done=done, workers=workers, note=note)
        if self.has_begun and self._speed.is_due(at):
            self._speed.read(at, done)

    def standing(self, at: float) -> Standing:
        if not self.has_begun:
            return self._standing
        rate = self._speed.per_second
        left = "" if rate is None else f"{duration(max(0.0, self._standing.total - self._standing.done) / rate)} left"
        return self._standing._replace(rate=rate, left=left)


def name_of_trainings(called: Sequence[str]) -> str:
    """What one bar for the trainings of these models is called."""
    return f"training {called[0]}" if len(called) == 1 else f"training {counted(len(called), 'model')}"


def note_of_trainings(at_work: Mapping[str, TrainingProgress], models: int, trained: int) -> str:
    """What the bar of `models` trainings says beside their steps; `at_work` is by what the models are called."""
    losses = sorted(at.loss for at in at_work.values())
    shown = "loss " + " to ".join(f"{loss:.4f}" for loss in sorted({losses[0], losses[-1]}))
    if len(at_work) > 1:
        shown = f"{len(at_work)} at a time, {shown}"
    elif models > 1:
        shown = f"{next(iter(at_work))}: {shown}"
    return ", ".join(filter(None, [shown, f"{trained} trained" if trained else ""]))
