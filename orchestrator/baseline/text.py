"""Comparisons with a baseline, and baseline files, as text; the headline of a night, too.

A comparison is plain data here (`BaselineComparison.as_dict`), as in a night's verdict.json. Those of earlier versions
lack some fields.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taugrid.eval.gate.power import POWER
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.orchestrator.baseline.compared import Sharpness
from taugrid.orchestrator.baseline.matching import labels_of
from taugrid.registry.metrics import METRICS, MetricColumn
from taugrid.words import counted, in_columns, listed

CellDict = Mapping[str, Any]
"""A `CellComparison` as plain data."""

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

MAX_LISTED = 6
"""The number of unmatched cells that are named."""

OTHER_COLUMNS: tuple[MetricColumn, ...] = tuple(
    column for metric in METRICS.values() for column in metric.columns if column.name != "fid"
)
"""Metrics other than FID. None has a standard error of sampling (KID's ± is over subsets, the Inception Score's over
splits), so they are shown beside the verdict and not judged."""

NOT_JUDGED = "shown, not judged, because they have no standard error"


def explained(verdict: Verdict) -> str:
    """The verdict with its explanation, such as "undecided: N is too small to tell"."""
    return f"{verdict}: {EXPLANATIONS[verdict]}" if verdict in EXPLANATIONS else verdict


def headline(comparison: Mapping[str, Any]) -> str:
    return f"{sign(comparison)} {'; '.join([explained(Verdict(comparison['result'])), *facts(comparison)])}"


def sign(comparison: Mapping[str, Any]) -> str:
    """Red for a regression. Green only if every cell was judged, and sampler and scorer are the baseline's."""
    result = Verdict(comparison["result"])
    if result.is_regression:
        return BAD
    checked = all(check["result"] == "clean" for check in _checks(comparison).values())
    lacking = comparison.get("not_judged") or comparison.get("missing")
    return GOOD if result in (Verdict.NOT_WORSE, Verdict.IDENTICAL) and checked and not lacking else NEUTRAL


def facts(comparison: Mapping[str, Any]) -> list[str]:
    """The coverage, the sharpness, what was not judged and what was not checked, as phrases."""
    facts = []
    if (coverage := comparison.get("compared")) is not None:
        facts.append(f"{coverage[0]:,} of {counted(coverage[1], 'baseline cell')} compared")
    if (sharpness := comparison.get("sharpness")) is not None:
        facts.append(Sharpness.from_dict(sharpness).message)
    if reasons := comparison.get("not_judged"):
        facts.append(f"not judged in full: {reasons[0]}")
    unknown = [name for name, check in _checks(comparison).items() if check["result"] == "unknown"]
    if unknown:
        facts.append(f"{' and '.join(unknown)} not checked")
    return facts


def counts(comparison: Mapping[str, Any]) -> str:
    """The number of cells of each verdict, such as "3 worse, 9 not worse"."""
    number_of = Counter(Verdict(cell["result"]) for cell in comparison["cells"])
    return ", ".join(f"{number_of[verdict]} {verdict}" for verdict in Verdict if number_of[verdict])


def check_lines(comparison: Mapping[str, Any]) -> list[str]:
    """A line for each canary that is not clean."""
    return [
        f"{name} {'not checked' if check['result'] == 'unknown' else check['result']}: {check['reason']}"
        for name, check in _checks(comparison).items()
        if check["result"] != "clean"
    ]


