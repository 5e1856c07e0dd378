"""The heartbeat of this process's job, for loops too deep in the code to be handed a device.

Jobs call `Device.heartbeat` with how far they are. A loop over blocks of reading or of mathematics calls `alive`,
which only says that it goes on. Outside a worker it does nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

_listeners: list[tuple[Callable[[], None], set[Thread]]] = []  # each with the threads that it does not listen to


def alive() -> None:
    """Say that the running job goes on. Call it between blocks, from the job's own threads."""
    here = threading.current_thread()
    for listener, strangers in _listeners:
        if here not in strangers:
            listener()


@contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """`alive` calls `listener` within the block.

    Other threads that are running at its start are not heard. A job that failed may have left a reader behind, which
    goes on for a while and must not beat for the next job.
    """
    entry = (listener, set(threading.enumerate()) - {threading.current_thread()})
    _listeners.append(entry)
    try:
        yield
    finally:
        _listeners.remove(entry)
