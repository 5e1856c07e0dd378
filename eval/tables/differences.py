"""Differences of FID between cells, with the standard errors that they have because cells share their noise.

Sample n of two cells starts from the same x_T and has the same z at common times, so what noise does to both cancels in
the difference. Its standard error is sd(phi_a - phi_b) / sqrt(N), phi being how far a sample moves FID: the error of
drawing these samples, neither FID's bias at this N, which is the same for both, nor the spread between trainings.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taugrid.eval.metrics.frechet import difference_standard_error
from taugrid.eval.tables import quality as tables
from taugrid.eval.tables.rows import as_text, series
from taugrid.protocol import ProtocolFields, disagreements
from taugrid.storage import replacing

COLUMNS = (
    "cell_a", "cell_b", "along", "settings", "steps_a", "eta_a", "sigma_a", "steps_b", "eta_b", "sigma_b", "others",
    "fid_a", "fid_b", "difference", "se", "z", "num_samples", "protocol_a", "protocol_b", "joined", "note",
)  # fmt: skip
"""The columns of differences.csv: `along` is steps, eta or the setting in which the cells' pivots differ, `settings`
the heading that their pivots share, `others` what differs besides S and eta, `difference` is b - a, `note` says why an
error is missing or what was joined. Checkpoints have their short names."""
_FLOATS = frozenset({"eta_a", "eta_b", "fid_a", "fid_b", "difference", "se", "z"})

ABOUT = (
    "The second cell's FID minus the first's, ± one standard error, paired: sample n of both cells comes of the same "
    "noise, and what that does to both cancels. It is the error of sampling at this N, neither FID's bias nor the "
    f"spread of trainings. {tables.INDISTINGUISHABLE} marks what sampling alone explains: |z| < {tables.Z_95}. Nothing "
    "is corrected for the number of differences looked at: where there is none, 1 in 20 goes unmarked."
)
HEADINGS = {"steps": "Along S:", "eta": "Along eta:", "": "Other pairs:"}

ROUNDING = 1e-9
"""A standard error below this share of the cells' own is that of the same samples twice, such as any eta at S = 1."""

NOT_AXES = frozenset({"model", "num_samples", "protocol"})
"""Settings of pivots that make no neighbours: ids have no order, FIDs of other N or protocols are not comparable."""

SETTINGS = frozenset({"model", "sampler", "spacing", "clip", "num_samples"})
"""Columns of the quality table that are settings besides the grid axes; S and eta are told on their own."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What is known of the cells besides their rows, by cell or, for protocols, by the rows' short hash."""

    influences: Mapping[str, Array]
    """phi (N,) of each cell's samples in the order of their indices; a cell without standard error has none."""
    pairings: Mapping[str, Hashable]
    """Equal for cells whose samples start from the same x_T: those that share a seed and a shape of images."""
    protocols: Mapping[str, ProtocolFields]
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a cell has no influences."""


class Paired(NamedTuple):
    """A difference's standard error and its z, or why there are none."""

    se: float | None
    z: float | None
    note: str


class Line(NamedTuple):
    """Scored cells that differ in one thing, in its order; those next to each other are neighbours."""

    along: str
    settings: str
    cells: list[str]


def differences(rows: Sequence[Mapping[str, Any]], evidence: Evidence) -> list[dict[str, Any]]:
    """Rows of `COLUMNS` for neighbours with an FID: along S at fixed eta, then along eta, sigma_hat last, at fixed S,
    and then, at fixed S and eta, along each other setting that sets pivots of eval/tables/quality.py apart.

    Neighbours are of one pivot, or of two that differ in one setting, so along eta a setting such as clip may differ
    only where it follows from the row. Cells that `pair` refuses, such as those that share no noise, make no pair.

    Args:
        rows: of quality.csv, in the order of the grid; it is that of the neighbours along those other settings.
        evidence: covers the cells and protocols of all rows.

    Raises:
        ValueError: if a cell has not as many influences as samples.
        KeyError: if a cell has no pairing, or a protocol is not spelled out.
    """
    names = tables.short_checkpoints(row.get(tables.CHECKPOINT) for row in rows)
    by_cell = {
        row["cell"]: {key: names.get(value, value) if key == tables.CHECKPOINT else value for key, value in row.items()}
        for row in rows
    }
    pivots = _pivots(rows, evidence.protocols)
    return [
        pair(by_cell[a], by_cell[b], evidence) | {"along": line.along, "settings": line.settings}
        for line in (*_within(pivots), *_between(pivots, {cell: place for place, cell in enumerate(by_cell)}))
        for a, b in pairwise(line.cells)
        if not _obstacles(by_cell[a], by_cell[b], evidence)
    ]


def _within(pivots: Sequence[tables.Pivot]) -> Iterator[Line]:
    """Along S and along eta."""
    for table in pivots:
        scored = _scored(table)
        yield from (Line("steps", table.heading, list(line.dropna())) for _, line in scored.iterrows())
        yield from (Line("eta", table.heading, list(line.dropna())) for _, line in scored.items())


