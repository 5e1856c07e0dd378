"""Writes what cells cost beside their quality: cost.csv and cost.md."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from taugrid.eval.tables.ablation.cost import IMAGES, Cost
from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.storage import replacing
from taugrid.words import markdown_table

OPTIMAL = "●"
ABOUT = (
    f"{OPTIMAL} marks Pareto-optimal cells: none that can be compared has a lower FID at no more cost. Measured FIDs "
    "decide, so near ties are not told apart. Network evaluations are per image; seconds are those of devices, as "
    f"measured in this run, for sampling {IMAGES:,} images and for the training of the model. Seconds depend on the "
    "machines and on what else they did."
)
OF_MEANS = "Each value is the mean over {over}s; ± is its standard error."
OF_CELLS = "± is one standard error of sampling."


def write_costs(found: Sequence[Cost], folder: Path) -> None:
    """Write cost.{csv,md} into `folder`, each whole or not at all."""
    rows = [
        {
            "cell": cost.cell,
            **cost.settings,
            "fid": cost.fid,
            "fid_se": cost.fid_se,
            "evaluations_per_image": cost.evaluations,
            "seconds_per_1000_images": cost.seconds,
            "train_seconds": cost.train_seconds,
            "pareto_evaluations": cost.best_for_evaluations,
            "pareto_seconds": cost.best_for_seconds,
        }
        for cost in found
    ]
    contents = {"csv": pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"), "md": costs_markdown(found)}
    for suffix, text in contents.items():
        with replacing(folder / f"cost.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def costs_table(found: Sequence[Cost]) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, and a row for each cell, in the order of the grid."""
    heads = [*found[0].settings, "FID", "evaluations", "seconds", "training seconds", "by evaluations", "by seconds"]
    return heads, [_line(cost) for cost in found]


def costs_markdown(found: Sequence[Cost]) -> str:
    """A row for each cell, in the order of the grid."""
    heads, rows = costs_table(found)
    listed = markdown_table(heads, "l" * len(found[0].settings) + "rrrrcc", rows)
    over = found[0].over
    return f"# Cost beside quality\n\n{ABOUT} {OF_MEANS.format(over=over) if over else OF_CELLS}\n\n{listed}\n"


def _line(cost: Cost) -> list[str]:
    marks = [OPTIMAL if best else "" for best in (cost.best_for_evaluations, cost.best_for_seconds)]
    times = [
        MISSING if time is None else write_number(time, math.nan)[0] for time in (cost.seconds, cost.train_seconds)
    ]
    return [
        *cost.settings.values(),
        " ".join(write_number(cost.fid, cost.fid_se)),
        str(cost.evaluations),
        *times,
        *marks,
    ]
