"""Progress on stderr: a live view at the bottom of a terminal, otherwise a plain line now and then.

The view is the grid as a table that fills in, the stages of the session, bars, and workers.
"""

import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from taugrid.config import Config
from taugrid.orchestrator import STAGES
from taugrid.orchestrator.observers import Observer
from taugrid.orchestrator.progress.state import GridCell, SessionSnapshot, SessionState
from taugrid.words import counted, duration, printable, quantity, with_urls

PLAIN_INTERVAL_SECONDS = 10.0  # time between plain lines: often enough to show that it is alive, rare enough for a log

REFRESH_SECONDS = 1.0
"""The minimum time between two looks: each visits all workers and open tasks, and there are hundreds of events."""

WINDOW_SECONDS = 60.0  # a rate is the average over this many of the last seconds

FRAMES_A_SECOND = 4

KEPT_LINES = 60  # the most lines of a table that stays on the screen after the view

WIDEST_BARS = 100  # columns of a line with a bar; a longer bar tells no more

FEWEST_ROWS = 3  # with space for fewer rows, there is no table

NARROWEST = 6  # characters of a column of the grid; a score has up to 5


class Console(RichConsole):
    """rich's, with control characters in texts as escapes: names in files of others must not steer a terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, whose texts are printable. Colours and movements are apart from texts."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


class _Percent(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(f"{percent(task.completed, task.total or 0.0):>4}")


def percent(done: float, total: float) -> str:
    """A share in percent; never 100 before all is done."""
    share = done / total if total else 0.0
    return f"{min(int(share * 100), 100 if done >= total else 99)}%"


def _new_bars(clock: Callable[[], float]) -> Bars:
    """Bars that measure rates by `clock`, to be shown as a part of another live view."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), _Percent()
    return Bars(*columns, auto_refresh=False, speed_estimate_period=WINDOW_SECONDS, get_time=clock, expand=True)


def _line(bar: Bar, unit: str, rates: Sequence[str], then: str, notes: Sequence[str]) -> str:
    """A bar in words: what is done, at which rates, and the time that the rest takes."""
    amount = f"{quantity(bar.completed)} of {quantity(bar.total or 0.0)} {unit}"
    left = f"{duration(bar.time_remaining)} left{then}" if bar.time_remaining else ""
    return f"{bar.description}: {', '.join(filter(None, [amount, *rates, left, *notes]))}"


def _rate(bar: Bar, unit: str = "") -> str:
    return "" if bar.speed is None else f"{quantity(bar.speed)}{unit}/s"


class Stage:
    """One bar, for work that is not divided into tasks."""

    def __init__(self, name: str, total: float, unit: str, clock: Callable[[], float], waits: bool) -> None:
        """`waits`: the clock starts at the first `update`; until then, workers are starting."""
        self.bars = _new_bars(clock)
        self._bar = self.bars.add_task(name, start=not waits, total=total)
        self._unit, self._workers, self._note = unit, 0, ""
        self.since = clock()  # the time when it was announced

    @property
    def has_begun(self) -> bool:
        return self.bars.tasks[0].started

    def update(self, done: float, workers: int, note: str) -> None:
        """Set what is done. Work that was done before the clock started does not count towards the rate."""
        if not self.has_begun:
            self.bars.reset(self._bar, completed=int(done))
        self._workers, self._note = workers, note
        self.bars.update(self._bar, completed=done)

    @property
    def line(self) -> str:
        bar, workers = self.bars.tasks[0], counted(self._workers, "worker") if self._workers else ""
        return _line(bar, self._unit, [_rate(bar)], "", [workers, self._note])


