"""The quality table pivoted as in the DDIM paper: rows of eta, columns of S, and a table for any other difference.

`protocols` has the rows' protocols by short hash. Rows that differ in a field that must agree get separate tables.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from taugrid.eval.tables.long_form import CHECKPOINT, COLUMNS, axes
from taugrid.eval.tables.rows import as_text
from taugrid.grids.names import short_names
from taugrid.protocol import ProtocolFields, disagreements, kind

SIGMA_HAT = "σ̂"


@dataclass(frozen=True)
class Pivot:
    """A table as in the paper: labels of eta as index, ascending, sigma_hat last; S as columns, ascending."""

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

    @property
    def heading(self) -> str:
        """The settings in a line, such as "diffusion.schedule = linear, clip = x0"."""
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
    kinds = {name: kind(protocol) for name, protocol in protocols.items()}
    told = _kind_notes(frame, protocols)
    frame = frame.assign(protocol=frame["protocol"].map(lambda name: kinds.get(name, "unknown")))
    if CHECKPOINT in frame:
        names = short_checkpoints(frame[CHECKPOINT])
        frame = frame.assign(**{CHECKPOINT: frame[CHECKPOINT].map(lambda path: names.get(path, path))})
    apart, by_row = _layout(frame)
    groups = list(frame.groupby(apart, sort=False, dropna=False)) if apart else [((), frame)]
    return [
        Pivot(
            settings={column: as_text(group[column].iloc[0]) for column in apart},
            values=_grid(group, metric),
            errors=_grid(group, error),
            notes=(*(_row_note(group, column) for column in by_row), *told.get(group["protocol"].iloc[0], [])),
            cells=_grid(group, "cell"),
        )
        for _, group in groups
    ]


def short_checkpoints(checkpoints: Iterable[object]) -> dict[str, str]:
    """Short names of the `checkpoints` that are set (paths or names): each distinguishes one from all others."""
    given = list(dict.fromkeys(checkpoint for checkpoint in checkpoints if isinstance(checkpoint, str)))
    return dict(zip(given, short_names(given), strict=True))


def _kind_notes(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> dict[str, list[str]]:
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

    others = axes(frame.columns)
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


def _labels(group: pd.DataFrame) -> "pd.Series[str]":
    numbers = group["eta"].map(lambda eta: str(float(eta)))
    return numbers.where(group["sigma"] != "sigma_hat", SIGMA_HAT)


def _grid(group: pd.DataFrame, column: str | None) -> pd.DataFrame:
    placed = group.assign(row=_labels(group)).sort_values(["sigma", "eta", "steps"])
    twice = placed[placed.duplicated(["row", "steps"], keep=False)]
    if len(twice):
        place = f"eta {twice['row'].iloc[0]}, S = {twice['steps'].iloc[0]}"
        raise ValueError(f"cells {twice['cell'].iloc[0]} and {twice['cell'].iloc[1]} are both at {place} of one table")
    values = placed.assign(value=placed[column] if column else math.nan)
    grid = values.pivot(index="row", columns="steps", values="value")
    return grid.reindex(index=placed["row"].unique(), columns=sorted(grid.columns))


def _row_note(group: pd.DataFrame, column: str) -> str:
    """Which rows have which value of `column`, such as "clip: none (0.0, 0.2), x0_and_eps (σ̂)"."""
    ordered = group.assign(row=_labels(group), value=group[column].map(as_text)).sort_values(["sigma", "eta"])
    rows = {str(value): ", ".join(part.unique()) for value, part in ordered.groupby("value", sort=False)["row"]}
    return f"{column}: " + ", ".join(f"{v} ({labels})" if len(rows) > 1 else v for v, labels in rows.items())
