"""The heartbeat of this process's job, for loops too deep in the code to be handed a device, and the lock of the job
that computes. Imports no torch."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

_listeners: list[tuple[Callable[[], None], set[Thread]]] = []  # each with the threads whose calls it ignores


def alive() -> None:
    """Report that the running job makes progress, from its own threads. Outside a worker it does nothing."""
    thread = threading.current_thread()
    for listener, ignored in _listeners:
        if thread not in ignored:
            listener()


@contextmanager
def forwarded_to(listener: Callable[[], None]) -> Iterator[None]:
    """Within the block, `alive` calls `listener`, unless from another thread that runs at its start: a failed job may
    have left a reader behind, which must not send heartbeats for the next job."""
    entry = (listener, set(threading.enumerate()) - {threading.current_thread()})
    _listeners.append(entry)
    try:
        yield
    finally:
        _listeners.remove(entry)


class ComputeLock:
    """Held by the one job of a worker that computes. A job's thread may acquire or release it more than once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Wait until no other thread holds the lock. No effect if this thread holds it."""
        if not getattr(self._thread, "holds_it", False):
            self._lock.acquire()
            self._thread.holds_it = True

    def release(self) -> None:
        """Let the next job compute. No effect if this thread does not hold the lock."""
        if getattr(self._thread, "holds_it", False):
            self._thread.holds_it = False
            self._lock.release()
