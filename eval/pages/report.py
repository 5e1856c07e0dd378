"""report.html: what a run found, in one file that opens anywhere and loads nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taugrid.eval.figures.pictures import EtaAndSteps
from taugrid.eval.pages.answer import answer
from taugrid.eval.pages.comparisons import differences, effects
from taugrid.eval.pages.environment import asset, environment, policy
from taugrid.eval.pages.measured import Measured, measured
from taugrid.eval.pages.pictures import ImageGrid, PagePicture, grids
from taugrid.eval.pages.pivots import NO_SHADE, ShadedTable, shaded_tables
from taugrid.eval.pages.protocol_table import protocol_line, protocol_rows
from taugrid.eval.tables.ablation.cost import Cost
from taugrid.eval.tables.ablation.one_table import USUAL, Layout
from taugrid.eval.tables.ablation.replicates import averaged
from taugrid.eval.tables.differences_files import ABOUT
from taugrid.eval.tables.entries import entries, legend, marked_pivots, tabulated
from taugrid.eval.tables.long_form import FID, in_grid_order
from taugrid.eval.tables.reconstruction import LEGEND, RECONSTRUCTION_ERROR, reconstruction_frame, reconstruction_pivot
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

LARGEST = 4_900_000
"""Bytes of a page."""
FEW_SAMPLES = 10_000
"""The number of samples below which readers are warned of FID's bias."""


@dataclass(frozen=True)
class PageFacts:
    name: str
    planned: int
    """Cells of the grid; replicates are one."""
    document: Mapping[str, Any]
    """quality.json, with rows in the order of the grid; empty if there is none."""
    layout: Layout
    """Rows and columns of the quality tables."""
    differences: Sequence[Mapping[str, Any]]
    """Rows of differences.csv, with None where there is nothing."""
    effects: Sequence[Mapping[str, Any]]
    """Rows of effects.csv, likewise."""
    published: Sequence[Mapping[str, Any]]
    """Rows of published.csv."""
    costs: Sequence[Cost]
    """Of the scored cells; a single one is not shown."""
    reconstruction: Mapping[str, Any]
    """reconstruction.json; empty if there is none."""
    losses: Mapping[str, pd.DataFrame]
    """Logs of trainings, by what the model is called."""
    samples: Mapping[str, Mapping[EtaAndSteps, NDArray[np.uint8]]]
    """Groups of cells with the same images of each, by title."""
    pictures: Sequence[tuple[PagePicture, bytes]]
    """Figures without their data, and their PNG files."""
    provenance: Mapping[str, Any]
    config: str
    """As YAML, from which the run can be made again."""
    warnings: Sequence[str]


class MetricTables(NamedTuple):
    """The tables of one metric, with what their marks mean."""

    metric: MetricColumn
    tables: list[ShadedTable]
    legend: list[str]


