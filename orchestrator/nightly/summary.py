"""The files of a night for people and for a CI: summary.md, junit.xml and pictures of the worst cells."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from taugrid.eval.figures.pictures import before_and_after
from taugrid.eval.gate.verdict import NO_BASELINE, REGRESSIONS, Verdict
from taugrid.eval.tables.table import shown_number
from taugrid.hashing import identity
from taugrid.orchestrator.baseline import text
from taugrid.orchestrator.baseline.compared import BaselineComparison, NightVerdict
from taugrid.orchestrator.baseline.snapshot import ImageBatch, Snapshot
from taugrid.orchestrator.nightly.places import Night
from taugrid.orchestrator.plan.cells import name_of
from taugrid.registry.metrics import COLUMNS
from taugrid.storage import Storage, replacing, write_text
from taugrid.words import markdown_table

MAX_STRIPS = 4  # the number of cells that have a picture
IMAGES = 8  # the number of images in a row of a picture

NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may hold, such as the colours in an error's text from Ray."""


def write_night(night: Night, verdict: NightVerdict) -> None:
    """Write summary.md and junit.xml, for a CI's job summary and its test report."""
    for path, content in ((night.summary, summary(verdict)), (night.folder / "junit.xml", junit_xml(verdict))):
        with replacing(path, night.storage) as temporary:
            write_text(temporary, content)


def summary(verdict: NightVerdict) -> str:
    """summary.md."""
    comparison = verdict.comparison
    compared = {cell.label for cell in comparison.cells} if comparison else set()
    page: dict[str, Any] = {"compared": None}
    if comparison is not None:
        page = {**text.about(comparison), "not_judged": verdict.not_judged}
    headline = "no baseline yet" if verdict.result == NO_BASELINE else "⚠️ incomplete"
    if comparison is not None:
        headline = text.headline(comparison, Verdict.COLLAPSED if verdict.result == Verdict.COLLAPSED else None)
    elif verdict.result == Verdict.COLLAPSED:
        headline = f"{text.BAD} {verdict.result}: {text.EXPLANATIONS[Verdict.COLLAPSED]}"
    if verdict.missing:
        headline = f"⚠️ incomplete: {len(verdict.missing)} missing; so far: {headline}"
    # A table of the first metric of the registry that the scores have: FID, if they have it.
    scores = verdict.scores[: text.MAX_ROWS]
    column = next((column for name, column in COLUMNS.items() if any(name in score.metrics for score in scores)),
                  COLUMNS["fid"])  # fmt: skip
    names = column.name, column.sampling_error or column.error or ""
    rows = [(score.label, shown_number(*(score.metrics.get(name) for name in names))) for score in scores]
    return text.markdown(
        "night.md",
        verdict=verdict,
        headline=headline,
        failed={name: reason for name, reason in verdict.failed.items() if name not in compared},
        missing=list(verdict.missing.items())[: text.MAX_ROWS],
        scores=markdown_table(("cell", column.title), "lr", rows),
        **page,
    ) + "\n"  # fmt: skip


def junit_xml(verdict: NightVerdict) -> str:
    """A test case for each cell. Regressions fail, missing cells are errors, and undecided ones are skipped."""
    suite = ElementTree.Element("testsuite", {"name": verdict.name, "timestamp": verdict.time})

    def add(name: str, kind: str, message: str, why: str | None = None) -> None:
        """Add a case; `kind` is failure, error or skipped, or empty if it passes."""
        case = ElementTree.SubElement(suite, "testcase", {"classname": verdict.name, "name": name})
        if kind:
            ElementTree.SubElement(case, kind, {"message": message}).text = why

    cells = {cell.cell: cell for cell in verdict.comparison.cells} if verdict.comparison else {}
    for score in verdict.scores:
        cell, label = cells.get(score.cell), score.label
        if cell is None:
            kind = "failure" if label in verdict.failed else ""
            add(label, kind, Verdict.COLLAPSED, verdict.failed.get(label, ""))
        elif cell.result in REGRESSIONS:
            add(label, "failure", cell.result, text.reason(cell))
        else:
            is_open = cell.result in (Verdict.UNDECIDED, Verdict.NOT_JUDGED)
            add(label, "skipped" if is_open else "", text.reason(cell))
    for reason in verdict.not_judged:  # the command exits with 5, so its page must not be green
        add("the whole night", "failure", Verdict.NOT_JUDGED, reason)
    for name, reason in verdict.missing.items():
        add(name, "error", "missing", reason)
    counts = {"tests": "testcase", "failures": "*/failure", "errors": "*/error", "skipped": "*/skipped"}
    suite.attrib |= {name: str(len(suite.findall(path))) for name, path in counts.items()}
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    xml = NOT_XML.sub("\ufffd", ElementTree.tostring(root, encoding="unicode"))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{xml}\n'


def strips_of_the_worst(
    night: Night, tonight: Snapshot, baseline: Snapshot, comparison: BaselineComparison
) -> dict[str, str]:
    """Label -> path from the summary, of the pictures of the worst cells that are undecided or worse."""
    before = {cell.cell: cell for cell in baseline.cells}
    now = {cell.cell: cell for cell in tonight.cells}
    pairs = {
        cell.label: (before[cell.baseline_cell].load_first(), now[cell.cell].load_first())
        for cell in sorted(comparison.cells, key=text.worst_first)[:MAX_STRIPS]
        if cell.result.rank <= Verdict.UNDECIDED.rank
        and any(metric.value is not None for metric in text.tests(cell).values())  # it has not failed
    }
    files = strips(pairs, night.folder / "strips", night.storage)
    return {label: path.relative_to(night.folder).as_posix() for label, path in files.items()}


def strips(
    pairs: dict[str, tuple[ImageBatch | None, ImageBatch | None]], folder: Path, storage: Storage
) -> dict[str, Path]:
    """Write a PNG for each of the first `MAX_STRIPS` cells that have images, and remove all others from the folder.

    `pairs` is label -> images (n, C, H, W) of the baseline and of tonight. A picture has two rows: the first `IMAGES`
    images of the baseline, and tonight's of the same indices; if one side lacks them, its row says so. Returns the
    cell's label -> the file."""
    shown = {label: (_pixels(before), _pixels(after)) for label, (before, after) in pairs.items()}
    shown = {label: sides for label, sides in shown.items() if any(images is not None for images in sides)}
    written: dict[str, Path] = {}
    if shown:
        with storage.local_folder(folder) as local:
            for label, sides in list(shown.items())[:MAX_STRIPS]:
                plain = label.replace(" ", "-")
                name = name_of([plain])
                if name != plain:  # characters had to be replaced, so that others could get the same name
                    name = f"{name}-{identity({'label': label})}"
                before_and_after(*sides, local / f"{name}.png")
                written[label] = folder / f"{name}.png"
    for path in storage.list(folder, "*.png"):
        if path not in written.values():
            storage.delete(path)
    return written


def _pixels(images: ImageBatch | None) -> ImageBatch | None:
    """The first `IMAGES` images, (n, C, H, W), as (n, H, W, C) for the picture."""
    return None if images is None or not len(images) else images[:IMAGES].transpose(0, 2, 3, 1)
