"""How many workers of each sort the tasks want. Pure: each task counts for one sort only."""

from collections.abc import Collection, Mapping
from typing import NamedTuple


class Crowd(NamedTuple):
    full: int
    """Those that do all kinds of tasks."""
    spare: int
    """Those without a GPU, which do only some kinds."""


def demand(openings: Mapping[str, int], spare_kinds: Collection[str], busy: Crowd, room: Crowd) -> Crowd:
    """How many workers the tasks want: those that are `busy`, and one for each that could start.

    `openings` is kind -> tasks that could start; `room` is how many workers fit on the nodes that are there. Tasks of
    `spare_kinds` go to spare workers, as far as there is room. What is left of them employs full workers that fit too,
    but asks for no node with a GPU, unless there is no room for a spare worker at all.
    """
    light = sum(number for kind, number in openings.items() if kind in spare_kinds)
    full = busy.full + sum(openings.values()) - light
    spare = min(light, max(0, room.spare - busy.spare))
    left = light - spare
    if room.spare:
        left = min(left, max(0, room.full - full))
    return Crowd(full + left, busy.spare + spare)
