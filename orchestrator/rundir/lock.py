"""The lock that keeps a run directory to one driver at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from taugrid.errors import UserError


@contextmanager
def sole_driver(root: Path) -> Iterator[None]:
    """Keep a second driver out of the run directory `root` while this process is alive; a kill releases the lock.

    On a file system without locks every driver gets in: commits are atomic, and doing work twice gives the same bytes.

    Raises:
        UserError: if another driver is at work, or the folder can't be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".lock").touch()
    except OSError as error:
        raise UserError(f"can't write to {root}: {error.strerror}; give another --out") from None
    # A killed process would leave a soft lock behind, which would block the directory for good.
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
