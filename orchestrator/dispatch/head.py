"""Watches the head of a running Ray cluster: without it nothing can go on, and Ray itself waits for a minute."""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from taugrid.errors import RunFailed
from taugrid.orchestrator import ending

LOOK_SECONDS = 1.0
"""How often the driver connects to the head. The head's kernel accepts, so that a busy head does so as well."""

MOST_FAILURES = 30
"""How often in a row the head may be out of reach: a head that is started again has half of Ray's own minute for it."""

OURS = frozenset({errno.EMFILE, errno.ENFILE})
"""What a driver that can't open a connection says; it tells nothing of the head."""


@contextmanager
def watched(address: str) -> Iterator[None]:
    """Interrupt the block if the head at HOST:PORT has died.

    Raises:
        RunFailed: if it has.
    """
    over, dead = threading.Event(), threading.Event()
    failure = f"the head of the Ray cluster at {address} has died; run the same command again once it is back"

    def watch() -> None:
        failures, next_look = 0, time.monotonic()
        while not over.wait(max(0.0, next_look - time.monotonic())):
            next_look = time.monotonic() + LOOK_SECONDS
            failures = 0 if _answers(address) else failures + 1
            if failures == MOST_FAILURES:
                dead.set()
                ending.stop(failure)
                return

    threading.Thread(target=watch, daemon=True, name="head").start()
    try:
        yield
    except KeyboardInterrupt:
        if not dead.is_set():
            raise
        raise RunFailed(failure) from None
    finally:
        over.set()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_SECONDS).close()
    except OSError as error:
        return error.errno in OURS
    return True
