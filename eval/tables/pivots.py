"""Tables of a metric, as in the DDIM paper: rows of eta, columns of S.

`Arrangement` makes one table for all models, with a row for each setting and eta: tables and pages show it.
`pivot_tables` makes a table for each combination of settings: differences and figures compare the cells of one such
table, and tables that differ in one setting. Both keep apart what can't be compared. `protocols` has the rows'
protocols by short hash.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from taugrid.eval.metrics.floor import Floor
from taugrid.eval.tables.ablation.seeds import Averaged
from taugrid.eval.tables.entries import MEANINGS, MISSING, Entry, shown_number, write_mean
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
from taugrid.grids import EVALUATIONS, SHOWN, USUAL, Layout, of_model
from taugrid.protocol import ProtocolFields, comparability_key, disagreements
from taugrid.registry.metrics import MetricColumn
from taugrid.registry.samplers import DEFAULT
from taugrid.words import markdown_table

Floors = Mapping[int, Mapping[str, Floor]]
"""N -> column of a metric -> its floor."""
NO_FLOORS: Floors = {}


@dataclass(frozen=True)
class Table:
    """A table of one metric. The index has the row labels, with a level for each setting."""

    metric: MetricColumn
    settings: Mapping[str, str]
    """The settings that distinguish this table from others, checkpoints by short names. Empty if it is the only one."""
    values: pd.DataFrame
    """float64 with NaN where a value is missing; `errors`, `cells` and `spreads` are shaped like it."""
    errors: pd.DataFrame
    notes: tuple[str, ...]
    """Lines on other differences between rows."""
    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The ids of cells, NaN where there is none."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Cell id -> the mark after its value."""
    row_keys: tuple[str, ...] = ("η",)
    """The short names of the settings in the levels of the index."""
    column_key: str = "S"
    """The short name of the setting in the columns."""
    spreads: pd.DataFrame | None = None
    """Standard deviations between replicates; None without replicates."""
    fewer: Mapping[str, int] = field(default_factory=dict)
    """Cell id -> its number of replicates, for cells that have fewer than others."""
    num_samples: int = 0
    """N of its cells."""
    floor: Floor | None = None
    """The metric of real images against real images at this N, if it is known."""

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """The index: for each row, its label at each level."""
        return [label if isinstance(label, tuple) else (label,) for label in self.values.index]

    @property
    def columns(self) -> list[str]:
        return [str(column) for column in self.values.columns]

    @property
    def row_headings(self) -> list[str]:
        """The headings of the columns of row labels; the last also has the columns' key: "η \\ S"."""
        *others, last = self.row_keys
        return [*others, f"{last} \\ {self.column_key}" if last else self.column_key]

    @property
    def _best(self) -> "pd.Series[Any]":
        """The best value of each column; NaN where nothing competes: one value, or one of several samplers alone."""
        best, competing = self.values.max() if self.metric.higher_is_better else self.values.min(), self.values.count()
        if "sampler" in self.row_keys:
            samplers = self.values.index.get_level_values(self.row_keys.index("sampler"))
            if samplers.nunique() > 1:
                competing = self.values.notna().groupby(samplers).any().sum()
        return best.where(competing > 1)

    @cached_property
    def entries(self) -> list[list[Entry]]:
        """Each row as text."""
        scale, empty = self.metric.scale, self.values * math.nan
        values, errors = self.values * scale, self.errors * scale
        spreads = empty if self.spreads is None else self.spreads * scale
        cells = self.cells.reindex(index=values.index, columns=values.columns)
        best_values = self._best * scale
        numbers = (part.to_numpy().tolist() for part in (values, errors, spreads, cells))
        return [
            [
                Entry(
                    *write_mean(value, error, spread, self.fewer.get(cell)),
                    best=value == best_value,
                    mark=self.marks.get(cell, "") if math.isfinite(value) else "",
                    number=value,
                    cell=cell if isinstance(cell, str) else "",
                )
                for value, error, spread, cell, best_value in zip(*row, best_values, strict=True)
            ]
            for row in zip(*numbers, strict=True)
        ]

    @property
    def has_best(self) -> bool:
        return any(entry.best for row in self.entries for entry in row)

    @property
    def floor_value(self) -> str:
        """The floor with its standard deviation over draws, as text; empty if none is known."""
        scale, floor = self.metric.scale, self.floor
        return shown_number(scale * floor.mean, scale * floor.spread) if floor else ""

    @property
    def legend(self) -> dict[str, str]:
        """Explains each mark of its entries."""
        test, untested = f"the paired difference of {self.metric.title}", ""
        if self.spreads is not None:
            test = "Student's t for differences paired by seed"
        if self.spreads is not None or self.metric.sampling_error == self.metric.error:
            untested = " (values without ± are not tested)"
        seen = {mark for row in self.entries for entry in row for mark in entry.mark}
        return {mark: m.format(test=test, untested=untested) for mark, m in MEANINGS.items() if mark in seen}

    @property
    def markdown(self) -> str:
        lines = [
            [*labels, *(f"{f'**{e.shown}**' if e.best else e.shown} {e.mark}".rstrip() for e in row)]
            for labels, row in zip(self.labels, self.entries, strict=True)
        ]
        columns = "l" * len(self.row_keys) + "r" * len(self.columns)
        return markdown_table([*self.row_headings, *self.columns], columns, lines)

    @property
    def short_settings(self) -> dict[str, str]:
        names = short_columns(self.settings)
        return {names[column]: value for column, value in self.settings.items()}

    @property
    def label(self) -> str:
        """The settings as names write them, such as "schedule=linear clip=x0"."""
        return " ".join(f"{name}={value}" for name, value in self.short_settings.items())

    @property
    def heading(self) -> str:
        """The settings under their full names, such as "diffusion.schedule = linear, clip = x0"."""
        return self.heading_without("")

    def heading_without(self, left_out: str) -> str:
        """The heading that is common to tables that differ only in this setting."""
        return ", ".join(f"{setting} = {value}" for setting, value in self.settings.items() if setting != left_out)

    def against_best(self) -> Iterator[tuple[str, list[str]]]:
        """The best cell of each column with all others that are not as good, if there are any."""
        for (_, column), (_, cells), best in zip(self.values.items(), self.cells.items(), self._best, strict=True):
            if math.isfinite(best) and (others := list(cells[column.notna() & (column != best)])):
                yield cells[column == best].iloc[0], others


