"""The figure of training: the loss against the step."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from taugrid.eval.figures.drawing import (
    legend,
    legend_name,
    make_panels,
    mark_values,
    name_parts,
    ordered_styles,
    plain_style,
    x_offsets,
)

SMOOTHING = 1.25
"""The running mean of a loss at a step is over the steps within this factor of it."""


def losses_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss against the step, both logarithmic: the logged values in light, their running mean in dark.

    Args:
        curves: the columns `step` and `loss` of log.jsonl, by the model's name in the legend.
    """
    styles = ordered_styles({name: legend_name(name) for name in curves}, x_offsets(len(curves)))
    with plain_style():
        figure, (panel,) = make_panels(1, 1)
        for name, log in curves.items():
            step, loss, look = log["step"].to_numpy(), log["loss"].to_numpy(), styles[name]
            raw = panel.plot(step, loss, color=look.colour, linewidth=0.6, alpha=0.3)
            mean = panel.plot(step, running_mean(step, loss), color=look.colour, linewidth=1.5, label=look.name)
            name_parts(look, [*raw, *mean])
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        panel.set_xlabel("training step")
        panel.set_ylabel("loss")
        mark_values(panel)
        legend(figure, styles.values(), below=True)
    return figure


def running_mean(step: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean at each increasing step over the steps within a factor of `SMOOTHING`: uniform on a log scale."""
    sums = np.concatenate([[0.0], loss.cumsum()])
    first, end = np.searchsorted(step, step / SMOOTHING), np.searchsorted(step, step * SMOOTHING, side="right")
    mean: NDArray[np.float64] = (sums[end] - sums[first]) / (end - first)
    return mean
