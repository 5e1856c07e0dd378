"""The rows of tables with places for what has no score: names in a table come from the grid, not from what is done."""

from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.report.collect import row_of
from taugrid.orchestrator.report.replicates import SEEDS, label_without_seeds
from taugrid.protocol import ProtocolFields, kind


def with_unscored(
    plan: Plan, rows: Sequence[dict[str, Any]], protocols: Mapping[str, ProtocolFields]
) -> list[dict[str, Any]]:
    """`rows` of scored cells, and a row without scores for each setting that none of them has, in the grid's order.

    Such a row has the protocol of the others of its N. Without one, because none or several kinds of protocol are
    there, the table it belongs in is not known, and it is left out.
    """
    scored = {row["cell"]: row for row in rows}
    told = {label_without_seeds(cell) for cell in plan.cells if cell.id in scored}
    usual = _usual_protocols(rows, protocols)
    found: list[dict[str, Any]] = []
    for cell in plan.cells:
        label = label_without_seeds(cell)
        if cell.id in scored:
            found.append(scored[cell.id])
        elif label not in told and cell.settings.num_samples in usual:
            told.add(label)
            seeds = {seed: rows[0][seed] for seed in SEEDS if seed in rows[0]}  # it is no replicate of anything
            found.append(row_of(cell, {}, usual[cell.settings.num_samples], None) | seeds)
    return found


def _usual_protocols(rows: Sequence[Mapping[str, Any]], protocols: Mapping[str, ProtocolFields]) -> dict[int, str]:
    """N -> a protocol of its cells, if all of them are of one kind."""
    names: dict[int, dict[str, str]] = {}
    for row in rows:
        protocol = protocols.get(row["protocol"])
        names.setdefault(row["num_samples"], {})["" if protocol is None else kind(protocol)] = row["protocol"]
    return {size: next(iter(kinds.values())) for size, kinds in names.items() if len(kinds) == 1}