class Progress(Observer):
    """Shows how far a session is (`show`), or one stage at a time (`begin`), and says lines that stay. A thread of its
    own draws the live view, so that it goes on while Ray's C++ holds the main thread. What it draws is changed under
    `_lock`. Nothing is printed under that lock, because rich has locks of its own."""

    def __init__(
        self, console: RichConsole | None = None, live: bool | None = None, clock: Callable[[], float] = time.time
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
        self._last_plain = clock()
        self._begin_session(())

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
        line = self.line
        self._view.stop()
        if self._is_live and error is not None and line:
            self.say(line)  # the view is gone, and what it said last may matter

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        """What fits a terminal; the table first, because what is at the bottom stays where it is."""
        width = options.max_width - 1  # some terminals wrap after the last column
        with self._lock:
            below = Group(*self._below())
            lines = len(console.render_lines(below, options.update_width(width), pad=False))
            above = [] if self.state is None else grid(self.state, width, console.height - lines - 1)
            drawn = console.render_lines(Group(*above, below), options.update_width(width), pad=False, new_lines=True)
        yield Segments(segment for line in drawn[: console.height - 1] for segment in line)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(with_urls(text), markup=False, highlight=False, soft_wrap=True)

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        with self._shown():
            self._begin_session(stages)

    def _begin_session(self, stages: Sequence[str]) -> None:
        self._stages = stages
        self.state: SessionState | None = None  # the session that is shown; None: it has not come to its tasks
        self.stage: Stage | None = None
        self._has_stage = False  # the session has, or had one: it trains
        self._bars, self._bar_of = _new_bars(self._clock), dict[str, TaskID]()
        self._images = self._bars.add_task("images", total=None, visible=False)
        self._looked = float("-inf")

    def reads_scores(self, has_tasks: bool) -> bool:
        """Whether the scores of cells are shown, in a session that has tasks or not."""
        return self._is_live or (has_tasks and not self._console.quiet)

    def keep_table(self) -> None:
        """End the view and leave its table on the screen."""
        with self._lock:
            kept = grid(self.state, self._console.width - 1, KEPT_LINES) if self._is_live and self.state else []
            self.state = self.stage = None
            self._stages = ()
        self._view.stop()
        for part in kept:
            self._console.print(part)

    def show(self, state: SessionState) -> None:
        """Show this from now on."""
        with self._shown():
            self.state = state
            self._update_bars(state)

    def tick(self, look: Callable[[], SessionSnapshot], at_once: bool = False) -> None:
        """Time has passed: show how far the session is, if it is time to look, or `at_once`."""
        now, state = self._clock(), self.state
        if state is None or self._console.quiet or (now - self._looked < REFRESH_SECONDS and not at_once):
            return
        self._looked, snapshot = now, look()
        scores = state.new_scores(snapshot)  # it reads files
        with self._shown():
            state.hear(snapshot, scores)
            self._update_bars(state)

    def begin(self, stage: str, total: float, unit: str, waits: bool = False) -> None:
        """Begin a stage of `total` units of work; if it `waits`, its clock starts with the first `update`."""
        with self._shown():
            self.stage, self._last_plain = Stage(stage, total, unit, self._clock, waits), self._clock()
            self._has_stage = True

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
        elif now - self._last_plain >= PLAIN_INTERVAL_SECONDS and (line := self.line):
            self._last_plain = now
            self.say(line)

    def _update_bars(self, state: SessionState) -> None:
        for name, work in state.work.items():
            if name not in self._bar_of:
                self._bar_of[name] = self._bars.add_task(work.kind.activity, total=None)
            self._bars.update(self._bar_of[name], total=work.total, completed=min(work.done + work.begun, work.total))
        self._bars.update(self._images, completed=state.images)

    @property
    def line(self) -> str:
        """How far the work is, in a line; empty if none has begun, or none is left."""
        if self.stage is not None:
            return self.stage.line if self.stage.has_begun else ""
        has_begun = self.state is not None and any(work.has_begun for work in self.state.work.values())
        return self._line_of_tasks(with_workers=True) if has_begun else ""

    def _line_of_tasks(self, with_workers: bool) -> str:
        """The line of the kind of work that is under way, with the numbers of those that are always counted."""
        state = self.state
        if state is None or (main := state.main) is None:
            return ""
        work, bar = state.work[main], self._bars.tasks[self._bar_of[main]]
        images = _rate(self._bars.tasks[self._images], " images") if work.kind.counts_images else ""
        others = [other for other in state.work.values() if other is not work]
        later = dict.fromkeys(other.kind.activity for other in others if other.open and not other.has_begun)
        then = f" then {' and '.join(later)}" if later else ""
        nouns = [(other, noun) for other in others if (noun := other.kind.finished_noun)]
        finished = [f"{other.done:.0f} of {other.total:.0f} {noun}" for other, noun in nouns]
        joined = state.last.joined
        counts = Counter(busy.doing for busy in state.last.busy if busy.doing)
        doing = ", ".join(what if count == joined else f"{count} {what}" for what, count in counts.items())
        workers = f"{counted(joined, 'worker')}{f' ({doing})' if doing else ''}" if with_workers and joined else ""
        rates = [] if work.kind.finished_noun else [_rate(bar), images]
        return _line(bar, work.kind.finished_noun or work.kind.unit, rates, then, [workers, *finished])

    def _below(self) -> Iterator[RenderableType]:
        state, stage = self.state, self.stage
        if stages := list(self._stages_in_words()):
            yield Text("  ").join(stages)
        if stage is not None:
            yield Constrain(stage.bars.get_renderable(), WIDEST_BARS)
            yield Text(stage.line)
            if not stage.has_begun:
                yield Text(f"starting, {duration(self._clock() - stage.since)}", style="dim")
        elif state is not None and state.main is not None:
            yield Constrain(self._bars.get_renderable(), WIDEST_BARS)
            yield Text(self._line_of_tasks(with_workers=False))
            yield _workers(state)

    def _stages_in_words(self) -> Iterator[Text]:
        """The stages of the session: done, under way, or to come."""
        state = self.state
        is_open = {work.kind.stage for work in state.work.values() if work.open} if state is not None else set[str]()
        # Reconstruction and interpolation, the others, are the last of theirs.
        for name in sorted(self._stages, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES)):
            if name == "train":
                if not self._has_stage:
                    continue
                begun, over = self.stage is not None, self.stage is None
            elif name == "report":
                begun, over = state is not None and not is_open, False
            else:
                begun, over = name in is_open, state is not None and name not in is_open
            if over:
                yield Text(f"✓ {name}", style="green")
            else:
                yield Text(f"▸ {name}", style="bold") if begun else Text(f"· {name}", style="dim")


