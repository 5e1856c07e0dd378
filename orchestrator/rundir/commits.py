"""Checks that the driver sees the files that workers have committed."""

from pathlib import Path
from typing import NamedTuple

from taugrid.errors import NotCommitted, RunDirectoryNotSeen, RunFailed
from taugrid.jobs import Job, Result
from taugrid.parquet import Part, file_end
from taugrid.retries import DISK_PAUSES, try_again
from taugrid.run_id import RunId, check_run
from taugrid.storage import Storage


class Committed(NamedTuple):
    """A file that a worker has committed, and that the driver sees unchanged."""

    path: Path
    part: Part | None
    """The contents that its worker wrote; None if the file existed before, or is no Parquet file."""


def confirm(job: Job, result: Result) -> None:
    """Return if the driver sees the job's file unchanged: by name, size and the place of its seal.

    Raises:
        NotCommitted: if not: the worker's node has a different folder at that path.
        RunFailed: if the driver itself no longer sees the run directory.
    """
    path = Path(job.path)

    def check() -> None:
        if _fault(path, job, result) is None:
            return
        require_in_place(job.run, job.storage)
        job.storage.list(path.parent, "*")  # a network file system answers from its cache until the folder is listed
        if (fault := _fault(path, job, result)) is not None:
            raise NotCommitted(f"its worker committed {job.path}, but here {fault}; is the folder mounted on its node?")

    try_again(check, DISK_PAUSES, lambda error: isinstance(error, NotCommitted))


def require_in_place(run: RunId | None, storage: Storage) -> None:
    """Raise `RunFailed` unless the run directory is still in its place. `run` is None before it is claimed."""
    if run is None:
        return
    try:
        check_run(run, storage)
    except RunDirectoryNotSeen:
        raise RunFailed(
            f"{run.root} was moved or removed while the run went on; put it back, or give its new name, and run the "
            "same command again"
        ) from None


def _fault(path: Path, job: Job, result: Result) -> str | None:
    try:
        end = file_end(path, job.storage)
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    if result.size is not None and end.size != result.size:
        return f"it has {end.size} bytes, not {result.size}"
    return "its seal is not in its place" if path.suffix == ".parquet" and not end.sealed else None
