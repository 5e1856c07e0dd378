"""lease.json: the lock of a run directory, on a disk or in a bucket. It keeps a second driver out.

The driver refreshes it every `HEARTBEAT_SECONDS`, from a thread: reading a large directory or drawing figures keeps the
main thread busy for minutes. If the mount hangs, the heartbeats stop too, because they go to the same mount.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from taugrid import retries
from taugrid.errors import NOT_WRITABLE, RunFailed, UserError
from taugrid.orchestrator import ending
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.run_id import recorded_id
from taugrid.storage import ANY, end_session, read_json, write_text
from taugrid.words import duration

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
"""A lease that was not refreshed for this long belongs to a driver that is dead or cut off from the directory. To take
it over, a driver elsewhere watches it for all this time by its own clock, since clocks differ."""

POLL_SECONDS = 0.2


class Holder(NamedTuple):
    host: str
    process: int
    boot: str
    """The ids of the host's boot and of its process namespace: process ids are comparable only if both are equal."""
    run: str | None
    session: str
    heartbeat: str  # the time of its last heartbeat, in UTC by its own clock

    @property
    def age_seconds(self) -> float:
        """Time since its last heartbeat, if the clocks of both hosts agree."""
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.heartbeat)).total_seconds())

    @property
    def is_alive(self) -> bool | None:
        """Whether its process still runs. None if it can't be checked from this host: then only heartbeats show it."""
        if (self.host, self.boot) != (socket.gethostname(), _boot()):
            return None
        if self.process == os.getpid():  # a container's first process always has the same id
            return self.session in _held
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        if self.age_seconds < EXPIRY_SECONDS:
            return True
        began = _began(self.process)  # it is suspended, or a new process has its id
        return None if began is None else began <= datetime.fromisoformat(self.heartbeat).timestamp()

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, last seen {duration(self.age_seconds)} ago"


_held: set[str] = set()  # the sessions of the leases that this process holds now


