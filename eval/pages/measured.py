"""The cells of the shaded tables as points of charts, and which of them can be compared."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from taugrid.eval.pages.pivots import ShadedEntry, ShadedTable
from taugrid.eval.tables.pivots import SIGMA_HAT
from taugrid.protocol import ProtocolFields, kind


class Measured(NamedTuple):
    row: str
    """The row of its table, such as "η = 0.5"."""
    table: ShadedTable
    steps: int
    entry: ShadedEntry
    kind: str
    """Cells of one kind can be compared."""

    @property
    def line(self) -> str:
        return ", ".join(filter(None, [self.row, self.table.heading]))

    @property
    def place(self) -> str:
        """All its settings."""
        return f"S = {self.steps}, {self.line}"


def measured(
    tables: Sequence[ShadedTable],
    rows: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, ProtocolFields],
    joined: Set[str] = frozenset(),
) -> list[Measured]:
    """The cells of `tables` that have a value, in their order.

    Args:
        tables: of one metric, with columns of S.
        rows: rows of quality.csv.
        protocols: the rows' protocols by hash.
        joined: cells that share tables although their protocols differ. If there are any, all cells are compared.
    """
    by_cell = {row["cell"]: row for row in rows}
    kinds = {name: "" if joined else kind(protocol) for name, protocol in protocols.items()}
    return [
        _measured(row_name(table.heads, labels), table, entry, by_cell[entry.cell], kinds)
        for table in tables
        for labels, entries in table.rows
        for entry in entries
        if entry.cell and entry.number == entry.number
    ]


def _measured(
    row: str,
    table: ShadedTable,
    entry: ShadedEntry,
    values: Mapping[str, Any],
    kinds: Mapping[str, str],
) -> Measured:
    return Measured(row, table, values["steps"], entry, kinds.get(values["protocol"], "unknown"))


def row_name(heads: Sequence[str], labels: Sequence[str]) -> str:
    """A row as people name it, such as "schedule = cosine, η = 0.5"."""
    pairs = zip(heads, labels, strict=True)
    return ", ".join(label if label == SIGMA_HAT else f"{head} = {label}" for head, label in pairs)


def by_kind(cells: Sequence[Measured]) -> list[list[Measured]]:
    """Cells that can be compared, together."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for cell in cells:
        groups[cell.kind].append(cell)
    return list(groups.values())
