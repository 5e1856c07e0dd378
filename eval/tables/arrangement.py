"""Puts cells into tables of a metric, as in the DDIM paper: rows of eta, columns of S.

The usual layout has one table for all models, with a row for each setting and eta. With given rows, each combination of
what else varies has its own table. What can't be compared always stays apart.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from taugrid.eval.tables.labels import (
    IGNORABLE,
    OPTIONS,
    SYMBOLS,
    labelled,
    prepared,
    row_note,
    settings_in,
    short_columns,
)
from taugrid.eval.tables.long_form import EXACT, FID, as_text
from taugrid.eval.tables.seeds import Averaged
from taugrid.eval.tables.table import MISSING, Table, Value
from taugrid.grids import EVALUATIONS, SHOWN, USUAL, Layout, of_model
from taugrid.protocol import ProtocolFields, comparability_key, disagreements
from taugrid.registry.metrics import MetricColumn, settings_of
from taugrid.registry.samplers import DEFAULT


class Arrangement:
    """The tables of a layout. Values of grid keys are in the order of the frame, S and eta ascending. What a table and
    its row determine gets a note: in the paper only sigma_hat clips. Settings that make another model are never
    notes.

    The settings of `metrics`, columns of quality.csv, keep cells apart too."""

    def __init__(
        self,
        means: Averaged,
        protocols: Mapping[str, ProtocolFields],
        layout: Layout = USUAL,
        metrics: Collection[str] = (),
    ) -> None:
        self._means, self._layout, self._ready = means, layout, prepared(means.frame, protocols, metrics)
        self._protocols, self._metrics = protocols, metrics
        self._protocol_notes = _protocol_notes(means.frame, protocols, metrics)
        varying = [name for name in settings_in(list(self._ready.columns)) if self._varies(name)]
        varying += [] if self._determines(varying, "model") else ["model"]
        self._incomparable = self._keeping_apart(varying)
        placed = {*layout.rows, layout.columns, *self._incomparable}
        always = [name for name in varying if of_model(name) or name in ("sampler", "model")]
        apart = [*self._incomparable, *(name for name in always if layout.rows and name not in placed)]
        self._implied = list[str]()
        for name in varying:
            if name not in (*always, *placed):
                if self._determines([*apart, *layout.rows, "sigma", "eta"], name):
                    self._implied.append(name)
                elif layout.rows:
                    apart.append(name)
        self.settings = [name for name in varying if name not in (*self._implied, *self._incomparable)]
        """The settings that vary besides eta, in the rows of the usual table."""

    def _varies(self, name: str) -> bool:
        return not self._determines([], name)

    def _determines(self, given: Sequence[str], name: str) -> bool:
        """Whether the values of the columns `given` determine that of another."""
        frame = self._ready
        groups = len(frame.drop_duplicates(list(given))) if given else min(1, len(frame))
        return len(frame.drop_duplicates([*given, name])) == groups

    def _keeping_apart(self, varying: Sequence[str]) -> list[str]:
        """The columns whose values separate cells that can't be compared: N, and the protocol if N doesn't say it."""
        size = ["num_samples"] if self._varies("num_samples") else []
        if self._determines(size, "protocol"):
            return size
        # a setting with one value for each comparability key, such as a precision, means more to a reader than the key.
        same = (
            name
            for name in varying
            if self._determines([*size, "protocol"], name) and self._determines([*size, name], "protocol")
        )
        return [*size, next(same, "protocol")]

    def tables(self, metric: MetricColumn) -> list[Table]:
        """The tables of a metric with its errors. Two cells at one place are a `ValueError`."""
        if self._has_several_settings_of(metric):
            return Arrangement(self._means, self._protocols, self._layout, (metric.name,)).tables(metric)
        ready, columns = self._ready, self._layout.columns
        if metric.name == EXACT and (ready["sampler"] == DEFAULT).any():
            ready = ready[ready["sampler"] == DEFAULT]  # no other sampler has a closed form
        if ready.empty:
            return []
        free = [name for name in self.settings if name != columns]
        several = {name for name in ("eta", "steps") if ready[name].nunique() > 1}
        several |= {"eta"} if ready["sigma"].nunique() > 1 else set()  # sigma_hat has 1 as its number eta
        places = [*self.settings, *self._incomparable, "sigma", "eta", EVALUATIONS]
        several -= {"steps"} if columns == EVALUATIONS and self._determines(places, "steps") else set()
        named = "eta" if ready["eta"].notna().any() else "sampler"
        ends = [*(["steps"] if "steps" in several else []), *([named] if named not in free else [])]
        rows = list(self._layout.rows) or [*free, *(name for name in ends if name != columns)]
        keys = [name for name in (*free, *sorted(several)) if name not in (*rows, columns)]
        keys += [name for name in self._incomparable if name not in keys]
        by = [*keys, "sigma"] if "eta" in keys else keys
        groups = [group for _, group in ready.groupby(by, sort=False, dropna=False)] if by else [ready]
        return [self._table(group, metric, rows, keys) for group in groups]

    def _has_several_settings_of(self, metric: MetricColumn) -> bool:
        """Whether cells that are together here were scored by the metric with different settings."""
        names = settings_of((metric.name,))
        scored = [protocol for protocol in self._protocols.values() if all(name in protocol for name in names)]
        together = {comparability_key(protocol, self._metrics) for protocol in scored}
        return len({comparability_key(protocol, (metric.name,)) for protocol in scored}) > len(together)

    def _table(self, group: pd.DataFrame, metric: MetricColumn, rows: Sequence[str], keys: Sequence[str]) -> Table:
        column, means = self._layout.columns, self._means
        settings = {name: text for name in keys if (text := _setting(group, name))}
        labels = pd.DataFrame({name: labelled(group, name, beside=[*rows, *settings]).map(str) for name in rows})
        labels[column] = labelled(group, column)
        errors = group[metric.error] if metric.error in group else pd.Series(math.nan, group.index)
        spreads, fewer = pd.Series(math.nan, group.index), means.fewer
        if means.over:
            errors, spreads = (part[metric.name].loc[group["cell"]] for part in (means.errors, means.spreads))
        values: dict[tuple[tuple[str, ...], Any], Value] = {}
        numbers = zip(group[metric.name], errors, group["cell"], spreads, strict=True)
        for place, (number, error, cell, spread) in zip(labels.itertuples(index=False), numbers, strict=True):
            at = (tuple(place[:-1]), place[-1])
            if (other := values.get(at)) is not None:
                pairs = zip((*rows, column), place, strict=True)
                where = ", ".join(f"{SHOWN.get(name, name)} {text}" for name, text in pairs)
                raise ValueError(f"cells {other.cell} and {cell} are both at {where} of one table")
            values[at] = Value(number, error, cell, spread, fewer.get(cell))
        protocol = self._protocol_notes.get(group["protocol"].iloc[0])
        return Table(
            metric=metric,
            settings=settings,
            labels=_ordered(group, labels, rows),
            columns=[label for (label,) in _ordered(group, labels, [column])],
            values=values,
            notes=(*(row_note(group, name) for name in self._implied), *([protocol] if protocol else [])),
            row_keys=tuple(short_columns(rows).values()),
            column_key=short_columns([column])[column],
            over_seeds=bool(means.over),
            num_samples=int(group["num_samples"].iloc[0]),
        )


def pivot_tables(
    frame: pd.DataFrame,
    metric: MetricColumn = FID,
    protocols: Mapping[str, ProtocolFields] = {},
    rows: Sequence[str] = ("eta",),
) -> list[Table]:
    """A table of eta (or other `rows`, with eta last) and S for each combination of what varies besides, seeds too."""
    single = Averaged(frame, pd.DataFrame(), pd.DataFrame(), {}, "")
    return Arrangement(single, protocols, Layout(tuple(rows))).tables(metric)


def _setting(group: pd.DataFrame, name: str) -> str:
    """The value of a setting that the whole table has; empty for a sampler's default options."""
    value = group[name].iloc[0]
    if name in ("eta", OPTIONS):
        return str(labelled(group, name).iloc[0]) or ("" if name == OPTIONS else MISSING)
    return MISSING if name in IGNORABLE and pd.isna(value) else as_text(value)


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


def _protocol_notes(
    frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields], columns: Collection[str]
) -> dict[str, str]:
    """Comparability key -> how it differs from others of its N, such as "protocol: versions.torch 2.9.1"."""
    particular: dict[str, list[str]] = defaultdict(list)
    for _, group in frame.groupby("num_samples"):
        found = [protocols[name] for name in group["protocol"].unique() if name in protocols]
        by_key = {comparability_key(protocol, columns): protocol for protocol in found}
        for name, by_value in disagreements(by_key, columns).items():
            for value, keys in by_value.items():
                for key in keys:
                    particular[key].append(f"{name} {value}")
    return {key: f"protocol: {', '.join(fields)}" for key, fields in particular.items()}
