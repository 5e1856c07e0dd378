"""The rule of the gate: one verdict for a night of many cells, and one for each metric of each cell.

For each metric of each cell, T = (difference - margin) / se, where the difference is the new FID, say, minus the
baseline's and se is its paired standard error; where higher is better, the baseline's minus the new one. It is *worse*
if T is above the night's critical value, *not worse* if the upper end of its interval is below the margin (*better* if
the baseline would be worse than it), and else *undecided*: too few samples. If nothing has changed by more than its
margin, the probability that anything is called worse is at most alpha, whatever the number of cells and metrics: over
all draws of the baseline's samples, which its nights share (docs/nightly.md, "Two stages"). eval/gate/power.py explains
influences and paired errors.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from taugrid.config import Gate
from taugrid.eval.gate.critical import DRAWS, correlation, critical_value
from taugrid.eval.gate.power import VARIANCE_GROWTH, DetectionPower, Variance, standard_errors_for_power
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.metrics.statistics import LEAST_CARRYING, Array, standard_error
from taugrid.registry.metrics import METRICS, MetricColumn

FID = METRICS["fid"].columns[0]

ALPHA = 0.01
"""False alarms: the share of nights without a change beyond the margin in which some cell is called worse."""

MARGIN = 0.02
"""The margin as a share of the baseline's metric. New weights are never exactly equal to the old ones, and the paired
error shrinks with the change, so without a margin a change without consequence would raise an alarm."""

MARGIN_FLOOR = Gate().margin_floor
"""`gate.margin_floor`, where no config names another. `python -m benchmarks.gate --parts floors` chose its default."""

INDISTINGUISHABLE_FROM_ZERO = 2.0
"""Shares are of a metric's value, or of this many of its standard errors if they are more. KID is without bias, so that
of a good network may be 0 or negative, and a share of it no margin. FID is always many standard errors from 0."""

SCREENING = 0.10
"""The level of the screening test, with a night's usual seeds, which selects cells for a test with a fresh seed."""


class Scored(NamedTuple):
    """One network's cell: a metric of it, and how far each sample moves that, (N,) in the order of the indices."""

    value: float
    influence: Array


def size_of(baseline: Scored) -> float:
    """The size of a metric, of which margins are shares: its absolute value, but at least 2 standard errors."""
    return max(abs(baseline.value), INDISTINGUISHABLE_FROM_ZERO * standard_error(baseline.influence))


def margin_of(baseline: Scored, share: float, metric: MetricColumn, floor: float = MARGIN_FLOOR) -> float:
    """The regression of a metric that is accepted, in its own unit.

    Args:
        baseline: the baseline's network.
        share: of the metric's size. 0: no margin at all.
        metric: a distance without bias has a margin of at least `floor`, because it may be 0.
        floor: in standard errors of the baseline's metric.
    """
    of_error = floor * standard_error(baseline.influence) if metric.may_be_zero and share else 0.0
    return max(share * size_of(baseline), of_error)


@dataclass(frozen=True, eq=False)
class Change:
    """How much worse one metric of a cell is than the baseline's; `Change.between` makes it."""

    name: str
    difference: float
    """The new FID, say, minus the baseline's; the baseline's minus the new one where higher is better."""
    margin: float
    """The non-inferiority margin: the regression that is accepted."""
    influence: Array
    """(N,): how far each sample moves the difference, phi_new - phi_baseline, in the order of the indices."""
    seed_set: Hashable
    """The seed set: equal for cells whose sample n has the same noise."""
    sampling_slope: float = 0.0
    """The growth of the difference's sampling variance with each unit of a true change, see eval/gate/power.py."""
    metric: str = "fid"
    """Its column in quality.csv."""
    only_worse: bool = False
    """The new value alone has no standard error, because that would rest on too few samples: the verdict is worse or
    none, and T leaves out what the `LEAST_CARRYING` samples for the worse add to the difference. A baseline that has an
    error happens to lack such samples, so with them nights of equal networks would alarm more often than alpha."""

    @classmethod
    def between(
        cls,
        name: str,
        new: Scored,
        baseline: Scored,
        margin: float,
        seed_set: Hashable,
        metric: MetricColumn = FID,
    ) -> "Change":
        """The change from the baseline's network.

        Args:
            name: the name of the cell.
            new: tonight's network.
            baseline: the baseline's, with the same noise and number of samples.
            margin: in units of the metric.
            seed_set: the seed set, equal for cells whose sample n has the same noise.
            metric: which of the numbers of a cell it is.
        """
        worse = -1 if metric.higher_is_better else 1
        # Of a squared distance, variances grow with the distance; other metrics have no such law.
        per_unit = 0.0 if metric.higher_is_better else 1 / (size_of(baseline) or math.inf)
        return cls(
            name,
            worse * (new.value - baseline.value),
            margin,
            worse * (new.influence - baseline.influence),
            seed_set,
            sampling_slope=VARIANCE_GROWTH * standard_error(baseline.influence) ** 2 * per_unit,
            metric=metric.name,
        )


