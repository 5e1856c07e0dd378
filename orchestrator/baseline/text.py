"""Comparisons with a baseline, and baseline files, as text for people."""

import math
from collections.abc import Mapping
from typing import Any

from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.orchestrator.baseline.comparison import BaselineComparison, Compared
from taugrid.orchestrator.baseline.headline import check_lines, counts, headline
from taugrid.orchestrator.baseline.labels import labels_of
from taugrid.orchestrator.baseline.others import NOT_JUDGED, change_in_words, columns_in
from taugrid.orchestrator.baseline.verdict import Verdict
from taugrid.words import counted

MOST_LISTED = 6
"""Names in a list of unmatched cells."""


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
        *(f"remark: {remark}" for remark in value["remarks"]),
        f"taugrid {(software.get('versions') or {}).get('taugrid')}, commit {commit[:12] if commit else 'unknown'}",
        "",
    ]
    named = labels_of({cell["cell"]: {**cell["settings"], **cell["axes"]} for cell in value["cells"]})
    width = max(map(len, named.values()))
    for cell in value["cells"]:
        number, error = write_number(cell["metrics"]["fid"], cell["metrics"].get("fid_se", math.nan))
        label, n = named[cell["cell"]], cell["settings"]["num_samples"]
        lines.append(f"{label:{width}}  N = {n}  FID {number} {error}".rstrip())
    return "\n".join(lines)
