"""How far the tasks that workers are at have come, by heartbeats that do not say which task they are of. Pure."""

from typing import NamedTuple


class _Last(NamedTuple):
    key: str
    fraction: float


class Fractions:
    """By worker.

    A worker begins its second task while the first is only written. The heartbeats from then on are the second's, and
    would make the first look hardly begun. They begin low, which tells them: the fraction of one attempt never falls.
    """

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}

    def heard(self, worker: str, key: str, fraction: float, has_second: bool) -> float | None:
        """How much of the task `key`, which `worker` is at, is done; None if the heartbeat is of its second task.

        Without a second, a fraction that falls is of another attempt, as after memory was used up.
        """
        last = self._last.get(worker)
        if has_second and last is not None and last.key == key and fraction < last.fraction:
            self._last[worker] = _Last(key, float("inf"))  # nor is any that follows
            return None
        self._last[worker] = _Last(key, fraction)
        return fraction

    def last(self, worker: str) -> float:
        """How much of its task was done when `worker` was last heard."""
        return min(1.0, self._last[worker].fraction) if worker in self._last else 0.0

    def forget(self, worker: str) -> None:
        """What `worker` was at has failed, and may begin anew."""
        self._last.pop(worker, None)
