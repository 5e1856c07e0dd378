"""Comparisons with a baseline, and baseline files, as text for people: the first line of a night, too.

A comparison is plain data here (`BaselineComparison.as_dict`), as a night's verdict.json has it: of this version or of
an earlier one, which lacks some fields.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.orchestrator.baseline.compared import Sharpness
from taugrid.orchestrator.baseline.matching import labels_of
from taugrid.registry.metrics import METRICS, MetricColumn
from taugrid.words import counted, in_columns, listed

ComparedDict = Mapping[str, Any]
"""A `Compared` as plain data."""

BAD, GOOD, NEUTRAL = "❌", "✅", "➖"

SAID = {
    Verdict.CHANGED_SAMPLER: "today's code makes other images with the baseline's network",
    Verdict.CHANGED_SCORER: "today's code gives the same images other scores",
    Verdict.CHANGED_PIXELS: "the same weights, software and device make other images",
    Verdict.COLLAPSED: "images that no longer vary, or can't be sampled or scored",
    Verdict.UNDECIDED: "N is too small to tell",
    Verdict.NOT_JUDGED: "some cells have no standard error in common",
    Verdict.IDENTICAL: "every image is the same",
}
"""The explanation of a verdict in a headline."""

MOST_LISTED = 6
"""Names in a list of unmatched cells."""

OTHER_COLUMNS: tuple[MetricColumn, ...] = tuple(
    column for metric in METRICS.values() for column in metric.columns if column.name != "fid"
)
"""Metrics beside FID. None has a standard error of sampling (KID's ± is over subsets, the Inception Score's over
splits), so they are shown beside the verdict and not judged."""

NOT_JUDGED = "shown, not judged, because they have no standard error"


def in_words(verdict: Verdict) -> str:
    """Such as "undecided: N is too small to tell"."""
    return f"{verdict}: {SAID[verdict]}" if verdict in SAID else verdict


def headline(compared: Mapping[str, Any]) -> str:
    return f"{sign(compared)} {'; '.join([in_words(Verdict(compared['result'])), *facts(compared)])}"


def sign(compared: Mapping[str, Any]) -> str:
    """Red for a regression. Green only if every cell was judged, and sampler and scorer are the baseline's."""
    result = Verdict(compared["result"])
    if result.is_regression:
        return BAD
    checked = all(check["result"] == "clean" for check in _checks(compared).values())
    lacking = compared.get("not_judged") or compared.get("missing")
    return GOOD if result in (Verdict.NOT_WORSE, Verdict.IDENTICAL) and checked and not lacking else NEUTRAL


def facts(compared: Mapping[str, Any]) -> list[str]:
    """How many cells were compared, the smallest loss that would have been seen, and what was not checked."""
    found = []
    if (of := compared.get("compared")) is not None:
        found.append(f"{of[0]:,} of {counted(of[1], 'baseline cell')} compared")
    if (sharp := compared.get("sharpness")) is not None:
        found.append(Sharpness(**sharp).in_words)
    if said := compared.get("not_judged"):
        found.append(f"not judged in full: {said[0]}")
    unknown = [name for name, check in _checks(compared).items() if check["result"] == "unknown"]
    if unknown:
        found.append(f"{' and '.join(unknown)} not checked")
    return found


def counts(compared: Mapping[str, Any]) -> str:
    """Such as "3 worse, 9 not worse"."""
    found = Counter(Verdict(cell["result"]) for cell in compared["cells"])
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in Verdict if found[verdict])


def check_lines(compared: Mapping[str, Any]) -> list[str]:
    """A line for each canary that is not clean."""
    return [
        f"{name} {'not checked' if check['result'] == 'unknown' else check['result']}: {check['reason']}"
        for name, check in _checks(compared).items()
        if check["result"] != "clean"
    ]


def _checks(compared: Mapping[str, Any]) -> Mapping[str, Any]:
    nothing = {"result": "unknown", "reason": "a version of taugrid that had no canaries"}
    found: Mapping[str, Any] = compared.get("checks") or {"sampler": nothing, "scorer": nothing}
    return found


def number(value: float | None, error: float | None = None) -> str:
    """A value as tables have it, with its standard error."""
    if value is None:
        return MISSING
    return " ".join(write_number(value, math.nan if error is None else error)).strip()


def judged_fids(cell: ComparedDict) -> tuple[float | None, float]:
    """The new FID and the baseline's whose difference was judged: those of a second look, if there was one."""
    fid, base = cell.get("judged_fids") or (cell["fid"], cell["baseline_fid"])
    return fid, base


def change(cell: ComparedDict) -> str:
    if cell["difference"] is None:
        return ""
    return f"{'+' if cell['difference'] > 0 else ''}{number(cell['difference'], cell['se'])}"


