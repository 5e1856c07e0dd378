"""Comparisons with a baseline, and baseline files, as text; the headline of a night, too."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from taugrid.eval.gate.rule import POWER
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.pages.environment import environment
from taugrid.eval.tables.long_form import shown_columns
from taugrid.eval.tables.table import shown_number
from taugrid.orchestrator.baseline.compared import (
    BaselineComparison,
    CellComparison,
    MetricComparison,
    sharpness_in_words,
)
from taugrid.orchestrator.baseline.matching import labels
from taugrid.orchestrator.baseline.snapshot import Baseline, ImagesRequest
from taugrid.protocol import extractor_in_words
from taugrid.registry.metrics import COLUMNS, SAMPLED, MetricColumn
from taugrid.words import counted, in_columns, listed, markdown_table

BAD, GOOD, NEUTRAL = "❌", "✅", "➖"

EXPLANATIONS = {
    Verdict.CHANGED_SAMPLER: "today's code makes other images with the baseline's network",
    Verdict.CHANGED_SCORER: "today's code gives the same images other scores",
    Verdict.CHANGED_PIXELS: "the same weights, software and device make other images",
    Verdict.COLLAPSED: "images that no longer vary, or can't be sampled or scored",
    Verdict.UNDECIDED: "N is too small to tell",
    Verdict.NOT_JUDGED: "some cells have no standard error in common",
    Verdict.IDENTICAL: "every image is the same",
}

MAX_ROWS = 200  # rows of a table: GitHub accepts summaries of 1 MB
MAX_LISTED = 20  # the number of unmatched cells that are named


def headline(comparison: BaselineComparison, result: Verdict | None = None) -> str:
    """Sign, verdict, coverage, sharpness, and what was not judged or checked. `result` is that of a night, which may be
    worse than the comparison's."""
    verdict, (compared, total) = result or comparison.result, comparison.compared
    facts = [f"{verdict}: {EXPLANATIONS[verdict]}" if verdict in EXPLANATIONS else str(verdict)]
    facts.append(f"{compared:,} of {counted(total, 'baseline cell')} compared")
    if comparison.sharpnesses and not comparison.result.is_regression:  # that of a broken night is not the gate's
        facts.append(sharpness_in_words(comparison.sharpnesses))
    if reasons := comparison.not_judged:
        facts.append(f"not judged in full: {reasons[0]}")
    unknown = [name for name, check in comparison.checks.items() if check.result == "unknown"]
    if unknown:
        facts.append(f"{' and '.join(unknown)} not checked")
    return f"{BAD if verdict.is_regression else sign(comparison)} {'; '.join(facts)}"


def sign(comparison: BaselineComparison) -> str:
    """Red for a regression. Green only if every cell was judged, and sampler and scorer are the baseline's."""
    if comparison.result.is_regression:
        return BAD
    checked = all(check.result in ("clean", "not applicable") for check in comparison.checks.values())
    lacking = comparison.not_judged or comparison.missing
    return GOOD if comparison.result.rank >= Verdict.NOT_WORSE.rank and checked and not lacking else NEUTRAL


def check_lines(comparison: BaselineComparison, unsaid: Collection[str] = ("clean",)) -> list[str]:
    """A line for each canary whose result is not among `unsaid`."""
    return [f"{name} {'not checked' if check.result == 'unknown' else check.result}: {check.reason}"
            for name, check in comparison.checks.items() if check.result not in unsaid]  # fmt: skip


def tests(cell: CellComparison) -> dict[str, MetricComparison]:
    """Column -> each metric that judged a cell, that of its verdict first; if none did, the first that is known."""
    return cell.judged or dict(list(cell.metrics.items())[:1])


def judged_columns(cells: Iterable[CellComparison]) -> list[MetricColumn]:
    """The metrics that `tests` has for some cell, in the order of the registry."""
    found = {name for cell in cells for name in tests(cell)}
    return [column for name, column in COLUMNS.items() if name in found]


def titles(cells: Iterable[CellComparison]) -> str:
    """The metrics that cells are judged by, such as "FID and KID"."""
    return " and ".join(column.title for column in judged_columns(cells))


def worst_first(cell: CellComparison) -> tuple[int, float]:
    """Sorts cells: the worst verdict first, and of equal ones that with the largest T."""
    first = next(iter(tests(cell).values()), None)
    return cell.result.rank, -((first and first.t) or 0)


