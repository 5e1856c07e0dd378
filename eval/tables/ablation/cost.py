"""Cost beside quality: what a cell's images and its training took, and which cells are Pareto-optimal.

A cell is Pareto-optimal if no cell that can be compared with it has a lower FID at no more cost, or an equal one at
less. Measured FIDs decide: near ties are not told apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from taugrid.eval.tables.ablation.one_table import labelled, settings_in_rows
from taugrid.eval.tables.ablation.replicates import UNITS, averaged
from taugrid.eval.tables.long_form import in_grid_order
from taugrid.eval.tables.pivots import prepared, short_columns
from taugrid.protocol import ProtocolFields

IMAGES = 1_000
"""Seconds of sampling are for as many images."""


@dataclass(frozen=True)
class Cost:
    """A row of cost.csv: a cell, or the mean over its replicates."""

    cell: str
    """The id, of the first replicate."""
    settings: Mapping[str, str]
    """All settings that vary, S and eta, by their names for people."""
    apart: tuple[object, ...]
    """N and kind of protocol: cells that differ in it can't be compared."""
    fid: float
    fid_se: float
    evaluations: int
    """Network evaluations for an image."""
    seconds: float | None
    """On devices, for `IMAGES` images. Measured, so outside any promise of equality."""
    train_seconds: float | None
    """On devices, for the training of its model; None if it was not trained here."""
    over: str = ""
    """What its numbers are means over and `fid_se` is the error of, such as "training"; empty without replicates."""
    best_for_evaluations: bool = False
    best_for_seconds: bool = False


def costs(
    rows: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, ProtocolFields],
    train_seconds: Mapping[str, float],
) -> list[Cost]:
    """The cost of every scored cell, in the order of the grid; replicates are averaged.

    Args:
        rows: rows of quality.csv, in the order of the grid; those without an FID only say which settings vary.
        protocols: the rows' protocols by hash.
        train_seconds: cell -> seconds on devices, of models that were trained here.
    """
    scored = [row for row in rows if row["fid"] is not None and row["network_evaluations"] is not None]
    if not scored:
        return []
    frame, every = in_grid_order(scored), in_grid_order(rows)
    means = averaged(frame, protocols)
    ready = prepared(means.frame, protocols)
    names = [*settings_in_rows(every, protocols), "steps", "eta"]
    labels = pd.DataFrame({name: labelled(ready, name).map(str) for name in names})
    labels.columns = pd.Index([short_columns(names)[name] for name in names])
    sampling_seconds = {
        row["cell"]: row["seconds"] / row["num_samples"] * IMAGES for row in scored if row["seconds"] is not None
    }
    found = []
    for (_, row), settings in zip(ready.iterrows(), labels.to_dict("records"), strict=True):
        members = [member.cell for member in means.members[row["cell"]]]
        cost = Cost(
            cell=row["cell"],
            settings={str(name): value for name, value in settings.items()},
            apart=(row["num_samples"], row["protocol"]),
            fid=float(row["fid"]),
            fid_se=float(row["fid_se"]),
            evaluations=int(row["network_evaluations"]),
            seconds=_mean_of_known(sampling_seconds, members),
            train_seconds=_mean_of_known(train_seconds, members),
            over=UNITS[means.over] if means.over else "",
        )
        found.append(cost)
    return _marked(found)


def _mean_of_known(seconds: Mapping[str, float], cells: Sequence[str]) -> float | None:
    """The mean over those of `cells` whose seconds are known; None if none are."""
    return _mean([seconds[cell] for cell in cells if cell in seconds])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _marked(found: Sequence[Cost]) -> list[Cost]:
    by_evaluations = pareto([(cost.apart, cost.evaluations, cost.fid) for cost in found])
    by_seconds = pareto([(cost.apart, cost.seconds, cost.fid) for cost in found])
    marks = zip(found, by_evaluations, by_seconds, strict=True)
    return [Cost(**{**vars(c), "best_for_evaluations": a, "best_for_seconds": b}) for c, a, b in marks]


def pareto(points: Sequence[tuple[object, float | None, float]]) -> list[bool]:
    """Whether each of (group, cost, value) is Pareto-optimal in its group; without a cost it is not."""

    def beats(a: tuple[object, float | None, float], b: tuple[object, float | None, float]) -> bool:
        if a[0] != b[0] or a[1] is None or b[1] is None:
            return False
        return a[1] <= b[1] and a[2] <= b[2] and (a[1], a[2]) != (b[1], b[2])

    return [point[1] is not None and not any(beats(other, point) for other in points) for point in points]
