"""The rate of work in earlier sessions, and the time that the rest takes. Pure."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

SAME_RATE = {"reference": "extract"}
"""Kinds of work that take as long as another kind at equal cost."""

SCHEDULED_TASKS = 2000
"""Up to this many tasks are scheduled one by one. With more, the last ones hardly matter."""


def rate_key(kind: str, model: str | None) -> str:
    """The name of tasks that take equal time for equal cost; `model` is that of the network that runs, if any."""
    return "/".join(filter(None, [SAME_RATE.get(kind, kind), model]))


class Waiting(NamedTuple):
    number: int
    seconds: float
    """The time that each takes."""


def seconds_left(waiting: Sequence[Waiting], workers: int) -> float:
    """Time until `workers` have done everything, longest tasks first."""
    if sum(group.number for group in waiting) > SCHEDULED_TASKS:
        return sum(group.number * group.seconds for group in waiting) / workers
    free_at = [0.0] * workers
    for group in sorted(waiting, key=lambda group: -group.seconds):
        for _ in range(group.number):
            heapq.heapreplace(free_at, free_at[0] + group.seconds)
    return max(free_at)
