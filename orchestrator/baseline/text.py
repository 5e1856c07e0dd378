"""Comparisons with a baseline, and baseline files, as text for people: the first line of a night, too."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.orchestrator.baseline.compared import BaselineComparison, Compared
from taugrid.orchestrator.baseline.matching import labels_of
from taugrid.orchestrator.baseline.others import NOT_JUDGED, change_in_words, columns_in
from taugrid.orchestrator.baseline.verdict import Sharpness, Verdict
from taugrid.words import counted

BAD, GOOD, NEUTRAL = "❌", "✅", "➖"

WORDS = {
    Verdict.CHANGED_SAMPLER: "changed sampler: today's code makes other images with the baseline's network",
    Verdict.CHANGED_SCORER: "changed scorer: today's code gives the same images other scores",
    Verdict.CHANGED_PIXELS: "changed pixels: the same weights, software and device make other images",
    Verdict.COLLAPSED: "collapsed: images that no longer vary, or can't be sampled or scored",
    Verdict.WORSE: "worse",
    Verdict.UNDECIDED: "undecided: N is too small to tell",
    Verdict.NOT_JUDGED: "not judged: some cells have no standard error in common",
    Verdict.NOT_WORSE: "not worse",
    Verdict.IDENTICAL: "identical: every image is the same",
}

MOST_LISTED = 6
"""Names in a list of unmatched cells."""


def headline(compared: Mapping[str, Any]) -> str:
    """The line, of a comparison as plain data (`BaselineComparison.as_dict`), of this version or an earlier one."""
    return f"{sign(compared)} {'; '.join([WORDS[Verdict(compared['result'])], *facts(compared)])}"


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
    """What the canaries say, a line for each that is not clean."""
    return [
        f"{name} {'not checked' if check['result'] == 'unknown' else check['result']}: {check['reason']}"
        for name, check in _checks(compared).items()
        if check["result"] != "clean"
    ]


def _checks(compared: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checks; verdicts of earlier versions have none."""
    nothing = {"result": "unknown", "reason": "a version of taugrid that had no canaries"}
    found: Mapping[str, Any] = compared.get("checks") or {"sampler": nothing, "scorer": nothing}
    return found


def change(cell: Compared) -> str:
    """The difference of FID as people read it, such as "+0.52 ± 0.11"."""
    if cell.difference is None:
        return ""
    value, error = write_number(cell.difference, math.nan if cell.se is None else cell.se)
    return f"{'+' if cell.difference > 0 else ''}{value} {error}".rstrip()


def reason(cell: Compared) -> str:
    """Why a cell has its verdict."""
    base = write_number(cell.baseline_fid, math.nan)[0]
    fid = MISSING if cell.fid is None else write_number(cell.fid, math.nan)[0]
    told = ", ".join(filter(None, [f"FID {base} -> {fid}", change(cell)]))
    if cell.t is not None:
        told += f", T = {cell.t:+.1f}; margin {cell.margin:.3g}"
    if cell.result is Verdict.UNDECIDED and cell.detectable is not None:
        told += f"; a change of {cell.detectable:.3g} would be seen in 4 of 5 nights"
    if cell.pixels is not None and cell.pixels.differing:
        told += f"; {pixels_text(cell)}"
    return "; ".join(filter(None, [told, cell.note]))


def pixels_text(cell: Compared) -> str:
    """How many images differ, and by how much."""
    assert cell.pixels is not None
    found = f"{cell.pixels.differing:,} of {counted(cell.pixels.images, 'image')} differ"
    if cell.pixels.largest is None:
        return f"{found} (by how many grey levels is unknown: the baseline's images are not at hand)"
    levels = counted(cell.pixels.largest, "grey level")
    return f"{found}, by up to {levels} ({cell.pixels.mean:.2g} on average)"


def comparison_text(found: BaselineComparison) -> str:
    """The verdict, a line for each cell, and what else was found."""
    width, plain = max(len(cell.label) for cell in found.cells), found.as_dict()
    lines = [headline(plain), f"{counts(plain)}.", ""]
    longest = max(len(cell.result) for cell in found.cells)
    lines += [f"{cell.result:{longest}}  {cell.label:{width}}  {reason(cell)}" for cell in found.cells]
    lines += ["", *check_lines(plain)]
    lines += [f"not judged: {said}" for said in found.not_judged]
    lines += [f"missing: {name}: {said}" for name, said in found.missing.items()]
    if found.critical is not None:
        lines.append(f"rule: {found.rule}; margin {100 * found.margin:g} % of the baseline's FID")
    lines += _others(found)
    for title, names in (("not in the baseline", found.only_new), ("only in the baseline", found.only_baseline)):
        if names:
            more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
            called = (found.unmatched.get(name, name) for name in names[:MOST_LISTED])
            lines.append(f"{title}: {', '.join(called)}{more}")
    lines += [f"differs: {mark}" for mark in found.marks]
    lines += [f"warning: {note}" for note in found.notes]
    return "\n".join(lines)


def _others(found: BaselineComparison) -> list[str]:
    """A line for each cell with its metrics beside FID, as they were and are."""
    columns = columns_in(cell.others for cell in found.cells)
    lines = [f"other metrics, {NOT_JUDGED}:"] * bool(columns)
    width = max((len(cell.label) for cell in found.cells), default=0)
    for cell in found.cells if columns else ():
        told = (f"{column.title} {change_in_words(cell.others, column)}" for column in columns)
        lines.append(f"  {cell.label:{width}}  {', '.join(told)}")
    return lines


def baseline_text(value: Mapping[str, Any]) -> str:
    """What a baseline file says."""
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
    width = max(map(len, named.values()))
    for cell in value["cells"]:
        number, error = write_number(cell["metrics"]["fid"], cell["metrics"].get("fid_se", math.nan))
        label, n, fids = named[cell["cell"]], cell["settings"]["num_samples"], cell.get("trainings", [])
        lines.append(f"{label:{width}}  N = {n}  FID {number} {error}".rstrip())
        if fids:
            trainings = [cell["metrics"]["fid"], *fids]
            mean, spread = write_number(statistics.mean(trainings), statistics.stdev(trainings))
            lines[-1] += f"; the mean of the trainings is {mean}, their spread {spread.removeprefix('± ')}"
    return "\n".join(lines)
