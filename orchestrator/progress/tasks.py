"""A session's tasks as the live view and the events file know them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from taugrid.orchestrator.progress.todo import KnownTask
from taugrid.orchestrator.rates import pace
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, Piece, WorkKind


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
