"""Accepts a run as a baseline."""

from typing import Any

from taugrid.errors import UserError
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import open_baseline, parquet_beside, read_baseline, write_baseline
from taugrid.orchestrator.baseline.snapshot import snapshot_of_run
from taugrid.words import counted


def accept(directory: str, file: str, reason: str) -> dict[str, Any]:
    """Write the run in `directory` as the baseline file `file`, a path or a URL, and return what that says.

    A baseline that is there is replaced; if the run is worse than it, or can't be compared with it, the file says so.

    Raises:
        UserError: if it is no run directory, has unscored cells, or the file that is there is no baseline.
    """
    path, storage = open_baseline(file, "--to")
    snapshot = snapshot_of_run(directory)
    if snapshot.unscored:
        count, first = counted(len(snapshot.unscored), "cell"), next(iter(snapshot.unscored.values()))
        raise UserError(f"{directory} has {count} without a score ({first}); `taugrid run` completes it")
    remarks, replaces = [], None
    if storage.exists(path):
        before = read_baseline(path, storage)
        assert before.accepted is not None
        replaces = str(before.accepted["parquet_sha256"])
        try:
            found = compare_snapshots(snapshot, before)
        except UserError as error:
            remarks.append(f"it could not be compared with the baseline that it replaces: {error}")
        else:
            bad = [cell.label for cell in found.cells if cell.result in ("worse", "changed pixels")]
            if bad:
                remarks.append(f"accepted although worse than the baseline that it replaces: {', '.join(bad)}")
    elif storage.exists(parquet_beside(path)):
        beside = parquet_beside(path).name
        raise UserError(f"--to {file}: {beside} is there without it; remove that, or give another --to")
    return write_baseline(snapshot, path, reason, remarks, replaces, storage)
