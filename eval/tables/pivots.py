"""The quality table pivoted as in the DDIM paper: rows of eta, columns of S, and a table for any other difference.

`protocols` has the rows' protocols by short hash. Rows that differ in a field that must agree get separate tables.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from taugrid.config import Sample
from taugrid.eval.tables.long_form import CHECKPOINT, COLUMNS, axes
from taugrid.eval.tables.rows import as_text
from taugrid.grids.names import SHOWN, short_keys, short_names
from taugrid.protocol import ProtocolFields, disagreements, kind

SIGMA_HAT = "σ̂"


SYMBOLS = SHOWN | {"eta": "η"}
"""Columns that tables and figures write as the paper does."""


@dataclass(frozen=True)
class Pivot:
    """A table as in the paper: labels of eta as index, ascending, sigma_hat last; S as columns, ascending.

    A table of several models (eval/tables/ablation/one_table.py) has an index of several levels, eta's the last.
    """

    settings: Mapping[str, str]
    """What distinguishes this table from the others; checkpoints by their short names. Empty if it is the only one."""
    values: pd.DataFrame
    """float64 with NaN where a value is missing."""
    errors: pd.DataFrame
    """Shaped like `values`."""
    notes: tuple[str, ...]
    """What else differs between rows."""
    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Ids, with NaN where there is no cell."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Cell -> the mark after its value."""
    heads: tuple[str, ...] = ("η",)
    """What each level of the index is."""
    across: str = "S"
    """What the columns are."""
    spreads: pd.DataFrame | None = None
    """Standard deviations between replicates, shaped like `values`; None where cells are no means."""
    fewer: Mapping[str, int] = field(default_factory=dict)
    """Cell -> its number of replicates, where that is smaller than others'."""

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """The index: for each row, its label at each level."""
        return [label if isinstance(label, tuple) else (label,) for label in self.values.index]

    @property
    def label(self) -> str:
        """The settings as names write them, such as "schedule=linear clip=x0"."""
        return " ".join(f"{name}={value}" for name, value in short_settings(self.settings).items())

    @property
    def heading(self) -> str:
        """The settings under their full names, such as "diffusion.schedule = linear, clip = x0"."""
        return self.heading_without()

    def heading_without(self, *left_out: str) -> str:
        """The heading without the settings `left_out`, common to tables that differ in nothing else."""
        return ", ".join(f"{setting} = {value}" for setting, value in self.settings.items() if setting not in left_out)


def pivot_tables(
    frame: pd.DataFrame,
    metric: str = "fid",
    error: str | None = "fid_se",
    protocols: Mapping[str, ProtocolFields] = {},
) -> list[Pivot]:
    """A table of `metric` and its `error` for each combination of the settings that vary besides eta and S.

    A sampling setting that follows from the row gets a note instead of separate tables: in the paper only sigma_hat
    clips. Settings that make another model, and N, always get separate tables. If these still mix kinds of protocol,
    each kind gets its own table: the setting "protocol" is its short hash, and a note says what distinguishes it.

    Raises:
        ValueError: if two cells belong in the same place.
    """
    if frame.empty:
        return []
    told = kind_notes(frame, protocols)
    frame = prepared(frame, protocols)
    apart, by_row = _layout(frame)
    groups = list(frame.groupby(apart, sort=False, dropna=False)) if apart else [((), frame)]
    return [
        Pivot(
            settings={column: as_text(group[column].iloc[0]) for column in apart},
            values=_grid(group, metric),
            errors=_grid(group, error),
            notes=(*(row_note(group, column) for column in by_row), *told.get(group["protocol"].iloc[0], [])),
            cells=_grid(group, "cell"),
        )
        for _, group in groups
    ]


