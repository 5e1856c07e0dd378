"""The quality table in long form: a row per cell, with the columns that readers of quality.csv rely on."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import pandas as pd

from taugrid.eval.tables.rows import series, sort_key
from taugrid.registry.metrics import METRICS, SAMPLED, MetricColumn

COLUMNS = (
    "cell", "model", "sampler", "steps", "eta", "sigma", "spacing", "clip", "num_samples", "network_evaluations",
    "fid", "fid_se", "fid_infinity", "isc_mean", "isc_std", "kid_mean", "kid_std", "precision", "recall", "seconds",
    "protocol",
)  # fmt: skip
"""The first columns of quality.csv. Readers rely on them, so they never change. A column for each other grid key
follows, and then the columns of metrics that are not named here."""
SCORES = COLUMNS[COLUMNS.index("fid") : COLUMNS.index("seconds")]
"""The columns that hold scores."""

CHECKPOINT = "model.checkpoint"
"""The grid key, and so the column, of loaded networks. They keep the grid's order, because their names have none."""

EXACT = "fid_exact"
"""An additional column after these, for oracles whose samples have a Frechet distance in closed form."""

FID = METRICS["fid"].columns[0]
EXACT_FID = MetricColumn(EXACT, "FID in closed form, at infinite N")


STAND_INS = tuple(column for column in SAMPLED if column.name in ("fid", "kid", "cmmd", "mind"))
"""The first of these that has a standard error decides where FID is scored: all are distances between the samples and
the reference."""


def score_columns() -> list[MetricColumn]:
    """Numbers in the order of tables: as in quality.csv but the closed form after FID, and KID before kid_mean."""
    order = [*SCORES, *appended_columns()]
    order.insert(order.index("kid_mean"), "kid")
    known = {column.name: column for metric in METRICS.values() for column in metric.columns}
    found = [known[name] for name in dict.fromkeys(order) if name in known]
    return [FID, EXACT_FID, *(column for column in found if column != FID)]


def shown_columns(known: Collection[str], asked: Collection[str] = ()) -> list[MetricColumn]:
    """The numbers among the columns `known` that get tables: one that comes with another has to be `asked` for."""
    found = [column for column in score_columns() if column.name in known]
    further = {name for column in found for name in column.further}
    return [column for column in found if column.name not in further.difference(asked)]


def has_values(frame: pd.DataFrame, column: str | None) -> bool:
    """Whether some row has a number in the column."""
    return column in frame and bool(frame[column].notna().any())


def appended_columns() -> list[str]:
    """The columns of metrics that are not in `COLUMNS`. They come last, if some cell has them."""
    names = [name for metric in METRICS.values() for column in metric.columns for name in column.names]
    return [name for name in names if name not in COLUMNS]


def axes(columns: Iterable[str]) -> list[str]:
    """The grid keys among `columns` that are not in `COLUMNS`, in alphabetical order."""
    return sorted(set(columns) - {*COLUMNS, EXACT, *appended_columns()})


def long_form(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """A row per cell, sorted by its settings.

    Checkpoints keep the order in which `rows` first has them; otherwise the order of `rows` does not matter.
    Integers stay integers, metrics are float64 with NaN for None, and a list that is the value of a grid key becomes
    JSON.

    Raises:
        KeyError: if a row lacks one of `COLUMNS`.
    """
    given = {key for row in rows for key in row}
    others = axes(given)
    order = [*others, "model", "sampler", "spacing", "num_samples", "sigma", "eta", "steps", "clip", "cell"]
    places = {name: place for place, name in enumerate(dict.fromkeys(row.get(CHECKPOINT) for row in rows))}

    def ranks(row: Mapping[str, object]) -> list[tuple[int, float, str]]:
        ranked = {**row, CHECKPOINT: places[row.get(CHECKPOINT)]}
        return [sort_key(ranked.get(key)) for key in order]

    ordered = sorted(rows, key=ranks)
    values: dict[str, list[object]] = {column: [row[column] for row in ordered] for column in COLUMNS}
    scores = [name for name in appended_columns() if name in given]
    behind = [*([EXACT] if EXACT in given else []), *others, *scores]
    values |= {name: [row.get(name) for row in ordered] for name in behind}
    floats = {"eta", "seconds", EXACT, *SCORES, *scores}
    return pd.DataFrame({name: series(listed, name in floats) for name, listed in values.items()})


def in_grid_order(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The long form of `rows`, which stay in the order of the grid; so do the columns of its keys, behind the others.

    For tables and figures, which show the values of a key in the config's order.
    """
    frame = long_form(rows)
    of_grid = set(axes(frame.columns))
    keys = list(dict.fromkeys(key for row in rows for key in row if key in of_grid))
    first = [column for column in frame.columns if column not in keys]
    placed = frame.set_index("cell", drop=False).loc[[row["cell"] for row in rows]]
    return placed.reset_index(drop=True)[[*first, *keys]]
