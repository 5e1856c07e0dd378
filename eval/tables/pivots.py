"""The quality table pivoted as in the DDIM paper: rows of eta, columns of S.

`Arrangement` makes one table for all models, with a row for each setting and eta: tables and pages show it.
`pivot_tables` makes a table for each combination of settings: differences and figures compare the cells of one such
table, and tables that differ in one setting. Both keep apart what can't be compared. `protocols` has the rows'
protocols by short hash.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from taugrid.eval.metrics.floor import Floor
from taugrid.eval.tables.ablation.seeds import Averaged
from taugrid.eval.tables.entries import MISSING
from taugrid.eval.tables.labels import (
    IGNORABLE,
    OPTIONS,
    OTHERS,
    SYMBOLS,
    labelled,
    prepared,
    row_note,
    settings_in,
    short_columns,
)
from taugrid.eval.tables.long_form import COLUMNS, EXACT, FID, as_text, axes
from taugrid.eval.tables.table import Table
from taugrid.grids.axes import EVALUATIONS, USUAL, Layout
from taugrid.grids.names import SHOWN, of_model
from taugrid.protocol import ProtocolFields, comparability_key, disagreements
from taugrid.registry.metrics import MetricColumn
from taugrid.registry.samplers import DEFAULT

Floors = Mapping[int, Mapping[str, Floor]]
"""N -> column of a metric -> its floor."""
NO_FLOORS: Floors = {}


class Arrangement:
    """Puts cells into the tables of a layout: one table, unless N, protocols or the layout keep cells apart.

    Values of grid keys are in the order in which the frame first has them, S and eta ascending. A setting that
    is determined by eta gets a note instead of a level in the rows.
    """

    def __init__(self, means: Averaged, protocols: Mapping[str, ProtocolFields], layout: Layout = USUAL) -> None:
        self.means, self.layout = means, layout
        self.ready = prepared(means.frame, protocols)
        self.implied, self.table_keys = _determined_by_eta(self.ready), _incomparable(self.ready)
        self.settings = [name for name in _varying(self.ready) if name not in (*self.implied, *self.table_keys)]
        """The settings in the rows of the usual table, besides eta."""
        self._notes = protocol_notes(means.frame, protocols)

    def tables(self, metric: MetricColumn) -> list[Table]:
        """The tables of a metric with its errors, replicates averaged.

        Raises:
            ValueError: if two cells belong at the same position.
        """
        ready, columns = self.ready, self.layout.columns
        if metric.name == EXACT and (ready["sampler"] == DEFAULT).any():
            ready = ready[ready["sampler"] == DEFAULT]  # no other sampler has a closed form
        if ready.empty:
            return []
        free = [name for name in self.settings if name != columns]
        several = {name for name in ("eta", "steps") if ready[name].nunique() > 1}
        several |= {"eta"} if ready["sigma"].nunique() > 1 else set()  # sigma_hat has 1 as its number eta
        places = [*self.settings, *self.table_keys, "sigma", "eta", EVALUATIONS]
        several -= {"steps"} if columns == EVALUATIONS and _determined(ready, "steps", places) else set()
        named = "eta" if ready["eta"].notna().any() else "sampler"
        ends = [*(["steps"] if "steps" in several else []), *([named] if named not in free else [])]
        rows = list(self.layout.rows) or [*free, *(name for name in ends if name != columns)]
        leftover = [name for name in (*free, *sorted(several)) if name not in (*rows, columns, *self.table_keys)]
        table_keys = [*self.table_keys, *leftover]
        return [
            _pivot(
                group,
                metric,
                self.means,
                (rows, columns),
                settings={name: labelled(group, name).iloc[0] or MISSING for name in table_keys if name != OPTIONS}
                | {name: text for name in table_keys if name == OPTIONS and (text := labelled(group, name).iloc[0])},
                notes=(
                    *(row_note(group, name) for name in self.implied),
                    *self._notes.get(group["protocol"].iloc[0], []),
                ),
            )
            for group in _groups(ready, [*table_keys, "sigma"] if "eta" in table_keys else table_keys)
        ]


def pivot_tables(
    frame: pd.DataFrame,
    metric: MetricColumn = FID,
    protocols: Mapping[str, ProtocolFields] = {},
    rows: Sequence[str] = ("eta",),
) -> list[Table]:
    """A table of eta (or other `rows`, with eta last) and S for each combination of the settings that vary besides.

    A sampling setting that is determined by the row gets a note instead of separate tables: in the paper only sigma_hat
    clips. Settings that make another model, and N, always get separate tables. If these still mix protocols that can't
    be compared, each gets its own table: the setting "protocol" is its `comparability_key`, and a note explains it.

    Raises:
        ValueError: if two cells belong at the same position.
    """
    if frame.empty:
        return []
    notes_by_key = protocol_notes(frame, protocols)
    ready = prepared(frame, protocols)
    table_keys, implied = _separate(ready, rows)
    return [
        _pivot(
            group,
            metric,
            None,
            (rows, "steps"),
            settings={column: _setting(group[column].iloc[0], column) for column in table_keys},
            notes=(*(row_note(group, column) for column in implied), *notes_by_key.get(group["protocol"].iloc[0], [])),
        )
        for group in _groups(ready, table_keys)
    ]


def with_floors(tables: Iterable[Table], floors: Floors) -> list[Table]:
    return [replace(table, floor=floors.get(table.num_samples, {}).get(table.metric.name)) for table in tables]


def _setting(value: Any, column: str) -> str:
    return MISSING if column in IGNORABLE and pd.isna(value) else as_text(value)


def _groups(frame: pd.DataFrame, table_keys: Sequence[str]) -> list[pd.DataFrame]:
    return [group for _, group in frame.groupby(list(table_keys), sort=False, dropna=False)] if table_keys else [frame]


def _pivot(
    group: pd.DataFrame,
    metric: MetricColumn,
    means: Averaged | None,
    layout: tuple[Sequence[str], str],
    settings: Mapping[str, str],
    notes: tuple[str, ...],
) -> Table:
    """The table of a group of cells, with the frame's columns `layout` as its rows and columns."""
    rows, column_key = layout
    keys = [*rows, column_key]
    labels = pd.DataFrame({name: labelled(group, name, beside=[*rows, *settings]).map(str) for name in rows})
    labels[column_key] = labelled(group, column_key)
    positions = [tuple(values) for values in labels[keys].itertuples(index=False)]
    if twice := next((values for values in positions if positions.count(values) > 1), None):
        first, second, *_ = (str(cell) for cell, at in zip(group["cell"], positions, strict=True) if at == twice)
        at = ", ".join(f"{SHOWN.get(name, name)} {value}" for name, value in zip(keys, twice, strict=True))
        raise ValueError(f"cells {first} and {second} are both at {at} of one table")
    errors, spreads = list(group[metric.error]) if metric.error in group else [math.nan] * len(group), None
    if means is not None and means.over:
        errors, spreads = (list(part[metric.name].loc[group["cell"]]) for part in (means.errors, means.spreads))
    index, header = _ordered(group, labels, rows), [label for (label,) in _ordered(group, labels, [column_key])]
    flat = [row[0] for row in index] if len(rows) == 1 else pd.MultiIndex.from_tuples(index)

    def grid(values: Iterable[Any], dtype: type = float) -> pd.DataFrame:
        by_position = dict(zip(positions, values, strict=True))
        body = [[by_position.get((*row, column), math.nan) for column in header] for row in index]
        return pd.DataFrame(body, index=flat, columns=header, dtype=dtype)

    return Table(
        metric=metric,
        settings=settings,
        values=grid(group[metric.name]),
        errors=grid(errors),
        cells=grid(group["cell"], object),
        spreads=None if spreads is None else grid(spreads),
        notes=notes,
        row_keys=tuple(short_columns(rows).values()),
        column_key=short_columns([column_key])[column_key],
        fewer={} if means is None else means.fewer,
        num_samples=int(group["num_samples"].iloc[0]),
    )


