"""Agreement: how often a classifier puts an image in the class that was asked for. Everything is float64.

It is the accuracy of a classifier on samples (Ravuri and Vinyals 2019 turn it round: CAS trains on samples).
"""

import math

import numpy as np

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import LEAST_CARRYING, Array


def compute_agreement(inputs: MetricInputs) -> MetricResult:
    if inputs.logits is None:
        raise ValueError("agreement needs logits, but there are none")
    chosen = np.concatenate([run.argmax(axis=1) for run in inputs.logits()])
    labels = inputs.columns["label"]
    if len(chosen) != len(labels):
        raise ValueError(f"there must be {len(labels)} vectors of logits, not {len(chosen)}")
    agrees: Array = (chosen == labels).astype(np.float64)
    share = float(agrees.mean())
    return MetricResult({"agreement": share, "agreement_se": binomial_error(agrees)}, {"agreement": agrees})


def binomial_error(agrees: Array) -> float:
    """sqrt(p (1 - p) / N) of the share p of ones in `agrees` (N,).

    Where fewer than `LEAST_CARRYING` agree, or don't, that would rest on luck, or be 0. Then it is the standard
    deviation of p given the counts, if all p are equally probable before: that of a beta distribution.
    """
    n, ones = len(agrees), float(agrees.sum())
    if min(ones, n - ones) >= LEAST_CARRYING:
        p = ones / n
        return math.sqrt(p * (1 - p) / n)
    p = (ones + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / (n + 3))