class Lease:
    def __init__(self, run: Paths) -> None:
        self.root = run.root
        self._path, self._storage = run.lease, run.storage
        self._session = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True, name="lease")
        self.loss: str | None = None
        """The error message once a different driver has taken the lease. The main thread is then interrupted."""
        self.began: float | None = None
        """When it was taken, by the storage's clock: temporary files from before belong to dead drivers. None: it was
        taken by force, so the previous holder may still be writing."""

    def holder(self) -> Holder | None:
        """The current holder of the lease; None if there is no valid lease."""
        value: Any = read_json(self._path, self._storage)
        try:
            holder = Holder(**{name: value[name] for name in Holder._fields})
            has_zone = datetime.fromisoformat(holder.heartbeat).tzinfo is not None
        except (TypeError, KeyError, ValueError):
            return None
        texts = holder.host, holder.boot, holder.session
        is_valid = has_zone and all(isinstance(text, str) for text in texts) and isinstance(holder.process, int)
        return holder if is_valid and 0 < holder.process < 2**31 else None

    def live_holder(self) -> Holder | None:
        """The running driver; None if there seems to be none."""
        if (holder := self.holder()) is None:
            return None
        alive = holder.is_alive
        return holder if alive or (alive is None and holder.age_seconds < EXPIRY_SECONDS) else None

    def take(self, by_force: bool, say: Callable[[str], None]) -> None:
        """Take the lease, and refresh it from now on. A dead driver's lease is taken at once. One of a different host
        is watched for `EXPIRY_SECONDS`, or until it is refreshed. Raises `UserError` if another driver runs and the
        lease is not taken `by_force`."""
        version, before = self._version(), self.holder()
        if before is not None and not by_force:
            self._watch(before, say)
        if not self._put(ANY if by_force else version):
            raise self._refusal(self.holder())
        time.sleep(POLL_SECONDS)  # if two drivers take it at once on a disk, the later one gets it
        if not self._is_held():
            raise self._refusal(self.holder())
        if before is not None:
            say(f"took the run directory over from {before}")
        self.began = None if by_force and before is not None else self._storage.stat(self._path).modified
        _held.add(self._session)
        self._thread.start()

    def dead_before(self) -> float:
        """The time, by the storage's clock, before which no worker began a temporary file that is still needed, once
        this driver's workers are killed: now. If the directory was taken by force it is 0, since its driver and their
        workers may live. Workers of a driver that seemed dead may live as well, but what they write is done by now."""
        if self.began is None:
            return 0.0
        with self._storage.temporary(self._path) as temporary:
            write_text(temporary, "")
            now = self._storage.stat(temporary).modified
        return now if self._is_held() else self.began  # a driver that takes it from now on writes newer files

    def release(self) -> None:
        """Release the lease, if it is still held."""
        if self._session in _held:
            self._ended.set()
            _held.discard(self._session)
            self._thread.join(1.0)  # a silent store may hold it for longer
            with suppress(OSError):  # a lease that stays expires
                if self._is_held():
                    self._storage.delete(self._path)

    def _watch(self, before: Holder, say: Callable[[str], None]) -> None:
        """Return once the holder is dead or the lease has expired; `UserError` once the holder is known to live."""
        alive = before.is_alive
        if alive:
            raise self._refusal(before)
        if alive is None:
            say(f"{before} holds this run directory; waiting {duration(EXPIRY_SECONDS)} to see whether it still runs")
            end = time.monotonic() + EXPIRY_SECONDS
            while time.monotonic() < end:
                time.sleep(POLL_SECONDS)
                now = self.holder()
                if now is not None and now.heartbeat != before.heartbeat:
                    raise self._refusal(now)

    def _refresh(self) -> None:
        has_failed = False
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                version = self._version()
                if self._is_held():
                    self._put(version)
                    has_failed = False
                    continue
                winner = self.holder() or "another driver"
                self.loss = f"{self.root} was taken over by {winner}; committed files are kept; the run continues there"
            except OSError:  # the main thread gets the same error from the disk, and reports it
                continue
            except Exception as error:  # without heartbeats another host would take the directory of a live driver
                if not has_failed:
                    has_failed = True
                    continue
                self.loss = f"{self._path} can't be refreshed ({error}); run the same command again to continue"
            ending.stop(self.loss)
            return

    def _is_held(self) -> bool:
        now = self.holder()
        return now is None or now.session == self._session

    def _version(self) -> str | None:
        try:
            return self._storage.stat(self._path).version
        except FileNotFoundError:
            return None

    def _put(self, if_version: str | None) -> bool:
        """Write the lease, if the file has this version (see `Storage.commit`); False if another driver was faster."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        run = recorded_id(self.root, self._storage)
        holder = Holder(socket.gethostname(), os.getpid(), _boot(), run, self._session, now)
        with self._storage.temporary(self._path) as temporary:
            write_text(temporary, json.dumps(holder._asdict(), indent=2) + "\n")
            return self._storage.commit(self._path, temporary, if_version)

    def _refusal(self, holder: Holder | None) -> UserError:
        who = "" if holder is None else f" ({holder})"
        return UserError(
            f"another taugrid command is running in {self.root}{who}; wait for it, stop it, give another directory "
            "(--out; for `taugrid nightly`: --history), or take this one over with --break-lock"
        )


@contextmanager
def sole_driver(
    run: Paths, break_lock: bool = False, say: Callable[[str], None] = lambda text: None
) -> Iterator[Lease]:
    """Keep a second driver out of the run directory while this process is alive.

    `break_lock` takes the directory from its driver, which stops when it detects that. `say` is called with messages
    for the user: from which driver the directory was taken, and the wait for an old lease to expire.

    Raises `UserError` if another driver runs, or the folder can't be written to; `RunFailed` if another driver took the
    directory over."""
    lease = Lease(run)
    try:
        try:
            if run.storage.on_disk:
                run.root.mkdir(parents=True, exist_ok=True)
            run.storage.require(run.root, to_write=True)
            lease.take(break_lock, say)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            raise _not_writable(run, error) from None
        with retries.told(say):
            yield lease
    except BaseException as error:
        retries.over.set()
        if lease.loss is None or not isinstance(error, KeyboardInterrupt):
            raise
        raise RunFailed(lease.loss) from None
    finally:
        try:
            lease.release()
        finally:  # a store that is silent takes seconds, in which people press Ctrl-C again
            end_session(run.storage)
            retries.over = threading.Event()


def _not_writable(run: Paths, error: OSError) -> UserError:
    """The error for a folder that may not be written to. It is not a `RunFailed`: the same command would fail again."""
    fix = f"give another {run.option}"
    with suppress(OSError):
        if run.storage.exists(run.config):
            fix = (
                "make the folder and what is in it writable, or copy it and give the copy; "
                f"`taugrid status {run.shown}` and `taugrid verify {run.shown}` only read"
            )
    return UserError(f"can't write to {run.shown}: {error.strerror}; {fix}")


@cache
def _boot() -> str:
    """The host's boot and process namespace (`Holder.boot`); empty if the system does not report them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(process: int) -> float | None:
    """When a process of this host began, in seconds since the epoch; None if the system does not report it."""
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
