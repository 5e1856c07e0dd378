"""The charts of report.html: the run's figures, each with the numbers that it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from taugrid.eval.figures.ablation.cost import CAPTION, costs_figure
from taugrid.eval.figures.loss import losses_figure, running_mean
from taugrid.eval.figures.over_steps import quality_figure
from taugrid.eval.pages.inline import Chart, chart
from taugrid.eval.pages.measured import Measured
from taugrid.eval.tables.ablation.cost import Cost
from taugrid.eval.tables.ablation.cost_files import costs_table
from taugrid.eval.tables.ablation.replicates import averaged
from taugrid.protocol import ProtocolFields

MOST_POINTS = 60
"""Rows of a model's losses. The log of a training may have thousands."""
MOST_MODELS = 12
ABOUT_COSTS = (
    f"{CAPTION} Measured FIDs decide, so near ties are not told apart. Seconds depend on the machines and on what else "
    "they did."
)


def quality_chart(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields],
    cells: Sequence[Measured],
    published: Sequence[Mapping[str, Any]],
) -> Chart:
    """FID against S; published numbers of the same protocol are dotted.

    Args:
        frame: rows of quality.csv in the order of the grid.
        protocols: the rows' protocols by hash.
        cells: those with an FID.
        published: rows of published.csv.
    """
    theirs = {row["cell"]: float(row["published"]) for row in published if not row["differs"]}
    figure = quality_figure(averaged(frame, protocols).frame, protocols, theirs)
    rows = [(cell.line, str(cell.steps), f"{cell.entry.shown} {cell.entry.mark}".rstrip()) for cell in cells]
    rows += [
        (f"{cell.line}, published", str(cell.steps), f"{theirs[cell.entry.cell]:g}")
        for cell in cells
        if cell.entry.cell in theirs
    ]
    return chart(figure, "steps", "FID against sampling steps S", ("row", "S", "FID"), rows)


def cost_chart(found: Sequence[Cost]) -> Chart:
    """FID against network evaluations and seconds."""
    said = "FID against network evaluations and device seconds"
    return chart(costs_figure(found), "cost", said, *costs_table(found))


def loss_chart(logs: Mapping[str, pd.DataFrame]) -> Chart:
    """The losses of the first `MOST_MODELS` models.

    Args:
        logs: the columns `step` and `loss` of log.jsonl, by what the model is called.
    """
    shown = dict(list(logs.items())[:MOST_MODELS])
    rows = [row for name, log in shown.items() for row in _losses(name, log)]
    said = "training loss against the step"
    return chart(losses_figure(shown), "loss", said, ("model", "step", "loss (running mean)"), rows)


def _losses(name: str, log: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The running mean at steps that are equally far apart on a logarithmic scale."""
    step, loss = log["step"].to_numpy(), log["loss"].to_numpy()
    mean = running_mean(step, loss)
    wanted = np.geomspace(max(1, step[0]), step[-1], MOST_POINTS) if len(step) else step
    places = sorted({min(int(np.searchsorted(step, value)), len(step) - 1) for value in wanted})
    return [(name, f"{step[i]:,}", f"{mean[i]:.4g}") for i in places]