def _workers(state: SessionState) -> Text:
    workers = state.last
    doing = Counter(busy.doing or state.work[busy.task.kind].kind.activity for busy in workers.busy)
    doing += Counter({"cooling down": workers.cooling_down, "idle": workers.idle})
    listed = ", ".join(f"{count} {what}" for what, count in doing.items())
    said = [f"{counted(workers.joined, 'worker')}: {listed}"] if workers.joined else []
    if workers.starting:
        said.append(f"starting {counted(workers.starting, 'worker')}, {duration(workers.waited)}")
    return Text.assemble("; ".join(said), (f"; {workers.lost} lost" if workers.lost else "", "red"))


def grid(state: SessionState, width: int, height: int) -> list[RenderableType]:
    """A table with each cell's score or, before it has one, how much is sampled; at most `height` lines."""
    rows = list(dict.fromkeys(cell.row for cell in state.cells.values()))
    columns = list(dict.fromkeys(cell.column for cell in state.cells.values()))
    space = height - 3  # a heading, a line that counts hidden rows, and a gap
    if not rows or space < min(FEWEST_ROWS, len(rows)):
        return []
    by_position = {(cell.row, cell.column): cell for cell in state.cells.values()}
    done = [all(by_position[r, c].value is not None for c in columns if (r, c) in by_position) for r in rows]
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
    for row in rows[first : first + space]:
        cells = (by_position.get((row, name)) for name in shown)
        table.add_row(Text(row), *(_entry(cell) if cell else "" for cell in cells))
    hidden = len(rows) - space
    return [table, *([Text(f"and {counted(hidden, 'more row')}", style="dim")] if hidden > 0 else []), Text()]


def _fitting(columns: Sequence[str], space: int) -> int:
    """How many columns fit beside each other; at least one."""
    for count, name in enumerate(columns):
        space -= max(NARROWEST, cell_len(name)) + 2
        if space < 0:
            return max(1, count)
    return len(columns)


def _entry(cell: GridCell) -> Text:
    """A cell's score, or how much is sampled."""
    if cell.value is not None:
        return Text(f"{cell.value:.4g}")
    if cell.failed:
        return Text("failed", style="red")
    done = cell.done + cell.begun
    return Text(percent(done, cell.total) if done else "·", style="dim")
