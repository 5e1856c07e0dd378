"""The heartbeat of this process's job, for loops too deep in the code to be handed a device (`Device.heartbeat`)."""

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
