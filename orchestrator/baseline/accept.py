"""Accepts a run as a baseline."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from taugrid.errors import UserError
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import open_baseline, parquet_beside, read_baseline, write_baseline
from taugrid.orchestrator.baseline.snapshot import Snapshot, require_scores, snapshot_of_opened
from taugrid.orchestrator.baseline.verdict import REGRESSIONS
from taugrid.orchestrator.opened import Opened, open_existing
from taugrid.storage import read_sealed
from taugrid.words import counted

VERDICT = "verdict.json"
"""The file that a night leaves beside its run once it is complete."""


def accept(directory: str, file: str, reason: str, force: bool = False) -> dict[str, Any]:
    """Write the run in `directory` as the baseline file `file`, a path or a URL, and return what that says.

    A baseline that is there is replaced; if the run is worse than it, or can't be compared with it, the file says so.
    `force` accepts a night's run that was judged worse, or changed; the file says that too.

    Raises:
        UserError: if it is no run directory, has unscored cells, was judged worse, or the file that is there is no
            baseline.
    """
    path, storage = open_baseline(file, "--to")
    opened = open_existing(directory)
    snapshot, remarks = _after_its_night(require_scores(snapshot_of_opened(opened)), opened, force)
    if snapshot.unscored:
        count, first = counted(len(snapshot.unscored), "cell"), next(iter(snapshot.unscored.values()))
        raise UserError(f"{directory} has {count} without a score ({first}); `taugrid run` completes it")
    replaces = None
    if storage.exists(path):
        before = read_baseline(path, storage)
        assert before.accepted is not None
        replaces = str(before.accepted["parquet_sha256"])
        try:
            found = compare_snapshots(snapshot, before)
        except UserError as error:
            remarks.append(f"it could not be compared with the baseline that it replaces: {error}")
        else:
            bad = [cell.label for cell in found.cells if cell.result in REGRESSIONS]
            if bad:
                remarks.append(f"accepted although worse than the baseline that it replaces: {', '.join(bad)}")
    elif storage.exists(parquet_beside(path)):
        beside = parquet_beside(path).name
        raise UserError(f"--to {file}: {beside} is there without it; remove that, or give another --to")
    return write_baseline(snapshot, path, reason, remarks, replaces, storage)


def _after_its_night(snapshot: Snapshot, opened: Opened, force: bool) -> tuple[Snapshot, list[str]]:
    """The snapshot of a night's run with what its canaries measured, and remarks on the night's verdict.

    How far images of other software or devices were from the baseline's is accepted with the night.
    """
    verdict = read_sealed(opened.rundir.root.parent / VERDICT, opened.rundir.storage)
    if verdict is None:
        return snapshot, []
    remarks = []
    if verdict["result"] in REGRESSIONS:
        if not force:
            raise UserError(
                f"night {verdict['night']} was judged {verdict['result']}; if it is meant to be the measure of later "
                "nights, add --force"
            )
        remarks.append(f"accepted although night {verdict['night']} was judged {verdict['result']}")
    judged = {cell["cell"]: cell for cell in (verdict["comparison"] or {"cells": []})["cells"]}
    measured = {name: _distances(cell) for name, cell in judged.items()}
    known = {name for distances in measured.values() for name in distances}
    if known:
        largest = max(distance for distances in measured.values() for distance in distances.values())
        remarks.append(
            f"its software or device was new: images up to {largest:.2g} grey levels from the last baseline's, on "
            "average, are accepted for this change, and twice that is allowed later"
        )
    cells = tuple(replace(cell, distances={**cell.distances, **measured.get(cell.cell, {})}) for cell in snapshot.cells)
    return replace(snapshot, cells=cells), remarks


def _distances(cell: Mapping[str, Any]) -> dict[str, float]:
    check = cell.get("sampler") or {}
    return {} if check.get("distance") is None else {check["pair"]: check["distance"]}
