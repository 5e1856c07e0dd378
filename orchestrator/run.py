"""A run: its config, its plan, its directory and its tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.scoring import Scoring, scoring_of
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.grown import at_larger_sizes, grown
from taugrid.registry.metrics import MetricColumn
from taugrid.storage import read_json, read_sealed

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = frozenset(
    {"cell", "folder", "name", "model", "model_name", "protocol", "cell_a", "cell_b", "protocol_a", "protocol_b"}
    | {"spacing", "along", "settings", "others", "note", "base", "value", "class"}
)
"""Columns that stay text, though all their values may look like numbers (an id can be 123e456789) or be empty."""


@dataclass(frozen=True, eq=False)
class Run:
    """A config with its plan and its run directory, made by `opened.py`. `RunDir` is the directory alone; `RunView`
    (view/run.py) is the read-only view of a run in the Python API."""

    config: Config
    configured: Plan  # with the config's N, which tables show
    rundir: RunDir
    sizes: Mapping[str, int] = field(default_factory=dict)  # cell id -> the N to which it grew (grown.json)

    @cached_property
    def plan(self) -> Plan:
        """The plan with the N to which cells grew: what the directory holds, or will."""
        return grown(self.configured, self.sizes)

    def scoring(self) -> Scoring:
        """How cells are scored, as recorded; if the config asks for another way, reference and weights are opened."""
        if (recorded := self.rundir.recorded_scoring(self.config)) is None:
            return scoring_of(self.config, self.plan, self.rundir.extractor)
        return scoring_of(self.config, self.plan, lambda config: recorded.extractor, lambda given: recorded.reference)

    @property
    def at_each_size(self) -> list[Plan]:
        """The plan as configured, and then for each N to which cells grew the cells with as many images, at that N."""
        return [self.configured, *at_larger_sizes(self.configured, self.sizes)]

    # Tables are read again each time, because a run may be writing them.

    @property
    def document(self) -> dict[str, Any]:
        """tables/quality.json: rows, protocols, notes and marks; empty if there is none."""
        return read_json(self.rundir.tables / "quality.json", self.rundir.storage) or {}

    @property
    def tables(self) -> list[str]:
        """The names of the tables."""
        return [path.stem for path in self.rundir.storage.list(self.rundir.tables, "*.csv")]

    def table(self, name: str) -> "pd.DataFrame":
        """tables/`name`.csv; `UserError` if there is none."""
        try:
            return parsed(self.rundir.storage.read(self.rundir.tables / f"{name}.csv"))
        except (FileNotFoundError, NotADirectoryError):
            raise self.lacks(name) from None

    def lacks(self, name: str) -> UserError:
        """What to say of a table that is not there."""
        there = f"it has {', '.join(self.tables)}" if self.tables else "`taugrid report` writes tables from scores"
        return UserError(f"{self.rundir.shown} has no table {name} ({there})")


def parsed(text: bytes) -> "pd.DataFrame":
    """A table from CSV, every number as it was before it was written. A column is of integers, floats with NaN for what
    is empty, booleans, or texts. pandas' reader rounds some floats."""
    from pyarrow import csv

    options = csv.ConvertOptions(
        column_types=dict.fromkeys(TEXT_COLUMNS, pa.string()),
        null_values=[""],
        true_values=["True"],
        false_values=["False"],
    )
    table = csv.read_csv(BytesIO(text), convert_options=options)
    fields = [field.with_type(pa.float64()) if pa.types.is_null(field.type) else field for field in table.schema]
    frame: pd.DataFrame = table.cast(pa.schema(fields)).to_pandas()
    return frame


def score_on_disk(rundir: RunDir, cell: Cell, metric: MetricColumn, scoring: Scoring | None) -> float | None:
    """A cell's score at its N, as tables show it; None if it has none, or nothing says how it is scored."""
    score = None if scoring is None else read_sealed(rundir.score(cell, scoring.id(cell)), rundir.storage)
    value = None if score is None else score["metrics"].get(metric.name)
    return None if value is None else float(value) * metric.scale