def reason(cell: ComparedDict) -> str:
    """Why a cell has its verdict, in a line."""
    fid, base = judged_fids(cell)
    told = f"FID {number(base)} -> {number(fid)}, change {change(cell) or 'unknown'}"
    judged = [] if cell["t"] is None else [f"T = {cell['t']:+.1f}, margin {cell['margin']:.3g}"]
    return "; ".join([told, *judged, *remarks(cell)])


def remarks(cell: ComparedDict) -> list[str]:
    """Facts about a cell that its numbers do not show."""
    told = []
    if cell["seeds"] != "usual":
        seeds = "a fresh seed" if cell["seeds"] == "fresh" else "more samples and a fresh seed"
        usual = f"{number(cell['baseline_fid'])} -> {number(cell['fid'])}"
        told.append(f"numbers of {seeds}; with the usual one: FID {usual}")
    if cell["result"] == Verdict.UNDECIDED and cell["detectable"] is not None:
        told.append(f"a change of {cell['detectable']:.3g} would be seen in 4 of 5 nights")
    if cell["pixels"] and cell["pixels"]["differing"]:
        told.append(_pixels(cell["pixels"]))
    return [*told, cell["note"]] if cell["note"] else told


def _pixels(pixels: Mapping[str, Any]) -> str:
    """How many images differ, and by how much."""
    found = f"{pixels['differing']:,} of {counted(pixels['images'], 'image')} differ"
    if pixels["largest"] is None:
        return f"{found} (by how many grey levels is unknown: the baseline's images are gone)"
    return f"{found}, by up to {counted(pixels['largest'], 'grey level')} ({pixels['mean']:.2g} on average)"


def other_metrics(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, tuple[float | None, float | None]]:
    """Column of quality.csv -> the new value and the baseline's, of the metrics beside FID that either side has."""
    sides = {column.name: (new.get(column.name), old.get(column.name)) for column in OTHER_COLUMNS}
    return {name: values for name, values in sides.items() if any(value is not None for value in values)}


def columns_in(cells: Iterable[ComparedDict]) -> list[MetricColumn]:
    """The metrics beside FID that some cell has, in the order of the registry."""
    given = {name for cell in cells for name in cell["others"]}
    return [column for column in OTHER_COLUMNS if column.name in given]


def other_change(cell: ComparedDict, column: MetricColumn, arrow: str = "->") -> str:
    """Such as "2.31 -> 2.35": the baseline's value of a metric beside FID, and the new one."""
    new, old = (
        None if value is None else value * column.scale for value in cell["others"].get(column.name, (None, None))
    )
    return f"{number(old)} {arrow} {number(new)}"


def comparison_text(found: Mapping[str, Any]) -> str:
    """The verdict, a line for each cell, and what else was found."""
    cells = found["cells"]
    lines = [headline(found), f"{counts(found)}.", ""]
    lines += in_columns((cell["result"], cell["label"], reason(cell)) for cell in cells)
    lines += ["", *check_lines(found)]
    lines += [f"not judged: {said}" for said in found["not_judged"]]
    lines += [f"missing: {name}: {said}" for name, said in found["missing"].items()]
    if found["critical"] is not None:
        lines.append(f"rule: {found['rule']}; margin {100 * found['margin']:g} % of the baseline's FID")
    if columns := columns_in(cells):
        lines.append(f"other metrics, {NOT_JUDGED}:")
        changes = (", ".join(f"{column.title} {other_change(cell, column)}" for column in columns) for cell in cells)
        lines += in_columns((f"  {cell['label']}", change) for cell, change in zip(cells, changes, strict=True))
    lines += [f"{title}: {names}" for title, names in unmatched(found, MOST_LISTED).items()]
    lines += [f"differs: {mark}" for mark in found["marks"]]
    lines += [f"warning: {note}" for note in found["notes"]]
    return "\n".join(lines)


def unmatched(compared: Mapping[str, Any], most: int) -> dict[str, str]:
    sides = {"not in the baseline": compared["only_new"], "only in the baseline": compared["only_baseline"]}
    known = compared.get("unmatched", {})
    return {title: listed([known.get(name, name) for name in names], most) for title, names in sides.items() if names}


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
    named = labels_of({cell["cell"]: {**cell["settings"], **cell["axes"]} for cell in value["cells"]})
    rows = []
    for cell in value["cells"]:
        fid = number(cell["metrics"]["fid"], cell["metrics"].get("fid_se"))
        of_trainings = _of_trainings([cell["metrics"]["fid"], *cell.get("trainings", ())])
        rows.append((named[cell["cell"]], f"N = {cell['settings']['num_samples']}", f"FID {fid}{of_trainings}"))
    return "\n".join([*lines, *in_columns(rows)])


def _of_trainings(fids: Sequence[float]) -> str:
    if len(fids) < 2:
        return ""
    mean, spread = write_number(statistics.mean(fids), statistics.stdev(fids))
    return f"; the mean of the trainings is {mean}, their spread {spread.removeprefix('± ')}"
