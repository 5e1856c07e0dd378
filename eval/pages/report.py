"""report.html: a run's results in one file that opens anywhere and loads nothing; and its tables for notebooks."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from taugrid.eval.figures.pictures import EtaAndSteps
from taugrid.eval.pages.answer import Measured, answer, hero, measured
from taugrid.eval.pages.environment import asset, environment, rendered
from taugrid.eval.pages.pictures import ImageGrid, PagePicture, data_uri, grids, uri_bytes
from taugrid.eval.tables.by_label import LabelTable
from taugrid.eval.tables.cost import Cost, about_costs
from taugrid.eval.tables.differences import HEADS, about, compared, difference_tables, differences_of, notes_of
from taugrid.eval.tables.effects import Effects, effect_tables
from taugrid.eval.tables.labels import SIGMA_HAT, spelled
from taugrid.eval.tables.long_form import FID, Row
from taugrid.eval.tables.quality import MetricTables, QualityTable
from taugrid.eval.tables.reconstruction import LEGEND, reconstruction_frame, reconstruction_table
from taugrid.eval.tables.table import MISSING, shown_number
from taugrid.protocol import ProtocolFields, dotted, shortened
from taugrid.registry.extractors import INCEPTION
from taugrid.registry.metrics import MetricColumn
from taugrid.words import listed

LARGEST = 4_900_000  # bytes of a page
ALONG = {"steps": "steps", "evaluations": "network evaluations", "seconds": "device seconds"}
"""Value of `report.x` -> what it is in a heading."""
MAX_COPIED = 200_000
"""Characters of a table that may be copied as text. Larger ones are in tables/ alone."""
FEW_SAMPLES = 10_000  # the number of samples below which readers are warned of FID's bias
MAX_DIFFERENCES = 400
"""Rows of the table of differences. The rest are in tables/differences.csv."""
MAX_EFFECTS = 100
"""Rows of a table of effects. The rest are in tables/effects.csv."""
MAX_VALUES = 4  # values of a protocol's field that its row names, and numbers of a list that are written out
SHADES = 8  # shades of a table from the best value, 0, to the worst
NO_SHADE = "none"


@dataclass(frozen=True)
class PageFacts:
    name: str
    planned: int  # the number of cells in the grid; replicates count as one
    quality: QualityTable
    differences: Sequence[Row]
    """Rows of differences.csv, as `effects` and `published` of theirs, with None for empty fields."""
    effects: Sequence[Row]
    published: Sequence[Row]
    costs: Sequence[Cost]
    reconstruction: Mapping[str, Any]  # reconstruction.json; empty if there is none
    by_label: LabelTable
    losses: Mapping[str, pd.DataFrame]  # logs of trainings, by the name of the model
    first_images: Callable[[str], NDArray[np.uint8] | None]
    """The first images of a cell by its id, for the top of the page; None if they are not at hand."""
    samples: Mapping[str, Mapping[EtaAndSteps, NDArray[np.uint8]]]
    """Title -> a group of cells with images of the same indices."""
    pictures: Sequence[tuple[PagePicture, bytes]]  # figures without their data, and their PNG files
    made: Sequence[str]  # when, by which version, on what and from what the run was made
    provenance: Mapping[str, Any]
    config: str  # the config as YAML, from which the run can be repeated
    warnings: Sequence[str]


def report_html(facts: PageFacts) -> str:
    """The page, below `LARGEST` bytes: images that would make it larger are reduced or left out."""
    page = _content(facts) | _images(facts, [picture for picture, _ in facts.pictures], [], None)
    room = LARGEST - len(_rendered(page).encode())
    pictures, budget = list[PagePicture](), room // 2
    for picture, png in facts.pictures:
        size = uri_bytes(png)
        fits = size <= budget
        pictures.append(picture._replace(data=data_uri(png)) if fits else picture)
        budget, room = (budget - size, room - size) if fits else (budget, room)
    images = facts.first_images(page["hero"]["cell"]) if page["hero"] else None
    mosaic = next(iter(grids({"": {("", 0): images}}, room // 4)), None) if images is not None else None
    room -= mosaic.size if mosaic else 0
    return _rendered(page | _images(facts, pictures, grids(facts.samples, room), mosaic))


def run_html(name: str, directory: str, state: str, quality: QualityTable) -> str:
    """The tables of the metric that decides as a piece of HTML; `state` is the run's progress in words."""
    section = quality.section(quality.judged_by) if quality.rows else None
    return environment().get_template("run.html").render({
        "name": name,
        "directory": directory,
        "state": state,
        "css": asset("tables.css"),
        "heading": quality.judged_by.heading,
        "tables": section.tables if section else [],
        "shade": _shading(quality, section) if section else None,
        "legend": section.legend if section else [],
    })  # fmt: skip


