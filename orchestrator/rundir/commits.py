"""Whether the driver sees what a worker says that it committed."""

import time
from pathlib import Path

from taugrid.errors import NotCommitted, RunDirectoryNotSeen, RunFailed
from taugrid.jobs import Job, Result
from taugrid.parquet import file_end
from taugrid.run_id import RunId, check_run
from taugrid.storage import Storage

PAUSES_SECONDS = (0.1, 0.5, 2.0)
"""A network file system may go on answering "no such file" from its cache. Listing the folder renews it."""


def confirm(job: Job, result: Result) -> None:
    """Return if the driver sees the job's file as its worker left it: by name, size and the place of its seal.

    Raises:
        NotCommitted: if not: the worker's node has another folder in that place.
        RunFailed: if the driver itself no longer sees the run directory.
    """
    fault = _fault(job, result)
    for seconds in PAUSES_SECONDS:
        if fault is None:
            return
        require_here(job.run, job.storage)
        time.sleep(seconds)
        job.storage.list(Path(job.path).parent, "*")
        fault = _fault(job, result)
    if fault is not None:
        raise NotCommitted(f"its worker committed {job.path}, but here {fault}; is the folder mounted on its node?")


def require_here(run: RunId | None, storage: Storage) -> None:
    """Raise `RunFailed` unless the run directory is still in its place. None: it is not claimed yet."""
    if run is None:
        return
    try:
        check_run(run, storage)
    except RunDirectoryNotSeen:
        raise RunFailed(
            f"{run.root} was moved or removed while the run went on; put it back, or give its new name, and run the "
            "same command again"
        ) from None


def _fault(job: Job, result: Result) -> str | None:
    path = Path(job.path)
    try:
        end = file_end(path, job.storage)
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    if result.size is not None and end.size != result.size:
        return f"it has {end.size} bytes, not {result.size}"
    return "its seal is not in its place" if path.suffix == ".parquet" and not end.sealed else None
