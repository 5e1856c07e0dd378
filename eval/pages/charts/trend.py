"""The charts of a history: FID of each cell over the nights, with the verdicts on the nights along the axis."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from taugrid.eval.nights import NightLine
from taugrid.eval.pages.charts.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    ChartLook,
    DrawnLine,
    Mark,
    looks,
)
from taugrid.eval.pages.charts.scales import LogAxis, Tick
from taugrid.eval.tables.entries import write_number

MOST_NIGHTS = 60
"""The newest nights; older ones are in history.parquet."""
LONGEST_LABEL = 12
"""Characters of a night's id along the axis."""
CHARACTER = 9.0
"""Pixels that a character takes on a narrow screen, where text is larger."""
WIDEST_MARK = 11.0
"""Pixels of a verdict's mark and the gap beside it."""
COLUMNS = ("night", "cell", "FID", "verdict")

HistoryRows = Sequence[Mapping[str, Any]]


class TrendChart(NamedTuple):
    """The cells of one S."""

    chart: Chart
    bands: list[tuple[ChartLook, str]]
    """Outlines from the baseline's FID to that and the accepted loss."""
    verdicts: list[tuple[float, NightLine]]
    """Where on the horizontal axis each night is."""
    mark_scale: float
    """Of the verdicts' marks, so that they stand apart."""
    new_baselines: str
    """Vertical lines before the first nights that were compared with another baseline than before."""


class Trend(NamedTuple):
    """A chart for each S."""

    charts: list[TrendChart]
    legend: list[tuple[str, ChartLook]]


class _Axes(NamedTuple):
    places: Mapping[str, int]
    """The nights, from left to right."""
    up: LogAxis

    @property
    def step(self) -> float:
        return (WIDTH - LEFT - RIGHT) / len(self.places)

    def x(self, place: float) -> float:
        return round(LEFT + (place + 0.5) * self.step, 1)


def trend(rows: HistoryRows, nights: Sequence[NightLine]) -> Trend | None:
    """Charts of the newest nights; None if no cell of them has an FID.

    Args:
        rows: those of history.parquet, with None where there is nothing.
        nights: the complete ones, oldest first.
    """
    shown = nights[-MOST_NIGHTS:]
    places = {night.id: place for place, night in enumerate(shown)}
    found = [row for row in rows if row["night"] in places and row["fid"] is not None and row["fid"] > 0]
    styles = looks(_line(row) for row in found)
    steps = sorted({row["steps"] for row in found})
    charts = [_chart([row for row in found if row["steps"] == s], s, places, shown, styles) for s in steps]
    return Trend(charts, list(styles.items())) if charts else None


def _line(row: Mapping[str, Any]) -> str:
    """The settings of a cell besides S."""
    return str(row["label"]).removeprefix(f"S{row['steps']:04d}-")


def _chart(
    rows: HistoryRows,
    steps: int,
    places: Mapping[str, int],
    nights: Sequence[NightLine],
    styles: Mapping[str, ChartLook],
) -> TrendChart:
    axes = _Axes(places, LogAxis.over([value for row in rows for value in _values(row)], HEIGHT - BOTTOM, TOP))
    lines = {name: [row for row in rows if _line(row) == name] for name in styles}
    drawn = [_drawn(name, its, axes, styles[name]) for name, its in lines.items() if its]
    table = [(row["night"], row["label"], _fid(row), row["result"] or "") for row in rows]
    chart = Chart(
        f"S = {steps}", "night", "FID", tuple(_ticks(axes)), tuple(axes.up.round_ticks()), tuple(drawn), "", COLUMNS,
        tuple(table),
    )  # fmt: skip
    bands = [(styles[name], "".join(_bands(its, axes))) for name, its in lines.items()]
    verdicts = [(axes.x(places[night.id]), night) for night in nights]
    scale = round(min(1.0, axes.step / WIDEST_MARK), 2)
    return TrendChart(chart, [band for band in bands if band[1]], verdicts, scale, _new_baselines(rows, axes))


def _values(row: Mapping[str, Any]) -> Iterator[float]:
    """What the vertical axis has to hold: the ends of the error bar and of the band."""
    yield from _ends(row)
    if row["baseline_fid"] is not None and row["baseline_fid"] > 0:
        yield from (row["baseline_fid"], row["baseline_fid"] + (row["margin"] or 0.0))


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
    error = row["fid_se"] or 0.0
    return max(row["fid"] - error, row["fid"] / 4), row["fid"] + error


def _fid(row: Mapping[str, Any]) -> str:
    return " ".join(write_number(row["fid"], math.nan if row["fid_se"] is None else row["fid_se"])).strip()


def _drawn(name: str, rows: HistoryRows, axes: _Axes, look: ChartLook) -> DrawnLine:
    """A line that breaks where a night lacks the cell."""
    marks: dict[int, Mark] = {}
    for row in rows:
        place, ends = axes.places[row["night"]], sorted(map(axes.up.at, _ends(row)))
        said = ", ".join(filter(None, [f"night {row['night']}", name, f"FID {_fid(row)}", row["result"]]))
        marks[place] = Mark(axes.x(place), axes.up.at(row["fid"]), ends[0], ends[1], said)
    places = sorted(marks)
    joined = {after for before, after in pairwise(places) if after == before + 1}
    path = "".join(f"{'L' if place in joined else 'M'}{marks[place].x},{marks[place].y}" for place in places)
    return DrawnLine(name, look, "line", path, tuple(marks[place] for place in places))


def _bands(rows: HistoryRows, axes: _Axes) -> Iterator[str]:
    for row in rows:
        if row["baseline_fid"] is not None and row["baseline_fid"] > 0:
            place = axes.places[row["night"]]
            low, high = (axes.up.at(row["baseline_fid"] + more) for more in (0.0, row["margin"] or 0.0))
            yield f"M{axes.x(place - 0.5)},{high}H{axes.x(place + 0.5)}V{low}H{axes.x(place - 0.5)}Z"


def _new_baselines(rows: HistoryRows, axes: _Axes) -> str:
    named = {row["night"]: row["baseline"] for row in rows if row["baseline"] is not None}
    known = [night for night in axes.places if night in named]
    starts = [axes.places[known[0]]] if known and axes.places[known[0]] > 0 else []
    starts += [axes.places[now] for before, now in pairwise(known) if named[before] != named[now]]
    return "".join(f"M{axes.x(place - 0.5)},{TOP}V{HEIGHT - BOTTOM}" for place in starts)


def _ticks(axes: _Axes) -> Iterator[Tick]:
    """Nights with their ids, as far as these do not touch each other or leave the chart."""
    labels = [name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…" for name in axes.places]
    wide = CHARACTER * max(map(len, labels))
    every = math.ceil((wide + CHARACTER) / axes.step)
    for place in range(0, len(labels), every):
        if len(labels) == 1 or axes.x(place) + wide / 2 <= WIDTH:
            yield Tick(axes.x(place), labels[place])
