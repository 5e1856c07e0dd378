"""Differences of metrics between cells, with paired standard errors; differences.csv and .md.

Sample n of two cells starts from the same x_T and gets the same z at common times, so noise that moves both metrics
equally cancels. The standard error is sd(phi_a - phi_b) / sqrt(N), where phi says how far a sample moves the metric.
Cells whose images have other seeds or shapes share no noise: the squares of their errors add up.
"""

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from taugrid.eval.metrics.statistics import Array, standard_error
from taugrid.eval.tables.arrangement import pivot_tables
from taugrid.eval.tables.labels import IGNORABLE, OPTIONS, SIGMA_HAT, short_checkpoints, short_columns
from taugrid.eval.tables.long_form import (
    FID,
    STAND_INS,
    Row,
    as_csv,
    as_text,
    axes,
    long_form,
    series,
    with_notes,
    write_files,
)
from taugrid.eval.tables.table import INDISTINGUISHABLE, JOINED, ROUNDING, Z_95, Table, write_number
from taugrid.grids import EVALUATIONS, NOT_AXES, PATHS, of_model, options_text
from taugrid.protocol import ProtocolFields, disagreements
from taugrid.registry.metrics import SAMPLED, MetricColumn
from taugrid.words import markdown_table

DIFFERENCE_COLUMNS = (
    "cell_a", "cell_b", "along", "settings", "steps_a", "eta_a", "sigma_a", "steps_b", "eta_b", "sigma_b", "others",
    "fid_a", "fid_b", "difference", "se", "z", "num_samples", "protocol_a", "protocol_b", "joined", "note",
)  # fmt: skip
"""The columns of differences.csv. `along` is steps, eta or the setting in which the cells' tables differ, `settings`
the heading that their tables share, `others` what differs besides S and eta. `difference` is b - a, and `note` says why
an error is missing or what was joined. For each of `OTHER_METRICS` that has a standard error in some row, `PARTS`
follow with its name before them: kid_a, kid_b, kid_difference, kid_se, kid_z."""
OTHER_METRICS = tuple(metric for metric in dict.fromkeys([*STAND_INS, *SAMPLED]) if metric != FID)
PARTS = ("a", "b", "difference", "se", "z")

SETTINGS = frozenset({"model", "sampler", "spacing", "clip", "num_samples"})
"""Columns of the quality table that are settings, besides the grid keys. S and eta are reported separately."""


@dataclass(frozen=True)
class Evidence:
    """Facts for comparisons that rows lack: by cell or, for protocols, by the short hash in the rows."""

    influences: Mapping[str, Array]
    """phi (N,) of each cell's samples in the order of their indices; none of a cell without standard error."""
    pairings: Mapping[str, Hashable]
    """Equal for cells whose samples start from the same x_T, that is, with the same seed and image shape."""
    protocols: Mapping[str, ProtocolFields]
    reasons: Mapping[str, str] = field(default_factory=dict)  # cell -> why it has no influences
    others: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    """Column of quality.csv -> the influences of that metric, by cell; the fields above are FID's."""

    def of(self, column: str) -> "Evidence":
        """The evidence for differences of a metric, by its column in quality.csv."""
        return self if column == FID.name else replace(self, influences=self.others.get(column, {}), reasons={})


class Uncertainty(NamedTuple):
    """A difference's standard error and its z, or why there are none; of an unpaired error, the note says so."""

    se: float | None
    z: float | None
    note: str


