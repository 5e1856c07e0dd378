"""The heartbeat of this process's job, for loops too deep in the code to be handed a device.

Jobs call `Device.heartbeat` with their progress. A loop over blocks of reading or of mathematics calls `alive`, which
reports only that the job is running. Outside a worker it does nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

_listeners: list[tuple[Callable[[], None], set[Thread]]] = []  # each with the threads whose calls it ignores


def alive() -> None:
    """Report that the running job makes progress. Call it between blocks, from the job's own threads."""
    thread = threading.current_thread()
    for listener, ignored in _listeners:
        if thread not in ignored:
            listener()


@contextmanager
def forwarded_to(listener: Callable[[], None]) -> Iterator[None]:
    """Within the block, `alive` calls `listener`.

    Calls from other threads that run at its start are ignored: a failed job may have left a reader behind, which goes
    on for a while and must not send heartbeats for the next job.
    """
    entry = (listener, set(threading.enumerate()) - {threading.current_thread()})
    _listeners.append(entry)
    try:
        yield
    finally:
        _listeners.remove(entry)
