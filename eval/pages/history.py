"""index.html of a history: the trend with the verdicts, and a table of the nights. It loads nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pandas as pd

from taugrid.eval.figures.trend import MAX_NIGHTS, judged_metrics, trend_figure
from taugrid.eval.gate.verdict import UNFINISHED
from taugrid.eval.nights import Light, NightLine
from taugrid.eval.pages.charts import Chart, chart
from taugrid.eval.pages.environment import rendered
from taugrid.eval.tables.entries import shown_number
from taugrid.eval.tables.long_form import FID
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted

MAX_ROWS = 1000
"""Nights in the table. All are in history.parquet."""
SHAPES: Mapping[Light, str] = {
    "red": "M-4.5,-4.5L4.5,4.5M4.5,-4.5L-4.5,4.5",
    "green": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "grey": "M-4,-4h8v8h-8Z",
}
"""Outlines around (0, 0), which distinguish verdicts without colours."""


def history_html(
    name: str, nights: Sequence[NightLine], rows: Sequence[Mapping[str, Any]], files: Mapping[str, Mapping[str, str]]
) -> str:
    """The page of a history.

    Args:
        name: the name of the history.
        nights: the complete nights, oldest first, and after them the unfinished ones.
        rows: the rows of history.parquet, with None for empty fields.
        files: night -> "report" or "summary" -> the file's path relative to the page.
    """
    complete = [night for night in nights if night.verdict != UNFINISHED]
    links = {night: {kind: quote(path) for kind, path in paths.items()} for night, paths in files.items()}
    leads_to = {night: next(iter(paths.values())) for night, paths in links.items()}
    return rendered(
        "history.html",
        ("tables.css", "report.css", "history.css"),
        name=name,
        newest=complete[-1] if complete else None,
        answer=_answer(complete, len(nights) - len(complete)),
        trends=_trends(rows, complete, leads_to),
        max_nights=MAX_NIGHTS,
        nights=nights[::-1][:MAX_ROWS],
        left_out=max(0, len(nights) - MAX_ROWS),
        files=links,
        leads_to=leads_to,
        shapes=SHAPES,
    )


def _answer(nights: Sequence[NightLine], unfinished: int) -> list[str]:
    if not nights:
        return ["No night has a verdict yet."]
    newest, counts = nights[-1], Counter(night.light for night in nights)
    cells = f" ({newest.cells})" if newest.cells else ""
    lights = ", ".join(f"{counts[light]} {light}" for light in SHAPES if counts[light])
    more = f"; {counted(unfinished, 'night')} unfinished" if unfinished else ""
    return [f"Newest night, {newest.id}: {newest.verdict}{cells}.", f"{counted(len(nights), 'night')}: {lights}{more}."]


def _trends(
    rows: Sequence[Mapping[str, Any]], nights: Sequence[NightLine], leads_to: Mapping[str, str]
) -> dict[str, Chart]:
    """Title -> the trend of each metric that judged the nights and that two of them have."""
    lights = {night.id: night.light for night in nights[-MAX_NIGHTS:]}
    found = dict[str, Chart]()
    if not (recent := [row for row in rows if row["night"] in lights]):
        return found
    table = pd.DataFrame(recent)
    for metric in judged_metrics(table):
        shown = table[(table["metric"] == metric.name) & table["value"].notna()]
        if shown["night"].nunique() < 2:  # a point is no trend
            continue
        figure = trend_figure(shown, lights, leads_to, metric)
        numbers = [
            (row["night"], row["label"], _number(row, metric), row["result"] if pd.notna(row["result"]) else "")
            for _, row in shown.iterrows()
        ]
        title = f"{metric.title} over the nights"
        columns = ("night", "cell", metric.title, "verdict")
        found[title] = chart(figure, f"trend{'' if metric == FID else f'-{metric.name}'}", title, columns, numbers)
    return found


def _number(row: "pd.Series[Any]", metric: MetricColumn) -> str:
    error = row["se"]
    return shown_number(metric.scale * row["value"], None if pd.isna(error) else metric.scale * error)
