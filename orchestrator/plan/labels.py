"""The labels of a cell: `sample.labels` held against what its network takes."""

from collections.abc import Callable

import numpy as np

from taugrid.config import Sample
from taugrid.config.sample import LabelColumn
from taugrid.errors import UserError
from taugrid.grids.names import in_yaml
from taugrid.jobs import Conditions
from taugrid.workers.conditions.column import Column
from taugrid.workers.conditions.labels import LabelRule

ReadColumn = Callable[[LabelColumn], Column]
"""Like `workers.conditions.column.read_column`."""


def label_rule(settings: Sample, conditions: Conditions | None, network: str, read: ReadColumn) -> LabelRule | None:
    """The rule for the labels of a cell with these settings; None for an unconditional network.

    Args:
        settings: resolved.
        conditions: what the network takes.
        network: its name in messages.
        read: reads a Parquet file.

    Raises:
        MissingInput: if there is no Parquet file.
        UserError: if there are labels for an unconditional network, none for another, too few, or no classes of it.
    """
    labels = settings.labels
    if conditions is None:
        if labels is not None:
            said = in_yaml(settings.model_dump(mode="json")["labels"])
            raise UserError(f"sample.labels is {said}, but {network} is unconditional; remove the key")
        return None
    last = conditions.classes - 1
    if labels is None:
        raise UserError(
            f"sample.labels is missing: {network} has {conditions.classes} classes; set balanced, random, a class from "
            f"0 to {last}, a list of classes, or {{parquet: FILE, column: NAME}}"
        )
    assert settings.seed is not None
    if isinstance(labels, LabelColumn):
        column = read(labels)
        if column.values is not None:
            _require_rows(labels, len(column.values), settings.num_samples)
            _require_classes(f"sample.labels.column: {labels.column}", column.values, conditions, network)
        values = None if column.values is None else column.values.astype(np.int32)
        return LabelRule({"column_sha256": column.sha256}, settings.seed, conditions.classes, values)
    if not isinstance(labels, str):
        _require_classes("sample.labels", np.atleast_1d(np.array(labels, object)), conditions, network)
    return LabelRule(labels, settings.seed, conditions.classes)


def _require_rows(column: LabelColumn, rows: int, num_samples: int) -> None:
    if rows < num_samples:
        raise UserError(
            f"sample.labels.parquet: {column.parquet} has {rows:,} rows, but {num_samples:,} samples need one each; "
            "give a longer file or a smaller sample.num_samples"
        )


def _require_classes(key: str, labels: np.ndarray, conditions: Conditions, network: str) -> None:
    classes, null = conditions
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        found, row = labels[wrong[0]], f" in row {wrong[0]}" if "column" in key else ""
        is_null = ", its null label, which no image is asked for" if found == null else ""
        raise UserError(f"{key} has {found}{row}{is_null}; the classes of {network} are 0 to {classes - 1}")