def _between(pivots: Sequence[tables.Pivot], order: Mapping[str, int]) -> Iterator[Line]:
    """Along each other setting, its cells in `order`, which has the places of all cells."""
    for setting in dict.fromkeys(setting for table in pivots for setting in table.settings if setting not in NOT_AXES):
        lines: dict[tuple[str, Hashable, Hashable], list[str]] = defaultdict(list)
        for table in pivots:
            for label, line in _scored(table).iterrows():
                for steps, cell in line.dropna().items():
                    lines[table.heading_without(setting), label, steps].append(cell)
        for (heading, *_), cells in lines.items():
            yield Line(setting, heading, sorted(cells, key=order.__getitem__))


def _scored(table: tables.Pivot) -> pd.DataFrame:
    """The cells of a pivot that have a value, NaN in the place of others."""
    return table.cells.where(table.values.notna())


def pair(
    row_a: Mapping[str, Any], row_b: Mapping[str, Any], evidence: Evidence, override: bool = False
) -> dict[str, Any]:
    """The row of `COLUMNS` for any two cells; `along` is empty, since they need not be neighbours.

    Args:
        row_a: of quality.csv.
        row_b: of quality.csv, that `row_a` is subtracted from.
        evidence: covers both cells and their protocols.
        override: compare them although protocols differ or no noise is shared, and say so in `joined` and `note`.

    Raises:
        ValueError: if a cell has no FID, or not as many influences as samples; without `override`, if the cells are not
            comparable, naming the fields that differ.
        KeyError: if a cell has no pairing, or a protocol is not spelled out.
    """
    a, b = row_a["cell"], row_b["cell"]
    for row in (row_a, row_b):
        if _is_missing(row["fid"]):
            raise ValueError(f"cell {row['cell']} has no FID")
    obstacles = _obstacles(row_a, row_b, evidence)
    if obstacles and not override:
        raise ValueError(f"cells {a} and {b} can't be compared: {'; '.join(obstacles)}")
    difference = float(row_b["fid"]) - float(row_a["fid"])
    paired = _paired(difference, row_a, row_b, evidence)
    return {
        "cell_a": a,
        "cell_b": b,
        "along": "",
        "settings": "",
        **{
            f"{key}_{side}": row[key] for side, row in (("a", row_a), ("b", row_b)) for key in ("steps", "eta", "sigma")
        },
        "others": _others(row_a, row_b),
        "fid_a": float(row_a["fid"]),
        "fid_b": float(row_b["fid"]),
        "difference": difference,
        "se": paired.se,
        "z": paired.z,
        "num_samples": min(row_a["num_samples"], row_b["num_samples"]),
        "protocol_a": row_a["protocol"],
        "protocol_b": row_b["protocol"],
        "joined": bool(obstacles),
        "note": "; ".join(filter(None, [*(f"joined although {obstacle}" for obstacle in obstacles), paired.note])),
    }


def indistinguishable(rows: Sequence[Mapping[str, Any]], evidence: Evidence, joined: bool = False) -> frozenset[str]:
    """Cells whose FID can't be told from the best of their column: |z| < `tables.Z_95`, or the very same samples.

    The best itself is not among them, nor is what equals it, nor what has no paired standard error.

    Args:
        rows: of quality.csv, in any order.
        evidence: covers the cells and protocols of all rows.
        joined: columns run across protocols that differ, as those of the tables then do.
    """
    by_cell = {row["cell"]: row for row in rows}
    alike: set[str] = set()
    for table in _pivots(rows, {} if joined else evidence.protocols):
        for (_, column), (_, cells) in zip(table.values.items(), table.cells.items(), strict=True):
            least = column.min()
            if np.isnan(least):
                continue
            best = by_cell[cells[column == least].iloc[0]]
            for cell in cells[column > least]:
                paired = _paired(by_cell[cell]["fid"] - best["fid"], best, by_cell[cell], evidence)
                if paired.se is not None and (paired.z is None or abs(paired.z) < tables.Z_95):
                    alike.add(cell)
    return frozenset(alike)


def _pivots(rows: Sequence[Mapping[str, Any]], protocols: Mapping[str, ProtocolFields]) -> list[tables.Pivot]:
    return tables.pivot(tables.frame(rows), tables.FID.name, tables.FID.error, protocols)


def _obstacles(row_a: Mapping[str, Any], row_b: Mapping[str, Any], evidence: Evidence) -> list[str]:
    """Why the two must not be compared, such as "versions.torch is 2.9.1 and 2.10.0"."""
    protocols = {"a": evidence.protocols[row_a["protocol"]], "b": evidence.protocols[row_b["protocol"]]}
    named = disagreements(protocols).items()
    found = [f"{name} is {' and '.join(values)}" for name, values in named]
    if evidence.pairings[row_a["cell"]] != evidence.pairings[row_b["cell"]]:
        found.append("they share no noise (their seeds or shapes of images differ)")
    return found


