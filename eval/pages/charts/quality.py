"""The charts of quality: FID against S, and FID against what it costs, with the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taugrid.eval.pages.charts.chart import Chart, ChartLine, ChartLook, ChartPoint, chart, looks
from taugrid.eval.pages.measured import Measured, by_kind
from taugrid.eval.tables.ablation.cost import IMAGES
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import SIGMA_HAT


class Charts(NamedTuple):
    """Charts whose lines are switched on and off together."""

    charts: tuple[Chart, ...]
    legend: tuple[tuple[str, ChartLook], ...]


class CostColumn(NamedTuple):
    """A cost as cost.csv has it."""

    column: str
    front: str
    """The column that says whether a cell is Pareto-optimal by it."""
    title: str


COSTS = (
    CostColumn("evaluations_per_image", "pareto_evaluations", "network evaluations an image"),
    CostColumn("seconds_per_1000_images", "pareto_seconds", f"device seconds for {IMAGES:,} images"),
)


def over_steps(cells: Sequence[Measured], published: Sequence[Mapping[str, Any]]) -> Charts:
    """A chart for each table: a line for each of its rows; published numbers of the same protocol are dotted.

    Args:
        cells: with their FIDs.
        published: rows of published.csv.
    """
    styles = looks((cell.row for cell in cells), SIGMA_HAT)
    theirs = {row["cell"]: float(row["published"]) for row in published if not row["differs"]}
    ends = [end for cell in cells for end in (cell.entry.number, theirs.get(cell.entry.cell, 0.0)) if end > 0]
    tables = {id(cell.table): cell.table for cell in cells}
    columns = ("row", "S", "FID", *(("source",) if theirs else ()))
    charts = []
    for key, table in tables.items():
        own = [cell for cell in cells if id(cell.table) == key]
        lines = [line for row in dict.fromkeys(cell.row for cell in own) for line in _row(row, own, styles, theirs)]
        charts.append(chart(table.heading, ("sampling steps S", FID.heading), lines, columns, ends, own_ticks=True))
    return Charts(tuple(charts), tuple(styles.items()))


def _row(
    row: str, cells: Sequence[Measured], styles: Mapping[str, ChartLook], theirs: Mapping[str, float]
) -> list[ChartLine]:
    own = [cell for cell in cells if cell.row == row]
    source = ("this run",) if theirs else ()
    points = [
        ChartPoint(
            cell.steps, cell.entry.number, cell.entry.standard_error, (row, str(cell.steps), _shown(cell), *source)
        )
        for cell in own
    ]
    beside = [(cell.steps, theirs[cell.entry.cell]) for cell in own if cell.entry.cell in theirs]
    paper = [ChartPoint(steps, value, math.nan, (row, str(steps), f"{value:g}", "paper")) for steps, value in beside]
    lines = [ChartLine(row, styles[row], points)]
    return [*lines, *([ChartLine(row, styles[row], paper, "dotted")] if paper else [])]


def over_costs(cells: Sequence[Measured], costs: Sequence[Mapping[str, Any]]) -> Charts:
    """For each kind of cells a chart against network evaluations, and one against seconds if all are known.

    Args:
        cells: with their FIDs.
        costs: rows of cost.csv.
    """
    by_cell = {row["cell"]: row for row in costs}
    styles = looks((cell.line for cell in cells), SIGMA_HAT)
    charts = []
    for group in by_kind(cells):
        known = [(cell, by_cell[cell.entry.cell]) for cell in group if cell.entry.cell in by_cell]
        for cost in COSTS:
            if known and all(row[cost.column] is not None for _, row in known):
                charts.append(_cost_chart(known, cost, styles))
    return Charts(tuple(charts), tuple(styles.items()))


def _cost_chart(
    cells: Sequence[tuple[Measured, Mapping[str, Any]]], cost: CostColumn, styles: Mapping[str, ChartLook]
) -> Chart:
    points, front = [], []
    for cell, row in cells:
        value, best = row[cost.column], row[cost.front]
        texts = (cell.line, str(cell.steps), f"{value:,.3g}" if value < 100 else f"{value:,.0f}", _shown(cell))
        points.append(ChartPoint(value, cell.entry.number, cell.entry.standard_error, (*texts, "yes" if best else "")))
        front += [points[-1]] if best else []
    lines = [
        ChartLine(name, look, [point for point in points if point.row[0] == name], "points")
        for name, look in styles.items()
    ]
    columns = ("row", "S", cost.title, "FID", "on the front")
    return chart("", (cost.title, FID.heading), lines, columns, front=sorted(front))


def _shown(cell: Measured) -> str:
    return f"{cell.entry.shown} {cell.entry.mark}".rstrip()
