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
    """The page of a history of `nights`: the complete ones, oldest first, and after them the unfinished ones.

    `rows` are those of history.parquet, with None for empty fields; `files` are night -> "report" or "summary" -> the
    file's path relative to the page.
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
        numbers = []
        for _, row in shown.iterrows():
            error = None if pd.isna(row["se"]) else metric.scale * row["se"]
            value, result = shown_number(metric.scale * row["value"], error), row["result"]
            numbers.append((row["night"], row["label"], value, result if pd.notna(result) else ""))
        title = f"{metric.title} over the nights"
        columns = ("night", "cell", metric.title, "verdict")
        found[title] = chart(figure, f"trend{'' if metric == FID else f'-{metric.name}'}", title, columns, numbers)
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
    the columns of history.parquet, `lights` all nights in their order.
    """
    nights = dict(list(lights.items())[-MAX_NIGHTS:])
    shown = history[history["night"].isin(nights) & (history["metric"] == metric.name)].copy()
    shown["line"] = shown["label"].str.replace(r"^S\d+-", "", regex=True)
    worse = -1 if metric.higher_is_better else 1
    columns = {"value": "value", "se": "se", "baseline": "baseline_value", "margin": "margin"}
    for key, name in columns.items():
        shown[f"of_{key}"] = shown[name].astype(np.float64) * metric.scale * (worse if key == "margin" else 1)
    panels = [
        ("images" if pd.isna(steps) else f"S = {steps!s}", rows)
        for steps, rows in shown.astype({"steps": "Int64"}).groupby("steps", dropna=False)
    ]
    lines = list(dict.fromkeys(shown["line"]))
    styles = drawing.ordered_styles({line: line for line in lines})
    has_place = bool((shown["of_value"].dropna() > 0).all())
    draw = partial(_draw_trend, nights=nights, links=links)
    return drawing.panels_figure(panels, draw, styles, "linear", metric, "log" if has_place else "linear")


def _draw_trend(
    panel: Axes,
    table: tuple[str, pd.DataFrame],
    styles: Styles,
    nights: Mapping[str, Light],
    links: Mapping[str, str],
) -> None:
    """Draw the cells of one S, a heading and a row for each night and cell."""
    (heading, cells), places = table, {night: place for place, night in enumerate(nights)}
    along: Values = np.arange(len(places), dtype=np.float64)
    for line, rows in cells.groupby("line", sort=False):
        look = styles[str(line)]
        x: Values = np.array([places[night] for night in rows["night"]], dtype=np.float64)
        values: Values = np.full(len(places), np.nan)
        errors: Values = np.full(len(places), np.nan)
        values[x.astype(int)] = rows["of_value"]
        errors[x.astype(int)] = rows["of_se"]
        drawing.draw_line(panel, along + look.x_offset * len(places), values, errors, look)
        # The band fills each night's own stretch: with one night, it would have no width.
        base, margin = (np.repeat(rows[f"of_{key}"].to_numpy(dtype=np.float64), 3) for key in ("baseline", "margin"))
        stretches = np.repeat(x, 3) + np.tile([-0.5, 0.5, np.nan], len(x))
        is_there = np.isfinite(stretches) & np.isfinite(base + margin)
        if is_there.any():
            filled: dict[str, Any] = {"color": look.colour, "alpha": 0.2, "linewidth": 0}
            drawing.name_parts(look, [panel.fill_between(stretches, base, base + margin, is_there, **filled)])
    baselines = cells.groupby("night", sort=False)["baseline"].first().reindex(list(places)).ffill()
    for place, (before, now) in enumerate(pairwise(baselines), start=1):
        if isinstance(now, str) and now != before:
            panel.axvline(place - 0.5, color="#555555", linewidth=0.8, linestyle=":")
    on_axis: dict[str, Any] = {"transform": panel.get_xaxis_transform(), "clip_on": False, "zorder": 3}
    for night, place in places.items():
        light = nights[night]
        marker, colour = LIGHTS[light]
        named: dict[str, Any] = {"label": f"_{light}", "gid": f"light-{light}", "url": links.get(night)}
        panel.plot([place], [0.0], marker, color=colour, markersize=min(7, 240 / len(places)), **named, **on_axis)
    panel.set_title(heading)
    panel.set_xlabel(EXPLAINED)
    panel.set_xlim(-0.5, len(places) - 0.5)
    every = max(1, -(-len(places) // MAX_TICKS))
    ticks = list(range(0, len(places), every))
    panel.set_xticks(ticks, [list(places)[i] for i in ticks], rotation=30, ha="right", rotation_mode="anchor")
