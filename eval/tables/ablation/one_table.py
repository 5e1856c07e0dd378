"""One table for all models of a metric: a row for each model and eta, a column for each S, unless other keys are asked
for. Only cells that can't be compared, because N or the kind of protocol differs, get tables of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from taugrid.eval.tables.ablation.replicates import Averaged, averaged
from taugrid.eval.tables.long_form import axes
from taugrid.eval.tables.pivots import (
    SYMBOLS,
    Pivot,
    eta_labels,
    kind_notes,
    prepared,
    row_note,
    short_columns,
)
from taugrid.eval.tables.rows import as_text
from taugrid.grids.names import plain_text
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

OTHERS = ("sampler", "spacing", "clip")
"""Columns of quality.csv that are settings of a cell, besides those that every table has."""


class Layout(NamedTuple):
    """The columns of quality.csv that a table's rows and columns are. What is in neither makes separate tables."""

    rows: tuple[str, ...] = ()
    """Empty: everything that varies, and eta at the end."""
    columns: str = "steps"


USUAL = Layout()
"""Rows of settings and eta, columns of S."""


def one_table(
    frame: pd.DataFrame,
    metric: MetricColumn,
    protocols: Mapping[str, ProtocolFields] = {},
    layout: Layout = USUAL,
) -> list[Pivot]:
    """The tables of `metric` with its errors: one, unless N, protocols or `layout` keep cells apart.

    Values of grid keys stand in the order in which `frame` first has them, S and eta ascending. Replicates are
    averaged. A setting that follows from eta gets a note instead of a place in the rows.

    Raises:
        ValueError: if two cells belong in the same place.
    """
    if frame.empty:
        return []
    means = averaged(frame, protocols)
    told = kind_notes(means.frame, protocols)
    ready = prepared(means.frame, protocols)
    apart, by_row = _apart(ready), _by_row(ready)
    free = [name for name in _settings(ready) if name not in (*by_row, *apart, layout.columns)]
    eta = [] if layout.columns == "eta" else ["eta"]
    steps = [] if layout.columns == "steps" else ["steps"]
    rows = list(layout.rows) or [*free, *(steps if ready["steps"].nunique() > 1 else []), *eta]
    placed = {*rows, layout.columns, *apart}
    others = [*free, *(name for name in ("eta", "steps") if ready[name].nunique() > 1)]
    apart += [name for name in others if name not in placed]
    columns = labelled(ready, layout.columns)
    shown = ready.assign(**{name: labelled(ready, name).map(str) for name in rows}, **{layout.columns: columns})
    groups = list(ready.groupby(apart, sort=False, dropna=False)) if apart else [((), ready)]
    return [
        Pivot(
            settings={name: labelled(group, name).iloc[0] for name in apart},
            notes=(*(row_note(group, name) for name in by_row), *told.get(group["protocol"].iloc[0], [])),
            heads=tuple(short_columns(rows).values()),
            across=short_columns([layout.columns])[layout.columns],
            fewer=means.fewer,
            **_grids(group, shown.loc[group.index], rows, layout.columns, metric, means),
        )
        for _, group in groups
    ]


