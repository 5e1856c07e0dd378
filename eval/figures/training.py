"""Figures of training: the loss against the step, and a metric over checkpoints."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from taugrid.eval.figures import drawing
from taugrid.eval.figures.drawing import Styles, Values, legend_name
from taugrid.eval.figures.over_steps import scale_of
from taugrid.eval.tables.differences import BestCheckpoint
from taugrid.eval.tables.labels import SIGMA_HAT, is_number
from taugrid.eval.tables.long_form import CHECKPOINT, FID
from taugrid.eval.tables.pivots import Table, pivot_tables
from taugrid.grids import short_names
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

NAME_WIDTH = 26
"""Characters in a line of a checkpoint's name, below a panel."""
CHARACTER_HEIGHT = 0.036
"""Height in inches that a character of such a name takes, at its angle."""

MAX_ALIKE = 4
"""Checkpoints that a panel's title names beside the best."""

SMOOTHING = 1.25
"""The running mean of a loss at a step is over the steps within this factor of it."""


class Ablation(NamedTuple):
    """One panel of `checkpoints`: a metric and its error by S (index, ascending) and checkpoint (columns)."""

    heading: str
    values: pd.DataFrame
    errors: pd.DataFrame
    best: tuple[str, ...] = ()
    """A line for each S, which names the best checkpoint."""


def checkpoints_figure(
    frame: pd.DataFrame,
    order: Sequence[str],
    protocols: Mapping[str, ProtocolFields] = {},
    best: Sequence[BestCheckpoint] = (),
    metric: MetricColumn = FID,
) -> Figure:
    """A metric over checkpoints, from left to right in `order`: a line for each S, a panel for each eta of each pivot.

    Bars are ±1 standard error. A panel's title names the `best`, and checkpoints that can't be distinguished from them.
    If the names of the checkpoints differ only in a number at their end, it is the training step of the axis.
    """
    pivots = pivot_tables(frame, metric, protocols)
    tables = _over_checkpoints(frame, order, pivots, best)
    lengths = sorted({steps for table in tables for steps in table.values.index})
    styles = drawing.ordered_styles({str(steps): f"$S$ = {steps}" for steps in lengths})
    figure = drawing.panels_figure(tables, _draw, styles, "linear", metric, scale_of(pivots))
    # Names of checkpoints are long, and below a panel they would take its height.
    longest = max(map(len, short_names(order)), default=0)
    rows = math.ceil(len(tables) / drawing.PANELS_ACROSS)
    figure.set_figheight(figure.get_figheight() + rows * CHARACTER_HEIGHT * min(longest, NAME_WIDTH))
    return figure


def training_steps(order: Sequence[str]) -> list[int] | None:
    """The numbers at the end of the checkpoints' names, if the names differ in nothing else."""
    matches = [match for name in order if (match := re.fullmatch(r"(.*?)(\d+)/*", name, re.DOTALL)) is not None]
    is_one_training = len(matches) == len(order) and len({match[1] for match in matches}) == 1
    return [int(match[2]) for match in matches] if is_one_training else None


