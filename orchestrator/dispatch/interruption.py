"""What an interruption costs: the shards in progress, what is kept of them, and what is lost. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from taugrid.words import counted, duration, listed

MOST_NAMED = 2
"""Cells that are named; the rest are counted."""


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