def differences(rows: Sequence[Row], evidence: Evidence) -> list[dict[str, Any]]:
    """Rows of `DIFFERENCE_COLUMNS` for neighbours with an FID, or another metric that has a standard error.

    First come pairs along S at fixed eta, then along eta (sigma_hat last) at fixed S, and then, at fixed S and eta,
    along each other setting that has separate tables (arrangement.py), in the order of `rows`. Cells whose protocols
    differ are left out, and cells without common noise have unpaired errors; a `ValueError` if influences are not of a
    cell's N."""
    names = {key: short_checkpoints(row.get(key) for row in rows) for key in PATHS}
    by_cell = {
        row["cell"]: {key: names[key].get(value, value) if key in PATHS else value for key, value in row.items()}
        for row in rows
    }
    scored = [cell for cell, row in by_cell.items() if _scored(row, row)]
    pairs = []
    for along, heading, cells in _lines(pivot_tables(long_form(rows), FID, evidence.protocols), scored):
        for row_a, row_b in pairwise(map(by_cell.__getitem__, cells)):
            if metrics := _comparable(row_a, row_b, evidence):
                row = _row_of(row_a, row_b, evidence, metrics, ())
                pairs.append(row | {"along": along, "settings": heading})
    return pairs


def _lines(tables: Sequence[Table], scored: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """A setting, a heading, and neighbours: scored cells along S, along eta, and along others in the order of rows."""
    places = {cell: place for place, cell in enumerate(scored)}
    by_table = [
        {
            (label, steps): value.cell
            for label in table.labels
            for steps, value in zip(table.columns, table.row(label), strict=True)
            if value.cell in places
        }
        for table in tables
    ]
    for table, cells in zip(tables, by_table, strict=True):
        for label in table.labels:
            yield "steps", table.heading, [cell for at, cell in cells.items() if at[0] == label]
        for steps in table.columns:
            yield "eta", table.heading, [cell for at, cell in cells.items() if at[1] == steps]
    for setting in dict.fromkeys(setting for table in tables for setting in table.settings if setting not in NOT_AXES):
        lines: dict[tuple[str, Hashable, Hashable], list[str]] = defaultdict(list)
        for table, cells in zip(tables, by_table, strict=True):
            for (label, steps), cell in cells.items():
                alone = setting == "sampler" and label == ("",)  # it has no eta: beside DDIM
                lines[table.heading_without(setting), ("0.0",) if alone else label, steps].append(cell)
        for (heading, *_), line in lines.items():
            yield setting, heading, sorted(line, key=places.__getitem__)


def pair(row_a: Row, row_b: Row, evidence: Evidence, override: bool = False) -> dict[str, Any]:
    """The row of `DIFFERENCE_COLUMNS` for any two cells; `along` is empty, since they need not be neighbours.

    The difference is b - a, with an unpaired error if the cells share no noise. A metric whose settings differ has
    none. `override` compares cells even if their protocols differ; `joined` and `note` then say so. A `ValueError` if a
    cell has no FID and no other metric has a standard error, if influences are not of a cell's N or, without
    `override`, if no metric is comparable; it names the fields that differ."""
    scored = _scored(row_a, row_b)
    if not scored:
        lacking = row_a if _number(row_a, FID.name) is None else row_b
        raise ValueError(f"cell {lacking['cell']} has no FID")
    obstacles: dict[str, None] = {}
    metrics = scored if override else _comparable(row_a, row_b, evidence)
    if override:
        for metric in scored:
            obstacles |= dict.fromkeys(_obstacles(row_a, row_b, evidence, metric))
    elif not metrics:
        obstacles |= dict.fromkeys(_obstacles(row_a, row_b, evidence, scored[0]))
    if obstacles and not override:
        names = f"{row_a['cell']} and {row_b['cell']}"
        raise ValueError(f"cells {names} can't be compared: {'; '.join(obstacles)}")
    return _row_of(row_a, row_b, evidence, metrics, list(obstacles))


def _row_of(
    row_a: Row, row_b: Row, evidence: Evidence, metrics: Sequence[MetricColumn], obstacles: Sequence[str]
) -> dict[str, Any]:
    """The row of `DIFFERENCE_COLUMNS` for two cells that are compared by `metrics` despite `obstacles`."""
    parts = {metric: _difference(metric, row_a, row_b, evidence) for metric in dict.fromkeys([FID, *metrics])}
    named = {metric: dict(zip(_columns(metric), parts[metric][0], strict=True)) for metric in parts}
    note = parts[FID][1]
    return {
        "cell_a": row_a["cell"],
        "cell_b": row_b["cell"],
        "along": "",
        "settings": "",
        **{f"{key}_a": row_a[key] for key in ("steps", "eta", "sigma")},
        **{f"{key}_b": row_b[key] for key in ("steps", "eta", "sigma")},
        "others": _others(row_a, row_b),
        **named.pop(FID),
        "num_samples": min(row_a["num_samples"], row_b["num_samples"]),
        "protocol_a": row_a["protocol"],
        "protocol_b": row_b["protocol"],
        "joined": bool(obstacles),
        "note": "; ".join(filter(None, [*(f"joined although {obstacle}" for obstacle in obstacles), note])),
        **{name: value for columns in named.values() for name, value in columns.items()},
    }


def _columns(metric: MetricColumn) -> list[str]:
    """The columns of a metric's `PARTS` in differences.csv."""
    if metric == FID:
        return ["fid_a", "fid_b", "difference", "se", "z"]
    return [f"{metric.name}_{part}" for part in PARTS]


def _number(row: Row, column: str) -> float | None:
    value = row.get(column)
    return None if value is None or value != value else float(value)


def _scored(*rows: Row) -> list[MetricColumn]:
    """FID, if all rows have it, and the other metrics of which all have a standard error."""
    of_fid = [FID] if all(_number(row, FID.name) is not None for row in rows) else []
    with_errors = (m for m in OTHER_METRICS if all(_number(row, m.sampling_error or "") is not None for row in rows))
    return [*of_fid, *with_errors]


def _comparable(row_a: Row, row_b: Row, evidence: Evidence) -> list[MetricColumn]:
    """The metrics that both are scored by and may be compared by."""
    return [metric for metric in _scored(row_a, row_b) if not _obstacles(row_a, row_b, evidence, metric)]


def _difference(
    metric: MetricColumn, row_a: Row, row_b: Row, evidence: Evidence
) -> tuple[tuple[float | None, ...], str]:
    """`PARTS` of a row, and why an error is missing; the difference is b - a, None if one of them is missing."""
    a, b = _number(row_a, metric.name), _number(row_b, metric.name)
    if a is None or b is None:
        return (a, b, None, None, None), ""
    uncertainty = uncertainty_of(b - a, row_a, row_b, evidence.of(metric.name))
    return (a, b, b - a, uncertainty.se, uncertainty.z), uncertainty.note


def _obstacles(row_a: Row, row_b: Row, evidence: Evidence, metric: MetricColumn = FID) -> list[str]:
    """Reasons not to compare the two by a metric, such as "versions.torch is 2.9.1 and 2.10.0"."""
    protocols = {"a": evidence.protocols[row_a["protocol"]], "b": evidence.protocols[row_b["protocol"]]}
    return [f"{name} is {' and '.join(values)}" for name, values in disagreements(protocols, (metric.name,)).items()]


def uncertainty_of(difference: float, row_a: Row, row_b: Row, evidence: Evidence) -> Uncertainty:
    """The standard error of a difference between two cells, which is paired if they share their noise. A `ValueError`
    if influences are not of their N."""
    a, b = row_a["cell"], row_b["cell"]
    for row in (row_a, row_b):
        phi = evidence.influences.get(row["cell"])
        if phi is None:
            reason = evidence.reasons.get(row["cell"], f"no influences are known of cell {row['cell']}")
            return Uncertainty(None, None, f"no standard error: {reason}")
        if phi.shape != (row["num_samples"],):
            raise ValueError(f"cell {row['cell']} has {row['num_samples']} samples, but influences of {phi.shape}")
    if row_a["num_samples"] != row_b["num_samples"]:
        return Uncertainty(None, None, "no standard error: the cells differ in N")
    phi_a, phi_b = evidence.influences[a], evidence.influences[b]
    if evidence.pairings[a] != evidence.pairings[b]:
        if phi_a.max() == phi_a.min() and phi_b.max() == phi_b.min():
            return Uncertainty(None, None, "no standard error: within each cell, all samples are alike")
        unpaired = math.hypot(standard_error(phi_a), standard_error(phi_b))
        return Uncertainty(unpaired, difference / unpaired, "unpaired standard error: the cells share no noise")
    se = standard_error(phi_a - phi_b)
    if se <= ROUNDING * max(float(phi.std()) for phi in (phi_a, phi_b)) / math.sqrt(len(phi_a)):
        return Uncertainty(0.0, None, "no z: both have the same samples")
    return Uncertainty(se, difference / se, "")


def _others(row_a: Row, row_b: Row) -> str:
    """The differing settings besides S and eta, such as "clip: none -> x0_and_eps"; a model by its keys, if any."""
    columns = {*row_a, *row_b}
    keys = sorted((columns & SETTINGS) | set(axes(columns)))
    idle = [key for key in IGNORABLE if None in (row_a.get(key), row_b.get(key))]
    keys = [key for key in keys if key not in idle] + [EVALUATIONS] * (row_a["steps"] == row_b["steps"])
    differing = [key for key in keys if as_text(row_a.get(key)) != as_text(row_b.get(key))]
    if any(of_model(key) for key in differing):
        differing.remove("model")
    as_shown = partial(options_text, if_none="defaults")
    texts = {key: as_shown if key == OPTIONS else as_text for key in differing}
    return ", ".join(f"{key}: {text(row_a.get(key))} -> {text(row_b.get(key))}" for key, text in texts.items())


_ABOUT = (
    "Each value is the {title} of the second cell minus that of the first, ± one standard error of sampling at this N, "
    "paired by the noise that both cells share, if any; it {without} the spread between trainings. "
    f"{INDISTINGUISHABLE} marks differences that sampling alone can explain: |z| < {Z_95}. There is no correction for "
    "the number of differences, so 1 in 20 pairs without a true difference stays unmarked."
)
IN_WORDS = ("along", "settings", "others")  # columns that name keys of the grid
_KEY = re.compile(r"(?:^|(?<=, ))[a-z_0-9.]+(?= = |: |$)")
"""A key in one of them: "diffusion.schedule = cosine, clip = x0", "train.seed: 0 -> 1"."""
HEADS = ("from → to", "difference", "z", "mark")


def about(metric: MetricColumn) -> str:
    """What the differences of a metric and their errors are."""
    without = "does not include" if metric.unbiased else f"includes neither the bias of {metric.title} nor"
    return _ABOUT.format(title=metric.title, without=without)


def compared(rows: Sequence[Row], first: MetricColumn = FID) -> list[MetricColumn]:
    """The metrics with a difference in some row, `first` before the others."""
    metrics = dict.fromkeys((first, FID, *OTHER_METRICS))
    return [metric for metric in metrics if differences_of(rows, metric)]


def parts_by_metric(row: Row) -> dict[str, dict[str, float | None]]:
    """Metric -> its `PARTS`, of each metric with a difference in a row."""
    return {
        metric.name: {part: row[column] for part, column in zip(PARTS, _columns(metric), strict=True)}
        for metric in compared([row])
    }


def differences_of(rows: Sequence[Row], metric: MetricColumn) -> list[Row]:
    """The rows with a difference of `metric`, which is under the names of FID's: difference, se, z. None is empty."""
    _, _, difference, se, z = _columns(metric)
    there = (row for row in rows if row.get(difference) is not None)
    return [{**row, "difference": row[difference], "se": row[se], "z": row[z]} for row in there]


def write_differences(rows: Sequence[Row], folder: Path, first: MetricColumn = FID) -> None:
    """Write differences.{csv,md}: numbers are float64 with NaN for None, S and N integers, `joined` is boolean."""
    numbers = [name for metric in compared(rows) for name in _columns(metric)]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys([*DIFFERENCE_COLUMNS, *numbers])}
    floats = {"eta_a", "eta_b", *_columns(FID), *numbers}
    frame = pd.DataFrame({name: series(values, name in floats) for name, values in columns.items()})
    blocks = [] if rows else ["# Differences of FID", "No two neighbours of the grid can be compared."]
    for metric in compared(rows, first):
        blocks += [f"# Differences of {metric.title}", f"The same for {metric.heading}." if blocks else about(metric)]
        for heading, lines in difference_tables(differences_of(rows, metric)).items():
            blocks += [f"## {heading}", markdown_table(HEADS, "lrrc", lines)]
    text = with_notes("\n\n".join(blocks) + "\n", notes_of(rows))
    write_files(folder, "differences", csv=as_csv(frame), md=text)


