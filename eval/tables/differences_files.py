"""Writes the differences of metrics between neighbours: differences.csv and .md."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from taugrid.eval.tables.differences import DIFFERENCE_COLUMNS, OTHER_METRICS, PARTS
from taugrid.eval.tables.entries import INDISTINGUISHABLE, JOINED, Z_95, write_number
from taugrid.eval.tables.labels import SIGMA_HAT, short_columns
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.rows import Row, as_csv, series, with_notes, write_files
from taugrid.registry.metrics import MetricColumn

_FLOATS = frozenset({"eta_a", "eta_b", "fid_a", "fid_b", "difference", "se", "z"})

_ABOUT = (
    "Each value is the {title} of the second cell minus that of the first, ± one paired standard error: sample n of "
    "both cells starts from the same noise. Where the two images stay alike, as along S at η = 0, most of what the "
    "noise does to both cancels; where they don't, as from η = 0 to η = 1, little or nothing does. The error is that "
    "of sampling at this N; it {without} the spread between trainings. "
    f"{INDISTINGUISHABLE} marks differences that sampling alone can explain: |z| < {Z_95}. There is no correction for "
    "the number of differences, so 1 in 20 pairs without a true difference stays unmarked."
)
IN_WORDS = ("along", "settings", "others")
"""Columns that name keys of the grid."""
_KEY = re.compile(r"(?:^|(?<=, ))[a-z_0-9.]+(?= = |: |$)")
"""A key in one of them: "diffusion.schedule = cosine, clip = x0", "train.seed: 0 -> 1"."""
HEADINGS = {"steps": "Along S:", "eta": "Along eta:", "": "Other pairs:"}


def differences_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A table of `DIFFERENCE_COLUMNS`: numbers are float64 with NaN for None, S and N integers, `joined` is boolean."""
    others = [f"{metric.name}_{part}" for metric in compared(rows) if metric != FID for part in PARTS]
    columns = {name: [row.get(name) for row in rows] for name in (*DIFFERENCE_COLUMNS, *others)}
    return pd.DataFrame({name: series(values, name in {*_FLOATS, *others}) for name, values in columns.items()})


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
    own = {"difference", "se", "z"}
    return {
        metric.name: {part: row[part if metric == FID and part in own else f"{metric.name}_{part}"] for part in PARTS}
        for metric in compared([row])
    }


def differences_of(rows: Sequence[Row], metric: MetricColumn) -> list[Row]:
    """The rows with a difference of `metric`, which is under the names of FID's: difference, se, z. None is empty."""
    if metric == FID:
        return [row for row in rows if row["difference"] is not None]
    names = {part: f"{metric.name}_{part}" for part in ("difference", "se", "z")}
    there = (row for row in rows if row.get(names["difference"]) is not None)
    return [{**row, **{part: row[name] for part, name in names.items()}} for row in there]


def differences_markdown(rows: Sequence[Row], first: MetricColumn = FID) -> str:
    """A section for each metric: a list for each pivot and direction. Notes on missing errors come last, each once."""
    blocks = [] if rows else ["# Differences of FID", "No two neighbours of the grid can be compared."]
    for metric in compared(rows, first):
        said = f"The same for {metric.heading}." if blocks else about(metric)
        blocks += [f"# Differences of {metric.title}", said, *_lists(differences_of(rows, metric))]
    return with_notes("\n\n".join(blocks) + "\n", notes_of(rows))


def _lists(rows: Sequence[Row]) -> list[str]:
    blocks: list[str] = []
    groups: dict[tuple[str, str], list[str]] = {}
    for row in with_short_keys(rows):
        groups.setdefault((row["settings"], row["along"]), []).append(f"- {difference_line(row)}")
    heading = ""
    for (settings, along), lines in groups.items():
        title = settings if along in HEADINGS else ": ".join(filter(None, [f"Along {along}", settings]))
        if title != heading:
            blocks.append(f"## {title}")
            heading = title
        blocks += [*filter(None, [HEADINGS.get(along)]), "\n".join(lines)]
    return blocks


def notes_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["note"] for row in rows if row["note"]))


def with_short_keys(rows: Sequence[Row]) -> list[Row]:
    """The rows with the last components of grid keys where files have all of them."""
    texts = dict.fromkeys(row[name] or "" for row in rows for name in IN_WORDS)
    short = short_columns(dict.fromkeys(key for text in texts for key in _KEY.findall(text) if "." in key))
    return [
        {**row, **{name: _KEY.sub(lambda match: short.get(match[0], match[0]), row[name] or "") for name in IN_WORDS}}
        for row in rows
    ]


def write_differences(rows: Sequence[Row], folder: Path, first: MetricColumn = FID) -> None:
    write_files(folder, "differences", csv=as_csv(differences_frame(rows)), md=differences_markdown(rows, first))


class DifferenceRow(NamedTuple):
    where: str
    """The change of settings, such as "S 10 -> 20 at eta 0"."""
    value: str
    """The difference with its sign and its error."""
    z: str
    """Empty if there is none."""
    mark: str


def difference_line(row: Row) -> str:
    """A difference in a line, such as "S 10 -> 20 at eta 0: -5.43 ± 0.80, z = -6.8"."""
    [shown] = with_short_keys([row])
    texts = format_difference(shown)
    value = f"{texts.value}, z = {texts.z}" if texts.z else texts.value
    return f"{texts.where}: {value} {texts.mark}".rstrip()


def format_difference(row: Row) -> DifferenceRow:
    """The parts of `difference_line`."""
    value, error = write_number(row["difference"], math.nan if row["se"] is None else row["se"])
    signed = f"+{value}" if row["difference"] > 0 else value
    z = "" if row["z"] is None else f"{row['z']:+.1f}"
    is_alike = row["z"] is not None and abs(row["z"]) < Z_95
    marks = [INDISTINGUISHABLE if is_alike else "", JOINED if row["joined"] else ""]
    where = ", ".join(filter(None, [_place(row), row["others"]]))
    return DifferenceRow(where, f"{signed} {error}".rstrip(), z, " ".join(filter(None, marks)))


def _place(row: Row) -> str:
    steps = (row["steps_a"], row["steps_b"])
    if any(row[eta] is None or math.isnan(row[eta]) for eta in ("eta_a", "eta_b")):  # of a sampler without
        return f"S {' -> '.join(map(str, dict.fromkeys(steps)))}"
    etas = (_eta(row, "a"), _eta(row, "b"))
    if etas[0] == etas[1]:
        return f"S {' -> '.join(map(str, dict.fromkeys(steps)))} at eta {etas[0]}"
    if steps[0] == steps[1]:
        return f"eta {etas[0]} -> {etas[1]} at S {steps[0]}"
    return f"S {steps[0]}, eta {etas[0]} -> S {steps[1]}, eta {etas[1]}"


def _eta(row: Row, side: str) -> str:
    return SIGMA_HAT if row[f"sigma_{side}"] == "sigma_hat" else f"{row[f'eta_{side}']:g}"