class CellJudgement(NamedTuple):
    name: str
    metric: str
    verdict: Verdict

    difference: float
    """Positive for a regression, also where higher is better."""
    se: float
    """The paired standard error of the difference."""
    margin: float
    t: float
    upper: float
    """The upper end of the interval: the true change is below it with a probability of 1 - alpha, for all cells and
    metrics at once."""
    detectable: float
    """The smallest true change that would have been called worse with a probability of 80 %."""
    reach: DetectionPower
    """`detectable` and the N that a given regression needs are computed from it."""


class NightJudgement(NamedTuple):
    cells: tuple[CellJudgement, ...]
    critical: float
    """The value that T has to exceed; NaN without cells."""
    alpha: float

    @property
    def worse(self) -> list[CellJudgement]:
        return [cell for cell in self.cells if cell.verdict is Verdict.WORSE]


def judge(changes: Sequence[Change], alpha: float = ALPHA, draws: int = DRAWS) -> NightJudgement:
    """The verdicts on `changes`, with at most `alpha` false alarms for all of them together.

    Their joint influences say how the errors of cells and metrics correlate. A cell with the same samples on both sides
    must not be among them: nothing about it is random. `draws` is the number of nights that `critical_value` simulates.

    Raises:
        ValueError: if a cell's influences do not vary.
    """
    if not changes:
        return NightJudgement((), float("nan"), alpha)
    correlations = correlation([change.influence for change in changes], [change.seed_set for change in changes])
    critical = critical_value(correlations, alpha, draws)
    return NightJudgement(tuple(_judged(change, critical) for change in changes), critical, alpha)


def screen(changes: Sequence[Change], alpha: float = ALPHA, draws: int = DRAWS) -> NightJudgement:
    """The screening test of a two-stage procedure, with the usual seeds; cells that are worse get a fresh seed's test.

    The usual seeds are the same every night, so an unlucky seed set would raise the same false alarm every night.
    A fresh seed's verdict, at alpha over these cells, has at most alpha false alarms whatever the usual seeds are: it
    is independent of the screening. The level is `SCREENING`, or alpha where that is larger.
    """
    return judge(changes, max(SCREENING, alpha), draws)


BEYOND_CHANCE = 5.0
"""Two estimates of one number differ by chance by this many standard errors in 3 of 10^7 cells."""

MAX_ERROR_RATIO = 3.0
"""A cell's error with the usual seeds over that with a fresh one: a larger ratio is not due to chance."""


def is_denied(usual: tuple[float, float], fresh: tuple[float, float]) -> bool:
    """Whether a fresh seed contradicts a regression with the usual seeds by more than chance explains.

    A fault of today's code can do this. With the usual seeds the baseline's samples were made earlier, by sound code;
    with a fresh seed today's code samples both networks, so the fault cancels.

    Args:
        usual: the cell's difference with the usual seeds, and its error.
        fresh: the same with a fresh seed.
    """
    gap = usual[0] - fresh[0]
    return gap > BEYOND_CHANCE * math.hypot(usual[1], fresh[1]) or usual[1] > MAX_ERROR_RATIO * fresh[1]


def _by_few(influence: Array) -> float:
    """What the `LEAST_CARRYING` largest of all influences (N,) add to a mean."""
    return float(np.sort(influence - influence.mean())[-LEAST_CARRYING:].clip(0).sum()) / len(influence)


def _judged(change: Change, critical: float) -> CellJudgement:
    se = standard_error(change.influence)
    power = DetectionPower(change.margin, standard_errors_for_power(critical), Variance(se**2, change.sampling_slope))
    t = (change.difference - (_by_few(change.influence) if change.only_worse else 0.0) - change.margin) / se
    if t > critical:
        verdict = Verdict.WORSE
    elif -(change.difference + change.margin) / se > critical:
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.NOT_WORSE if t < -critical else Verdict.UNDECIDED
    if change.only_worse and verdict is not Verdict.WORSE:
        verdict = Verdict.NOT_JUDGED
    numbers = (change.difference, se, change.margin, t, change.difference + critical * se, power.detectable)
    return CellJudgement(change.name, change.metric, verdict, *numbers, power)
