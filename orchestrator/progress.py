"""Progress on stderr: a live line on a terminal, otherwise a plain line now and then."""

import io
import time
from types import TracebackType

from rich import progress
from rich.console import Console
from rich.text import Text

from taugrid.words import counted, duration, quantity, with_urls

PLAIN_INTERVAL_SECONDS = 10.0
"""Time between plain lines: often enough to show that it is alive, rare enough for a log."""

SPEED_SECONDS = 60.0
"""The rate and the remaining time are estimated from this many seconds."""


class SummaryColumn(progress.ProgressColumn):
    """Work done, total work, rate, remaining time, and a note."""

    def render(self, task: progress.Task) -> Text:
        """The column's text."""
        return Text(summary(task))


def summary(task: progress.Task) -> str:
    """The state of a stage in words, without a rate until one has been measured."""
    fields = task.fields
    parts = [f"{quantity(task.completed)} of {quantity(task.total or 0)} {fields['unit']}"]
    if task.speed:
        parts.append(f"{quantity(task.speed)}/s")
        if fields["images"] and task.elapsed:
            parts.append(f"{quantity(fields['images'] / task.elapsed)} images/s")
        parts.append(f"{duration(task.time_remaining or 0)} left")
    if fields["workers"]:
        parts.append(counted(fields["workers"], "worker"))
    return ", ".join([*parts, *filter(None, [fields["note"]])])


class Progress:
    """Shows one stage at a time: work done, total work, rate, number of workers, and remaining time."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            SummaryColumn(),
            console=self._console,
            refresh_per_second=4,
            speed_estimate_period=SPEED_SECONDS,
            transient=True,
        )
        self._task: progress.TaskID | None = None
        self._last_plain = time.monotonic()

    @classmethod
    def silent(cls) -> "Progress":
        """One that shows nothing."""
        return cls(Console(file=io.StringIO(), quiet=True))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(with_urls(text), markup=False)

    def begin(self, stage: str, total: float, unit: str) -> None:
        """Begin a stage of `total` units of work. Its clock starts with the first `started`."""
        self.end()
        self._task = self._bars.add_task(stage, start=False, total=total, unit=unit, images=0, workers=0, note="")
        self._last_plain = time.monotonic()
        if self._console.is_terminal:
            self._bars.start()

    def started(self, done: float = 0.0) -> None:
        """Work continues from `done`. Anything before (starting workers, an earlier session) is not in the rate."""
        if self._task is not None and not self._bars.tasks[-1].started:
            self._bars.reset(self._task, completed=int(done))

    def update(self, done: float, images: int = 0, workers: int = 0, note: str = "") -> None:
        """Show that `done` units are done; `images` counts only those of this session."""
        if self._task is None:
            return
        self._bars.update(self._task, completed=done, images=images, workers=workers, note=note)
        task, now = self._bars.tasks[-1], time.monotonic()
        if not self._console.is_terminal and task.started and now - self._last_plain >= PLAIN_INTERVAL_SECONDS:
            self._last_plain = now
            self.say(f"{task.description}: {summary(task)}")

    def end(self) -> None:
        """End the stage and remove the live line."""
        if self._task is not None:
            if self._bars.live.is_started:  # without a live line, `stop` would print an empty one
                self._bars.stop()
            self._bars.remove_task(self._task)
            self._task = None
