"""What all tables share: order of rows, dtypes of columns, values as text, files, and which rows may share a table."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from taugrid.protocol import ProtocolFields, comparability_key, disagreements
from taugrid.storage import replacing
from taugrid.words import listed

Row = Mapping[str, Any]
"""A row of quality.csv."""


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


CELLS_NAMED = 3
"""Cells that a message names for each value; the rest are counted."""


class JoinedRows(NamedTuple):
    """Notes and marks for rows that were joined although their protocols differ."""

    notes: list[str]
    cells: frozenset[str]
    """Cells whose comparability key differs from most; tables mark them."""


def check_joinable(
    rows: Sequence[Mapping[str, Any]], protocols: Mapping[str, ProtocolFields], override: bool = False
) -> JoinedRows:
    """Make sure that the numbers of `rows` may share a table or figure.

    Rows of different N are checked separately, because tables and figures never join them.

    Args:
        rows: rows of quality.csv, of which `cell`, `num_samples` and `protocol` are read.
        protocols: the protocols by the rows' `protocol`.
        override: join rows that can't be compared, with a note.

    Raises:
        ValueError: if protocols differ in fields that must agree, naming fields, values and cells.
        KeyError: if a row's protocol is missing.
    """
    notes: list[str] = []
    cells: set[str] = set()
    for size in sorted({row["num_samples"] for row in rows}):
        spelled = {row["cell"]: protocols[row["protocol"]] for row in rows if row["num_samples"] == size}
        differing = disagreements(spelled)
        if not differing:
            continue
        details = "; ".join(f"{field} is {_values(by_value)}" for field, by_value in differing.items())
        if not override:
            raise ValueError(f"rows of different protocols can't be joined: {details}")
        notes.append(f"joined although protocols differ: {details}")
        keys = {cell: comparability_key(protocol) for cell, protocol in spelled.items()}
        usual = Counter(keys.values()).most_common(1)[0][0]
        cells |= {cell for cell, key in keys.items() if key != usual}
    return JoinedRows(notes, frozenset(cells))


def _values(by_value: Mapping[str, Sequence[str]]) -> str:
    """Values with their cells, such as "2.9.1 (cells a, b), 2.10.0 (cell c)"."""
    named = {value: f"cell{'s' if len(cells) > 1 else ''} {listed(cells, CELLS_NAMED)}"
             for value, cells in by_value.items()}  # fmt: skip
    return ", ".join(f"{value} ({cells})" for value, cells in named.items())
