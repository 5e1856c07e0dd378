"""What a night of a plan would compare with a baseline, before anything is sampled."""

from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.errors import NotHere, UserError
from taugrid.orchestrator.baseline.files import snapshot_of
from taugrid.orchestrator.baseline.matching import labels, matched
from taugrid.orchestrator.baseline.snapshot import Snapshot, planned_snapshot
from taugrid.orchestrator.baseline.text import MOST_LISTED
from taugrid.orchestrator.nightly.before.checks import expected_standard_error_problem
from taugrid.orchestrator.run import Run
from taugrid.words import counted

NO_MODEL = "a model is not here yet"


def compared(opened: Run, file: str) -> dict[str, Any]:
    """Which cells of a plan and of the baseline `file`, a file or a run, a night would compare, as plain data.

    What is not here (a checkpoint, the reference, an extractor's weights) leaves that unknown: a plan does without.

    Raises:
        UserError: if it is no baseline, or a night would refuse to begin.
    """
    if (problem := expected_standard_error_problem(opened)) is not None:
        raise UserError(problem)
    baseline = snapshot_of(file)
    about: dict[str, Any] = {"place": baseline.place, "cells": len(baseline.cells), "compared": None, "unknown": None}
    if opened.plan.pending:
        return about | {"only_new": [], "only_baseline": [], "unknown": NO_MODEL}
    try:
        new = planned_snapshot(opened, downloads=False)
    except NotHere as error:
        return about | {"only_new": [], "only_baseline": [], "unknown": str(error)}
    pairs, only_new, only_baseline = matched(new, baseline)
    lists = {"only_new": _labelled(new, only_new), "only_baseline": _labelled(baseline, only_baseline)}
    return about | lists | {"compared": len(pairs)}


def _labelled(snapshot: Snapshot, names: Sequence[str]) -> list[str]:
    label_of = labels(snapshot.cells)
    found = {cell.name: label_of[cell.cell] for cell in snapshot.cells} | dict(snapshot.unscored)
    return [found[name] for name in names]


def compared_text(found: Mapping[str, Any]) -> str:
    """The same as lines."""
    if found["compared"] is None:
        return f"against {found['place']}: which cells can be compared is unknown ({found['unknown']})"
    cells = counted(found["cells"], "cell")
    lines = [f"against {found['place']}: {found['compared']} of its {cells} would be compared"]
    for title, names in (("not in the baseline", found["only_new"]), ("only in the baseline", found["only_baseline"])):
        if names:
            more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
            lines.append(f"{title}, so not compared: {', '.join(names[:MOST_LISTED])}{more}")
    return "\n".join(lines)