def _numbers(metric: MetricComparison, column: MetricColumn) -> tuple[str, str, str]:
    """The judged values of baseline and new side, and their difference with its sign and error; empty without one."""
    scale, (new, base) = column.scale, metric.judged or (metric.value, metric.baseline)
    change = ""
    if metric.difference is not None:
        shown = shown_number(metric.difference * scale, None if metric.se is None else metric.se * scale)
        change = f"{'+' if metric.difference > 0 else ''}{shown}"
    return shown_number(base * scale), shown_number(None if new is None else new * scale), change


def reason(cell: CellComparison) -> str:
    """The reason for a cell's verdict, in one line: the metric of the verdict first."""
    said = []
    for name, metric in tests(cell).items():
        column = COLUMNS[name]
        base, new, change = _numbers(metric, column)
        said.append(f"{column.title} {base} -> {new}, change {change or 'unknown'}")
        if metric.t is not None:
            said.append(f"T = {metric.t:+.1f}, margin {metric.margin * column.scale:.3g}")
    return "; ".join([*said, *remarks(cell)])


def remarks(cell: CellComparison) -> list[str]:
    """Facts about a cell that its numbers do not show."""
    remarks, judged = list[str](), tests(cell)
    if cell.seeds != "usual":
        seeds = "a fresh seed" if cell.seeds == "fresh" else "more samples and a fresh seed"
        usual = []
        for name, metric in judged.items():
            base, new, _ = _numbers(replace(metric, judged=None), COLUMNS[name])
            usual.append(f"{COLUMNS[name].title} {base} -> {new}")
        remarks.append(f"numbers of {seeds}; with the usual one: {', '.join(usual)}")
    if len({metric.verdict for metric in judged.values()}) > 1:
        remarks.append(", ".join(f"by {COLUMNS[name].title}: {metric.verdict}" for name, metric in judged.items()))
    first = next(iter(judged), None)
    if cell.result == Verdict.UNDECIDED and first is not None and (detectable := judged[first].detectable) is not None:
        of_it = "" if first == "fid" else f" of {COLUMNS[first].title}"
        detected = f"a regression{of_it} of {detectable * COLUMNS[first].scale:.3g} is detected"
        remarks.append(f"{detected} with {100 * POWER:g} % probability")
        if (n := decisive(cell)) is not None:
            how = f"`--grow-to {n}`" if cell.grows else f"N = {n:,}"
            remarks.append(f"{how} would decide, if the networks are equal")
    if (pixels := cell.pixels) and pixels.differing:
        by = " (by how many grey levels is unknown: the baseline's images are gone)"
        if pixels.largest is not None:
            by = f", by up to {counted(pixels.largest, 'grey level')} ({pixels.mean:.2g} on average)"
        remarks.append(f"{pixels.differing:,} of {counted(pixels.images, 'image')} differ{by}")
    return [*remarks, cell.note] if cell.note else remarks


def decisive(cell: CellComparison) -> int | None:
    """The N that would decide an undecided cell, if the networks are equal; None if it is unknown. A margin in standard
    errors shrinks with them, so for a metric that has one only growth, which keeps it, decides."""
    undecided = {name: metric for name, metric in tests(cell).items() if metric.verdict == Verdict.UNDECIDED}
    if not cell.grows and any(COLUMNS[name].may_be_zero for name in undecided):
        return None
    needed = [metric.decisive for metric in undecided.values() if metric.decisive is not None]
    return max(needed, default=None) if len(needed) == len(undecided) else None


def comparison_text(comparison: BaselineComparison) -> str:
    """A comparison as Markdown; the first line has the verdict and which side is new. Nights show the same."""
    head = f"{headline(comparison)}; {comparison.directory} (new) - {comparison.baseline}"
    missing = [f"- missing: `{name}`: {message}" for name, message in comparison.missing.items()]
    page = markdown("comparison.md", **about(comparison), not_judged=comparison.not_judged)
    return "\n".join([head, "", page, *missing])


def markdown(template: str, **values: Any) -> str:
    """A page in Markdown, with one empty line where its template has several."""
    text = environment().overlay(autoescape=False).get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def about(comparison: BaselineComparison) -> dict[str, Any]:
    """What the template comparison.md shows of a comparison."""
    cells = sorted(comparison.cells, key=worst_first)
    number_of, gate = Counter(cell.result for cell in cells), comparison.gate
    least = least_margin(judged_columns(cells), gate.margin, gate.margin_floor)
    return {
        "compared": comparison,
        "counts": ", ".join(f"{number_of[verdict]} {verdict}" for verdict in Verdict if number_of[verdict]),
        "check_lines": check_lines(comparison),
        "cells": _cells(cells[:MAX_ROWS]),
        "cells_left_out": counted(len(cells) - MAX_ROWS, "more cell") if len(cells) > MAX_ROWS else "",
        "margin": f"{100 * gate.margin:g} % of the baseline's {titles(cells)}{least}",
        "others": _others(comparison.cells[:MAX_ROWS]),
        "unmatched": unmatched(
            *([comparison.unmatched[name] for name in only] for only in (comparison.only_new, comparison.only_baseline))
        ),
    }