def _checks(comparison: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = {"result": "unknown", "reason": "a version of taugrid that had no canaries"}
    checks: Mapping[str, Any] = comparison.get("checks") or {"sampler": unknown, "scorer": unknown}
    return checks


def number(value: float | None, error: float | None = None) -> str:
    """A value with its standard error, formatted as in the tables."""
    if value is None:
        return MISSING
    return " ".join(write_number(value, math.nan if error is None else error)).strip()


def judged_fids(cell: CellDict) -> tuple[float | None, float]:
    """The new FID and the baseline's whose difference was judged.

    They are those of a second look, which samples both networks once more, if there was one.
    """
    fid, base = cell.get("judged_fids") or (cell["fid"], cell["baseline_fid"])
    return fid, base


def change(cell: CellDict) -> str:
    """The judged difference of FID with its sign and standard error; empty if there is none."""
    if cell["difference"] is None:
        return ""
    return f"{'+' if cell['difference'] > 0 else ''}{number(cell['difference'], cell['se'])}"


def reason(cell: CellDict) -> str:
    """The reason for a cell's verdict, in one line."""
    fid, base = judged_fids(cell)
    fids = f"FID {number(base)} -> {number(fid)}, change {change(cell) or 'unknown'}"
    test = [] if cell["t"] is None else [f"T = {cell['t']:+.1f}, margin {cell['margin']:.3g}"]
    return "; ".join([fids, *test, *remarks(cell)])


def remarks(cell: CellDict) -> list[str]:
    """Facts about a cell that its numbers do not show."""
    remarks = []
    if cell["seeds"] != "usual":
        seeds = "a fresh seed" if cell["seeds"] == "fresh" else "more samples and a fresh seed"
        usual = f"{number(cell['baseline_fid'])} -> {number(cell['fid'])}"
        remarks.append(f"numbers of {seeds}; with the usual one: FID {usual}")
    if cell["result"] == Verdict.UNDECIDED and cell["detectable"] is not None:
        remarks.append(f"a regression of {cell['detectable']:.3g} is detected with {100 * POWER:g} % probability")
    if cell["pixels"] and cell["pixels"]["differing"]:
        remarks.append(_pixels(cell["pixels"]))
    return [*remarks, cell["note"]] if cell["note"] else remarks


def _pixels(pixels: Mapping[str, Any]) -> str:
    """The number of images that differ, and by how many grey levels."""
    differing = f"{pixels['differing']:,} of {counted(pixels['images'], 'image')} differ"
    if pixels["largest"] is None:
        return f"{differing} (by how many grey levels is unknown: the baseline's images are gone)"
    return f"{differing}, by up to {counted(pixels['largest'], 'grey level')} ({pixels['mean']:.2g} on average)"


def other_metrics(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, tuple[float | None, float | None]]:
    """Column of quality.csv -> the new value and the baseline's, of the metrics other than FID that either side has."""
    sides = {column.name: (new.get(column.name), old.get(column.name)) for column in OTHER_COLUMNS}
    return {name: values for name, values in sides.items() if any(value is not None for value in values)}


def columns_in(cells: Iterable[CellDict]) -> list[MetricColumn]:
    """The metrics other than FID that some cell has, in the order of the registry."""
    given = {name for cell in cells for name in cell["others"]}
    return [column for column in OTHER_COLUMNS if column.name in given]


def other_change(cell: CellDict, column: MetricColumn, arrow: str = "->") -> str:
    """Such as "2.31 -> 2.35": the baseline's value of a metric other than FID, and the new one."""
    new, old = (
        None if value is None else value * column.scale for value in cell["others"].get(column.name, (None, None))
    )
    return f"{number(old)} {arrow} {number(new)}"


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The verdict, a line for each cell, and the checks, rule, other metrics and warnings."""
    cells = comparison["cells"]
    lines = [headline(comparison), f"{counts(comparison)}.", ""]
    lines += in_columns((cell["result"], cell["label"], reason(cell)) for cell in cells)
    lines += ["", *check_lines(comparison)]
    lines += [f"not judged: {reason}" for reason in comparison["not_judged"]]
    lines += [f"missing: {name}: {message}" for name, message in comparison["missing"].items()]
    if comparison["critical"] is not None:
        margin = f"{100 * comparison['margin']:g} %"
        lines.append(f"rule: {comparison['rule']}; margin {margin} of the baseline's FID")
    if columns := columns_in(cells):
        lines.append(f"other metrics, {NOT_JUDGED}:")
        changes = (", ".join(f"{column.title} {other_change(cell, column)}" for column in columns) for cell in cells)
        lines += in_columns((f"  {cell['label']}", change) for cell, change in zip(cells, changes, strict=True))
    lines += [f"{title}: {names}" for title, names in unmatched(comparison, MAX_LISTED).items()]
    lines += [f"differs: {difference}" for difference in comparison["marks"]]
    lines += [f"warning: {note}" for note in comparison["notes"]]
    return "\n".join(lines)


def unmatched(comparison: Mapping[str, Any], limit: int) -> dict[str, str]:
    """The labels of the cells that only one side has, at most `limit` of each, by a title for them."""
    sides = {"not in the baseline": comparison["only_new"], "only in the baseline": comparison["only_baseline"]}
    labels = comparison.get("unmatched", {})
    return {title: listed([labels.get(name, name) for name in names], limit) for title, names in sides.items() if names}


def baseline_text(value: Mapping[str, Any]) -> str:
    software = value["software"]
    commit = software.get("git_commit")
    lines = [
        f"baseline of {value['name']}, accepted {value['accepted']}: {value['reason']}",
        f"run: {value['run']}",
        *(f"training of the recipe: {place}" for place in value.get("trainings", ())[1:]),
        *(f"remark: {remark}" for remark in value["remarks"]),
        f"taugrid {(software.get('versions') or {}).get('taugrid')}, commit {commit[:12] if commit else 'unknown'}",
        "",
    ]
    labels = labels_of({cell["cell"]: {**cell["settings"], **cell["axes"]} for cell in value["cells"]})
    rows = []
    for cell in value["cells"]:
        fid = number(cell["metrics"]["fid"], cell["metrics"].get("fid_se"))
        of_trainings = _of_trainings([cell["metrics"]["fid"], *cell.get("trainings", ())])
        rows.append((labels[cell["cell"]], f"N = {cell['settings']['num_samples']}", f"FID {fid}{of_trainings}"))
    return "\n".join([*lines, *in_columns(rows)])


def _of_trainings(fids: Sequence[float]) -> str:
    if len(fids) < 2:
        return ""
    mean, spread = write_number(statistics.mean(fids), statistics.stdev(fids))
    return f"; the mean of the trainings is {mean}, their spread {spread.removeprefix('± ')}"
