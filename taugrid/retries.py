"""The one policy for what is tried again: a few attempts, with growing pauses between them."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from taugrid.errors import TRANSIENT

T = TypeVar("T")

over = threading.Event()
"""Set once a run has ended by an error: what it still writes is tried at once, and nothing waits any more."""

DISK_PAUSES = (0.1, 0.4, 1.6)
"""The mean pauses in seconds before a call of the file system is tried again."""

STORE_PAUSES = (0.1, 0.3, 1.0, 3.0, 9.0, 9.0)
"""The mean pauses before a request to an object store is tried again. With seven attempts, one request in 10^9 fails if
5 % of the attempts do."""


def retried(call: Callable[[], T]) -> T:
    """The value of `call`, which is repeated after a transient error of the disk and so must be safe to repeat."""
    return try_again(call, DISK_PAUSES, lambda error: isinstance(error, OSError) and error.errno in TRANSIENT)


def try_again(
    call: Callable[[], T], pauses: Sequence[float], may_pass: Callable[[BaseException], bool], patience: float = 0.0
) -> T:
    """The value of `call`, from one attempt more than there are `pauses`; then its last error is raised.

    Each pause is between half and 1.5 times the given one: processes that failed together must not come back together.

    Args:
        call: must be safe to repeat.
        pauses: mean seconds before the second attempt, the third and so on.
        may_pass: whether the same call may succeed after this error. Others are raised at once.
        patience: there are more attempts, with pauses like the last one, until this many seconds have passed.
    """
    try:
        return call()
    except Exception as error:
        if not may_pass(error):
            raise
        failed = [error]

    ended = over  # of this run: the next one has its own
    # Loaded by the first failure: importing it takes longer than most commands' work, and its bookkeeping than `stat`.
    from tenacity import Retrying, retry_if_exception, wait_chain, wait_random
    from tenacity.nap import sleep_using_event
    from tenacity.stop import stop_after_attempt, stop_after_delay, stop_when_event_set

    def attempt() -> T:
        if failed:
            raise failed.pop()
        return call()

    return Retrying(
        stop=(stop_after_attempt(len(pauses) + 1) & stop_after_delay(patience))
        | (stop_when_event_set(ended) & (stop_after_attempt(3) | stop_after_delay(1.0))),
        sleep=sleep_using_event(ended),
        wait=wait_chain(*(wait_random(0.5 * seconds, 1.5 * seconds) for seconds in pauses)),
        retry=retry_if_exception(may_pass),
        reraise=True,
    )(attempt)
