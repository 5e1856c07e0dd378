"""The quality table in long form, a row per cell, and what all files of tables share: dtypes, order, texts, notes.

Readers of quality.csv rely on its columns.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from taugrid.protocol import ProtocolFields, comparability_key, disagreements
from taugrid.registry.metrics import COLUMNS as METRIC_COLUMNS
from taugrid.registry.metrics import METRICS, SAMPLED, MetricColumn
from taugrid.storage import replacing
from taugrid.words import listed

Row = Mapping[str, Any]  # a row of quality.csv
CELLS_NAMED = 3  # cells that a message names for each value; the rest are counted

COLUMNS = (
    "cell", "model", "sampler", "steps", "eta", "sigma", "spacing", "clip", "num_samples", "network_evaluations",
    "fid", "fid_se", "fid_infinity", "isc_mean", "isc_std", "kid_mean", "kid_std", "precision", "recall", "seconds",
    "protocol",
)  # fmt: skip
"""The first columns of quality.csv. Readers rely on them, so they never change. A column for each other grid key
follows, and then the columns of metrics that are not named here."""
SCORES = COLUMNS[COLUMNS.index("fid") : COLUMNS.index("seconds")]  # the columns that hold scores

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
    """A row per cell, sorted by its settings; a `KeyError` if a row lacks one of `COLUMNS`. Checkpoints keep the order
    in which `rows` first has them; otherwise the order of `rows` does not matter. Integers stay integers, metrics are
    float64 with NaN for None, and a list that is the value of a grid key becomes JSON."""
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
    """The long form of `rows`, which stay in the order of the grid, as do its keys in columns behind the others."""
    frame = long_form(rows)
    of_grid = set(axes(frame.columns))
    keys = list(dict.fromkeys(key for row in rows for key in row if key in of_grid))
    first = [column for column in frame.columns if column not in keys]
    placed = frame.set_index("cell", drop=False).loc[[row["cell"] for row in rows]]
    return placed.reset_index(drop=True)[[*first, *keys]]


def sort_key(value: object) -> tuple[int, float, str]:
    """A key that sorts None first, then numbers by value, then text."""
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, Real) else (2, 0.0, str(value))


def series(values: Sequence[object], as_float: bool) -> "pd.Series[Any]":
    """A column: float64 with NaN for None, or else unchanged, with whole integers; lists and mappings become JSON."""
    if as_float:
        return pd.Series(np.array(values, dtype=np.float64))
    plain = [json.dumps(value) if isinstance(value, list | tuple | dict) else value for value in values]
    series = pd.Series(plain, dtype=object)
    return series if None in plain else series.infer_objects()  # it would turn integers next to a None into floats


def as_text(value: object) -> str:
    return "not set" if value is None or value is pd.NA or value != value else str(value)


def without_nan(value: object) -> object:
    """`value` in plain Python types, with None for numbers that are not finite, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic):
        return without_nan(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(document: object) -> str:
    return json.dumps(without_nan(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")


def write_files(folder: Path, stem: str, **contents: str) -> None:
    """Write `stem`.csv, `stem`.md and so on into `folder`, each atomically."""
    for suffix, text in contents.items():
        with replacing(folder / f"{stem}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def with_notes(text: str, notes: Sequence[str]) -> str:
    """A text in Markdown, and below it a section of its notes if there are any."""
    listed = "\n".join(f"- {note}" for note in notes)
    return f"{text}\n## Notes\n\n{listed}\n" if notes else text


class JoinedRows(NamedTuple):
    notes: list[str]  # on rows that were joined although their protocols differ
    cells: frozenset[str]  # cells whose comparability key differs from most; tables mark them


def joined_rows(rows: Sequence[Row], protocols: Mapping[str, ProtocolFields]) -> JoinedRows:
    """What is to be said of `rows` that share tables and figures, whether or not their protocols agree. Rows of
    different N are compared separately, because tables and figures never join them. `protocols` are by the rows'
    `protocol`."""
    notes, cells = list[str](), set[str]()
    for size in sorted({row["num_samples"] for row in rows}):
        spelled = {row["cell"]: protocols[row["protocol"]] for row in rows if row["num_samples"] == size}
        details = []
        for field, by_value in disagreements(spelled, METRIC_COLUMNS).items():
            of = [
                f"{value} (cell{'s' if len(its) > 1 else ''} {listed(its, CELLS_NAMED)})"
                for value, its in by_value.items()
            ]
            details.append(f"{field} is {', '.join(of)}")
        if details:
            notes.append(f"joined although protocols differ: {'; '.join(details)}")
            keys = {cell: comparability_key(protocol, METRIC_COLUMNS) for cell, protocol in spelled.items()}
            usual = Counter(keys.values()).most_common(1)[0][0]
            cells |= {cell for cell, key in keys.items() if key != usual}
    return JoinedRows(notes, frozenset(cells))
