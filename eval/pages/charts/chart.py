"""Charts as data for an SVG: lines, points with error bars, and ticks, placed in pixels; both axes are logarithmic."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from taugrid.eval.pages.charts.scales import LogAxis, Tick

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 48
"""Pixels around the area of the data. An SVG scales all of them with its width."""
COLOURS = 8
"""Colours of lines, from dark to light."""
SPECIAL = "hat"
"""The colour of a line that is apart from the scale of the others, sigma_hat."""
MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6h7.2v7.2h-7.2Z",
    "M0,-4.8L4.6,3.4H-4.6Z",
    "M0,-5L5,0L0,5L-5,0Z",
    "M0,4.8L4.6,-3.4H-4.6Z",
)
"""Outlines around (0, 0), so that lines can be told apart without colours."""


class ChartPoint(NamedTuple):
    """A value with what is said of it."""

    x: float
    y: float
    error: float
    """NaN if there is none."""
    row: tuple[str, ...]
    """Its row of the table beside the chart."""


class ChartLook(NamedTuple):
    """How a line is drawn, the same in every chart of a section."""

    key: str
    """Names the line within its section."""
    colour: str
    marker: str


class ChartLine(NamedTuple):
    """Points that belong together."""

    name: str
    look: ChartLook
    points: Sequence[ChartPoint]
    kind: str = "line"
    """`line`, `dotted` (someone else's numbers), `points` (nothing joins them), or `curve` (no markers)."""


class Mark(NamedTuple):
    """A point in pixels."""

    x: float
    y: float
    low: float
    """The ends of its error bar; both are `y` if there is none."""
    high: float
    said: str


class DrawnLine(NamedTuple):
    """A line in pixels."""

    name: str
    look: ChartLook
    kind: str
    path: str
    marks: tuple[Mark, ...]


class Chart(NamedTuple):
    """A chart in pixels, with the table of its numbers."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[DrawnLine, ...]
    front: str
    """The outline of the Pareto front; empty if none is shown."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def said(self) -> str:
        """What a screen reader says instead of the drawing."""
        count = sum(len(line.marks) for line in self.lines)
        heading = f"{self.title}: " if self.title else ""
        return f"{heading}{self.y_title} against {self.x_title}, {count} values, which are in the table below"


def looks(names: Iterable[str], special: str = "") -> dict[str, ChartLook]:
    """A look for each name in its order; `special` is the name that gets the colour `SPECIAL`."""
    given = list(dict.fromkeys(names))
    scale = [name for name in given if name != special]
    found = {}
    for place, name in enumerate(given):
        position = scale.index(name) * (COLOURS - 1) // max(1, len(scale) - 1) if name in scale else 0
        colour = SPECIAL if name == special else str(position)
        found[name] = ChartLook(str(place), colour, MARKERS[place % len(MARKERS)])
    return found


def chart(
    title: str,
    axes: tuple[str, str],
    lines: Sequence[ChartLine],
    columns: Sequence[str],
    values: Sequence[float] = (),
    front: Sequence[ChartPoint] = (),
    own_ticks: bool = False,
) -> Chart:
    """Place `lines` in pixels.

    Args:
        title: what sets this chart apart from others of its section.
        axes: titles of the horizontal and the vertical axis.
        lines: values that are not positive, which have no logarithm, are only in the table.
        columns: the heading of the table beside it.
        values: also within the vertical axis, so that charts share it.
        front: the points of the Pareto front, in the order of their cost.
        own_ticks: ticks where there are points, instead of at round numbers.
    """
    shown = [point for line in lines for point in line.points if point.x > 0 and point.y > 0]
    across = LogAxis.over([point.x for point in shown], LEFT, WIDTH - RIGHT)
    up = LogAxis.over([*(end for point in shown for end in _ends(point)), *values], HEIGHT - BOTTOM, TOP)
    ticks = across.ticks_at(sorted({point.x for point in shown})) if own_ticks else across.round_ticks()
    rows = (point.row for line in lines for point in line.points)
    return Chart(
        title,
        *axes,
        tuple(ticks),
        tuple(up.round_ticks()),
        tuple(_drawn(line, across, up, columns) for line in lines),
        _steps([(across.at(point.x), up.at(point.y)) for point in front]),
        tuple(columns),
        tuple(dict.fromkeys(rows)),
    )


def _ends(point: ChartPoint) -> tuple[float, ...]:
    """The ends of a point's error bar that have a logarithm."""
    ends = (point.y - point.error, point.y, point.y + point.error)
    return tuple(max(end, point.y / 4) for end in ends if math.isfinite(end))


def _drawn(line: ChartLine, across: LogAxis, up: LogAxis, columns: Sequence[str]) -> DrawnLine:
    marks = []
    for point in line.points:
        if point.x > 0 and point.y > 0:
            ends = sorted(map(up.at, _ends(point)))
            said = ", ".join(f"{column} {text}" for column, text in zip(columns, point.row, strict=True) if text)
            marks.append(Mark(across.at(point.x), up.at(point.y), ends[0], ends[-1], said))
    path = "" if line.kind == "points" else "M" + "L".join(f"{mark.x},{mark.y}" for mark in marks)
    return DrawnLine(line.name, line.look, line.kind, path if marks else "", tuple(marks))


def _steps(corners: Sequence[tuple[float, float]]) -> str:
    """A staircase: what can be had at each cost is the best so far."""
    if not corners:
        return ""
    path = f"M{corners[0][0]},{corners[0][1]}" + "".join(f"H{x}V{y}" for x, y in corners[1:])
    return f"{path}H{WIDTH - RIGHT}"
