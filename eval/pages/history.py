"""index.html of a history of nights, and its figures: a metric of every cell against the baseline, and the verdicts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from taugrid.eval.figures import drawing
from taugrid.eval.figures.drawing import Styles, Values
from taugrid.eval.gate.verdict import UNFINISHED
from taugrid.eval.nights import Light, NightLine
from taugrid.eval.pages.charts import Chart, chart
from taugrid.eval.pages.environment import rendered
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.table import shown_number
from taugrid.registry.metrics import COLUMNS, MetricColumn
from taugrid.words import counted

MAX_ROWS = 1000
"""Nights in the table. All are in history.parquet."""
MAX_NIGHTS = 60  # the newest nights, which the figures show
MAX_TICKS = 8
SHAPES: Mapping[Light, str] = {
    "red": "M-4.5,-4.5L4.5,4.5M4.5,-4.5L-4.5,4.5",
    "green": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "grey": "M-4,-4h8v8h-8Z",
}
"""Outlines around (0, 0), which distinguish verdicts without colours."""
LIGHTS: Mapping[Light, tuple[str, str]] = {"red": ("X", "#c0392b"), "green": ("o", "#2e8b57"), "grey": ("s", "#8a8f95")}
"""Marker and colour of a night's verdict in a figure."""
EXPLAINED = (
    "night (band: baseline and margin;\ndotted: a new baseline; on the axis:\n"
    "red cross: regression, green dot: nothing\nworse, grey square: open or not judged)"
)


def history_html(
    name: str, nights: Sequence[NightLine], rows: Sequence[Mapping[str, Any]], files: Mapping[str, Mapping[str, str]]
) -> str:
    """The page of a history of `nights`: the complete ones, oldest first, and after them the unfinished ones. `rows`
    are those of history.parquet, with None for empty fields; `files` are night -> "report" or "summary" -> the file's
    path relative to the page."""
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
        columns = ["night", "label", "value", "se", "result"]
        figure, title = trend_figure(shown, lights, leads_to, metric), f"{metric.title} over the nights"
        numbers = [
            (night, label, shown_number(metric.scale * value, metric.scale * se), result if pd.notna(result) else "")
            for night, label, value, se, result in shown[columns].astype({"se": float}).itertuples(index=False)
        ]
        name = "trend" if metric == FID else f"trend-{metric.name}"
        found[title] = chart(figure, name, title, ("night", "cell", metric.title, "verdict"), numbers)
    return found


def judged_metrics(history: pd.DataFrame) -> list[MetricColumn]:
    """The metrics that judged some cell; without any, the first of the registry that the cells have, or FID."""
    known = [column for column in COLUMNS.values() if column.sampling_error]
    there, judged = set(history["metric"]), set(history["metric"][history["t"].notna()])
    first = next((column for column in known if column.name in there), FID)
    return [column for column in known if column.name in judged] or [first]


def trend_figure(
    history: pd.DataFrame, lights: Mapping[str, Light], links: Mapping[str, str] = {}, metric: MetricColumn = FID
) -> Figure:
    """A metric over nights: a panel for each S, a line for each other setting, bars of ±1 standard error.

    The baseline's value plus the accepted loss is a band of the line's colour; a vertical line marks the first night
    with a new baseline. The marks on the horizontal axis are the verdicts, and lead to `links` in an SVG. `history` has
    the columns of history.parquet, `lights` all nights in their order."""
    nights = dict(list(lights.items())[-MAX_NIGHTS:])
    shown = history[history["night"].isin(nights) & (history["metric"] == metric.name)].copy()
    shown["line"] = shown["label"].str.replace(r"^S\d+-", "", regex=True)
    numbers = ["value", "se", "baseline_value", "margin"]
    shown[numbers] = shown[numbers].astype(np.float64) * metric.scale
    shown["accepted"] = shown["baseline_value"] + shown["margin"] * (-1 if metric.higher_is_better else 1)
    panels = [
        ("images" if pd.isna(steps) else f"S = {steps!s}", rows)
        for steps, rows in shown.astype({"steps": "Int64"}).groupby("steps", dropna=False)
    ]
    styles = drawing.ordered_styles({line: line for line in dict.fromkeys(shown["line"])})
    scale = "log" if (shown["value"].dropna() > 0).all() else "linear"
    draw = partial(_draw_trend, nights=nights, links=links)
    return drawing.panels_figure(panels, draw, styles, "linear", metric.heading, scale)


def _draw_trend(
    panel: Axes,
    table: tuple[str, pd.DataFrame],
    styles: Styles,
    nights: Mapping[str, Light],
    links: Mapping[str, str],
) -> None:
    """Draw the cells of one S, a heading and a row for each night and cell."""
    heading, cells = table
    names = list(nights)
    along: Values = np.arange(len(names), dtype=np.float64)
    for line, rows in cells.groupby("line", sort=False):
        look, by_night = styles[str(line)], rows.set_index("night").reindex(names)
        values, errors, base, accepted = (
            by_night[name].to_numpy(dtype=np.float64) for name in ("value", "se", "baseline_value", "accepted")
        )
        drawing.draw_line(panel, along + look.x_offset * len(names), values, errors, look)
        # The band fills each night's own stretch: with one night, it would have no width.
        stretches = np.repeat(along, 3) + np.tile([-0.5, 0.5, np.nan], len(names))
        low, high = np.repeat(base, 3), np.repeat(accepted, 3)
        is_there = np.isfinite(stretches) & np.isfinite(high)
        if is_there.any():
            band = panel.fill_between(stretches, low, high, is_there, color=look.colour, alpha=0.2, linewidth=0)
            drawing.name_parts(look, [band])
    baselines = cells.groupby("night", sort=False)["baseline"].first().reindex(names).ffill()
    for place, (before, now) in enumerate(pairwise(baselines), start=1):
        if isinstance(now, str) and now != before:
            panel.axvline(place - 0.5, color="#555555", linewidth=0.8, linestyle=":")
    on_axis: dict[str, Any] = {"transform": panel.get_xaxis_transform(), "clip_on": False, "zorder": 3}
    for place, (night, light) in enumerate(nights.items()):
        marker, colour = LIGHTS[light]
        named: dict[str, Any] = {"label": f"_{light}", "gid": f"light-{light}", "url": links.get(night)}
        panel.plot([place], [0.0], marker, color=colour, markersize=min(7, 240 / len(names)), **named, **on_axis)
    panel.set_title(heading)
    panel.set_xlabel(EXPLAINED)
    panel.set_xlim(-0.5, len(names) - 0.5)
    ticks = list(range(0, len(names), max(1, -(-len(names) // MAX_TICKS))))
    panel.set_xticks(ticks, [names[i] for i in ticks], rotation=30, ha="right", rotation_mode="anchor")
