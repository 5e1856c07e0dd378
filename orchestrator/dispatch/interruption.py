"""What an interruption costs: the shards that workers were at, what is kept of them, and what is lost. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from taugrid.words import counted, duration, listed

MOST_NAMED = 2
"""Cells that are named; the rest are counted."""


class InProgress(NamedTuple):
    cell: str
    """Its label."""
    images: float
    """How many were done, in parts of images, when the worker was last heard."""
    seconds: float
    """Since it was begun."""
    kept: int = 0
    """Images in whole batches that were committed all the same."""


def in_words(shards: Iterable[InProgress]) -> str:
    """What is kept and lost, in a phrase; empty if no shard was in progress."""
    begun = [shard for shard in shards if shard.seconds or shard.kept]
    if not begun:
        return ""
    cells = list(dict.fromkeys(shard.cell for shard in begun))
    kept, seconds = sum(shard.kept for shard in begun), sum(map(_seconds_lost, begun))
    lost = sum(max(0.0, shard.images - shard.kept) for shard in begun)
    at_work = f"{counted(len(begun), 'shard')} in progress ({listed(cells, MOST_NAMED, 'cell')})"
    of_work = f"{duration(seconds)} of work (about {counted(round(lost), 'image')})"
    if kept and round(lost) == 0:  # no heartbeat was newer than what is kept
        of_work = "less than a batch"
    return f"{at_work}: {counted(kept, 'image')} kept, {of_work} lost"


def _seconds_lost(shard: InProgress) -> float:
    """The share of its time that went into what is not kept; all of it if nothing is."""
    if not shard.kept:
        return shard.seconds
    return shard.seconds * max(0.0, 1 - shard.kept / shard.images) if shard.images else 0.0
