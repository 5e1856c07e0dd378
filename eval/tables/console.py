"""Tables for a terminal: of every metric, and of reconstruction errors.

The best of a column is bold, or marked with a star in a log, a pipe and a terminal without colours.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from taugrid.eval.tables.entries import Entry
from taugrid.eval.tables.labels import short_samplers
from taugrid.eval.tables.pivots import Pivot
from taugrid.eval.tables.quality import MetricTables, QualityTable
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_pivot

CONSOLE_WIDTH = 80
"""The largest width of tables, in characters, which rich also assumes if there is no terminal. A narrower terminal gets
narrower tables."""
MAX_ROWS = 60
"""Rows in all tables of further metrics. With more, they are left out, or the first would scroll off the screen."""
MIN_LABEL_WIDTH = 10
"""Characters to which a label may be folded."""
BEST = "*"
"""The mark of the best of a column where nothing can be bold."""


@dataclass(frozen=True)
class LazyRenderable:
    """Text and tables that are made when `rich` prints them: only then it is known whether the console shows bold."""

    parts: Callable[[bool, int], Iterator[RenderableType]]
    """Called with (shows_bold, width), the width in characters."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shows_bold = console.color_system is not None and not console.no_color
        yield from self.parts(shows_bold, min(CONSOLE_WIDTH, options.max_width))


def to_console(table: QualityTable) -> LazyRenderable:
    """The tables of every metric, for `rich` to print; notes and the star's meaning are below the first.

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
            yield from (part for section in others for part in _further_tables(section, bold, width))
            yield Text()

    return LazyRenderable(parts)


def _further_tables(section: MetricTables, bold: bool, width: int) -> Iterator[RenderableType]:
    """The tables of a metric that is not the first."""
    metric = section.metric
    means = "" if section.caption else section.error_means.rstrip(".")  # the caption is below the first table
    heading = "; ".join(filter(None, (metric.heading, means)))
    for pivot in section.tables:
        yield from (Text(), Text(": ".join(filter(None, [heading, pivot.label]))))
        yield from _console_tables(pivot, bold, width)
    yield from map(Text, section.legend)


def reconstruction_to_console(frame: pd.DataFrame, about: str, notes: Sequence[str] = ()) -> LazyRenderable:
    """The table of reconstruction errors, with `about` and `notes` of `write_reconstruction` below it."""
    table, metric = reconstruction_pivot(frame), RECONSTRUCTION_ERROR
    with_errors = table.errors.notna().any(axis=None)

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        yield Text(metric.heading)
        yield from _console_tables(table, bold, width)
        error_means = [f"± is {metric.error_means}."] if with_errors else []
        yield from map(Text, [*_star([table], bold), about, *table.notes, *error_means, *notes])

    return LazyRenderable(parts)


def _star(tables: Sequence[Pivot], bold: bool) -> list[str]:
    """The line that explains the star, if there is one."""
    return [f"{BEST} the best of its column."] if not bold and any(table.has_best for table in tables) else []


def _console_tables(pivot: Pivot, bold: bool, width: int) -> Iterator[Table]:
    """The table, split by its columns into tables that are not wider than `width` characters."""
    rows = pivot.entries
    if not bold:
        rows = [[entry._replace(mark=(BEST if entry.best else "") + entry.mark) for entry in row] for row in rows]
    gap = 2  # a space of padding, and one where the box has its divider
    labels = [tuple(map(short_samplers, label)) for label in pivot.labels]
    label_columns = zip(pivot.row_headings, *labels, strict=True)
    lengths = [max(map(len, column)) for column in label_columns]
    gaps = gap * (len(lengths) - 1)
    for separator in (" ", "\n"):  # errors beside the values; below them if even folded labels leave too little room
        columns = [_aligned(head, column, separator) for head, *column in zip(pivot.columns, *rows, strict=True)]
        widths = [gap + len(column[0]) for column in columns]
        left = width - sum(widths) - gaps if separator == " " else width
        label_widths = _fit_widths(lengths, min(width // 2, left))
        label_width_total = sum(label_widths) + gaps
        if label_width_total + sum(widths) <= width:
            break
    parts: list[list[int]] = [[]]
    for i, column_width in enumerate(widths):
        if parts[-1] and label_width_total + sum(widths[j] for j in parts[-1]) + column_width > width:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for head, label_width in zip(pivot.row_headings, label_widths, strict=True):
            table.add_column(Text(_folded(head, label_width)), width=label_width, overflow="fold")
        for i in part:
            table.add_column(Text(columns[i][0]))
        for k, label in enumerate(labels):
            texts = (Text(columns[i][k + 1], "bold" if bold and rows[k][i].best else "") for i in part)
            table.add_row(*map(Text, map(_folded, label, label_widths)), *texts)
        yield table


def _folded(label: str, width: int) -> str:
    """A label in lines of at most `width` characters, which end behind " :_=" or a word where they can."""
    lines = [""]
    for part in re.split(r"(?<=[ :_=])|(?<=[a-z])(?=[A-Z])", label):
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _fit_widths(lengths: Sequence[int], total: int) -> list[int]:
    """Widths of labels whose sum is at most `total`: the longest are folded, but none below `MIN_LABEL_WIDTH`."""
    widths = list(lengths)
    while sum(widths) > total and max(widths) > MIN_LABEL_WIDTH:
        widths[widths.index(max(widths))] -= 1
    return widths


def _aligned(head: str, column: Sequence[Entry], separator: str) -> list[str]:
    """The heading and the entries of a column, padded to one width, with aligned digits and marks after them."""
    mark_width = max(len(entry.mark) for entry in column)
    cells = [(head, ""), *((entry.joined(separator), entry.mark) for entry in column)]
    width = max(len(line) for text, _ in cells for line in text.split("\n"))
    return [
        "\n".join(line.rjust(width) for line in text.split("\n")) + (f" {mark.ljust(mark_width)}" if mark_width else "")
        for text, mark in cells
    ]
