"""The tables for a terminal: of every metric, and of reconstruction errors.

The best of a column is bold or, in a log, a pipe and a terminal without colours, marked with a star.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from taugrid.eval.tables.ablation.one_table import USUAL, Layout
from taugrid.eval.tables.ablation.replicates import averaged
from taugrid.eval.tables.entries import Entry, entries, has_best, legend, marked_pivots, tabulated
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import Pivot
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_pivot
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

CONSOLE_WIDTH = 80
"""Characters that tables take at most. rich assumes as many if there is no terminal; a narrower one gets narrower
tables."""
MOST_ROWS = 60
"""Of the tables of further metrics together. More would push what matters off the screen."""
LEAST_LABEL = 10
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


def to_console(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
    layout: Layout = USUAL,
    metric: MetricColumn = FID,
) -> Drawn:
    """The tables of one metric, for `rich` to print; arguments as in `marked_pivots`.

    A table wider than 80 characters, or than the terminal, gets its errors below the values; if it is still too wide,
    it is split by S.
    """
    tables = marked_pivots(frame, metric, protocols, indistinguishable, joined, layout)
    of_means = "" if frame.empty else averaged(frame, protocols).caption()

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        for table in tables:
            yield Text(": ".join(filter(None, [metric.heading, table.label])))
            yield from _console_tables(table, metric, bold, width)
            yield from map(Text, table.notes)
        below = [of_means, *_star(tables, metric, bold), *legend(tables, metric)]
        yield from map(Text, filter(None, below))

    return Drawn(parts)


def others_to_console(
    frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields], joined: Set[str], layout: Layout, shown: MetricColumn
) -> Drawn:
    """The tables of all metrics but `shown`, without the notes and the star's meaning that stand below that one's."""
    others = [metric for metric in tabulated(frame) if metric.name != shown.name]
    pivots = {metric: marked_pivots(frame, metric, protocols, frozenset(), joined, layout) for metric in others}
    are_too_many = sum(len(table.values) for tables in pivots.values() for table in tables) > MOST_ROWS

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        if are_too_many:
            yield Text(f"{' and '.join(metric.title for metric in others)}: see tables/quality.md")
            return
        for metric, tables in pivots.items():
            heading = f"{metric.heading}; ± is {metric.error_means}" if metric.error_means else metric.heading
            for table in tables:
                yield from (Text(), Text(": ".join(filter(None, [heading, table.label]))))
                yield from _console_tables(table, metric, bold, width)
            yield from map(Text, legend(tables, metric))
        yield Text()

    return Drawn(parts)


def reconstruction_to_console(frame: pd.DataFrame, about: str, notes: Sequence[str] = ()) -> Drawn:
    """The table of reconstruction errors, with `about` and `notes` below it, as `write_reconstruction` takes them."""
    table, metric = replace(reconstruction_pivot(frame), heads=("",)), RECONSTRUCTION_ERROR
    with_errors = table.errors.notna().any(axis=None)

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        yield Text(metric.heading)
        yield from _console_tables(table, metric, bold, width)
        error_means = [f"± is {metric.error_means}."] if with_errors else []
        yield from map(Text, [*_star([table], metric, bold), about, *table.notes, *error_means, *notes])

    return Drawn(parts)


def _star(tables: Sequence[Pivot], metric: MetricColumn, bold: bool) -> list[str]:
    """The line that says what the star means, if there is one."""
    return [f"{BEST} the best of its column."] if not bold and has_best(tables, metric) else []


def _console_tables(pivoted: Pivot, metric: MetricColumn, bold: bool, room: int) -> Iterator[Table]:
    labels, rows = zip(*entries(pivoted, metric), strict=True)
    if not bold:
        rows = tuple([entry._replace(mark=BEST * entry.best + entry.mark) for entry in row] for row in rows)
    steps = [str(steps) for steps in pivoted.values.columns]
    gap = 2  # a space of padding, and one where the box has its divider
    heads = [*pivoted.heads[:-1], f"{pivoted.heads[-1]} \\ {pivoted.across}" if pivoted.heads[-1] else pivoted.across]
    lengths = [max(len(head), *map(len, column)) for head, *column in zip(heads, *labels, strict=True)]
    label_widths = _fitted(lengths, room // 2)
    for_labels = sum(label_widths) + gap * (len(heads) - 1)
    for separator in (" ", "\n"):
        columns = [_aligned(head, column, separator) for head, *column in zip(steps, *rows, strict=True)]
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
        for head, label_width in zip(heads, label_widths, strict=True):
            table.add_column(Text(head), width=label_width, overflow="fold")
        for i in part:
            table.add_column(Text(columns[i][0]))
        for k, label in enumerate(labels):
            styles = ["bold" if bold and rows[k][i].best else "" for i in part]
            entered = (Text(columns[i][k + 1], style) for i, style in zip(part, styles, strict=True))
            table.add_row(*map(Text, label), *entered)
        yield table


def _fitted(lengths: Sequence[int], room: int) -> list[int]:
    """Widths of labels that fit into `room`: the longest are folded, but none below `LEAST_LABEL`."""
    widths = list(lengths)
    while sum(widths) > room and max(widths) > LEAST_LABEL:
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
