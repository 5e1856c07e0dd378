"""What a person sees on stderr while taugrid works: a live line on a terminal, elsewhere a plain one now and then."""

import time
from types import TracebackType

from rich import progress
from rich.console import Console
from rich.text import Text

from taugrid.words import counted, duration, quantity

PLAIN_INTERVAL_SECONDS = 10.0
"""Between plain lines: often enough to see that it lives, seldom enough for a log."""

SPEED_SECONDS = 60.0
"""The rate and the time left are estimated from the last so many seconds."""


class SummaryColumn(progress.ProgressColumn):
    """How much of how much, how fast, how long still, and what else there is to say."""

    def render(self, task: progress.Task) -> Text:
        """The column's text."""
        return Text(summary(task))


def summary(task: progress.Task) -> str:
    """The state of a stage in words; without a rate as long as nothing was measured."""
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
    """A stage at a time: how much of how much, how fast, how many workers, and when it will be done."""

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

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)

    def begin(self, stage: str, total: float, unit: str) -> None:
        """A stage of `total` units of work starts; its clock starts with the first `started`."""
        self.end()
        self._task = self._bars.add_task(stage, start=False, total=total, unit=unit, images=0, workers=0, note="")
        self._last_plain = time.monotonic()
        if self._console.is_terminal:
            self._bars.start()

    def started(self, done: float = 0.0) -> None:
        """Work goes on from `done`: what came before (starting workers, an earlier session) is not in the rate."""
        if self._task is not None and not self._bars.tasks[-1].started:
            self._bars.reset(self._task, completed=int(done))

    def update(self, done: float, images: int = 0, workers: int = 0, note: str = "") -> None:
        """So much of the total is done; `images` counts those of this session."""
        if self._task is None:
            return
        self._bars.update(self._task, completed=done, images=images, workers=workers, note=note)
        task, now = self._bars.tasks[-1], time.monotonic()
        if not self._console.is_terminal and task.started and now - self._last_plain >= PLAIN_INTERVAL_SECONDS:
            self._last_plain = now
            self.say(f"{task.description}: {summary(task)}")

    def end(self) -> None:
        """The stage is over; the live line goes."""
        if self._task is not None:
            if self._bars.live.is_started:  # elsewhere `stop` would print an empty line
                self._bars.stop()
            self._bars.remove_task(self._task)
            self._task = None
