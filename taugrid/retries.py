"""What is tried again, with growing pauses, and who is told of a store that does not answer for long."""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from taugrid.errors import TRANSIENT
from taugrid.words import duration

T = TypeVar("T")

over = threading.Event()
"""Set once a run has ended by an error: it does not wait for a store any more. Each run of a process has its own, but
of two at a time, either's end is both's."""

NEVER = threading.Event()
DISK_PAUSES = (0.1, 0.4, 1.6)  # mean seconds before a call of the file system is tried again
STORE_PAUSES = (0.1, 0.3, 1.0, 3.0, 9.0, 9.0)  # the same for object stores: if 5 % of attempts fail, 1 request in 10^9
PATIENCE_SECONDS = 300.0  # for how long a run tries a request again: a store that is restarted is back by then
TELL_SECONDS = 30.0  # how long an outage lasts before the user is told

waits: Callable[[], None] | None = None  # called after each attempt that is repeated: a worker that waits isn't hung
patient = ContextVar("patient", default=True)  # False for a first look at a store, whose address may be wrong


def retried(call: Callable[[], T]) -> T:
    """The value of `call`, which is repeated after a transient error of the disk and so must be safe to repeat."""
    return try_again(call, DISK_PAUSES, lambda error: isinstance(error, OSError) and error.errno in TRANSIENT)


def try_again(
    call: Callable[[], T],
    pauses: Sequence[float],
    may_pass: Callable[[BaseException], bool],
    patience: float = 0.0,
    ended: threading.Event = NEVER,
) -> T:
    """The value of `call`, from one attempt more than there are `pauses`; then its last error is raised.

    Each pause is between half and 1.5 times the given one: processes that failed together must not come back together.

    Args:
        call: must be safe to repeat.
        pauses: mean seconds before the second attempt, the third and so on.
        may_pass: whether the same call may succeed after this error. Others are raised at once.
        patience: there are more attempts, with pauses like the last one, until this many seconds have passed.
        ended: once it is set, there are no pauses, and three attempts at most, of which none begins after a second.
    """
    begun, attempts = time.monotonic(), 0
    while True:
        try:
            return call()
        except Exception as error:
            attempts += 1
            seconds = time.monotonic() - begun
            is_last = attempts > len(pauses) and seconds >= patience
            if not may_pass(error) or is_last or (ended.is_set() and (attempts >= 3 or seconds > 1)):
                raise
        mean = pauses[min(attempts, len(pauses)) - 1]
        ended.wait(random.uniform(0.5 * mean, 1.5 * mean))


# Outages: a store has one, however many requests wait for it

_lock = threading.Lock()
_told: dict[str, float] = {}  # store -> since when it does not answer
_say: list[Callable[[str], None]] = [lambda text: print(f"taugrid: {text}", file=sys.stderr)]


@contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """Outages are told to `say`, from any thread, until the context ends; otherwise on stderr."""
    _say.append(say)
    try:
        yield
    finally:
        _say.remove(say)


def attempt_failed(bucket: str, began: float, until: float, how: str) -> None:
    """An attempt of a request has failed, which began at `began` (monotonic clock) and is repeated until `until`."""
    now = time.monotonic()
    if waits is not None:
        waits()
    with _lock:
        if bucket in _told or now - began < TELL_SECONDS:
            return
        _told[bucket] = began
    end = time.strftime(" until %H:%M:%S", time.localtime(time.time() + until - now)) if until > now else ""
    _say[-1](f"{bucket}: {how} for {duration(now - began)}; trying again{end}. Nothing that is done is lost")


def request_ended(bucket: str, answered: bool) -> None:
    """A request that had failed was answered, or is given up."""
    with _lock:
        began = _told.pop(bucket, None)
    if began is not None and answered:
        _say[-1](f"{bucket}: the object store answers again, after {duration(time.monotonic() - began)}")
