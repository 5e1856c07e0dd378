"""The heartbeat of this process's job, for loops too deep in the code to be handed a device.

Jobs call `Device.beat` with how far they are. A loop over blocks of reading or of mathematics calls `alive`, which only
says that it goes on. Outside a worker nobody listens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listeners: list[Callable[[], None]] = []


def alive() -> None:
    """Say that the running job goes on. Call it between blocks, from the job's own thread."""
    for listener in _listeners:
        listener()


@contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """`alive` calls `listener` within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