def _ordered(group: pd.DataFrame, labels: pd.DataFrame, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The distinct labels of some columns, in the order of tables."""
    ranks = pd.DataFrame({name: _ranks(group, name) for name in names}).sort_values(list(names), kind="stable")
    return list(dict.fromkeys(tuple(row) for row in labels.loc[ranks.index, list(names)].itertuples(index=False)))


def _ranks(group: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """The ranks of a column's values: numbers of the paper ascending, sigma_hat last, others as they first appear."""
    if name == "eta":
        numbers = group["eta"].fillna(math.inf)  # samplers without eta come behind the others
        keys: list[Any] = [(sigma != "eta", eta) for sigma, eta in zip(group["sigma"], numbers, strict=True)]
    elif name in SYMBOLS:
        keys = list(group[name])
    else:
        first = {value: rank for rank, value in enumerate(dict.fromkeys(group[name].map(as_text)))}
        keys = [first[as_text(value)] for value in group[name]]
    ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return pd.Series([ranks[key] for key in keys], index=group.index)


def protocol_notes(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> dict[str, list[str]]:
    """Comparability key -> how it differs from others of its N, such as "protocol: versions.torch 2.9.1"."""
    particular: dict[str, list[str]] = defaultdict(list)
    for _, group in frame.groupby("num_samples"):
        found = [protocols[name] for name in group["protocol"].unique() if name in protocols]
        for name, by_value in disagreements({comparability_key(protocol): protocol for protocol in found}).items():
            for value, keys in by_value.items():
                for key in keys:
                    particular[key].append(f"{name} {value}")
    return {key: [f"protocol: {', '.join(fields)}"] for key, fields in particular.items()}


def _determined(frame: pd.DataFrame, column: str, given: Sequence[str]) -> bool:
    """Whether a column's value is determined by those of `given`."""
    groups = len(frame.drop_duplicates(list(given))) if given else min(1, len(frame))
    return len(frame.drop_duplicates([*given, column])) == groups


def _separate(frame: pd.DataFrame, rows: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns that need separate tables, and columns that differ but are determined by a table and its row."""
    columns = list(frame.columns)
    others = sorted(set(axes(columns)) - set(rows), key=columns.index)
    table_keys = [axis for axis in [*others, "num_samples"]
                  if (of_model(axis) or axis in COLUMNS) and not _determined(frame, axis, [])]  # fmt: skip
    if not _determined(frame, "model", table_keys):
        table_keys.append("model")
    implied: list[str] = []
    # Clip comes last: the row may determine it only within another setting, which already has separate tables then.
    for column in [*(axis for axis in others if not of_model(axis)), *OTHERS]:
        if column not in rows and not _determined(frame, column, []):
            is_implied = column != "sampler" and _determined(frame, column, [*table_keys, "sigma", *rows])
            (implied if is_implied else table_keys).append(column)
    # The protocol comes at the very end: N and settings such as a precision explain it better than a hash.
    if not _determined(frame, "protocol", table_keys):
        table_keys.append("protocol")
    return table_keys, implied


def _varying(frame: pd.DataFrame) -> list[str]:
    """The settings that vary, besides eta, S and N."""
    varying = [name for name in settings_in(list(frame.columns)) if not _determined(frame, name, [])]
    return varying if _determined(frame, "model", varying) else [*varying, "model"]


def _determined_by_eta(frame: pd.DataFrame) -> list[str]:
    """The settings that vary, and only with eta: in the paper, only sigma_hat clips."""
    names = [name for name in (*axes(frame.columns), *OTHERS) if not of_model(name) and name != "sampler"]
    return [n for n in names if not _determined(frame, n, []) and _determined(frame, n, ["sigma", "eta"])]


def _incomparable(frame: pd.DataFrame) -> list[str]:
    """The columns whose values separate cells that can't be compared."""
    table_keys = [] if _determined(frame, "num_samples", []) else ["num_samples"]
    if _determined(frame, "protocol", table_keys):
        return table_keys
    # A setting with one value for each comparability key, such as a precision, means more to a reader than the key.
    keys = [*table_keys, "protocol"]
    same = (
        name
        for name in _varying(frame)
        if _determined(frame, name, keys) and _determined(frame, "protocol", [*table_keys, name])
    )
    return [*table_keys, next(same, "protocol")]