def _over_checkpoints(
    frame: pd.DataFrame, order: Sequence[str], pivots: Sequence[Table], best: Sequence[BestCheckpoint]
) -> list[Ablation]:
    """An `Ablation` for each eta, over tables that differ only in the checkpoint."""
    shown = frame[frame[CHECKPOINT].isin(order)]
    checkpoint_of = dict(zip(shown["cell"], shown[CHECKPOINT], strict=True))
    points: list[tuple[Any, ...]] = []
    for table in pivots:
        shared = table.heading_without(CHECKPOINT)
        for label, steps in product(table.cells.index, table.cells.columns):
            if (cell := table.cells.at[label, steps]) in checkpoint_of:
                row = f"η = {label}" if is_number(label) or label == SIGMA_HAT else label
                heading = ", ".join(filter(None, [row, shared]))
                value, error = table.values.at[label, steps], table.errors.at[label, steps]
                points.append((heading, steps, checkpoint_of[cell], cell, value, error))
    numbers, texts = training_steps(order), dict[str, str]()
    names = dict(zip(order, map(str, numbers) if numbers else short_names(order), strict=True))
    for one in best:  # such as "S = 10: best 1500 (≈ 1400, 1450)"
        alike = [names[name] for name in one.alike if name in names]
        more = f" and {len(alike) - MAX_ALIKE} more" if len(alike) > MAX_ALIKE else ""
        others = f" (≈ {', '.join(alike[-MAX_ALIKE:])}{more})" if alike else ""
        texts[one.cell] = f"S = {one.steps}: best {names.get(one.checkpoint, one.checkpoint)}{others}"
    columns = ["heading", "steps", "checkpoint", "cell", "value", "error"]
    found = []
    for title, part in pd.DataFrame(points, columns=columns).groupby("heading", sort=False):
        values, errors = (
            part.pivot(index="steps", columns="checkpoint", values=name).reindex(columns=list(order))
            for name in ("value", "error")
        )
        lines = tuple(texts[cell] for cell in part.sort_values("steps")["cell"] if cell in texts)
        found.append(Ablation(str(title), values, errors, lines))
    return found


def _draw(panel: Axes, table: Ablation, styles: Styles) -> None:
    order = [str(checkpoint) for checkpoint in table.values.columns]
    names, numbers = short_names(order), training_steps(order)
    places: Values = np.array(numbers or range(len(names)), dtype=np.float64)
    width = float(np.ptp(places)) if numbers else len(names)
    for steps in table.values.index:
        look, value = styles[str(steps)], table.values.loc[steps]
        there = drawing.has_place(value.to_numpy(), panel.get_yscale())
        if there.any():
            # Leave a gap for a missing value: a line would suggest that one checkpoint leads to the next.
            shown = value.where(there).to_numpy()
            drawing.draw_line(panel, places + look.x_offset * width, shown, table.errors.loc[steps].to_numpy(), look)
    title = [textwrap.fill(line, drawing.TITLE_WIDTH) for line in (table.heading, *table.best)]
    panel.set_title("\n".join(title), parse_math=False)
    if numbers:
        panel.set_xlabel("training step")
        return
    panel.set_xlabel("checkpoint")
    panel.set_xlim(-0.5, len(names) - 0.5)
    lines = [textwrap.fill(name, NAME_WIDTH).replace("$", r"\$") for name in names]
    panel.set_xticks(places, lines, rotation=30, ha="right", rotation_mode="anchor")


def losses_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss against the step, both logarithmic: the logged values in light, their running mean in dark.

    `curves` are the columns `step` and `loss` of log.jsonl, by the model's name in the legend.
    """
    styles = drawing.ordered_styles({name: legend_name(name) for name in curves})
    with drawing.plain_style():
        figure, (panel,) = drawing.make_panels(1, 1)
        for name, log in curves.items():
            step, loss, look = log["step"].to_numpy(), log["loss"].to_numpy(), styles[name]
            raw = panel.plot(step, loss, color=look.colour, linewidth=0.6, alpha=0.3)
            mean = panel.plot(step, running_mean(step, loss), color=look.colour, linewidth=1.5, label=look.name)
            drawing.name_parts(look, [*raw, *mean])
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        panel.set_xlabel("training step")
        panel.set_ylabel("loss")
        drawing.mark_values(panel)
        drawing.legend(figure, styles.values(), below=True)
    return figure


def running_mean(step: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean at each increasing step over the steps within a factor of `SMOOTHING`: uniform on a log scale."""
    sums = np.concatenate([[0.0], loss.cumsum()])
    first, end = np.searchsorted(step, step / SMOOTHING), np.searchsorted(step, step * SMOOTHING, side="right")
    mean: NDArray[np.float64] = (sums[end] - sums[first]) / (end - first)
    return mean
