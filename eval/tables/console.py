"""The tables for a terminal: of every metric, and of reconstruction errors."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from taugrid.eval.tables.ablation.one_table import USUAL, Layout
from taugrid.eval.tables.ablation.replicates import averaged
from taugrid.eval.tables.entries import Entry, entries, legend, marked_pivots, sizes, tabulated
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import Pivot
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_pivot
from taugrid.protocol import ProtocolFields, extractor_in_words, shortened
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted

CONSOLE_WIDTH = 80
"""Width in characters that every terminal and pipe has. rich assumes it if there is no terminal."""
MOST_ROWS = 60
"""Of the tables of further metrics together. More would push what matters off the screen."""
LEAST_LABEL = 10
"""Characters that a label gets at least, however many there are in a row; longer ones are folded."""


def to_console(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
    layout: Layout = USUAL,
    metric: MetricColumn = FID,
) -> Group:
    """The tables of one metric, for `rich` to print; arguments as in `marked_pivots`.

    A table wider than 80 characters gets its errors below the values; if it is still too wide, it is split by S.
    """
    parts: list[RenderableType] = []
    tables = marked_pivots(frame, metric, protocols, indistinguishable, joined, layout)
    for table in tables:
        parts += [Text(": ".join(filter(None, [metric.heading, table.label]))), *_console_tables(table, metric)]
        parts += [Text(note) for note in table.notes]
    of_means = "" if frame.empty else averaged(frame, protocols).caption()
    return Group(*parts, *map(Text, filter(None, [of_means, *legend(tables, metric)])))


def others_to_console(
    frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields], joined: Set[str], layout: Layout, shown: MetricColumn
) -> Group:
    """The tables of all metrics but `shown`, without the notes that stand below that one's."""
    others = [metric for metric in tabulated(frame) if metric.name != shown.name]
    pivots = {metric: marked_pivots(frame, metric, protocols, frozenset(), joined, layout) for metric in others}
    if sum(len(table.values) for tables in pivots.values() for table in tables) > MOST_ROWS:
        return Group(Text(f"{' and '.join(metric.title for metric in others)}: see tables/quality.md"))
    parts: list[RenderableType] = []
    for metric, tables in pivots.items():
        heading = f"{metric.heading}; ± is {metric.error_means}" if metric.error_means else metric.heading
        for table in tables:
            parts += [Text(), Text(": ".join(filter(None, [heading, table.label]))), *_console_tables(table, metric)]
        parts += [Text(line) for line in legend(tables, metric)]
    return Group(*parts, Text())


def reconstruction_to_console(frame: pd.DataFrame, about: str, notes: Sequence[str] = ()) -> Group:
    """The table of reconstruction errors, with `about` and `notes` below it, as `write_reconstruction` takes them."""
    table, metric = replace(reconstruction_pivot(frame), heads=("",)), RECONSTRUCTION_ERROR
    with_errors = table.errors.notna().any(axis=None)
    below = [about, *table.notes, *[f"± is {metric.error_means}."] * bool(with_errors), *notes]
    return Group(Text(metric.heading), *_console_tables(table, metric), *map(Text, below))


def scored_as(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> str:
    """A line with N, the reference and the extractor."""
    spelled = [protocols[name] for name in dict.fromkeys(frame["protocol"]) if name in protocols]
    references = dict.fromkeys(_reference(protocol["reference"]) for protocol in spelled if "reference" in protocol)
    extractors = dict.fromkeys(
        extractor_in_words(protocol["extractor"]) for protocol in spelled if "extractor" in protocol
    )
    parts = [f"N = {sizes(frame)} images a cell"]
    parts += [f"reference: {' or '.join(references)}"] if references else []
    parts += [f"features: {' or '.join(extractors)}"] if extractors else []
    return "; ".join(parts)


def _reference(fields: Mapping[str, Any]) -> str:
    """A reference as people name it: digits/train (1,437 images)."""
    content = shortened(str(fields["sha256"]))
    name = f"{fields['dataset']}/{fields['split']}" if fields["dataset"] else f"the one with SHA-256 {content}"
    size = "mean and covariance" if fields["num_images"] is None else counted(fields["num_images"], "image")
    return f"{name} ({size})"


def _console_tables(pivoted: Pivot, metric: MetricColumn) -> Iterator[Table]:
    labels, rows = zip(*entries(pivoted, metric), strict=True)
    steps = [str(steps) for steps in pivoted.values.columns]
    gap = 2  # a space of padding, and one where the box has its divider
    heads = [*pivoted.heads[:-1], f"{pivoted.heads[-1]} \\ {pivoted.across}" if pivoted.heads[-1] else pivoted.across]
    lengths = [max(len(head), *map(len, column)) for head, *column in zip(heads, *labels, strict=True)]
    label_widths = _fitted(lengths, CONSOLE_WIDTH // 2)
    for_labels = sum(label_widths) + gap * (len(heads) - 1)
    for separator in (" ", "\n"):
        columns = [_aligned(head, column, separator) for head, *column in zip(steps, *rows, strict=True)]
        widths = [gap + len(column[0]) for column in columns]
        if for_labels + sum(widths) <= CONSOLE_WIDTH:
            break
    parts: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if parts[-1] and for_labels + sum(widths[j] for j in parts[-1]) + width > CONSOLE_WIDTH:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for head, label_width in zip(heads, label_widths, strict=True):
            table.add_column(head, width=label_width, overflow="fold")
        for i in part:
            table.add_column(columns[i][0])
        for k, label in enumerate(labels):
            table.add_row(*label, *(Text(columns[i][k + 1], style="bold" if rows[k][i].best else "") for i in part))
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
