"""How long the rest takes: worker-seconds for each unit of cost, as measured, and a schedule of what is left. Pure."""

import heapq
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

LEAST_SECONDS = 2.0
"""A pace is known after this many seconds of work, or a first task. Before that, a single heartbeat would decide it."""

TASKS_KEPT = 64
"""A pace is the average over this many of the last tasks, so that a new node or another load soon shows."""

SCHEDULED_TASKS = 2000
"""Up to this many tasks are scheduled one by one. With more, the last ones hardly matter."""


class Span(NamedTuple):
    seconds: float
    cost: float


class Rates:
    """Seconds that a worker takes for each unit of cost, by pace: the name of what takes equal time for equal cost."""

    def __init__(self) -> None:
        self._warm: dict[str, deque[Span]] = defaultdict(lambda: deque(maxlen=TASKS_KEPT))
        self._cold: dict[str, deque[Span]] = defaultdict(lambda: deque(maxlen=TASKS_KEPT))
        self._earlier: dict[str, float] = {}

    def expect(self, pace: str, seconds: float) -> None:
        """Assume `seconds` per unit of cost until a task of this pace has been measured."""
        self._earlier[pace] = seconds

    def add(self, pace: str, span: Span, is_cold: bool = False) -> None:
        """Add a finished task. It is cold if its worker first had to load or compute what later tasks use too."""
        if span.cost > 0:
            (self._cold if is_cold else self._warm)[pace].append(span)

    def seconds(self, pace: str, running: Iterable[Span] = ()) -> float | None:
        """Seconds per unit of cost; `running` is the work done in unfinished tasks. None: nothing is known yet."""
        warm, running = self._warm.get(pace, ()), list(running)
        if warm or sum(span.seconds for span in running) >= LEAST_SECONDS:
            return _average([*warm, *running])
        return self._earlier.get(pace) or _average(self._cold.get(pace, ()))


def _average(spans: Collection[Span]) -> float | None:
    cost = sum(span.cost for span in spans)
    return sum(span.seconds for span in spans) / cost if cost else None


class Waiting(NamedTuple):
    """Tasks that nobody has begun."""

    number: int
    seconds: float
    """What each takes."""


def seconds_left(running: Sequence[float], waiting: Sequence[Waiting], workers: int) -> float:
    """Time until `workers` have done it all, longest tasks first; `running` has the seconds left of each task in hand.

    It ignores that tasks wait for others, so the time is too short where scores wait for a last shard.
    """
    total = sum(running) + sum(group.number * group.seconds for group in waiting)
    if sum(group.number for group in waiting) > SCHEDULED_TASKS:
        return max([total / workers, *running])
    free_at = [*running, *[0.0] * (workers - len(running))]
    heapq.heapify(free_at)
    for group in sorted(waiting, key=lambda group: -group.seconds):
        for _ in range(group.number):
            heapq.heapreplace(free_at, free_at[0] + group.seconds)
    return max(free_at)