def settings_in_rows(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> list[str]:
    """The settings that the rows of the usual table show, besides eta."""
    ready = prepared(averaged(frame, protocols).frame, protocols)
    return [name for name in _settings(ready) if name not in (*_by_row(ready), *_apart(ready))]


def _by_row(frame: pd.DataFrame) -> list[str]:
    """The settings that follow from eta."""
    return [name for name in (*axes(frame.columns), *OTHERS) if "." not in name and _follows_from_eta(frame, name)]


def _settings(frame: pd.DataFrame) -> list[str]:
    """The columns that make cells different, besides eta, S and N: those that vary."""
    given = list(frame.columns)
    keys = sorted(axes(given), key=given.index)
    found = [name for name in [*keys, *OTHERS] if _kinds_of(frame, name) > 1]
    unexplained = len(frame.drop_duplicates([*found, "model"])) > len(frame.drop_duplicates(found) if found else [0])
    return [*found, "model"] if unexplained else found


def _kinds_of(frame: pd.DataFrame, name: str) -> int:
    return int(frame[name].nunique(dropna=False))


def _follows_from_eta(frame: pd.DataFrame, name: str) -> bool:
    """Whether a setting varies, and only with eta: in the paper, only sigma_hat clips."""
    etas = ["sigma", "eta"]
    return _kinds_of(frame, name) > 1 and len(frame.drop_duplicates([*etas, name])) == len(frame.drop_duplicates(etas))


def _apart(frame: pd.DataFrame) -> list[str]:
    """The columns that keep cells apart that can't be compared."""
    found = ["num_samples"] if _kinds_of(frame, "num_samples") > 1 else []
    pairs = len(frame.drop_duplicates([*found, "protocol"]))
    if pairs == (len(frame.drop_duplicates(found)) if found else 1):
        return found
    # A setting that has one value for each kind of protocol, such as a precision, says more than a hash.
    same = (
        name
        for name in _settings(frame)
        if len(frame.drop_duplicates([*found, "protocol", name])) == len(frame.drop_duplicates([*found, name])) == pairs
    )
    return [*found, next(same, "protocol")]


def labelled(frame: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """A column as tables write its values: eta as 0.0 or σ̂, S as a number, other settings as in a config."""
    if name == "eta":
        return eta_labels(frame)
    return frame[name] if name == "steps" else frame[name].map(shown)


def shown(value: object) -> str:
    return as_text(value) if value is None or value != value else plain_text(value)


def _grids(
    group: pd.DataFrame, labels: pd.DataFrame, rows: Sequence[str], across: str, metric: MetricColumn, means: Averaged
) -> dict[str, Any]:
    """The parts of a `Pivot` that are shaped like its values."""
    places = [tuple(place) for place in labels[[*rows, across]].itertuples(index=False)]
    if twice := next((place for place in places if places.count(place) > 1), None):
        ids = [str(cell) for cell, place in zip(group["cell"], places, strict=True) if place == twice]
        at = ", ".join(f"{name} {value}" for name, value in zip([*rows, across], twice, strict=True))
        raise ValueError(f"cells {ids[0]} and {ids[1]} are both at {at} of one table")
    errors, spreads = group[metric.error] if metric.error else None, None
    if means.over:
        errors, spreads = (values[metric.name].loc[group["cell"]].array for values in (means.errors, means.spreads))
    columns = {"values": group[metric.name], "errors": errors, "cells": group["cell"], "spreads": spreads}
    index = _ordered(group, labels, rows)
    header = [place[0] for place in _ordered(group, labels, [across])]
    found: dict[str, Any] = {}
    for name, values in columns.items():
        if values is None and name == "spreads":
            continue
        listed = [float("nan")] * len(group) if values is None else list(values)
        by_place = dict(zip(places, listed, strict=True))
        body = [[by_place.get((*row, column), float("nan")) for column in header] for row in index]
        flat = [row[0] for row in index] if len(rows) == 1 else pd.MultiIndex.from_tuples(index)
        dtype = object if name == "cells" else float
        found[name] = pd.DataFrame(body, index=flat, columns=header, dtype=dtype)
    return found


def _ordered(group: pd.DataFrame, labels: pd.DataFrame, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The different labels of some columns, in the order of tables."""
    ranks = pd.DataFrame({name: _ranks(group, name) for name in names}).sort_values(list(names), kind="stable")
    return list(dict.fromkeys(tuple(row) for row in labels.loc[ranks.index, list(names)].itertuples(index=False)))


def _ranks(group: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """Where a column's values stand: numbers of the paper ascending, sigma_hat last, others as they first appear."""
    if name == "eta":
        keys: list[Any] = [(sigma != "eta", eta) for sigma, eta in zip(group["sigma"], group["eta"], strict=True)]
    elif name in SYMBOLS:
        keys = list(group[name])
    else:
        first = {value: place for place, value in enumerate(dict.fromkeys(group[name].map(as_text)))}
        keys = [first[as_text(value)] for value in group[name]]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return pd.Series([places[key] for key in keys], index=group.index)
