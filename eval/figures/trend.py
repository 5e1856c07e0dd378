"""The figures of a history: a metric of every cell over the nights, against the baseline, and each night's verdict."""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from taugrid.eval.figures.drawing import (
    Styles,
    Values,
    draw_line,
    name_parts,
    ordered_styles,
    panels_figure,
    x_offsets,
)
from taugrid.eval.nights import Light
from taugrid.eval.tables.long_form import FID
from taugrid.registry.metrics import COLUMNS, MetricColumn

MAX_NIGHTS = 60
"""The newest nights; older ones are in history.parquet."""
MAX_TICKS = 8

LIGHTS: Mapping[Light, tuple[str, str]] = {"red": ("X", "#c0392b"), "green": ("o", "#2e8b57"), "grey": ("s", "#8a8f95")}
"""Marker and colour of a night's verdict."""


EXPLAINED = (
    "night (band: baseline and margin;\ndotted: a new baseline; on the axis:\n"
    "red cross: regression, green dot: nothing\nworse, grey square: open or not judged)"
)


def judged_metrics(history: pd.DataFrame) -> list[MetricColumn]:
    """The metrics that judged some cell; without any, the first of the registry that the cells have, or FID."""
    known = [column for column in COLUMNS.values() if column.sampling_error]
    there, judged = set(history["metric"]), set(history["metric"][history["t"].notna()])
    return (
        [column for column in known if column.name in judged]
        or [*[column for column in known if column.name in there][:1]]
        or [FID]
    )


def trend_figure(
    history: pd.DataFrame, lights: Mapping[str, Light], links: Mapping[str, str] = {}, metric: MetricColumn = FID
) -> Figure:
    """A metric over nights: a panel for each S, a line for each other setting, bars of ±1 standard error.

    A line breaks where a night lacks the cell. The baseline's value plus the accepted loss is a band of the line's
    colour. A vertical line marks the first night that was compared with a newly accepted baseline. The marks on the
    horizontal axis are the verdicts on the nights, and lead to `links` in an SVG. `history` has the columns of
    history.parquet, `lights` all nights in their order.
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
    styles = ordered_styles({line: line for line in lines}, x_offsets(len(lines)))
    has_place = bool((shown["of_value"].dropna() > 0).all())
    draw = partial(_draw_trend, nights=nights, links=links)
    return panels_figure(panels, draw, styles, "linear", metric, "log" if has_place else "linear")


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
        draw_line(panel, along + look.x_offset * len(places), values, errors, look)
        # The band fills each night's own stretch: with one night, it would have no width.
        base, margin = (np.repeat(rows[f"of_{key}"].to_numpy(dtype=np.float64), 3) for key in ("baseline", "margin"))
        stretches = np.repeat(x, 3) + np.tile([-0.5, 0.5, np.nan], len(x))
        is_there = np.isfinite(stretches) & np.isfinite(base + margin)
        if is_there.any():
            filled: dict[str, Any] = {"color": look.colour, "alpha": 0.2, "linewidth": 0}
            name_parts(look, [panel.fill_between(stretches, base, base + margin, is_there, **filled)])
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