def _paired(difference: float, row_a: Mapping[str, Any], row_b: Mapping[str, Any], evidence: Evidence) -> Paired:
    a, b = row_a["cell"], row_b["cell"]
    for row in (row_a, row_b):
        phi = evidence.influences.get(row["cell"])
        if phi is None:
            reason = evidence.reasons.get(row["cell"], f"no influences are known of cell {row['cell']}")
            return Paired(None, None, f"no standard error: {reason}")
        if phi.shape != (row["num_samples"],):
            raise ValueError(f"cell {row['cell']} has {row['num_samples']} samples, but influences of {phi.shape}")
    if evidence.pairings[a] != evidence.pairings[b]:
        return Paired(None, None, "no standard error: the cells share no noise")
    if row_a["num_samples"] != row_b["num_samples"]:
        return Paired(None, None, "no standard error: the cells differ in N")
    phi_a, phi_b = evidence.influences[a], evidence.influences[b]
    se = difference_standard_error(phi_a, phi_b)
    if se <= ROUNDING * max(float(phi.std()) for phi in (phi_a, phi_b)) / math.sqrt(len(phi_a)):
        return Paired(0.0, None, "no z: both have the same samples")
    return Paired(se, difference / se, "")


def _others(row_a: Mapping[str, Any], row_b: Mapping[str, Any]) -> str:
    """The settings besides S and eta that differ, such as "clip: none -> x0_and_eps"; a model by its axes if it can."""
    given = {*row_a, *row_b}
    keys = sorted((given & SETTINGS) | set(tables.axes(given)))
    differing = [key for key in keys if as_text(row_a.get(key)) != as_text(row_b.get(key))]
    if any("." in key for key in differing):
        differing.remove("model")
    return ", ".join(f"{key}: {as_text(row_a.get(key))} -> {as_text(row_b.get(key))}" for key in differing)


def _is_missing(value: object) -> bool:
    return value is None or value != value


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table of `COLUMNS`: numbers float64 with NaN for None, S and N integers, `joined` boolean."""
    return pd.DataFrame({name: series([row[name] for row in rows], name in _FLOATS) for name in COLUMNS})


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A list for each pivot and direction, in the order of `rows`; what is said of missing errors comes last, once."""
    blocks = ["# Differences of FID", ABOUT if rows else "No two neighbours of the grid can be compared."]
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row["settings"], row["along"]), []).append(f"- {line(row)}")
    heading = ""
    for (settings, along), lines in groups.items():
        title = settings if along in HEADINGS else ": ".join(filter(None, [f"Along {along}", settings]))
        if title != heading:
            blocks.append(f"## {title}")
            heading = title
        blocks += [*filter(None, [HEADINGS.get(along)]), "\n".join(lines)]
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    if notes:
        blocks += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(blocks) + "\n"


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """differences.{csv,md} in `folder`, each put in place whole; equal rows give equal bytes."""
    contents = {"csv": frame(rows).to_csv(index=False, lineterminator="\n"), "md": markdown(rows)}
    for suffix, text in contents.items():
        with replacing(folder / f"differences.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def line(row: Mapping[str, Any]) -> str:
    """A difference as people read it, such as "S 10 -> 20 at eta 0: -5.43 ± 0.80, z = -6.8"."""
    value, error = tables.write_number(row["difference"], math.nan if row["se"] is None else row["se"])
    signed = f"+{value}" if row["difference"] > 0 else value
    parts = [f"{signed} {error}".rstrip()]
    if row["z"] is not None:
        parts.append(f"z = {row['z']:+.1f}")
        if abs(row["z"]) < tables.Z_95:
            parts[-1] += f" {tables.INDISTINGUISHABLE}"
    if row["joined"]:
        parts[-1] += f" {tables.JOINED}"
    where = ", ".join(filter(None, [_place(row), row["others"]]))
    return f"{where}: {', '.join(parts)}"


def _place(row: Mapping[str, Any]) -> str:
    steps, etas = (row["steps_a"], row["steps_b"]), (_eta(row, "a"), _eta(row, "b"))
    if etas[0] == etas[1]:
        return f"S {' -> '.join(map(str, dict.fromkeys(steps)))} at eta {etas[0]}"
    if steps[0] == steps[1]:
        return f"eta {etas[0]} -> {etas[1]} at S {steps[0]}"
    return f"S {steps[0]}, eta {etas[0]} -> S {steps[1]}, eta {etas[1]}"


def _eta(row: Mapping[str, Any], side: str) -> str:
    return tables.SIGMA_HAT if row[f"sigma_{side}"] == "sigma_hat" else f"{row[f'eta_{side}']:g}"
