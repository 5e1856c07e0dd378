"""The paper's table 2: the error of encoding an image to x_T and decoding it again."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from taugrid.eval.tables.long_form import as_csv, as_json, as_text, series, sort_key, with_notes, write_files
from taugrid.eval.tables.quality import LazyRenderable
from taugrid.eval.tables.table import BEST, Table, Value
from taugrid.registry.metrics import MetricColumn

RECONSTRUCTION_COLUMNS = (
    "model", "weights", "spacing", "steps", "num_images", "network_evaluations", "mse", "mse_se", "mse_8bit", "seconds",
)  # fmt: skip
"""The columns of reconstruction.csv, followed by one for each other grid axis. Errors in it are not scaled."""
_FLOATS = frozenset({"mse", "mse_se", "mse_8bit", "seconds"})

RECONSTRUCTION_ERROR = MetricColumn(
    "mse", "Reconstruction error × 1000", "mse_se", "one standard error over the images", scale=1000
)
"""The paper's are 0.014 at S = 10 and 0.0001 at S = 1000."""
LEGEND = (
    "Error is the mean squared difference per dimension, on pixels scaled to [0, 1], between an image and what is "
    "decoded from its x_T: S steps up and S steps down at eta = 0, nothing clipped or rounded, eps on the way up taken "
    "at each step's target time."
)


def reconstruction_frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The long form: a row per setting and S, in an order that does not depend on the order of `rows`.

    `mse` is the mean over images of the squared error per dimension on [0, 1], `mse_se` its standard error, `mse_8bit`
    the same after the reconstruction was clipped and rounded to 8 bits; all are float64 with NaN for None.
    `network_evaluations` are per image, both ways together. A list as the value of an axis becomes its JSON."""
    axes = sorted({key for row in rows for key in row} - set(RECONSTRUCTION_COLUMNS))
    order = [*axes, "model", "weights", "spacing", "num_images", "steps"]
    ordered = sorted(rows, key=lambda row: [sort_key(row.get(key)) for key in order])
    values = {column: [row[column] for row in ordered] for column in RECONSTRUCTION_COLUMNS}
    values |= {axis: [row.get(axis) for row in ordered] for axis in axes}
    return pd.DataFrame({column: series(listed, column in _FLOATS) for column, listed in values.items()})


def reconstruction_table(frame: pd.DataFrame) -> Table:
    """`mse` and its error, as in the paper: columns of S, and a row for each setting that differs. A row's label says
    what sets it apart ("spacing = linear"). A model that no other column tells apart is named by its id. What all rows
    have in common is in the notes. Two rows in the same place are a `ValueError`."""
    settings = [column for column in frame.columns if column not in RECONSTRUCTION_COLUMNS]
    settings += ["weights", "spacing", "num_images"]
    apart = [column for column in settings if frame[column].nunique(dropna=False) > 1]
    if len(frame.drop_duplicates([*apart, "model"])) > (len(frame.drop_duplicates(apart)) if apart else 1):
        apart.append("model")
    values: dict[tuple[tuple[str, ...], Hashable], Value] = {}
    for record in frame.to_dict("records"):
        at = ((_named(apart, record) or "Error",), record["steps"])
        if at in values:
            raise ValueError(f"two reconstructions are both at {at[0][0]}, S = {at[1]}")
        values[at] = Value(record["mse"], record["mse_se"])
    labels, steps = list(dict.fromkeys(label for label, _ in values)), sorted(set(frame["steps"]))
    common = [column for column in settings if column not in apart]
    shared = tuple(filter(None, [_named(common, record) for record in frame.head(1).to_dict("records")]))
    return Table(RECONSTRUCTION_ERROR, {}, labels, steps, values, shared, row_keys=("",))


def _named(columns: Sequence[str], record: Mapping[Hashable, object]) -> str:
    return ", ".join(f"{column} = {as_text(record[column])}" for column in columns)


def reconstruction_markdown(frame: pd.DataFrame, about: str) -> str:
    """The table in GitHub's Markdown, with `about` and the meaning of the numbers below it."""
    table = reconstruction_table(frame)
    bold = "Bold is the best of its column." if len(table.labels) > 1 else ""
    meanings = " ".join(filter(None, [LEGEND, table.error_means, bold]))
    return "\n\n".join([f"## {table.metric.heading}", table.markdown, about, *table.notes, meanings]) + "\n"


def reconstruction_to_console(frame: pd.DataFrame, about: str, notes: Sequence[str] = ()) -> LazyRenderable:
    """The table for `rich` to print, with `about` and `notes` of `write_reconstruction` below it."""
    table = reconstruction_table(frame)

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        yield Text(table.metric.heading)
        yield from table.console(bold, width)
        star = [f"{BEST} the best of its column."] if table.has_best and not bold else []
        yield from map(Text, filter(None, [*star, about, *table.notes, table.error_means, *notes]))

    return LazyRenderable(parts)


def write_reconstruction(
    rows: Sequence[Mapping[str, object]], folder: Path, about: str, notes: Sequence[str] = ()
) -> None:
    """Write reconstruction.{csv,json,md} into `folder`; `about` is a sentence on the images."""
    table = reconstruction_frame(rows)
    text = with_notes(reconstruction_markdown(table, about), notes)
    json = as_json({"about": about, "rows": table.to_dict("records"), "notes": list(notes)})
    write_files(folder, "reconstruction", csv=as_csv(table), json=json, md=text)
