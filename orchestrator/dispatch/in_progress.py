"""How far the tasks in flight are, by heartbeats that name no task, and what an interruption costs. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from taugrid.words import counted, duration, listed

MOST_NAMED = 2
"""Cells that are named; the rest are counted."""


class _Last(NamedTuple):
    key: str
    fraction: float


class Fractions:
    """How much of its task each worker has done.

    A worker begins its second task while the first is only written. The heartbeats from then on are the second's, and
    would make the first look hardly begun. They begin low, which tells them: the fraction of one attempt never falls.
    """

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}

    def heard(self, worker: str, key: str, fraction: float, has_second: bool) -> float | None:
        """How much of the task `key`, which `worker` runs, is done; None if the heartbeat is of its second task.

        Without a second, a fraction that falls is of another attempt, as after memory was used up.
        """
        last = self._last.get(worker)
        if has_second and last is not None and last.key == key and fraction < last.fraction:
            self._last[worker] = _Last(key, float("inf"))  # nor is any that follows
            return None
        self._last[worker] = _Last(key, fraction)
        return fraction

    def last(self, worker: str) -> float:
        """How much of its task was done at the last heartbeat of `worker`."""
        return min(1.0, self._last[worker].fraction) if worker in self._last else 0.0

    def forget(self, worker: str) -> None:
        """The task of `worker` has failed, and may begin again."""
        self._last.pop(worker, None)


class InProgress(NamedTuple):
    """A shard that an interruption found in progress."""

    cell: str
    """Its label."""
    images: float
    """How many were done, in parts of images, at the last heartbeat."""
    seconds: float
    """Since it was begun."""
    kept: int = 0
    """Images in whole batches that were committed all the same."""

    @property
    def seconds_lost(self) -> float:
        """The share of its time that went into what is not kept; all of it if nothing is."""
        if not self.kept:
            return self.seconds
        return self.seconds * max(0.0, 1 - self.kept / self.images) if self.images else 0.0


def in_words(shards: Iterable[InProgress]) -> str:
    """What is kept and lost, in a phrase; empty if no shard was in progress."""
    begun = [shard for shard in shards if shard.seconds or shard.kept]
    if not begun:
        return ""
    cells = list(dict.fromkeys(shard.cell for shard in begun))
    kept, seconds = sum(shard.kept for shard in begun), sum(shard.seconds_lost for shard in begun)
    lost = sum(max(0.0, shard.images - shard.kept) for shard in begun)
    at_work = f"{counted(len(begun), 'shard')} in progress ({listed(cells, MOST_NAMED, 'cell')})"
    of_work = f"{duration(seconds)} of work (about {counted(round(lost), 'image')})"
    if kept and round(lost) == 0:  # no heartbeat was newer than what is kept
        of_work = "less than a batch"
    return f"{at_work}: {counted(kept, 'image')} kept, {of_work} lost"