def _shading(quality: QualityTable, section: MetricTables) -> Callable[[float], str]:
    """A function from a value to its shade, logarithmic if all values of the metric are positive: FIDs span decades."""
    metric = section.metric
    values = quality.frame[metric.name].to_numpy(dtype=np.float64) * metric.scale
    finite = values[np.isfinite(values)]
    scale = math.log if len(finite) and (finite > 0).all() else float
    low, high = (scale(finite.min()), scale(finite.max())) if len(finite) else (0.0, 0.0)

    def shade(value: float) -> str:
        if not math.isfinite(value) or high <= low:
            return NO_SHADE
        share = (scale(value) - low) / (high - low)
        return str(min(SHADES - 1, int((1 - share if metric.higher_is_better else share) * SHADES)))

    return shade


def _rendered(page: Mapping[str, Any]) -> str:
    return rendered("report.html", ("tables.css", "report.css"), **page)


def _images(
    facts: PageFacts, pictures: Sequence[PagePicture], shown: Sequence[ImageGrid], mosaic: ImageGrid | None
) -> dict[str, Any]:
    """The page's images, and the heading of its section of pictures, such as "Consistency, interpolation"."""
    by_title: dict[str, list[PagePicture]] = {}
    for picture in pictures:
        by_title.setdefault(picture.title, []).append(picture)
    drawn = [kind for kind in ("classes", "reconstruction", "interpolation")
             if any(picture.file.startswith(kind) for picture in pictures)]  # fmt: skip
    there = {
        "classes": "classes" in drawn,
        "consistency": any(grid.same_noise for grid in shown),
        "reconstruction": "reconstruction" in drawn or bool(facts.reconstruction.get("rows")),
        "interpolation": "interpolation" in drawn,
    }
    heading = ", ".join(kind for kind, is_there in there.items() if is_there).capitalize()
    return {"pictures": by_title, "grids": shown, "in_pictures": heading, "mosaic": mosaic}


def _content(facts: PageFacts) -> dict[str, Any]:
    """All of the page but its images."""
    quality, document = facts.quality, facts.reconstruction
    cells = measured(quality, quality.judged_by)
    reconstruction = None
    if document.get("rows"):
        table = reconstruction_table(reconstruction_frame(document["rows"]))
        reconstruction = {"table": table, "notes": [document["about"], *table.notes, LEGEND, *document["notes"]]}
    return {
        "name": facts.name,
        "made": facts.made,
        "hero": hero(quality, cells),
        "answer": answer(cells, facts.planned, bool(quality.means.over)),
        "measured_as": _measured_as(quality) if quality.rows else "",
        "metrics": list(_tables(quality)) if quality.rows else [],
        **_charts(facts, cells),
        "along": ALONG[quality.layout.x],
        "published": [
            (
                row["steps"],
                SIGMA_HAT if row["sigma"] == "sigma_hat" else row["eta"],
                shown_number(row["published"]),
                shown_number(row["ours"], row["standard_error"]),
                row["differs"] or MISSING,
            )
            for row in facts.published
        ],
        "differences": differences(facts.differences, quality.judged_by),
        "effects": effects(facts.effects, quality.metrics) if quality.rows else None,
        "by_label": facts.by_label.tables if facts.by_label.rows else [],
        "about_labels": facts.by_label.notes,
        "reconstruction": reconstruction,
        "protocol": _protocol_rows(quality.protocols),
        "provenance": list(facts.provenance.items()),
        "config": facts.config,
        "warnings": warnings(facts),
    }


def _charts(facts: PageFacts, cells: Sequence[Measured]) -> dict[str, Any]:
    losses = {name: log for name, log in facts.losses.items() if len(log) > 1}
    if not cells and not losses:
        return dict.fromkeys(("over_steps", "of_fid", "costs", "losses"))
    from taugrid.eval.pages import charts  # matplotlib, which a run without scores does not need

    quality, by = facts.quality, facts.quality.judged_by
    is_curve = len({cell.at for cell in cells}) > 1
    of_fid = measured(quality) if is_curve and by != FID else []
    published = facts.published if by == FID else ()
    return {
        "over_steps": charts.quality_chart(quality, cells, published, by) if is_curve else None,
        "judged_by": by,
        "of_fid": charts.quality_chart(quality, of_fid, facts.published) if of_fid else None,
        "costs": charts.cost_chart(facts.costs) if len(facts.costs) > 1 else None,
        "about_costs": about_costs(facts.costs) if facts.costs else "",
        "losses": charts.loss_chart(losses) if losses else None,
    }


