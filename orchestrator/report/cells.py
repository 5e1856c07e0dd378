"""tables/cells.{csv,parquet}: what each cell's id stands for, to join samples and scores with the grid's keys."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.storage import replacing

FIRST = ("cell", "folder", "name", "model", "model_name", "sampler", "steps", "eta", "sigma", "spacing", "clip", "seed",
         "weights", "num_samples")  # fmt: skip
"""The columns of every run. One for each other key of the grid follows, in the config's order and with its full name.
`cell` and `model` are as in samples and in quality.csv."""


def write_cells(plan: Plan, rundir: RunDir) -> None:
    """Write a row for each cell of the plan, in its order; each file whole or not at all."""
    rows = [_row(cell) for cell in plan.cells]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    table = pa.table({key: _typed(values) for key, values in columns.items()})
    frame = pd.DataFrame({key: _in_text(values) for key, values in columns.items()}, dtype=object)
    with rundir.storage.local_folder(rundir.tables) as tables:
        with replacing(tables / "cells.parquet") as temporary:
            pq.write_table(table, temporary)
        with replacing(tables / "cells.csv") as temporary:
            temporary.write_text(frame.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")


def _row(cell: Cell) -> dict[str, Any]:
    settings = cell.settings
    own = [
        cell.id, cell.name, cell.label, cell.model.id, cell.model.label, settings.sampler, settings.steps,
        settings.eta_number, settings.sigma, settings.spacing_name, settings.clip, settings.seed, settings.weights,
        settings.num_samples,
    ]  # fmt: skip
    return {**dict(zip(FIRST, own, strict=True)), **{k: v for k, v in cell.values.items() if k not in FIRST}}


def _typed(values: Sequence[Any]) -> pa.Array:
    """A column of the values' own type: integers, floats, text, booleans or lists; values of several kinds as JSON."""
    if any(isinstance(value, dict) for value in values):
        return pa.array(_in_text(values))
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def _in_text(values: Sequence[Any]) -> list[Any]:
    """The values with lists and mappings as JSON."""
    return [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