def _cells(cells: Sequence[CellComparison]) -> str:
    """A table of the cells: four numbers of each metric that judged one, and remarks."""
    columns, rows = judged_columns(cells), []
    for cell in cells:
        metrics, numbers = tests(cell), list[str]()
        for column in columns:
            if (metric := metrics.get(column.name)) is None:
                numbers += [""] * 4
            else:
                numbers += [*_numbers(metric, column), "" if metric.t is None else format(metric.t, "+.1f")]
        shown = f"**{cell.result}**" if cell.result.is_regression else cell.result
        rows.append((cell.label, shown, *numbers, "; ".join(remarks(cell))))
    heads = (head for column in columns for head in (f"baseline {column.title}", column.title, "change", "T"))
    return markdown_table(("cell", "verdict", *heads, ""), f"ll{'r' * 4 * len(columns)}l", rows)


def _others(cells: Sequence[CellComparison]) -> str:
    """A table of the metrics that judged no cell: the baseline's value and the new one; empty if there are none."""
    judged, given = judged_columns(cells), {name for cell in cells for name in cell.others}
    columns = [column for column in shown_columns(given) if column not in judged]
    if not columns:
        return ""
    rows = []
    for cell in cells:
        pairs = [(column.scale, cell.others.get(column.name, (None, None))) for column in columns]
        shown = [[shown_number(None if value is None else value * scale) for value in pair] for scale, pair in pairs]
        rows.append((cell.label, *(f"{old} → {new}" for new, old in shown)))
    return markdown_table(("cell", *(column.title for column in columns)), "l" + "r" * len(columns), rows)


def least_margin(columns: Iterable[MetricColumn], share: float, floor: float) -> str:
    """The end of a sentence on margins of this share: those of `columns` that have a floor."""
    floored = [column.title for column in columns if column.may_be_zero and share and floor]
    return f", of {' and '.join(floored)} at least {floor:g} of its standard error" if floored else ""


def unmatched(only_new: Sequence[str], only_baseline: Sequence[str]) -> dict[str, str]:
    """The labels of the cells that only one side has, at most `MAX_LISTED` of each, by a title for them."""
    sides = {"not in the baseline": only_new, "only in the baseline": only_baseline}
    return {title: listed(labels, MAX_LISTED) for title, labels in sides.items() if labels}


def scored_as(images: ImagesRequest, protocol: Mapping[str, Any]) -> list[str]:
    """Lines with the reference and the extractor of external images; `images` says how they were scored."""
    number = protocol["reference"]["num_images"]
    size = "mean and covariance" if number is None else counted(number, "image")
    return [f"reference: {images.reference} ({size})", f"extractor: {extractor_in_words(protocol['extractor'])}"]


def baseline_text(baseline: Baseline) -> str:
    """What `baseline show` prints."""
    commit = baseline.software.git_commit
    lines = [
        f"baseline of {baseline.name}, accepted {baseline.accepted}: {baseline.reason}",
        f"{'images' if baseline.images else 'run'}: {baseline.run}",
        *(f"remark: {remark}" for remark in baseline.remarks),
        *(scored_as(baseline.images, baseline.cells[0].protocol) if baseline.images else ()),
        f"taugrid {baseline.software.versions.get('taugrid')}, commit {commit[:12] if commit else 'unknown'}",
        "",
    ]
    label_of = labels(baseline.cells)
    with_error = [column for column in SAMPLED if any(column.sampling_error in cell.metrics for cell in baseline.cells)]
    shown = [column for column in COLUMNS.values() if column.name == "fid" or column in with_error]
    rows = []
    for cell in baseline.cells:
        row = [label_of[cell.cell], f"N = {cell.settings['num_samples']}"]
        for column in shown:
            numbers = (cell.metrics.get(name or "") for name in (column.name, column.sampling_error))
            value = shown_number(*(None if number is None else number * column.scale for number in numbers))
            row.append(f"{column.title} {value}")
        rows.append(row)
    return "\n".join([*lines, *in_columns(rows)])
