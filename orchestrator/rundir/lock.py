"""The lock that keeps a run directory to one driver at a time: a lock of the file system, and a lease beside it."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from taugrid.errors import FORBIDDEN, NOT_WRITABLE, RunFailed, StoreError, UserError
from taugrid.orchestrator.rundir.lease import Lease, refusal
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import end_session

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL})
"""What file systems without locks say."""


@contextmanager
def sole_driver(
    run: Paths, break_lock: bool = False, say: Callable[[str], None] = lambda text: None
) -> Iterator[Lease]:
    """Keep a second driver out of the run directory while this process is alive.

    A killed driver's lock is free at once. On a file system without locks, or where they hold on one host only, the
    lease alone protects. `break_lock` takes the directory from whoever has it, and the other driver stops when it sees
    that. `say` tells the user whom the directory was taken from. It also tells of waiting for an old lease to expire.

    Raises:
        UserError: if another driver is at work, or the folder can't be written to.
        RunFailed: if another driver took the directory over.
    """
    _make_writable(run)
    # A killed process would leave a soft lock behind, which would block the directory for good.
    lock, lease = FileLock(run.root / ".lock", timeout=0, fallback_to_soft=False), Lease(run.lease, run.storage)
    try:
        try:
            if run.storage.on_disk:  # an object store has no locks: its lease is made by conditional requests
                _acquire(lock, lease, break_lock)
            lease.take(break_lock, say)
        except OSError as error:
            if error.errno not in FORBIDDEN or isinstance(error, StoreError):  # a store says itself what to do
                raise
            raise _not_writable(run, error) from None
        yield lease
    except KeyboardInterrupt:
        if lease.loss is None:
            raise
        raise RunFailed(lease.loss) from None
    finally:
        lease.release()
        lock.release()
        end_session(run.storage)


def _make_writable(run: Paths) -> None:
    """Make the run directory; `UserError` if files can't be written there."""
    root = run.root
    try:
        if run.storage.on_disk:
            root.mkdir(parents=True, exist_ok=True)
            (root / ".lock").touch()
        else:
            run.storage.require(root, to_write=True)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise _not_writable(run, error) from None


def _not_writable(run: Paths, error: OSError) -> UserError:
    """What the user is told of a folder that may not be written to: the same command would fail again."""
    ways_out = f"give another {run.option}"
    with suppress(OSError):
        if run.storage.exists(run.config):
            ways_out = (
                "make the folder and what is in it writable, or copy it and give the copy; "
                f"`taugrid status {run.shown}` and `taugrid verify {run.shown}` only read"
            )
    return UserError(f"can't write to {run.shown}: {error.strerror}; {ways_out}")


def _acquire(lock: FileLock, lease: Lease, break_lock: bool) -> None:
    try:
        lock.acquire()
    except Timeout:
        if not break_lock:
            raise refusal(lease.root, lease.holder()) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    except NotImplementedError:
        pass
