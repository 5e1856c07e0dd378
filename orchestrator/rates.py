"""The rate of work, in earlier sessions and in this one, and the time that the rest takes. Pure."""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taugrid.orchestrator.plan.cells import Cell

SAME_RATE = {"reference": "extract", "shard": "sample"}
"""Kinds of work, and events, that take as long as another kind at equal cost."""

MIN_SECONDS = 2.0
"""A rate is known after this many seconds of work, or a finished task: one heartbeat alone would be too noisy."""

TASKS_KEPT = 64
"""A rate is the average over this many of the last tasks, so that it soon follows a new node or a different load."""

SCHEDULED_TASKS = 2000
"""Up to this many tasks are scheduled one by one. With more, the last ones hardly matter."""


class Span(NamedTuple):
    seconds: float
    cost: float


def rate_key(kind: str, model: str | None) -> str:
    """The name of tasks that take equal time for equal cost; `model` is that of the network that runs, if any."""
    return "/".join(filter(None, [SAME_RATE.get(kind, kind), model]))


def evaluations_per_second(events: Iterable[Mapping[str, Any]]) -> float | None:
    """Network evaluations per second of one worker, over all shards that were sampled; None before the first."""
    shards = [event for event in events if event["event"] == "shard" and event["evaluations"]]  # else only decoded
    seconds = sum(event["seconds"] for event in shards)
    return sum(event["evaluations"] for event in shards) / seconds if seconds else None


def earlier_rates(events: Iterable[Mapping[str, Any]], cells: Sequence[Cell]) -> dict[tuple[str, str], float]:
    """Rate key and device -> a worker's seconds for a unit of cost, by the finished tasks of a known cost."""
    models = {cell.id: cell.model.id for cell in cells}  # for events of earlier versions
    seconds, costs = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for event in events:
        cost, device = event.get("evaluations", event.get("images")), event.get("device")
        if device is None or not cost or "seconds" not in event:
            continue
        runs_network = "evaluations" in event
        model = (event.get("model") or models.get(event.get("cell", ""))) if runs_network else None
        key = rate_key(event["event"], model), device
        seconds[key] += event["seconds"]
        costs[key] += cost
    return {key: seconds[key] / costs[key] for key in costs}


class Rates:
    """Seconds that a worker takes for each unit of cost, by rate key."""

    def __init__(self) -> None:
        self._warm: dict[str, deque[Span]] = defaultdict(lambda: deque(maxlen=TASKS_KEPT))
        self._cold: dict[str, deque[Span]] = defaultdict(lambda: deque(maxlen=TASKS_KEPT))
        self._earlier: dict[str, float] = {}

    def expect(self, key: str, seconds: float) -> None:
        """Assume `seconds` per unit of cost until such a task has been measured."""
        self._earlier[key] = seconds

    def add(self, key: str, span: Span, is_cold: bool = False) -> None:
        """Add a finished task. It is cold if its worker first had to load or compute what later tasks use too."""
        if span.cost > 0:
            (self._cold if is_cold else self._warm)[key].append(span)

    def seconds(self, key: str, running: Iterable[Span] = ()) -> float | None:
        """Seconds per unit of cost; `running` is the work done in unfinished tasks. None: unknown yet."""
        warm, running = self._warm.get(key, ()), list(running)
        if warm or sum(span.seconds for span in running) >= MIN_SECONDS:
            return _average([*warm, *running])
        return self._earlier.get(key) or _average(self._cold.get(key, ()))


def _average(spans: Collection[Span]) -> float | None:
    cost = sum(span.cost for span in spans)
    return sum(span.seconds for span in spans) / cost if cost else None


class Waiting(NamedTuple):
    number: int
    seconds: float
    """The time that each takes."""


def seconds_left(running: Sequence[float], waiting: Sequence[Waiting], workers: int) -> float:
    """Time until `workers` have done everything, longest tasks first; `running` has the seconds left of running tasks.

    Dependencies between tasks are ignored, so the time is too short where scores wait for a last shard.
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