class Arrangement:
    """Puts cells into the tables of a layout: one table, unless N, protocols or the layout keep cells apart.

    Values of grid keys are in the order of the frame, S and eta ascending. What eta determines gets a note.
    """

    def __init__(self, means: Averaged, protocols: Mapping[str, ProtocolFields], layout: Layout = USUAL) -> None:
        self.means, self.layout = means, layout
        self.ready = ready = prepared(means.frame, protocols)
        names = [name for name in (*axes(ready.columns), *OTHERS) if not of_model(name) and name != "sampler"]
        varying = [name for name in names if not _determined(ready, name, [])]
        self.implied = [name for name in varying if _determined(ready, name, ["sigma", "eta"])]  # in the paper, clip
        self.table_keys = _incomparable(ready)
        self.settings = [name for name in _varying(ready) if name not in (*self.implied, *self.table_keys)]
        """The settings in the rows of the usual table, besides eta."""
        self._notes = _protocol_notes(means.frame, protocols)

    def tables(self, metric: MetricColumn) -> list[Table]:
        """The tables of a metric with its errors, replicates averaged. Two cells at one place are a `ValueError`."""
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
                notes=_notes(group, self.implied, self._notes),
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
    be compared, each gets its own table: the setting "protocol" is its `comparability_key`, and a note explains it. Two
    cells at one place are a `ValueError`.
    """
    if frame.empty:
        return []
    ready, of_protocols = prepared(frame, protocols), _protocol_notes(frame, protocols)
    table_keys, implied = _separate(ready, rows)
    tables = []
    for group in _groups(ready, table_keys):
        first = {name: group[name].iloc[0] for name in table_keys}
        settings = {
            name: MISSING if name in IGNORABLE and pd.isna(value) else as_text(value) for name, value in first.items()
        }
        tables.append(
            _pivot(group, metric, None, (rows, "steps"), settings, notes=_notes(group, implied, of_protocols))
        )
    return tables


def with_floors(tables: Iterable[Table], floors: Floors) -> list[Table]:
    return [replace(table, floor=floors.get(table.num_samples, {}).get(table.metric.name)) for table in tables]


def _groups(frame: pd.DataFrame, table_keys: Sequence[str]) -> list[pd.DataFrame]:
    return [group for _, group in frame.groupby(list(table_keys), sort=False, dropna=False)] if table_keys else [frame]


def _notes(group: pd.DataFrame, implied: Sequence[str], of_protocols: Mapping[str, str]) -> tuple[str, ...]:
    """What a table doesn't say: settings that follow from its rows, and how its protocol differs from others."""
    protocol = of_protocols.get(group["protocol"].iloc[0])
    return (*(row_note(group, name) for name in implied), *([protocol] if protocol else []))


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


def _protocol_notes(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> dict[str, str]:
    """Comparability key -> how it differs from others of its N, such as "protocol: versions.torch 2.9.1"."""
    particular: dict[str, list[str]] = defaultdict(list)
    for _, group in frame.groupby("num_samples"):
        found = [protocols[name] for name in group["protocol"].unique() if name in protocols]
        for name, by_value in disagreements({comparability_key(protocol): protocol for protocol in found}).items():
            for value, keys in by_value.items():
                for key in keys:
                    particular[key].append(f"{name} {value}")
    return {key: f"protocol: {', '.join(fields)}" for key, fields in particular.items()}


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
