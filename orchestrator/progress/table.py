"""The grid as a table that fills in, cut to the lines and columns that there are."""

from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from taugrid.orchestrator.progress.state import GridCell, LiveState
from taugrid.words import counted

FEWEST_ROWS = 3
"""With room for fewer rows, there is no table."""

GAP = "  "


def table(state: LiveState, width: int, height: int) -> list[Text]:
    """The grid with each cell's score or, before it has one, how much is sampled; at most `height` lines."""
    rows = list(dict.fromkeys(cell.row for cell in state.cells.values()))
    columns = list(dict.fromkeys(cell.column for cell in state.cells.values()))
    room = height - 3  # a heading, a line that counts hidden rows, and a gap
    if not rows or room < min(FEWEST_ROWS, len(rows)):
        return []
    by_place = {(cell.row, cell.column): cell for cell in state.cells.values()}
    first = _first_row(rows, by_place, columns, room)
    shown = rows[first : first + room]
    heading = state.metric or "done"
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


def _first_row(
    rows: Sequence[str], cells: Mapping[tuple[str, str], GridCell], columns: Sequence[str], room: int
) -> int:
    """The row that the table begins with, if not all fit: the one before the first that is not done."""
    done = [all(cells[r, c].value is not None for c in columns if (r, c) in cells) for r in rows]
    first = done.index(False) if False in done else len(rows)
    return max(0, min(first - 1, len(rows) - room))


def _fitting(widths: Sequence[int], room: int) -> int:
    for count in range(len(widths)):
        room -= widths[count] + len(GAP)
        if room < 0:
            return count
    return len(widths)


def _row(label: Text, label_width: int, entries: Sequence[Text], widths: Sequence[int], fitting: int) -> Text:
    line = Text.assemble((set_cell_size(label.plain, label_width), label.style))
    for entry, width in list(zip(entries, widths, strict=True))[:fitting]:
        line.append(GAP + " " * (width - cell_len(entry.plain)))
        line.append_text(entry)
    if fitting < len(entries):
        line.append(" …", style="dim")
    return line


def _entry(cell: GridCell, begun: float) -> Text:
    """A cell's score, or how much is sampled; unfinished tasks have done `begun` of its network evaluations."""
    if cell.value is not None:
        return Text(f"{cell.value:.4g}")
    if cell.note:
        return Text(cell.note, style="red")
    done = cell.done + begun
    return Text(percent(done, cell.total) if done else "·", style="dim")


def percent(done: float, total: float) -> str:
    """A share in percent; never 100 before all is done."""
    share = done / total if total else 0.0
    return f"{min(int(share * 100), 100 if done >= total else 99)}%"