def prepared(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> pd.DataFrame:
    """The frame with kinds in the place of protocols, and checkpoints by their short names."""
    kinds = {name: kind(protocol) for name, protocol in protocols.items()}
    changed = {"protocol": frame["protocol"].map(lambda name: kinds.get(name, "unknown"))}
    if CHECKPOINT in frame:
        names = short_checkpoints(frame[CHECKPOINT])
        changed[CHECKPOINT] = frame[CHECKPOINT].map(lambda path: names.get(path, path))
    return frame.assign(**changed)


def short_columns(columns: Iterable[str]) -> dict[str, str]:
    """Column -> its name for people: a symbol of the paper, or a grid key's last component where that is unique."""
    given = list(columns)
    return {**short_keys(given, Sample.model_fields), **{name: SYMBOLS[name] for name in given if name in SYMBOLS}}


def short_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of a table under the names of `short_columns`."""
    names = short_columns(settings)
    return {names[column]: value for column, value in settings.items()}


def short_checkpoints(checkpoints: Iterable[object]) -> dict[str, str]:
    """Short names of the `checkpoints` that are set (paths or names): each distinguishes one from all others."""
    given = list(dict.fromkeys(checkpoint for checkpoint in checkpoints if isinstance(checkpoint, str)))
    return dict(zip(given, short_names(given), strict=True))


def kind_notes(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> dict[str, list[str]]:
    """Kind -> a note of how it differs from the others of its N, such as "protocol: versions.torch 2.9.1"."""
    particular: dict[str, list[str]] = defaultdict(list)
    for _, group in frame.groupby("num_samples"):
        kinds = {kind(protocols[name]): protocols[name] for name in group["protocol"].unique() if name in protocols}
        for name, by_value in disagreements(kinds).items():
            for value, having in by_value.items():
                for each in having:
                    particular[each].append(f"{name} {value}")
    return {each: [f"protocol: {', '.join(fields)}"] for each, fields in particular.items()}


def _layout(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Columns that need separate tables, and columns that differ but follow from a table and its row."""

    def follows(column: str, given: list[str]) -> bool:
        known = frame.drop_duplicates(given) if given else frame.head(1)
        return len(frame.drop_duplicates([*given, column])) == len(known)

    given = list(frame.columns)
    others = sorted(axes(given), key=given.index)
    apart = [axis for axis in [*others, "num_samples"] if ("." in axis or axis in COLUMNS) and not follows(axis, [])]
    if not follows("model", apart):
        apart.append("model")
    by_row: list[str] = []
    # Clip comes last: it may follow from the row only within another setting, which already has separate tables then.
    for column in [*(axis for axis in others if "." not in axis), "sampler", "spacing", "clip"]:
        if not follows(column, []):
            (by_row if follows(column, [*apart, "sigma", "eta"]) else apart).append(column)
    # The protocol comes at the very end: N and settings such as a precision explain its kind better than a hash.
    if not follows("protocol", apart):
        apart.append("protocol")
    return apart, by_row


def against_best(table: Pivot, higher_is_better: bool) -> Iterator[tuple[str, list[str]]]:
    """The best cell of each column with all others that are not as good, if there are any."""
    for (_, column), (_, cells) in zip(table.values.items(), table.cells.items(), strict=True):
        best = column.max() if higher_is_better else column.min()
        if others := list(cells[column.notna() & (column != best)]):
            yield cells[column == best].iloc[0], others


def eta_labels(group: pd.DataFrame) -> "pd.Series[str]":
    """What rows of eta are called: its number, or σ̂."""
    numbers = group["eta"].map(lambda eta: str(float(eta)))
    return numbers.where(group["sigma"] != "sigma_hat", SIGMA_HAT)


def _grid(group: pd.DataFrame, column: str | None) -> pd.DataFrame:
    placed = group.assign(row=eta_labels(group)).sort_values(["sigma", "eta", "steps"])
    twice = placed[placed.duplicated(["row", "steps"], keep=False)]
    if len(twice):
        place = f"eta {twice['row'].iloc[0]}, S = {twice['steps'].iloc[0]}"
        raise ValueError(f"cells {twice['cell'].iloc[0]} and {twice['cell'].iloc[1]} are both at {place} of one table")
    values = placed.assign(value=placed[column] if column else math.nan)
    grid = values.pivot(index="row", columns="steps", values="value")
    return grid.reindex(index=placed["row"].unique(), columns=sorted(grid.columns))


def row_note(group: pd.DataFrame, column: str) -> str:
    """Which rows have which value of `column`, such as "clip: none (0.0, 0.2), x0_and_eps (σ̂)"."""
    ordered = group.assign(row=eta_labels(group), value=group[column].map(as_text)).sort_values(["sigma", "eta"])
    rows = {str(value): ", ".join(part.unique()) for value, part in ordered.groupby("value", sort=False)["row"]}
    return f"{column}: " + ", ".join(f"{v} ({labels})" if len(rows) > 1 else v for v, labels in rows.items())
