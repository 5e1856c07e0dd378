"""Progress on stderr: a live view at the bottom of a terminal, otherwise a plain line now and then.

The view is the grid as a table that fills in, the stages of the session, bars, and workers.
"""

import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.live import Live
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from taugrid.api import STAGES
from taugrid.config import Config
from taugrid.orchestrator.observers import Observer
from taugrid.orchestrator.progress.console import Console
from taugrid.orchestrator.progress.state import GridCell, LiveState, ProgressSnapshot, Stage, percent
from taugrid.orchestrator.progress.summary import SessionSummary
from taugrid.orchestrator.work import kinds_by_name
from taugrid.words import counted, duration, with_urls

PLAIN_INTERVAL_SECONDS = 10.0
"""Time between plain lines: often enough to show that it is alive, rare enough for a log."""

FRAMES_A_SECOND = 4

KEPT_LINES = 60
"""The most lines of a table that stays on the screen after the view."""

WIDEST_BARS = 100
"""Columns of a line with a bar; a longer bar tells no more."""

LISTED_WORKERS = 4
"""Up to this many workers get a line each. More are only counted, by what they do."""

FEWEST_ROWS = 3
"""With space for fewer rows, there is no table."""

NARROWEST = 6
"""Characters of a column of the grid; a score has up to 5."""

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
        self.stage: Stage | None = None
        self._read_score: ReadScore = lambda cell: None
        self._last_plain = clock()

    @classmethod
    def silent(cls) -> "Progress":
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

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            drawn = frame(self.state, self.stage, self._clock(), console, options)
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
            self.stage, self._read_score = None, read_score

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        self.follow()

    def keep_table(self) -> None:
        """End the view and leave its table on the screen."""
        with self._lock:
            kept = grid(self.state, self._console.width - 1, KEPT_LINES) if self._is_live and self.state else []
            self.state = self.stage = None
        self._view.stop()
        for part in kept:
            self._console.print(part)

    def expect(self, session: SessionSummary) -> None:
        """Show the work of a session that `follow` began."""
        cells = session.cells(with_scores=self._is_live or (bool(session.tasks) and not self._console.quiet))
        with self._shown():
            if self.state is not None:
                self.state.expect(session.tasks)
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

    def heard(self, worker: str, fraction: float, doing: str = "") -> None:
        with self._shown():
            if self.state is not None:
                self.state.heard(self._clock(), worker, fraction, doing)

    def tick(self) -> None:
        """Time has passed, and nothing else has changed."""
        with self._shown():
            pass

    def begin(self, stage: str, total: float, unit: str, waits: bool = False) -> None:
        """Begin a stage of `total` units of work; if it `waits`, its clock starts with the first `update`."""
        with self._shown():
            self.stage, self._last_plain = Stage(stage, total, unit, self._clock, waits), self._clock()

    def update(self, done: float, workers: int = 0, note: str = "") -> None:
        with self._shown():
            if self.stage is not None:
                self.stage.update(done, workers, note)

    def end(self) -> None:
        with self._shown():
            self.stage = None

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Change what is shown within the block; then show it, or say it if it is time to."""
        with self._lock:
            yield
        now = self._clock()
        if self._is_live:
            if self._entered and not self._view.is_started:
                self._view.start()
        elif now - self._last_plain >= PLAIN_INTERVAL_SECONDS and (snapshot := self._snapshot()) is not None:
            self._last_plain = now
            self.say(snapshot.line)

    def _snapshot(self) -> ProgressSnapshot | None:
        """How far the work is; None if none has begun, or there is nothing to say of it."""
        if self.stage is not None:
            return self.stage.snapshot() if self.stage.has_begun else None
        if self.state is None or not self.state.has_begun:
            return None
        snapshot = self.state.snapshot(self._clock())
        return snapshot if snapshot.line else None


def frame(
    state: LiveState | None, stage: Stage | None, at: float, console: RichConsole, options: ConsoleOptions
) -> RenderableType:
    """What fits a terminal; the table first, because what is at the bottom stays where it is."""
    width = options.max_width - 1  # some terminals wrap after the last column
    below = Group(*_below(state, stage, at))
    lines = len(console.render_lines(below, options.update_width(width), pad=False))
    height = console.height - lines - 1
    above = [] if state is None else grid(state, width, height)
    drawn = console.render_lines(Group(*above, below), options.update_width(width), pad=False, new_lines=True)
    return Segments(segment for line in drawn[: console.height - 1] for segment in line)


def _below(state: LiveState | None, stage: Stage | None, at: float) -> Iterator[RenderableType]:
    if state is not None and state.stages:
        shown = [name for name in state.stages if name != "train" or state.trainings is not None]
        # Reconstruction and interpolation, the others, are the last of theirs.
        shown.sort(key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
        yield Text("  ").join(_stage(state, name) for name in shown)
    if stage is not None:
        yield Constrain(stage.bars.get_renderable(), WIDEST_BARS)
        yield Text(stage.snapshot().line)
        if not stage.has_begun:
            yield Text(f"starting, {duration(at - stage.since)}", style="dim")
    elif state is not None and state.todo.open_kinds:
        snapshot = state.snapshot(at)
        yield Constrain(state.bars.get_renderable(), WIDEST_BARS)
        yield Text(snapshot._replace(workers=0).line)
        yield from _workers(state, at)


def _stage(state: LiveState, name: str) -> Text:
    """A stage of the session: done, under way, or to come."""
    is_open = any(state.kinds[kind].stage == name for kind in state.todo.open_kinds if kind in state.kinds)
    planned = bool(state.todo.all)
    if name == "train":
        begun, over = bool(state.trainings), planned or state.trainings == set()
    elif name == "report":
        begun, over = planned and not state.todo.open_kinds, False
    else:
        begun, over = is_open, planned and not is_open
    if over or state.ended:
        return Text(f"✓ {name}", style="green")
    return Text(f"▸ {name}", style="bold") if begun else Text(f"· {name}", style="dim")


def _workers(state: LiveState, at: float) -> Iterator[RenderableType]:
    workers, doing = state.workers, Counter[str]()
    for worker in workers.by_name.values():
        if worker.task is not None:
            doing[_activity(state, worker.task)] += 1
        elif worker.joined:
            doing["cooling down" if workers.is_cooling_down(worker) else "idle"] += 1
    listed = ", ".join(f"{count} {what}" for what, count in doing.items())
    said = [f"{counted(workers.joined, 'worker')}: {listed}"] if workers.joined else []
    if starting := workers.starting:
        waited = duration(at - min(worker.since for worker in starting))
        said.append(f"starting {counted(len(starting), 'worker')}, {waited}")
    yield Text.assemble("; ".join(said), (f"; {workers.lost} lost" if workers.lost else "", "red"))
    if workers.joined <= LISTED_WORKERS:
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, worker in workers.by_name.items():
            if worker.task is not None:
                task = state.todo.task(worker.task)
                cell = "" if task.cell is None else task.cell.label
                done = worker.doing or (f"{worker.fraction:.0%}" if worker.fraction else "")
                table.add_row(f"  {name}", _activity(state, worker.task), Text(cell), done, style="dim")
        for column in table.columns:
            column.no_wrap = True
        yield table


def _activity(state: LiveState, task: str) -> str:
    kind = task.split("/")[0]
    return state.kinds[kind].activity if kind in state.kinds else kind


def grid(state: LiveState, width: int, height: int) -> list[RenderableType]:
    """A table with each cell's score or, before it has one, how much is sampled; at most `height` lines."""
    rows = list(dict.fromkeys(cell.row for cell in state.cells.values()))
    columns = list(dict.fromkeys(cell.column for cell in state.cells.values()))
    space = height - 3  # a heading, a line that counts hidden rows, and a gap
    if not rows or space < min(FEWEST_ROWS, len(rows)):
        return []
    by_position = {(cell.row, cell.column): (name, cell) for name, cell in state.cells.items()}
    done = [all(by_position[r, c][1].value is not None for c in columns if (r, c) in by_position) for r in rows]
    first = (done.index(False) if False in done else len(done)) - 1  # the row before the first that is not done
    first = max(0, min(first, len(done) - space))
    label = min(max(map(cell_len, [state.metric, *rows])), width // 2)
    shown = columns[: _fitting(columns, width - label)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(state.metric or "done", no_wrap=True, max_width=label)
    for name in shown:
        table.add_column(Text(name), justify="right", no_wrap=True, min_width=max(NARROWEST, cell_len(name)))
    if len(shown) < len(columns):
        table.add_column(Text("…", style="dim"))
    begun = state.begun
    for row in rows[first : first + space]:
        cells = (by_position.get((row, name)) for name in shown)
        table.add_row(Text(row), *(_entry(cell[1], begun[cell[0]]) if cell else "" for cell in cells))
    hidden = len(rows) - space
    return [table, *([Text(f"and {counted(hidden, 'more row')}", style="dim")] if hidden > 0 else []), Text()]


def _fitting(columns: Sequence[str], space: int) -> int:
    """How many columns fit beside each other; at least one."""
    for count, name in enumerate(columns):
        space -= max(NARROWEST, cell_len(name)) + 2
        if space < 0:
            return max(1, count)
    return len(columns)


def _entry(cell: GridCell, begun: float) -> Text:
    """A cell's score, or how much is sampled; unfinished tasks have done `begun` of its network evaluations."""
    if cell.value is not None:
        return Text(f"{cell.value:.4g}")
    if cell.note:
        return Text(cell.note, style="red")
    done = cell.done + begun
    return Text(percent(done, cell.total) if done else "·", style="dim")
