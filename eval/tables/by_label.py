"""Scores label by label (`report.by: label`): a row for each cell and label as csv and json, tables for people."""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from taugrid.eval.tables.long_form import (
    as_csv,
    as_json,
    has_values,
    score_columns,
    shown_columns,
    with_notes,
    write_files,
)
from taugrid.eval.tables.table import Label, Table, Value
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted, listed

FIRST = ("cell", "settings", "label", "class", "num_samples", "num_reference")
"""The first columns of by_label.csv. Those of quality.csv follow for the metrics that some label has."""
SHOWN = 20  # labels that a table shows: of more, the worst
NAMED = 5  # classes that a note names
ABOUT = (
    "each label's images alone, against the reference's images of that label; N is a label's share of the cell's, so "
    "compare these numbers with each other and not with the cell's own"
)


@dataclass(frozen=True)
class LabelTable:
    rows: Sequence[Mapping[str, Any]]
    """Rows with `FIRST` and the numbers that are known, by cell in the grid's order, and then by label."""
    notes: Sequence[str]
    asked: Collection[str] = ()  # `evaluate.metrics`: what comes with another number gets a table if it is one of them

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, Any]], reasons: Mapping[str, Sequence[str]], asked: Collection[str] = ()
    ) -> "LabelTable":
        """The table with a note for each of `reasons`, which maps why numbers are missing to the class of each row."""
        cells = len({row["cell"] for row in rows})
        notes = [ABOUT]
        for reason, classes in reasons.items():
            counts = Counter(classes).items()
            of = (f"{name} in {n} of {counted(cells, 'cell')}" if n < cells else name for name, n in counts)
            named = "every label" if len(classes) == len(rows) else listed(list(of), NAMED)
            notes.append(f"{named}: {reason}")
        return cls(rows, notes, asked)

    @classmethod
    def read(cls, document: Mapping[str, Any], asked: Collection[str] = ()) -> "LabelTable":
        """The table of a by_label.json; empty for an empty document."""
        return cls(document.get("rows", ()), document.get("notes", ()), asked)

    @cached_property
    def frame(self) -> pd.DataFrame:
        known = [name for column in score_columns() for name in column.names]
        frame = pd.DataFrame(list(self.rows)).astype({"num_samples": "int64", "num_reference": "int64"})
        return frame[[*FIRST, *(name for name in dict.fromkeys(known) if has_values(frame, name))]]

    @cached_property
    def tables(self) -> list[Table]:
        """A table for each metric: rows of cells, columns of classes."""
        return [self._table(metric) for metric in shown_columns(self.frame.columns, self.asked)]

    def _table(self, metric: MetricColumn) -> Table:
        columns = ["settings", "class", metric.name, str(metric.error), "cell"]
        numbers = self.frame.reindex(columns=columns).itertuples(index=False, name=None)
        values: dict[tuple[Label, Hashable], Value] = {
            ((row,), label): Value(*numbers) for row, label, *numbers in numbers
        }
        labels, classes = (list(dict.fromkeys(self.frame[key])) for key in ("settings", "class"))
        notes: tuple[str, ...] = ()
        if len(classes) > SHOWN:
            means = self.frame.groupby("class", sort=False)[metric.name].mean()
            notes = (f"the {SHOWN} worst of {counted(len(classes), 'class', 'classes')}; by_label.csv has all",)
            classes = list(means.sort_values(ascending=metric.higher_is_better, kind="stable").index[:SHOWN])
        return Table(
            metric, {}, [(label,) for label in labels], classes, values, notes, row_keys=("cell",), column_key="class"
        )

    @property
    def markdown(self) -> str:
        blocks: list[str] = []
        for table in self.tables:
            heading = f"## {table.metric.heading}, by class"
            blocks += [heading, *filter(None, [table.error_means]), table.markdown, *table.notes]
        return "\n\n".join(blocks) + "\n"


def write_by_label(table: LabelTable, folder: Path) -> None:
    """Write by_label.{csv,json,md} into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    json = as_json({"rows": table.frame.to_dict("records"), "notes": list(table.notes)})
    write_files(folder, "by_label", csv=as_csv(table.frame), json=json, md=with_notes(table.markdown, table.notes))
