"""The chart of training: the running mean of the loss against the step."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from taugrid.eval.figures.smoothing import running_mean
from taugrid.eval.pages.charts.chart import ChartLine, ChartLook, ChartPoint, chart, looks
from taugrid.eval.pages.charts.quality import Charts

MOST_POINTS = 60
"""Of a curve. The log of a training may have thousands."""
MOST_MODELS = 12


def loss_charts(curves: Mapping[str, pd.DataFrame]) -> Charts:
    """One chart of the first `MOST_MODELS` curves.

    Args:
        curves: the columns `step` and `loss` of log.jsonl, by what the model is called.
    """
    shown = dict(list(curves.items())[:MOST_MODELS])
    styles = looks(shown)
    lines = [_curve(name, log, styles[name]) for name, log in shown.items()]
    drawn = chart("", ("training step", "loss (running mean)"), lines, ("model", "step", "loss"))
    return Charts((drawn,), tuple(styles.items()))


def _curve(name: str, log: pd.DataFrame, look: ChartLook) -> ChartLine:
    step, mean = log["step"].to_numpy(), running_mean(log["step"].to_numpy(), log["loss"].to_numpy())
    wanted = np.geomspace(max(1, step[0]), step[-1], MOST_POINTS) if len(step) else step
    places = sorted({min(int(np.searchsorted(step, value)), len(step) - 1) for value in wanted})
    points = [
        ChartPoint(float(step[i]), float(mean[i]), math.nan, (name, f"{step[i]:,}", f"{mean[i]:.4g}")) for i in places
    ]
    return ChartLine(name, look, points, "curve")