def notes_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["note"] for row in rows if row["note"]))


def difference_tables(rows: Sequence[Row]) -> dict[str, list[tuple[str, ...]]]:
    """Heading -> lines of `HEADS`, with the last components of grid keys where files have all of them."""
    texts = dict.fromkeys(row[name] or "" for row in rows for name in IN_WORDS)
    short = short_columns(dict.fromkeys(key for text in texts for key in _KEY.findall(text) if "." in key))
    tables = defaultdict[str, list[tuple[str, ...]]](list)
    for row in rows:
        along, settings, others = (
            _KEY.sub(lambda match: short.get(match[0], match[0]), row[name] or "") for name in IN_WORDS
        )
        along = {"steps": "S", "eta": "η", "": "other pairs"}.get(along, along)
        heading = ": ".join(filter(None, [f"Along {along}", settings]))
        tables[heading].append(_texts({**row, "others": others}))
    return dict(tables)


def difference_line(row: Row) -> str:
    """A difference in a line, such as "S = 10 → 20 at η = 0.0: -5.43 ± 0.80, z = -6.8"."""
    [[(where, value, z, mark)]] = difference_tables([row]).values()
    return f"{where}: {value}{f', z = {z}' if z else ''} {mark}".rstrip()


def _texts(row: Row) -> tuple[str, str, str, str]:
    """The change of settings, the difference with its sign and error, z, which may be empty, and marks."""
    value, error = write_number(row["difference"], math.nan if row["se"] is None else row["se"])
    signed = f"+{value}" if row["difference"] > 0 else value
    z = "" if row["z"] is None else f"{row['z']:+.1f}"
    is_alike = row["z"] is not None and abs(row["z"]) < Z_95
    marks = [INDISTINGUISHABLE if is_alike else "", JOINED if row["joined"] else ""]
    where = ", ".join(filter(None, [_place(row), row["others"].replace("->", "→")]))
    return where, f"{signed} {error}".rstrip(), z, " ".join(filter(None, marks))


def _place(row: Row) -> str:
    """Such as "S = 10 → 20 at η = 0.0"; without eta for a sampler that has none."""
    steps = [str(row[f"steps_{side}"]) for side in "ab"]
    if any(row[eta] is None or math.isnan(row[eta]) for eta in ("eta_a", "eta_b")):
        return f"S = {' → '.join(dict.fromkeys(steps))}"
    etas = [SIGMA_HAT if row[f"sigma_{side}"] == "sigma_hat" else str(float(row[f"eta_{side}"])) for side in "ab"]
    if etas[0] == etas[1]:
        return f"S = {' → '.join(dict.fromkeys(steps))} at η = {etas[0]}"
    if steps[0] == steps[1]:
        return f"η = {' → '.join(etas)} at S = {steps[0]}"
    return f"S = {steps[0]}, η = {etas[0]} → S = {steps[1]}, η = {etas[1]}"
