"""A session's tasks as the live view and the events file know them, and what such tasks took in earlier sessions."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.progress.remaining import Span
from taugrid.orchestrator.progress.todo import KnownTask
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, Piece, WorkKind

SAME_PACE = {"reference": "extract", "shard": "sample"}
"""Kinds of work, and events, that take as long as another kind at equal cost."""


def pace(kind: str, model: str | None) -> str:
    """The name of what takes equal time for equal cost; `model` is that of the network that runs, if any."""
    return "/".join(filter(None, [SAME_PACE.get(kind, kind), model]))


def items(pieces: Mapping[str, Piece], kinds: Mapping[str, type[WorkKind]]) -> dict[str, KnownTask]:
    """The tasks of a session by key."""
    return {key: _item(piece, kinds[piece.task.kind]) for key, piece in pieces.items()}


def _item(piece: Piece, kind: type[WorkKind]) -> KnownTask:
    cell, cost = piece.cell, piece.task.cost
    if cell is None:
        return KnownTask(kind.name, cost, pace(kind.name, None))
    images = round(cost / len(cell.tau)) if kind.counts_images else 0
    model = cell.model.id if kind.unit == NETWORK_EVALUATIONS else None
    return KnownTask(kind.name, cost, pace(kind.name, model), cell.id, images)


def to_do(found: Iterable[KnownTask]) -> list[dict[str, Any]]:
    """The tasks as the event "to do" has them: their number and cost by kind and pace."""
    tasks, costs = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for item in found:
        tasks[item.kind, item.pace] += 1
        costs[item.kind, item.pace] += int(item.cost)
    return [
        {"kind": kind, "pace": name, "tasks": count, "cost": costs[kind, name]} for (kind, name), count in tasks.items()
    ]


def earlier_paces(events: Iterable[Mapping[str, Any]], cells: Sequence[Cell]) -> dict[tuple[str, str], float]:
    """Pace and device -> seconds for a unit of cost, as measured in earlier sessions of the run directory."""
    models = {cell.id: cell.model.id for cell in cells}
    spans: dict[tuple[str, str], Span] = defaultdict(lambda: Span(0.0, 0.0))
    for event in events:
        cost, device = event.get("evaluations", event.get("images")), event.get("device")
        if device is None or not cost or "seconds" not in event:
            continue
        model = None
        if "evaluations" in event:
            model = event.get("model") or models.get(event.get("cell", ""))
        key = pace(event["event"], model), device
        spans[key] = Span(spans[key].seconds + event["seconds"], spans[key].cost + cost)
    return {key: span.seconds / span.cost for key, span in spans.items()}
