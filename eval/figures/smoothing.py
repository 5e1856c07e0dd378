"""The running mean of a logged loss. Imports no matplotlib, because pages use it too."""

import numpy as np
from numpy.typing import NDArray

SMOOTHING = 1.25
"""The running mean of a loss at a step is over the steps within this factor of it."""


def running_mean(step: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean at each increasing step over the steps within a factor of `SMOOTHING`: uniform on a log scale."""
    sums = np.concatenate([[0.0], loss.cumsum()])
    first, end = np.searchsorted(step, step / SMOOTHING), np.searchsorted(step, step * SMOOTHING, side="right")
    mean: NDArray[np.float64] = (sums[end] - sums[first]) / (end - first)
    return mean
