"""The quality tables in GitHub's Markdown."""

from collections.abc import Mapping, Set

import pandas as pd

from taugrid.eval.tables.entries import entries, legend, marked_pivots, tabulated
from taugrid.protocol import ProtocolFields


def to_markdown(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
) -> str:
    """A section for each metric that some cell has, with a table for each pivot; arguments as `marked_pivots`."""
    blocks: list[str] = []
    for metric in tabulated(frame):
        blocks.append(f"## {metric.heading}")
        if metric.error and frame[metric.error].notna().any():
            blocks.append(f"± is {metric.error_means}.")
        tables = marked_pivots(frame, metric, protocols, indistinguishable, joined)
        for table in tables:
            if table.settings:
                blocks.append("### " + ", ".join(f"`{key}` = `{value}`" for key, value in table.settings.items()))
            steps = [str(steps) for steps in table.values.columns]
            lines = [["η \\ S", *steps], [":--", *["--:"] * len(steps)]]
            for label, row in entries(table, metric):
                texts = (f"**{e.joined(' ')}**" if e.best else e.joined(" ") for e in row)
                lines.append([label, *(f"{text} {e.mark}".rstrip() for text, e in zip(texts, row, strict=True))])
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            blocks += table.notes
        blocks += legend(tables, metric)
    return "\n\n".join(blocks) + "\n"
