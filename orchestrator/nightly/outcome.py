"""The verdict of a night as plain data: what verdict.json holds, and summary.md and junit.xml are made of."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from taugrid.orchestrator.baseline.compared import BaselineComparison
from taugrid.orchestrator.baseline.matching import labels
from taugrid.orchestrator.baseline.pixels import first_images
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell
from taugrid.orchestrator.baseline.verdict import REGRESSIONS, Verdict, worst
from taugrid.orchestrator.nightly.places import Night
from taugrid.orchestrator.nightly.shown.strips import MOST_STRIPS, BeforeAndAfter, strips
from taugrid.orchestrator.run import Run

ORDER = list(Verdict)

UP_TO_UNDECIDED = ORDER.index(Verdict.UNDECIDED)
"""Pictures are of cells with such a verdict, or a worse one."""


def as_verdict(
    night: Night,
    opened: Run,
    tonight: Snapshot,
    baseline: Snapshot | None,
    found: BaselineComparison | None,
    missing: Mapping[str, str],
) -> dict[str, Any]:
    """The verdict; pictures of the worst cells are written too."""
    named = labels(tonight.cells)
    failed = {named[cell.cell]: cell.failed for cell in tonight.cells if cell.failed}
    verdict = {
        "night": night.id,
        "name": opened.config.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "result": _result(found, baseline, bool(failed)),
        "missing": dict(missing),
        "failed": failed,
        "not_judged": [] if found is None or missing else found.not_judged,
        "baseline": _baseline_in_words(baseline),
        "model": networks_of(tonight),
        "scores": [_score(cell, named[cell.cell]) for cell in tonight.cells],
        "comparison": None if found is None else found.as_dict(),
        "software": dict(tonight.software),
    }
    if baseline is None and not failed and not missing:
        command = f"`taugrid baseline accept {night.named(night.run)} --to FILE --reason TEXT`"
        verdict["next"] = f"{command} makes tonight the measure of later nights"
    if baseline is not None and found is not None:
        verdict["strips"] = _strips(night, opened, baseline, verdict)
        verdict["next"] = _next(night, baseline, verdict)
    return verdict


def _result(found: BaselineComparison | None, baseline: Snapshot | None, has_failed: bool) -> str:
    """The worst of the compared cells', or `COLLAPSED` if a cell failed that the baseline does not have."""
    known = [] if found is None else [found.result]
    if known or has_failed:
        return worst([*known, *([Verdict.COLLAPSED] if has_failed else [])])
    return "no baseline" if baseline is None else "incomplete"


def _score(cell: SnapshotCell, label: str) -> dict[str, Any]:
    """A cell, for the history."""
    return {
        "cell": cell.cell,
        "name": cell.name,
        "label": label,
        "settings": dict(cell.settings),
        "metrics": dict(cell.metrics),
        "weights_sha256": cell.network.weights_sha256,
    }


def worst_first(cell: Mapping[str, Any]) -> tuple[int, float]:
    """The key by which cells of a comparison are sorted."""
    return ORDER.index(Verdict(cell["result"])), -(cell["t"] or 0)


def _strips(night: Night, opened: Run, baseline: Snapshot, verdict: Mapping[str, Any]) -> dict[str, str]:
    """Label -> file, seen from the summary: pictures of the worst cells that are undecided, or worse than that."""
    judged = sorted(verdict["comparison"]["cells"], key=worst_first)
    before = {cell.cell: cell for cell in baseline.cells}
    now = {cell.id: cell for cell in opened.plan.cells}
    pairs = [
        BeforeAndAfter(
            cell["label"], before[cell["baseline_cell"]].find_first(), first_images(opened.rundir, now[cell["cell"]])
        )
        for cell in judged[:MOST_STRIPS]
        if ORDER.index(cell["result"]) <= UP_TO_UNDECIDED and cell["fid"] is not None
    ]
    files = strips(pairs, night.strips, night.storage)
    return {label: path.relative_to(night.folder).as_posix() for label, path in files.items()}


def _next(night: Night, baseline: Snapshot, verdict: Mapping[str, Any]) -> str:
    """What to do next: mend what failed, sample more, or make tonight's network the baseline."""
    if verdict["failed"]:
        return "find out why the cells above fail; this night can't be a baseline"
    if verdict["result"] == Verdict.UNDECIDED:
        return "to decide more, raise `sample.num_samples`, or sample the undecided cells alone with `--grow-to N`"
    force = " --force" if verdict["result"] in REGRESSIONS else ""
    to = baseline.place if baseline.accepted else "FILE"
    command = f"`taugrid baseline accept {night.named(night.run)} --to {to} --reason TEXT{force}`"
    if force:
        return f"if the change is meant, {command} makes tonight the measure of later nights"
    return f"{command} makes tonight the measure of later nights"


def _baseline_in_words(baseline: Snapshot | None) -> dict[str, Any] | None:
    if baseline is None:
        return None
    accepted = baseline.accepted or {}
    return {
        "place": baseline.place,
        "id": accepted.get("parquet_sha256"),
        "accepted": accepted.get("accepted"),
        "reason": accepted.get("reason"),
        "model": networks_of(baseline),
        "git_commit": baseline.software.get("git_commit"),
    }


def networks_of(snapshot: Snapshot) -> list[dict[str, str | None]]:
    """The networks of a run, each once: where its weights are or were, and their SHA-256."""
    found: dict[str | None, dict[str, str | None]] = {}
    for network in (cell.network for cell in snapshot.cells):
        place = network.folder or network.weights_file or network.callable
        found[network.weights_sha256] = {"checkpoint": place, "weights_sha256": network.weights_sha256}
    return list(found.values())
