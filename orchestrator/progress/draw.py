"""Draws a session: the grid as a table that fills in, its stages, bars, and workers."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.constrain import Constrain
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from taugrid.api import STAGES
from taugrid.orchestrator.progress.state import GridCell, LiveState, Stage, percent
from taugrid.words import counted, duration

WIDEST_BARS = 100
"""Columns of a line with a bar; a longer bar tells no more."""

LISTED_WORKERS = 4
"""Up to this many workers get a line each. More are only counted, by what they do."""

FEWEST_ROWS = 3
"""With space for fewer rows, there is no table."""

NARROWEST = 6
"""Characters of a column of the grid; a score has up to 5."""


def frame(
    state: LiveState | None, stage: Stage | None, at: float, console: Console, options: ConsoleOptions
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
        yield Text("  ").join(_stage(state, name) for name in _stages(state))
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


def _stages(state: LiveState) -> list[str]:
    """The stages of the session in their order; reconstruction and interpolation are the last of theirs."""
    shown = [name for name in state.stages if name != "train" or state.trainings is not None]
    return sorted(shown, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))


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
                done = f"{worker.fraction:.0%}" if worker.last else ""
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
    by_place = {(cell.row, cell.column): (name, cell) for name, cell in state.cells.items()}
    done = [all(by_place[r, c][1].value is not None for c in columns if (r, c) in by_place) for r in rows]
    first = _first_row(done, space)
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
        places = (by_place.get((row, name)) for name in shown)
        table.add_row(Text(row), *(_entry(place[1], begun[place[0]]) if place else "" for place in places))
    hidden = len(rows) - space
    return [table, *([Text(f"and {counted(hidden, 'more row')}", style="dim")] if hidden > 0 else []), Text()]


def _first_row(done: Sequence[bool], space: int) -> int:
    """The row that the table begins with, if not all fit: the one before the first that is not done."""
    first = done.index(False) if False in done else len(done)
    return max(0, min(first - 1, len(done) - space))


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
