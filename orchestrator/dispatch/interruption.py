"""The cost of an interruption: the images of shards in progress that are kept, and those that are lost. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from taugrid.words import counted, duration, listed

MAX_NAMED = 2
"""Cells that are named; the rest are counted."""


class InProgress(NamedTuple):
    """A shard that was in progress when the run was interrupted."""

    cell: str
    """The label of its cell."""
    images: float
    """Images done at the last heartbeat; an image in progress counts as a fraction."""
    seconds: float
    """Time since the shard was begun."""
    kept: int = 0
    """Images in whole batches that were committed."""

    @property
    def seconds_lost(self) -> float:
        """The share of its time that was spent on images that are not kept; all of it if none is."""
        if not self.kept:
            return self.seconds
        return self.seconds * max(0.0, 1 - self.kept / self.images) if self.images else 0.0


def in_words(shards: Iterable[InProgress]) -> str:
    """A phrase that says how much is kept and lost; empty if no shard was in progress."""
    begun = [shard for shard in shards if shard.seconds or shard.kept]
    if not begun:
        return ""
    cells = list(dict.fromkeys(shard.cell for shard in begun))
    kept, seconds = sum(shard.kept for shard in begun), sum(shard.seconds_lost for shard in begun)
    lost = sum(max(0.0, shard.images - shard.kept) for shard in begun)
    at_work = f"{counted(len(begun), 'shard')} in progress ({listed(cells, MAX_NAMED, 'cell')})"
    of_work = f"{duration(seconds)} of work (about {counted(round(lost), 'image')})"
    if kept and round(lost) == 0:  # no heartbeat was newer than what is kept
        of_work = "less than a batch"
    return f"{at_work}: {counted(kept, 'image')} kept, {of_work} lost"