def _tables(quality: QualityTable) -> Iterator[dict[str, Any]]:
    """What the page shows of each metric: tables, shades, explanations, and texts unless they are too long to copy."""
    for section in quality.sections:
        shade = _shading(quality, section)
        entries = (entry for table in section.tables for row in table.entries for entry in row)
        meaning = ["The best of a column is bold."] if section.has_best else []
        if any(shade(entry.number) != NO_SHADE for entry in entries):
            meaning.append("Shades go from the best value (blue) to the worst (orange).")
        texts = {"markdown": section.markdown, "latex": section.latex(quality.sizes)}
        yield {
            "metric": section.metric,
            "tables": section.tables,
            "shade": shade,
            "legend": list(filter(None, [section.means, *section.legend, " ".join(meaning)])),
            **{kind: text if len(text) <= MAX_COPIED else "" for kind, text in texts.items()},
        }


def differences(rows: Sequence[Row], first: MetricColumn) -> dict[str, Any]:
    """The differences of each metric as text, `first` before the others, and notes; `rows` are of differences.csv."""
    found: list[dict[str, Any]] = []
    for metric in compared(rows, first):
        of_metric = differences_of(rows, metric)
        tables = difference_tables(of_metric[:MAX_DIFFERENCES])
        more, said = max(0, len(of_metric) - MAX_DIFFERENCES), [] if found else [about(metric)]
        found.append({"metric": metric, "about": said, "tables": tables, "left_out": more})
    return {"metrics": found, "heads": HEADS, "notes": notes_of(rows)}


def effects(rows: Sequence[Row], metrics: Sequence[MetricColumn]) -> dict[str, Any] | None:
    """The effects on each metric as text, with an explanation; None without `rows`, those of effects.csv."""
    found, tables = Effects.read(rows, metrics), []
    if not found.every:
        return None
    for metric in found.by_metric:
        for title, heads, lines, significant in effect_tables(found, metric):
            at = heads.index("effect")
            for line, is_bold in zip(lines, significant, strict=True):
                line[:at] = map(spelled, line[:at])
                line[at] = Markup("<b>{}</b>").format(line[at]) if is_bold else line[at]
            more = max(0, len(lines) - MAX_EFFECTS)
            tables.append((f"{metric.heading}: {title}", heads, lines[:MAX_EFFECTS], more))
    return {"about": [line.replace("`", "") for line in found.about], "notes": found.notes, "tables": tables}


def _measured_as(quality: QualityTable) -> str:
    """N, the reference and the extractor, whether published FIDs have a different one, and which metric decides."""
    spelled = (quality.protocols.get(name, {}) for name in quality.frame["protocol"])
    names = {protocol["extractor"]["name"] for protocol in spelled if "extractor" in protocol}
    is_other = bool(names) and INCEPTION not in names
    scored = quality.scored_as + (", not Inception: not comparable with published FIDs" if is_other else "")
    return "; ".join(filter(None, [scored, quality.about_judge]))


def _protocol_rows(protocols: Mapping[str, ProtocolFields]) -> list[tuple[str, str]]:
    """Each field in dotted form and its distinct values, such as ("versions.torch", "2.9.1 · 2.10.0")."""

    def text(value: Any) -> str:
        if isinstance(value, list) and len(value) > MAX_VALUES:
            return f"{value[0]}, {value[1]}, …, {value[-1]} ({len(value)} values)"
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return shortened(value) if isinstance(value, str) else json.dumps(value)

    values: dict[str, dict[str, None]] = {}
    for protocol in protocols.values():
        for name, value in dotted(protocol):
            values.setdefault(name, {})[text(value)] = None
    return [(name, listed([*its], MAX_VALUES, between=" · ")) for name, its in values.items()]


def warnings(facts: PageFacts) -> list[str]:
    """The warnings of the page: those of the run, and that FIDs of few samples are biased."""
    n = min((row["num_samples"] for row in facts.quality.rows if row["fid"] is not None), default=None)
    if n is None or n >= FEW_SAMPLES:
        return [*facts.warnings]
    about_few = f"N = {n:,}: FID is biased upwards at a small N, so compare these numbers only with others of that N"
    return [*facts.warnings, about_few]