def report_html(found: PageFacts) -> str:
    """The page, below `LARGEST` bytes: images that would make it larger are reduced or left out."""
    page = _content(found)
    room = LARGEST - len(_rendered(page).encode())
    pictures = list(_fitting(found.pictures, room // 2))
    room -= sum(picture.size for picture in pictures)
    shown = grids(found.samples, room)
    in_pictures = _in_pictures(found, shown)
    return _rendered(page | {"pictures": _by_title(pictures), "grids": shown, "in_pictures": in_pictures})


def _in_pictures(found: PageFacts, shown: Sequence[ImageGrid]) -> str:
    """What the section of pictures has, such as "Consistency, interpolation"; empty if there is nothing."""
    parts = {
        "consistency": any(grid.same_noise for grid in shown),
        "reconstruction": bool(found.reconstruction.get("rows")),
        "interpolation": False,
    }
    files = [picture.file for picture, _ in found.pictures]
    has = (part for part, is_there in parts.items() if is_there or any(file.startswith(part) for file in files))
    return ", ".join(has).capitalize()


def _by_title(pictures: Sequence[PagePicture]) -> dict[str, list[PagePicture]]:
    groups: dict[str, list[PagePicture]] = {}
    for picture in pictures:
        groups.setdefault(picture.title, []).append(picture)
    return groups


def _rendered(page: Mapping[str, Any]) -> str:
    return environment().get_template("report.html").render(**page)


def _fitting(pictures: Sequence[tuple[PagePicture, bytes]], budget: int) -> Iterator[PagePicture]:
    """The pictures with their data, as long as `budget` bytes last."""
    for picture, png in pictures:
        filled = picture.with_images(png)
        fits = filled.size <= budget
        budget -= filled.size if fits else 0
        yield filled if fits else picture


def _content(found: PageFacts) -> dict[str, Any]:
    rows = found.document.get("rows", [])
    protocols, joined = found.document.get("protocols", {}), frozenset(found.document.get("joined", ()))
    cells = measured(_by_steps(found), rows, protocols, joined) if rows else []
    style, script = asset("tables.css") + asset("report.css"), asset("report.js")
    no_grids: list[ImageGrid] = []
    return {
        "name": found.name,
        "style": style,
        "script": script,
        "policy": policy(style, script),
        "answer": answer(cells, found.planned),
        "measured_as": protocol_line(in_grid_order(rows), protocols) if rows else "",
        "metrics": list(_tables(found)) if rows else [],
        **_charts(found, {} if joined else protocols, cells),
        "published": found.published,
        "differences": differences(found.differences),
        "about_differences": ABOUT,
        "effects": effects(found.effects, tabulated(in_grid_order(rows))) if rows else None,
        "reconstruction": _reconstruction(found.reconstruction),
        "protocol": protocol_rows(protocols),
        "provenance": found.provenance,
        "config": found.config,
        "warnings": warnings(found),
        "pictures": _by_title([picture for picture, _ in found.pictures]),
        "grids": no_grids,
        "in_pictures": _in_pictures(found, no_grids),
    }


def _charts(found: PageFacts, protocols: Mapping[str, ProtocolFields], cells: Sequence[Measured]) -> dict[str, Any]:
    """The charts, each None if there is nothing to draw."""
    if not cells and not found.losses:
        return dict.fromkeys(("over_steps", "costs", "losses"))
    from taugrid.eval.pages import charts  # matplotlib, which a run without scores does not need

    frame, published = in_grid_order(found.document.get("rows", [])), found.published
    return {
        "over_steps": charts.quality_chart(frame, protocols, cells, published) if cells else None,
        "costs": charts.cost_chart(found.costs) if len(found.costs) > 1 else None,
        "about_costs": charts.ABOUT_COSTS,
        "losses": charts.loss_chart(found.losses) if found.losses else None,
    }


def _by_steps(found: PageFacts) -> list[ShadedTable]:
    """The tables of FID with columns of S. The marks of another layout compare other cells, so they are left out."""
    protocols, alike, joined = _marks(found.document)
    frame = in_grid_order(found.document["rows"])
    return shaded_tables(frame, FID, protocols, alike if found.layout == USUAL else frozenset(), joined)


def _marks(document: Mapping[str, Any]) -> tuple[Mapping[str, ProtocolFields], frozenset[str], frozenset[str]]:
    """Protocols by hash, cells that can't be told apart from the best of their column, and cells of mixed protocols."""
    alike, joined = (frozenset(document.get(key, ())) for key in ("indistinguishable", "joined"))
    return document["protocols"], alike, joined


def _tables(found: PageFacts) -> Iterator[MetricTables]:
    """The tables of each metric that some cell has."""
    frame, marks = in_grid_order(found.document["rows"]), (*_marks(found.document), found.layout)
    of_means = averaged(frame, marks[0]).caption()
    for metric in tabulated(frame):
        about = legend(marked_pivots(frame, metric, *marks), metric)
        has_error = metric.error is not None and frame[metric.error].notna().any()
        error = of_means or (f"± is {metric.error_means}." if has_error else "")
        tables = shaded_tables(frame, metric, *marks)
        yield MetricTables(metric, tables, [*filter(None, [error]), *about, *_meaning(tables)])


def _meaning(tables: Sequence[ShadedTable]) -> list[str]:
    """What bold numbers and shades mean, as far as there are any."""
    seen = [entry for table in tables for _, row in table.rows for entry in row]
    bold = "The best of a column is bold." if any(entry.best for entry in seen) else ""
    shades = "Shades go from the best value (blue) to the worst (orange)."
    is_shaded = any(entry.shade != NO_SHADE for entry in seen)
    return [" ".join(filter(None, [bold, shades if is_shaded else ""]))] if bold or is_shaded else []


def _reconstruction(document: Mapping[str, Any]) -> dict[str, Any] | None:
    if not document.get("rows"):
        return None
    table = reconstruction_pivot(reconstruction_frame(document["rows"]))
    return {
        "heading": RECONSTRUCTION_ERROR.heading,
        "steps": list(table.values.columns),
        "rows": list(entries(table, RECONSTRUCTION_ERROR)),
        "notes": [document["about"], *table.notes, LEGEND, *document["notes"]],
    }


def warnings(found: PageFacts) -> list[str]:
    """The warnings of the page: those of the run, and that FIDs of few samples are biased."""
    least = min((row["num_samples"] for row in found.document.get("rows", ()) if row["fid"] is not None), default=None)
    if least is None or least >= FEW_SAMPLES:
        return [*found.warnings]
    about_few = (
        f"N = {least:,}: FID is biased upwards at a small N, so compare these numbers only with others of that N"
    )
    return [*found.warnings, about_few]
