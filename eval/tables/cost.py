"""Cost beside quality: what a cell's images and its training took, and which cells are Pareto-optimal.

A cell is Pareto-optimal if no cell that can be compared with it is better at no more cost, or equal at less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from taugrid.eval.tables.labels import labelled, prepared, short_columns
from taugrid.eval.tables.long_form import FID, as_csv, write_files
from taugrid.eval.tables.quality import QualityTable
from taugrid.eval.tables.seeds import averaged
from taugrid.eval.tables.table import shown_number
from taugrid.grids import UNITS, USUAL
from taugrid.registry.metrics import MetricColumn
from taugrid.words import markdown_table

IMAGES = 1_000  # the number of images that seconds of sampling are for
OPTIMAL = "●"
ABOUT = (
    f"{OPTIMAL} marks Pareto-optimal cells: none that can be compared has a {{better}} at no more cost. Measured "
    "{title}s decide, so near ties are not told apart. Network evaluations are per image; seconds are those of "
    f"devices, as measured in this run, for sampling {IMAGES:,} images and for the training of the model. Seconds "
    "depend on the machines and on what else they did. {errors}"
)


@dataclass(frozen=True)
class Cost:
    """A row of cost.csv: a cell, or the mean over its replicates, under the id of the first."""

    cell: str
    settings: Mapping[str, str]  # all settings that vary, S and eta, by short names
    comparable_by: tuple[object, ...]  # N and comparability key: only cells with equal values can be compared
    metric: MetricColumn
    value: float
    error: float  # its standard error; NaN if it has none
    fid: tuple[float, float]  # FID and its standard error, as `value` and `error`
    evaluations: int  # network evaluations per image
    seconds: float | None  # measured device seconds for `IMAGES` images, which differ between equal runs
    train_seconds: float | None  # device seconds for the training of its model; None if it was not trained here
    over: str = ""
    """The kind of replicates that its numbers are means over, such as "training"; empty without replicates."""
    best_for_evaluations: bool = False
    best_for_seconds: bool = False


def costs(table: QualityTable, train_seconds: Mapping[str, float]) -> list[Cost]:
    """The cost of every scored cell, in the order of the grid; `train_seconds` is by cell, of models trained here."""
    if not table.rows:
        return []
    shown, metric = table.frame, table.judged_by
    frame = shown[shown[metric.name].notna() & shown["network_evaluations"].notna()].reset_index(drop=True)
    if frame.empty:
        return []
    means = averaged(frame, table.used_protocols)
    ready = prepared(means.frame, table.used_protocols, (metric.name,))
    names = [*table.arranged(USUAL).settings, "steps", "eta"]
    labels = pd.DataFrame({name: labelled(ready, name, beside=names).map(str) for name in names})
    labels.columns = pd.Index([short_columns(names)[name] for name in names])
    seconds = dict(zip(frame["cell"], frame["seconds"] / frame["num_samples"] * IMAGES, strict=True))
    rows = []
    for row, settings in zip(ready.to_dict("records"), labels.to_dict("records"), strict=True):
        cell = row["cell"]
        members = [member.cell for member in means.members[cell]]
        fid, of_metric = (
            (float(row[m.name]), float(means.errors[m.name][cell] if means.over else row.get(m.sampling_error, nan)))
            for m in (FID, metric)
        )
        cost = Cost(
            cell=cell,
            settings={str(name): value for name, value in settings.items()},
            comparable_by=(row["num_samples"], row["protocol"]),
            metric=metric,
            value=of_metric[0],
            error=of_metric[1],
            fid=fid,
            evaluations=int(row["network_evaluations"]),
            seconds=_mean_of_known(seconds, members),
            train_seconds=_mean_of_known(train_seconds, members),
            over=UNITS[means.over] if means.over else "",
        )
        rows.append(cost)
    sign = -1 if metric.higher_is_better else 1
    by_evaluations = pareto([(cost.comparable_by, cost.evaluations, sign * cost.value) for cost in rows])
    by_seconds = pareto([(cost.comparable_by, cost.seconds, sign * cost.value) for cost in rows])
    marks = zip(rows, by_evaluations, by_seconds, strict=True)
    return [replace(cost, best_for_evaluations=a, best_for_seconds=b) for cost, a, b in marks]


def _mean_of_known(seconds: Mapping[str, float], cells: Sequence[str]) -> float | None:
    """The mean over those of `cells` whose seconds are known; None if none are."""
    known = [seconds[cell] for cell in cells if cell in seconds and seconds[cell] == seconds[cell]]
    return sum(known) / len(known) if known else None


def pareto(points: Sequence[tuple[object, float | None, float]]) -> list[bool]:
    """Whether each of (group, cost, value) is Pareto-optimal in its group; without a cost it is not."""

    def beats(a: tuple[object, float | None, float], b: tuple[object, float | None, float]) -> bool:
        if a[0] != b[0] or a[1] is None or b[1] is None:
            return False
        return a[1] <= b[1] and a[2] <= b[2] and (a[1], a[2]) != (b[1], b[2])

    return [point[1] is not None and not any(beats(other, point) for other in points) for point in points]


def write_costs(costs: Sequence[Cost], folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "cell": cost.cell,
            **cost.settings,
            "fid": cost.fid[0],
            "fid_se": cost.fid[1],
            cost.metric.name: cost.value,
            cost.metric.sampling_error or f"{cost.metric.name}_se": cost.error,
            "evaluations_per_image": cost.evaluations,
            "seconds_per_1000_images": cost.seconds,
            "train_seconds": cost.train_seconds,
            "pareto_evaluations": cost.best_for_evaluations,
            "pareto_seconds": cost.best_for_seconds,
        }
        for cost in costs
    ]
    write_files(folder, "cost", csv=as_csv(pd.DataFrame(rows)), md=costs_markdown(costs))


def costs_table(costs: Sequence[Cost]) -> tuple[list[str], list[list[str]]]:
    """The column headings, and a row for each cell, in the order of the grid."""
    title = costs[0].metric.title
    headings = [*costs[0].settings, title, "evaluations", "seconds", "training seconds", "by evaluations", "by seconds"]
    rows = []
    for cost in costs:
        numbers = [shown_number(cost.value, cost.error), str(cost.evaluations)]
        times = [shown_number(time) for time in (cost.seconds, cost.train_seconds)]
        marks = [OPTIMAL if best else "" for best in (cost.best_for_evaluations, cost.best_for_seconds)]
        rows.append([*cost.settings.values(), *numbers, *times, *marks])
    return headings, rows


def about_costs(costs: Sequence[Cost]) -> str:
    """What the numbers and marks of costs mean."""
    metric, over = costs[0].metric, costs[0].over
    better = f"{'higher' if metric.higher_is_better else 'lower'} {metric.title}"
    of_means = f"Each value is the mean over {over}s; ± is its standard error."
    return ABOUT.format(
        title=metric.title, better=better, errors=of_means if over else "± is one standard error of sampling."
    )


def costs_markdown(costs: Sequence[Cost]) -> str:
    headings, rows = costs_table(costs)
    body = markdown_table(headings, "l" * len(costs[0].settings) + "rrrrcc", rows)
    return f"# Cost beside quality\n\n{about_costs(costs)}\n\n{body}\n"
