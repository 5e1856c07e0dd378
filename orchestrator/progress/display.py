"""Progress on stderr: a live view at the bottom of a terminal, otherwise a plain line now and then."""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live

from taugrid.config import Config
from taugrid.orchestrator.observers import Observer
from taugrid.orchestrator.progress.draw import frame, grid
from taugrid.orchestrator.progress.state import LiveState, ProgressSnapshot, Stage
from taugrid.orchestrator.progress.summary import SessionSummary
from taugrid.orchestrator.work import kinds_by_name
from taugrid.words import with_urls

PLAIN_INTERVAL_SECONDS = 10.0
"""Time between plain lines: often enough to show that it is alive, rare enough for a log."""

FRAMES_A_SECOND = 4

KEPT_LINES = 60
"""The most lines of a table that stays on the screen after the view."""

ReadScore = Callable[[str], float | None]


class Progress(Observer):
    """Shows how far a session is (`follow`), or one stage at a time (`begin`), and says lines that stay.

    A thread of its own draws the live view, so that it goes on while Ray's C++ holds the main thread. What it draws is
    changed under `_lock`. Nothing is printed under that lock, because rich has locks of its own.
    """

    def __init__(
        self, console: Console | None = None, live: bool | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`live` None: show a live view if `console` is a terminal that can redraw lines."""
        self._console = shown = console or Console(stderr=True, highlight=False)
        # A log file for which FORCE_COLOR is set is a terminal to rich.
        can_redraw = shown.is_terminal and not shown.is_dumb_terminal and shown.file.isatty()
        self._is_live = can_redraw if live is None else live
        self._clock = clock
        self._lock = threading.Lock()
        self._view = Live(
            get_renderable=lambda: self,
            console=self._console,
            refresh_per_second=FRAMES_A_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._entered = False
        self.state: LiveState | None = None
        """The session that is shown; None: there is none."""
        self._stage: Stage | None = None
        self._read_score: ReadScore = lambda cell: None
        self._last_plain = clock()

    @classmethod
    def silent(cls) -> "Progress":
        """A progress that shows nothing."""
        return cls(Console(file=io.StringIO(), quiet=True))

    def __enter__(self) -> "Progress":
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        snapshot = self._snapshot()
        self._view.stop()
        if self._is_live and error is not None and snapshot is not None:
            self.say(snapshot.line)  # the view is gone, and what it said last may matter

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            drawn = frame(self.state, self._stage, self._clock(), console, options)
        yield drawn

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(with_urls(text), markup=False, highlight=False, soft_wrap=True)

    def follow(self, state: LiveState | None = None, read_score: ReadScore = lambda cell: None) -> None:
        """Show a session from now on; None: one that begins.

        `read_score` takes the id of a cell and returns its score on disk.
        """
        with self._shown():
            self.state = LiveState(kinds_by_name()) if state is None else state
            self._stage, self._read_score = None, read_score

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        self.follow()

    def keep_table(self) -> None:
        """End the view and leave its table on the screen."""
        with self._lock:
            kept = grid(self.state, self._console.width - 1, KEPT_LINES) if self._is_live and self.state else []
            self.state = self._stage = None
        self._view.stop()
        for part in kept:
            self._console.print(part)

    def expect(self, session: SessionSummary) -> None:
        """Show the work of a session that `follow` began."""
        cells = session.cells(with_scores=self._is_live or (bool(session.tasks) and not self._console.quiet))
        with self._shown():
            if self.state is not None:
                self.state.expect(session.tasks, session.earlier)
                self.state.show_cells(cells, session.metric_title)
                self._read_score = session.score

    def happened(self, time: datetime, event: Mapping[str, Any]) -> None:
        if self.state is None:
            return
        counts = event["event"] == "score" and not self._console.quiet
        scored = event["task"].split("/")[1] if counts else None
        value = None if scored is None else self._read_score(scored)
        with self._shown():
            self.state.observe(time.timestamp(), event)
            if scored is not None:
                self.state.score(scored, value)

    def heard(self, worker: str, fraction: float) -> None:
        """A worker's task is done to `fraction`."""
        with self._shown():
            if self.state is not None:
                self.state.heard(self._clock(), worker, fraction)

    def tick(self) -> None:
        """Time has passed, and nothing else has changed."""
        with self._shown():
            pass

    def begin(self, stage: str, total: float, unit: str, waits: bool = False) -> None:
        """Begin a stage of `total` units of work; if it `waits`, its clock starts with the first `update`."""
        with self._shown():
            self._stage, self._last_plain = Stage(stage, total, unit, self._clock, waits), self._clock()

    def update(self, done: float, workers: int = 0, note: str = "") -> None:
        with self._shown():
            if self._stage is not None:
                self._stage.update(done, workers, note)

    def end(self) -> None:
        with self._shown():
            self._stage = None

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Change what is shown within the block; then show it, or say it if it is time to."""
        with self._lock:
            yield
        if not self._is_live:
            self._say_now_and_then()
        elif self._entered and not self._view.is_started:
            self._view.start()

    def _say_now_and_then(self) -> None:
        now = self._clock()
        if now - self._last_plain >= PLAIN_INTERVAL_SECONDS and (snapshot := self._snapshot()) is not None:
            self._last_plain = now
            self.say(snapshot.line)

    def _snapshot(self) -> ProgressSnapshot | None:
        """How far the work is; None if none has begun, or there is nothing to say of it."""
        if self._stage is not None:
            return self._stage.snapshot() if self._stage.has_begun else None
        if self.state is None or not self.state.has_begun:
            return None
        snapshot = self.state.snapshot(self._clock())
        return snapshot if snapshot.line else None
