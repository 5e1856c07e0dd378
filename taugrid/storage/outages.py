"""Object stores that do not answer: since when, and who is told. A store has one outage, however many requests wait."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from taugrid.words import duration

PATIENCE_SECONDS = 300.0
"""For how long a request is tried again in a run: a store that is being restarted or moved is back by then."""

TELL_SECONDS = 30.0
"""How long an outage lasts before the user is told."""

_lock = threading.Lock()
_since: dict[str, float] = {}
_answered: dict[str, float] = {}
"""When the last outage of a store ended."""

_told: set[str] = set()
_say: list[Callable[[str], None]] = [lambda text: print(f"taugrid: {text}", file=sys.stderr)]

waits: Callable[[], None] | None = None
"""Called after each attempt that is repeated. Set by workers, so that no one takes them for hung."""

patient = ContextVar("patient", default=True)
"""False for the first look at a store: that its address is wrong is more likely than that it is down."""


@contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """Outages are told to `say`, from any thread, until the context ends; otherwise on stderr."""
    _say.append(say)
    try:
        yield
    finally:
        _say.remove(say)


def failed(bucket: str, began: float, until: float, how: str) -> None:
    """An attempt that began at `began` (of the monotonic clock) has failed; it is repeated up to `until`."""
    now = time.monotonic()
    if waits is not None:
        waits()
    with _lock:
        if began < _answered.get(bucket, began):
            return  # another request has been answered meanwhile
        since = _since.setdefault(bucket, began)
        if bucket in _told or now - since < TELL_SECONDS:
            return
        _told.add(bucket)
    end = time.strftime(" until %H:%M:%S", time.localtime(time.time() + until - now)) if until > now else ""
    _say[-1](f"{bucket}: {how} for {duration(now - since)}; trying again{end}. Nothing that is done is lost")


def ended(bucket: str, answered: bool) -> None:
    """A request that had failed was answered, or is given up."""
    with _lock:
        since, was_told = _since.pop(bucket, None), bucket in _told
        _told.discard(bucket)
        if since is not None and answered:
            _answered[bucket] = time.monotonic()
    if since is not None and was_told and answered:
        _say[-1](f"{bucket}: the object store answers again, after {duration(time.monotonic() - since)}")
