"""How fast work was in earlier sessions of a run directory, from its events."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from taugrid.orchestrator.plan.cells import Cell

SAME_PACE = {"reference": "extract", "shard": "sample"}
"""Kinds of work, and events, that take as long as another kind at equal cost."""

Key = TypeVar("Key", bound=Hashable)


class _Work(NamedTuple):
    seconds: float
    cost: float


def pace(kind: str, model: str | None) -> str:
    """The name of what takes equal time for equal cost; `model` is that of the network that runs, if any."""
    return "/".join(filter(None, [SAME_PACE.get(kind, kind), model]))


def evaluations_per_second(events: Iterable[Mapping[str, Any]]) -> float | None:
    """Network evaluations per second of one worker, over all shards that were sampled; None before the first."""
    shards = (event for event in events if event["event"] == "shard")
    done = _totals(("shard", _Work(event["seconds"], event["evaluations"])) for event in shards).get("shard")
    return done.cost / done.seconds if done is not None and done.seconds else None


def seconds_by_pace(events: Iterable[Mapping[str, Any]], cells: Sequence[Cell]) -> dict[tuple[str, str], float]:
    """Pace and device -> a worker's seconds for a unit of cost."""
    done = _totals(_by_pace_and_device(events, {cell.id: cell.model.id for cell in cells}))
    return {key: work.seconds / work.cost for key, work in done.items()}


def _by_pace_and_device(
    events: Iterable[Mapping[str, Any]], models: Mapping[str, str]
) -> Iterator[tuple[tuple[str, str], _Work]]:
    """Each finished task of a known cost. `models` (cell -> model) serves events from before they named the model."""
    for event in events:
        cost, device = event.get("evaluations", event.get("images")), event.get("device")
        if device is None or not cost or "seconds" not in event:
            continue
        model = None
        if "evaluations" in event:
            model = event.get("model") or models.get(event.get("cell", ""))
        yield (pace(event["event"], model), device), _Work(event["seconds"], cost)


def _totals(found: Iterable[tuple[Key, _Work]]) -> dict[Key, _Work]:
    totals: dict[Key, _Work] = defaultdict(lambda: _Work(0.0, 0.0))
    for key, (seconds, cost) in found:
        totals[key] = _Work(totals[key].seconds + seconds, totals[key].cost + cost)
    return totals
