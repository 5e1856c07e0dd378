"""lease.json: the driver of a run directory, and that it is alive; for file systems where locks do not keep others out.

A driver writes it again every `BEAT_SECONDS`. It does so from a thread: reading a large directory or drawing figures
takes the main thread minutes, and that must not look like death. A thread that beats through a hung mount is no danger
here, because its beats go to the same mount.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.errors import UserError
from taugrid.orchestrator import ending
from taugrid.run_id import FILE as RUN_ID
from taugrid.storage import ANY, Storage, read_json, write_text
from taugrid.words import duration

BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
"""A lease that was not refreshed for so long is that of a dead driver, or of one cut off from the directory."""

WATCHED_BEATS = 2
"""A lease of another host is watched for at least so many beats: clocks differ."""

POLL_SECONDS = 0.2


class Holder(NamedTuple):
    host: str
    process: int
    boot: str
    """Id of the host's boot and of the namespace of its process ids: where both are equal, ids mean the same."""
    run: str | None
    """The id of the run, once there is one."""
    session: str
    heartbeat: str
    """When it was last seen, in UTC by its own clock."""

    @property
    def age_seconds(self) -> float:
        """Time since it was last seen, if the clocks of both hosts agree."""
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.heartbeat)).total_seconds())

    @property
    def is_here(self) -> bool:
        """Whether it ran on this host since its last boot, so that its process can be looked up."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def is_dead(self) -> bool:
        """Whether it ran here and does so no longer. Nothing is known of other hosts' drivers."""
        if not self.is_here:
            return False
        if self.process == os.getpid():  # a container's first process always has the same id
            return self.session not in _held
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, last seen {duration(self.age_seconds)} ago"


_held: set[str] = set()
"""The sessions of the leases that this process holds now."""


class Lease:
    """A lease on a run directory for the driver in this process."""

    def __init__(self, path: Path, storage: Storage) -> None:
        self.root = path.parent
        self._path, self._storage = path, storage
        self._session = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True, name="lease")
        self.loss: str | None = None
        """Who has it now. Set, and the main thread interrupted, once another driver has taken it."""
        self.began: float | None = None
        """When it was taken, by the storage's clock: what was written before is of dead drivers. None: it was taken by
        force, and its last holder may still write."""

    def holder(self) -> Holder | None:
        """Who holds the lease now; None: nobody, or the file can't be understood."""
        return _holder(read_json(self._path, self._storage))

    def live_holder(self) -> Holder | None:
        """The driver that is at work; None: nobody, as far as can be told from here."""
        found = self.holder()
        return None if found is None or found.is_dead or found.age_seconds >= EXPIRY_SECONDS else found

    def take(self, by_force: bool, say: Callable[[str], None]) -> None:
        """Take the lease, and refresh it from now on.

        A dead driver's is taken at once, and one that has expired after a look whether it is still refreshed. While
        another host's is younger, it is watched until it is refreshed or has expired.

        Raises:
            UserError: if another driver is at work and it is not taken `by_force`.
        """
        seen = self._version()
        before = self.holder()
        if before is not None and not by_force and not before.is_dead:
            self._watch(before, say)
        if not self._put(seen, by_force):
            raise refusal(self.root, self.holder())
        if before is not None:
            say(f"took the run directory over from {before}")
        self.began = None if by_force and before is not None else self._storage.stat(self._path).modified
        _held.add(self._session)
        self._thread.start()

    def release(self) -> None:
        """Give the lease up, if it was taken and is still ours."""
        if self._session in _held:
            self._ended.set()
            self._thread.join(BEAT_SECONDS)
            _held.discard(self._session)
            with suppress(OSError):  # what stays there expires
                if self._is_ours():
                    self._storage.delete(self._path)

    def _watch(self, before: Holder, say: Callable[[str], None]) -> None:
        """Return once the lease has expired; `UserError` as soon as it is certain that its holder lives."""
        if before.is_here and before.age_seconds < EXPIRY_SECONDS:
            raise refusal(self.root, before)
        seconds = max(EXPIRY_SECONDS - before.age_seconds, WATCHED_BEATS * BEAT_SECONDS)
        say(f"{before} holds this run directory; waiting {duration(seconds)} to see whether it is still at work")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            now = self.holder()
            if now is not None and now.heartbeat != before.heartbeat:
                raise refusal(self.root, now)

    def _refresh(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # the main thread meets the same disk, and says so
                seen = self._version()
                if self._is_ours():
                    self._put(seen)
                    continue
                winner = self.holder() or "another driver"
                self.loss = f"{self.root} was taken over by {winner}; what was committed is kept, and it goes on there"
                ending.stop(self.loss)
                return

    def _is_ours(self) -> bool:
        now = self.holder()
        return now is None or now.session == self._session

    def _version(self) -> str | None:
        try:
            return self._storage.stat(self._path).version
        except FileNotFoundError:
            return None

    def _put(self, seen: str | None, by_force: bool = False) -> bool:
        """Write the lease over the version that was `seen` (None: there was none); False if another is there now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = read_json(self._path.with_name(RUN_ID), self._storage)
        run = record.get("run") if isinstance(record, dict) else None
        ours = Holder(socket.gethostname(), os.getpid(), _boot(), run, self._session, now)
        with self._storage.temporary(self._path) as temporary:
            write_text(temporary, json.dumps(ours._asdict(), indent=2) + "\n")
            return self._storage.commit(self._path, temporary, ANY if by_force else seen)


def refusal(root: Path, holder: Holder | None) -> UserError:
    """What a second driver is told."""
    who = "" if holder is None else f" ({holder})"
    return UserError(
        f"another taugrid command is at work in {root}{who}; wait for it, stop it, give another directory (--out; of "
        "nightly: --history), or take this one over with --break-lock"
    )


def _holder(value: Any) -> Holder | None:
    try:
        found = Holder(**{name: value[name] for name in Holder._fields})
        datetime.fromisoformat(found.heartbeat)
    except (TypeError, KeyError, ValueError):
        return None
    return found if isinstance(found.process, int) and found.process > 0 else None


@cache
def _boot() -> str:
    """What makes process ids comparable. Where the system does not tell, the host's name must do."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
