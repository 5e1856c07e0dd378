"""The tables for a terminal: of every metric, and of reconstruction errors.

The best of a column is bold or, in a log, a pipe and a terminal without colours, marked with a star.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from taugrid.eval.tables.entries import Entry
from taugrid.eval.tables.pivots import Pivot
from taugrid.eval.tables.quality import MetricTables, QualityTable
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_pivot

CONSOLE_WIDTH = 80
"""Characters that tables take at most. rich assumes as many if there is no terminal; a narrower one gets narrower
tables."""
MAX_ROWS = 60
"""Of the tables of further metrics together. More would push what matters off the screen."""
MIN_LABEL_WIDTH = 10
"""Characters that a label gets at least, however many there are in a row; longer ones are folded."""
BEST = "*"
"""The mark of the best of a column where nothing can be bold."""


@dataclass(frozen=True)
class Drawn:
    """What `rich` prints. It is made as it is printed: only then is it known whether the console shows bold."""

    parts: Callable[[bool, int], Iterator[RenderableType]]
    """Takes whether it does, and how many characters there are."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shows_bold = console.color_system is not None and not console.no_color
        yield from self.parts(shows_bold, min(CONSOLE_WIDTH, options.max_width))


def to_console(table: QualityTable) -> Drawn:
    """The tables of every metric, for `rich` to print; notes and the star's meaning stand below the first.

    A table wider than 80 characters, or than the terminal, gets its errors below the values; if it is still too wide,
    it is split by its columns.
    """
    first, *others = table.sections

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        for pivot in first.tables:
            yield Text(": ".join(filter(None, [first.metric.heading, pivot.label])))
            yield from _console_tables(pivot, bold, width)
            yield from map(Text, pivot.notes)
        yield from map(Text, filter(None, [first.caption, *_star(first.tables, bold), *first.legend]))
        if sum(len(pivot.values) for section in others for pivot in section.tables) > MAX_ROWS:
            yield Text(f"{' and '.join(section.metric.title for section in others)}: see tables/quality.md")
        elif others:
            yield from (part for section in others for part in _below(section, bold, width))
            yield Text()

    return Drawn(parts)


def _below(section: MetricTables, bold: bool, width: int) -> Iterator[RenderableType]:
    """The tables of a further metric."""
    metric = section.metric
    heading = f"{metric.heading}; ± is {metric.error_means}" if metric.error_means else metric.heading
    for pivot in section.tables:
        yield from (Text(), Text(": ".join(filter(None, [heading, pivot.label]))))
        yield from _console_tables(pivot, bold, width)
    yield from map(Text, section.legend)


def reconstruction_to_console(frame: pd.DataFrame, about: str, notes: Sequence[str] = ()) -> Drawn:
    """The table of reconstruction errors, with `about` and `notes` below it, as `write_reconstruction` takes them."""
    table, metric = reconstruction_pivot(frame), RECONSTRUCTION_ERROR
    with_errors = table.errors.notna().any(axis=None)

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        yield Text(metric.heading)
        yield from _console_tables(table, bold, width)
        error_means = [f"± is {metric.error_means}."] if with_errors else []
        yield from map(Text, [*_star([table], bold), about, *table.notes, *error_means, *notes])

    return Drawn(parts)


def _star(tables: Sequence[Pivot], bold: bool) -> list[str]:
    """The line that says what the star means, if there is one."""
    return [f"{BEST} the best of its column."] if not bold and any(table.has_best for table in tables) else []


def _console_tables(pivot: Pivot, bold: bool, room: int) -> Iterator[Table]:
    """The parts of a table that fit side by side into `room` characters."""
    rows = pivot.entries
    if not bold:
        rows = [[entry._replace(mark=BEST * entry.best + entry.mark) for entry in row] for row in rows]
    gap = 2  # a space of padding, and one where the box has its divider
    labels_of = list(zip(pivot.row_headings, *pivot.labels, strict=True))
    label_widths = _fitted([max(map(len, column)) for column in labels_of], room // 2)
    for_labels = sum(label_widths) + gap * (len(label_widths) - 1)
    for separator in (" ", "\n"):
        columns = [_aligned(head, column, separator) for head, *column in zip(pivot.columns, *rows, strict=True)]
        widths = [gap + len(column[0]) for column in columns]
        if for_labels + sum(widths) <= room:
            break
    parts: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if parts[-1] and for_labels + sum(widths[j] for j in parts[-1]) + width > room:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for head, label_width in zip(pivot.row_headings, label_widths, strict=True):
            table.add_column(Text(head), width=label_width, overflow="fold")
        for i in part:
            table.add_column(Text(columns[i][0]))
        for k, label in enumerate(pivot.labels):
            entered = (Text(columns[i][k + 1], "bold" if bold and rows[k][i].best else "") for i in part)
            table.add_row(*map(Text, label), *entered)
        yield table


def _fitted(lengths: Sequence[int], room: int) -> list[int]:
    """Widths of labels that fit into `room`: the longest are folded, but none below `MIN_LABEL_WIDTH`."""
    widths = list(lengths)
    while sum(widths) > room and max(widths) > MIN_LABEL_WIDTH:
        widths[widths.index(max(widths))] -= 1
    return widths


def _aligned(head: str, column: Sequence[Entry], separator: str) -> list[str]:
    """The head and the entries of a column, padded to one width, with aligned digits and marks after them."""
    room = max(len(entry.mark) for entry in column)
    blocks = [(head, ""), *((entry.joined(separator), entry.mark) for entry in column)]
    width = max(len(line) for text, _ in blocks for line in text.split("\n"))
    return [
        "\n".join(line.rjust(width) for line in text.split("\n")) + (f" {mark.ljust(room)}" if room else "")
        for text, mark in blocks
    ]
