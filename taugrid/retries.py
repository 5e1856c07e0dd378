"""The one policy for what is tried again: a few attempts, with growing pauses between them."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from taugrid.errors import TRANSIENT

T = TypeVar("T")

over = threading.Event()
"""Set once a run has ended by an error: it does not wait for a store any more. Each run of a process has its own, but
of two at a time, either's end is both's."""

NEVER = threading.Event()

DISK_PAUSES = (0.1, 0.4, 1.6)
"""The mean pauses in seconds before a call of the file system is tried again."""

STORE_PAUSES = (0.1, 0.3, 1.0, 3.0, 9.0, 9.0)
"""The mean pauses before a request to an object store is tried again. With seven attempts, one request in 10^9 fails if
5 % of the attempts do."""


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
