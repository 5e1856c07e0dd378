"""Draws what is known of the work as lines that fit a terminal. A line that wrapped would make rich erase messages."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from taugrid.orchestrator.progress.stage import Stage, Stand
from taugrid.orchestrator.progress.state import GridCell, LiveState
from taugrid.words import counted, duration

LONGEST_BAR = 60
"""Columns of the bar; a longer one tells no more."""

SHORTEST_BAR = 10

BESIDE_THE_BAR = 36
"""Columns that stay for the remaining time: the bar must not change its length with it."""

LISTED_WORKERS = 4
"""Up to so many workers have a line each. Of more, it is counted what they do."""

FEWEST_ROWS = 3
"""Rows of the table that are worth their heading."""

GAP = "  "
STAGES = ("train", "sample", "reconstruct", "interpolate", "evaluate", "report")
"""In the order in which a session does them."""


@dataclass(frozen=True)
class Space:
    """What there is of a terminal."""

    width: int
    height: int


def fit(line: Text, width: int) -> Text:
    """`line`, cut with an ellipsis if it is wider than that, and never wrapped."""
    line.truncate(width, overflow="ellipsis")
    line.no_wrap, line.overflow = True, "crop"
    return line


def frame(state: LiveState | None, stage: Stage | None, at: float, space: Space) -> list[Text]:
    """All lines, from top to bottom: the table first, because what is at the bottom stays where it is."""
    width = space.width - 1  # some terminals wrap after the last column
    below: list[Text] = []
    if state is not None and state.stages:
        below.append(_stages(state))
    if stage is not None:
        below += _work(stage.stand(at), width)
        if not stage.has_begun:
            below.append(Text(f"starting, {duration(at - stage.since)}", style="dim"))
    elif state is not None and state.todo.open_kinds:
        below += [*_work(state.stand(at)._replace(name="", note="", workers=0), width), *_workers(state, at)]
    above = [] if state is None else table(state, width, space.height - len(below) - 2)
    return [fit(line, width) for line in [*above, *below]]


def _stages(state: LiveState) -> Text:
    """The stages of the session: done, under way, or to come."""
    asked = [name for name in STAGES if name in state.stages and (name != "train" or state.training is not None)]
    return Text(GAP).join(_stage(state, name) for name in asked)


def _stage(state: LiveState, name: str) -> Text:
    kinds = [kind for kind in state.todo.all if kind in state.kinds and state.kinds[kind].stage == name]
    planned, is_open = bool(state.todo.all), not state.todo.open_kinds.isdisjoint(kinds)
    if name == "train":
        begun, over = bool(state.training), planned or state.training is False
    elif name == "report":
        begun, over = planned and not state.todo.open_kinds, False
    else:
        begun, over = is_open, planned and not is_open
    if over or state.ended:
        return Text(f"✓ {name}", style="green")
    said = _of_stage(state, kinds) if is_open else ""
    return Text(f"▸ {name}{said}", style="bold") if begun else Text(f"· {name}", style="dim")


def _of_stage(state: LiveState, kinds: Sequence[str]) -> str:
    """How far a stage is: its finished cells if they are counted, else in percent."""
    done, total = state.todo.done, state.todo.all
    if told := [kind for kind in kinds if state.kinds[kind].finished]:
        return (
            f" {sum(done[kind].tasks for kind in told)} of {counted(sum(total[kind].tasks for kind in told), 'cell')}"
        )
    return f" {_percent(sum(map(state.done, kinds)), sum(total[kind].cost for kind in kinds))}"


def _work(stand: Stand, width: int) -> Iterator[Text]:
    """The bar, and the numbers below it: in one line if they fit, else in two."""
    share = min(1.0, stand.done / stand.total) if stand.total else 0.0
    beside = GAP.join(filter(None, [f" {_percent(stand.done, stand.total):>4}", stand.left]))
    columns = max(SHORTEST_BAR, min(LONGEST_BAR, width - BESIDE_THE_BAR))
    full = int(share * columns)
    yield Text.assemble(("━" * full, "green"), ("━" * (columns - full), "dim"), beside)
    amount = f"{stand.name}: {stand.amount}" if stand.name else stand.amount
    workers = counted(stand.workers, "worker") if stand.workers else ""
    rest = ", ".join(filter(None, [*stand.rates, workers, stand.note]))
    if cell_len(amount) + 2 + cell_len(rest) <= width:
        yield Text(", ".join(filter(None, [amount, rest])))
    else:
        yield from (Text(amount), Text(rest))


def _workers(state: LiveState, at: float) -> Iterator[Text]:
    """Who is there, and at what."""
    hands, doing = state.hands, Counter[str]()
    for hand in hands.by_name.values():
        if hand.task is not None:
            doing[_activity(state, hand.task)] += 1
        elif hand.joined:
            doing["benched" if hand.benched else "idle"] += 1
    listed = ", ".join(f"{count} {what}" for what, count in doing.items())
    said = f"{counted(hands.joined, 'worker')}: {listed}" if hands.joined else ""
    if starting := hands.starting:
        waited = duration(at - min(hand.since for hand in starting))
        said = "; ".join(filter(None, [said, f"starting {counted(len(starting), 'worker')}, {waited}"]))
    lost = (f"; {hands.lost} lost", "red") if hands.lost else ""
    yield Text.assemble(said, lost)
    if hands.joined <= LISTED_WORKERS:
        yield from (Text(line, style="dim") for line in _each_worker(state))


def _each_worker(state: LiveState) -> Iterator[str]:
    names = [name for name, hand in state.hands.by_name.items() if hand.task is not None]
    longest = max(map(len, names), default=0)
    for name in names:
        hand = state.hands.by_name[name]
        assert hand.task is not None
        item = state.item(hand.task)
        cell = state.cells.get(item.cell or "")
        what = f"{cell.column} {cell.row}" if cell else ""
        done = f"{hand.fraction:.0%}" if hand.last else ""
        parts = [f"  {name:{longest}}", _activity(state, hand.task), what, done]
        yield GAP.join(filter(None, parts))


def _activity(state: LiveState, task: str) -> str:
    kind = task.split("/")[0]
    return state.kinds[kind].activity if kind in state.kinds else kind


def _percent(done: float, total: float) -> str:
    """Never 100 % before all is done."""
    share = done / total if total else 0.0
    return f"{min(int(share * 100), 100 if done >= total else 99)}%"


def table(state: LiveState, width: int, height: int) -> list[Text]:
    """The grid with what is known of each cell: its score, or how much of it is sampled; at most `height` lines."""
    rows = list(dict.fromkeys(cell.row for cell in state.cells.values()))
    columns = list(dict.fromkeys(cell.column for cell in state.cells.values()))
    room = height - 3  # a heading, a line for rows that are left out, and a gap
    if not rows or room < min(FEWEST_ROWS, len(rows)):
        return []
    by_place = {(cell.row, cell.column): cell for cell in state.cells.values()}
    first = _first_row(rows, by_place, columns, room)
    shown = rows[first : first + room]
    heading = state.metric or "sampled"
    label = min(max(map(cell_len, [heading, *shown])), width // 2)
    begun = state.begun
    entries = {(cell.row, cell.column): _entry(cell, begun[name]) for name, cell in state.cells.items()}
    widths = [
        max([cell_len(column), 6, *(len(entries[r, column].plain) for r in shown if (r, column) in entries)])
        for column in columns
    ]
    fitting = _fitting(widths, width - label)
    lines = [_row(Text(heading, "bold"), label, [Text(name, "bold") for name in columns], widths, fitting)]
    for row in shown:
        lines.append(_row(Text(row), label, [entries.get((row, name), Text()) for name in columns], widths, fitting))
    if hidden := len(rows) - len(shown):
        lines.append(Text(f"and {counted(hidden, 'more row')}", style="dim"))
    return [*lines, Text()]


def _first_row(rows: Sequence[str], cells: dict[tuple[str, str], GridCell], columns: Sequence[str], room: int) -> int:
    """The row that the table begins with, if not all fit: the one before the first that is not done."""
    done = [all(cells[r, c].value is not None for c in columns if (r, c) in cells) for r in rows]
    first = done.index(False) if False in done else len(rows)
    return max(0, min(first - 1, len(rows) - room))


def _fitting(widths: Sequence[int], room: int) -> int:
    """How many columns fit."""
    for count in range(len(widths)):
        room -= widths[count] + len(GAP)
        if room < 0:
            return count
    return len(widths)


def _row(label: Text, label_width: int, entries: Sequence[Text], widths: Sequence[int], fitting: int) -> Text:
    line = Text(set_cell_size(label.plain, label_width), style=label.style)
    line = Text.assemble(line)
    for entry, width in list(zip(entries, widths, strict=True))[:fitting]:
        line.append(GAP + " " * (width - cell_len(entry.plain)))
        line.append_text(entry)
    if fitting < len(entries):
        line.append(" …", style="dim")
    return line


def _entry(cell: GridCell, begun: float) -> Text:
    """What is known of a cell; workers have `begun` so many of its network evaluations."""
    if cell.value is not None:
        return Text(f"{cell.value:.4g}")
    if cell.note:
        return Text(cell.note, style="red")
    done = cell.done + begun
    return Text(_percent(done, cell.total) if done else "·", style="dim")
