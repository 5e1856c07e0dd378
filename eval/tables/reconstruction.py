"""The paper's table 2: the error of encoding an image to x_T and decoding it again."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from taugrid.eval.tables.long_form import as_csv, as_json, as_text, series, sort_key, with_notes, write_files
from taugrid.eval.tables.pivots import Table
from taugrid.registry.metrics import MetricColumn

RECONSTRUCTION_COLUMNS = (
    "model", "weights", "spacing", "steps", "num_images", "network_evaluations", "mse", "mse_se", "mse_8bit", "seconds",
)  # fmt: skip
"""The columns of reconstruction.csv, followed by one for each other grid axis. Errors in it are not scaled."""
_FLOATS = frozenset({"mse", "mse_se", "mse_8bit", "seconds"})

SCALE = 1000
"""Factor of the errors in a pivot: the paper's are 0.014 at S = 10 and 0.0001 at S = 1000."""
RECONSTRUCTION_ERROR = MetricColumn(
    "mse", f"Reconstruction error × {SCALE}", "mse_se", "one standard error over the images"
)
LEGEND = (
    "Error is the mean squared difference per dimension, on pixels scaled to [0, 1], between an image and what is "
    "decoded from its x_T: S steps up and S steps down at eta = 0, nothing clipped or rounded, eps on the way up taken "
    "at each step's target time."
)


def reconstruction_frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The long form: a row per setting and S, in an order that does not depend on the order of `rows`.

    `mse` is the mean over images of the squared error per dimension on [0, 1], `mse_se` its standard error, `mse_8bit`
    the same after the reconstruction was clipped and rounded to 8 bits; all are float64 with NaN for None.
    `network_evaluations` are per image, both ways together. A list as the value of an axis becomes its JSON.
    """
    axes = sorted({key for row in rows for key in row} - set(RECONSTRUCTION_COLUMNS))
    order = [*axes, "model", "weights", "spacing", "num_images", "steps"]
    ordered = sorted(rows, key=lambda row: [sort_key(row.get(key)) for key in order])
    values = {column: [row[column] for row in ordered] for column in RECONSTRUCTION_COLUMNS}
    values |= {axis: [row.get(axis) for row in ordered] for axis in axes}
    return pd.DataFrame({column: series(listed, column in _FLOATS) for column, listed in values.items()})


def reconstruction_table(frame: pd.DataFrame) -> Table:
    """`mse` times `SCALE`, and its error, as in the paper: columns of S, and a row for each setting that differs.

    A row's label says what sets it apart ("spacing = linear"). A model that no other column tells apart is named by its
    id. What all rows have in common is in the notes. Two rows in the same place are a `ValueError`.
    """
    axes = [column for column in frame.columns if column not in RECONSTRUCTION_COLUMNS]
    settings = [*axes, "weights", "spacing", "num_images"]
    apart = [column for column in settings if frame[column].nunique(dropna=False) > 1]
    if len(frame.drop_duplicates([*apart, "model"])) > (len(frame.drop_duplicates(apart)) if apart else 1):
        apart.append("model")
    records = frame.to_dict("records")
    labels = [_named(apart, record) or "Error" for record in records]
    placed = frame.assign(row=labels)
    twice = placed[placed.duplicated(["row", "steps"])]
    if len(twice):
        raise ValueError(f"two reconstructions are both at {twice['row'].iloc[0]}, S = {twice['steps'].iloc[0]}")
    values, errors = (
        placed.assign(value=placed[column] * SCALE)
        .pivot(index="row", columns="steps", values="value")
        .reindex(index=list(dict.fromkeys(labels)), columns=sorted(set(frame["steps"])))
        for column in ("mse", "mse_se")
    )
    common = [column for column in settings if column not in apart]
    shared = tuple(filter(None, [_named(common, record) for record in records[:1]]))
    return Table(RECONSTRUCTION_ERROR, {}, values, errors, shared, row_keys=("",))


def _named(columns: Sequence[str], record: Mapping[Hashable, object]) -> str:
    return ", ".join(f"{column} = {as_text(record[column])}" for column in columns)


def reconstruction_markdown(frame: pd.DataFrame, about: str) -> str:
    """The pivot as a table in GitHub's Markdown, with `about` and the meaning of the numbers below it."""
    table = reconstruction_table(frame)
    meanings = [LEGEND]
    if table.errors.notna().any(axis=None):
        meanings.append(f"± is {RECONSTRUCTION_ERROR.error_means}.")
    if len(table.values) > 1:
        meanings.append("Bold is the best of its column.")
    heading = f"## {RECONSTRUCTION_ERROR.heading}"
    return "\n\n".join([heading, table.markdown, about, *table.notes, " ".join(meanings)]) + "\n"


def write_reconstruction(
    rows: Sequence[Mapping[str, object]], folder: Path, about: str, notes: Sequence[str] = ()
) -> None:
    """Write reconstruction.{csv,json,md} into `folder`; `about` is a sentence on the images."""
    table = reconstruction_frame(rows)
    text = with_notes(reconstruction_markdown(table, about), notes)
    json = as_json({"about": about, "rows": table.to_dict("records"), "notes": list(notes)})
    write_files(folder, "reconstruction", csv=as_csv(table), json=json, md=text)
