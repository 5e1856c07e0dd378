"""The quality tables in GitHub's Markdown."""

from collections.abc import Mapping, Set

import pandas as pd

from taugrid.eval.tables.ablation.one_table import USUAL, Layout
from taugrid.eval.tables.ablation.replicates import averaged
from taugrid.eval.tables.entries import entries, legend, marked_pivots, tabulated
from taugrid.eval.tables.pivots import short_settings
from taugrid.protocol import ProtocolFields
from taugrid.words import markdown_table


def to_markdown(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
    layout: Layout = USUAL,
) -> str:
    """A section for each metric that some cell has, with its tables; arguments as `marked_pivots`."""
    blocks: list[str] = []
    of_means = "" if frame.empty else averaged(frame, protocols).caption()
    for metric in tabulated(frame):
        blocks.append(f"## {metric.heading}")
        if of_means:
            blocks.append(of_means)
        elif metric.error and frame[metric.error].notna().any():
            blocks.append(f"± is {metric.error_means}.")
        tables = marked_pivots(frame, metric, protocols, indistinguishable, joined, layout)
        for table in tables:
            if table.settings:
                blocks.append(
                    "### " + ", ".join(f"`{key}` = `{value}`" for key, value in short_settings(table.settings).items())
                )
            columns = [str(column) for column in table.values.columns]
            heads = [*table.heads[:-1], f"{table.heads[-1]} \\ {table.across}"]
            lines = []
            for labels, row in entries(table, metric):
                texts = (f"**{e.joined(' ')}**" if e.best else e.joined(" ") for e in row)
                lines.append([*labels, *(f"{text} {e.mark}".rstrip() for text, e in zip(texts, row, strict=True))])
            blocks.append(markdown_table([*heads, *columns], "l" * len(heads) + "r" * len(columns), lines))
            blocks += table.notes
        blocks += legend(tables, metric)
    return "\n\n".join(blocks) + "\n"
