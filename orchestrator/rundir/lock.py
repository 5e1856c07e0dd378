"""One driver at a time in a run directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from taugrid.errors import UserError


@contextmanager
def sole_driver(root: Path) -> Iterator[None]:
    """Keep a second driver out of the run directory `root`, for as long as this process lives: a killed one lets go.

    A file system without locks lets everyone pass: commits are atomic, and doing work twice gives the same bytes.

    Raises:
        UserError: if another driver is there, or the folder can't be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".lock").touch()
    except OSError as error:
        raise UserError(f"can't write to {root}: {error.strerror}; give another --out") from None
    # A soft lock, which a killed process leaves behind, would shut the directory for good.
    lock = FileLock(root / ".lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another taugrid command is at work in {root}; wait for it, stop it, or give another --out"
        ) from None
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()
