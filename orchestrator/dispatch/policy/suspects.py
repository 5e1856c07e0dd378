"""Tasks that may kill their workers: they wait for all else, and only one of them runs at a time. Pure."""

from collections import deque
from collections.abc import Iterable


class Suspects:
    """Keys of tasks. One that waits is queued; one that runs, or is done, only stays suspected."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._all: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._all

    @property
    def first(self) -> str | None:
        """The one that is to be tried next; None: none waits."""
        return self._waiting[0] if self._waiting else None

    def add(self, key: str) -> None:
        """Suspect a task that is not queued."""
        self._all.add(key)

    def clear(self, key: str) -> None:
        """The task is suspected no longer, or given up; it is not queued."""
        self._all.discard(key)

    def queue(self, key: str) -> None:
        """The task waits, before all others: it was on trial."""
        self._waiting.appendleft(key)

    def take(self) -> str:
        """Remove and return the first from those that wait."""
        return self._waiting.popleft()

    def drop(self, keys: Iterable[str]) -> None:
        """Forget `keys`, whether they wait or not."""
        if dropped := self._all.intersection(keys):
            self._all -= dropped
            self._waiting = deque(key for key in self._waiting if key not in dropped)

    def any_of(self, keys: Iterable[str]) -> bool:
        return not self._all.isdisjoint(keys)
