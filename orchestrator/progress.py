"""What a person sees on stderr while taugrid works: a live line on a terminal, now and then a plain one elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from taugrid.words import counted, duration, quantity

PLAIN_INTERVAL_SECONDS = 10.0
"""Between plain lines: often enough to see that it lives, seldom enough for a log."""


class Progress:
    """A stage at a time: how much of how much, how fast, how many workers, and when it will be done."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._stage: str | None = None
        self._reset("", 0.0)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def _reset(self, unit: str, total: float) -> None:
        self._unit, self._total = unit, total
        self._done, self._before, self._images, self._workers, self._note = 0.0, 0.0, 0, 0, ""
        self._began: float | None = None
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
        self._stage = stage
        self._reset(unit, total)
        if self._console.is_terminal:
            self._live.start()

    def started(self, done: float = 0.0) -> None:
        """Work goes on from `done`: what came before (starting workers, an earlier session) is not in the rate."""
        if self._began is None:
            self._began, self._before = time.monotonic(), done

    def update(self, done: float, images: int = 0, workers: int = 0, note: str = "") -> None:
        """So much of the total is done; `images` counts those of this session."""
        self._done, self._images, self._workers, self._note = done, images, workers, note
        now = time.monotonic()
        if not self._console.is_terminal and self._began and now - self._last_plain >= PLAIN_INTERVAL_SECONDS:
            self._last_plain = now
            self.say(f"{self._stage}: {self._summary()}")

    def end(self) -> None:
        """The stage is over; the live line goes."""
        if self._stage is not None and self._console.is_terminal:
            self._live.stop()
        self._stage = None

    def _summary(self) -> str:
        parts = [f"{quantity(self._done)} of {quantity(self._total)} {self._unit}"]
        elapsed = time.monotonic() - self._began if self._began is not None else 0.0
        if self._done > self._before and elapsed > 0:
            rate = (self._done - self._before) / elapsed
            parts.append(f"{quantity(rate)}/s")
            if self._images:
                parts.append(f"{quantity(self._images / elapsed)} images/s")
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        if self._workers:
            parts.append(counted(self._workers, "worker"))
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)

    def _render(self) -> Table:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._total, 1), completed=self._done, width=24)
        line.add_row(self._stage or "", bar, self._summary())
        return line
