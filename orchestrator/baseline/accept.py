"""Accepts a run as a baseline."""

from pathlib import Path
from typing import Any

from taugrid.errors import UserError
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import parquet_beside, read_baseline, write_baseline
from taugrid.orchestrator.baseline.snapshot import snapshot_of_run
from taugrid.storage import LOCAL, Storage
from taugrid.words import counted


def accept(directory: str, path: Path, reason: str, storage: Storage = LOCAL) -> dict[str, Any]:
    """Write the run in `directory` as the baseline file `path`, and return what that says.

    A baseline that is there is replaced; if the run is worse than it, or can't be compared with it, the file says so.

    Raises:
        UserError: if it is no run directory, has unscored cells, or the file that is there is no baseline.
    """
    snapshot = snapshot_of_run(directory)
    if snapshot.unscored:
        raise UserError(
            f"{directory} has {counted(len(snapshot.unscored), 'cell')} without a score ({snapshot.unscored[0]}); "
            "`taugrid run` completes it"
        )
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
            bad = [cell.name for cell in found.cells if cell.result in ("worse", "changed pixels")]
            if bad:
                remarks.append(f"accepted although worse than the baseline that it replaces: {', '.join(bad)}")
    elif storage.exists(parquet_beside(path)):
        raise UserError(f"{parquet_beside(path)} exists without {path}; remove it or give another --to")
    return write_baseline(snapshot, path, reason, remarks, replaces, storage)
