"""The rule of the gate: one verdict for a night of many cells, and one for each metric of each cell.

For each metric of each cell, T = (difference - margin) / se, where the difference is the new FID, say, minus the
baseline's and se is its paired standard error; where higher is better, the baseline's minus the new one. It is *worse*
if T is above the night's critical value, *not worse* if the upper end of its interval is below the margin (*better* if
the baseline would be worse than it), and else *undecided*: too few samples. If nothing has changed by more than its
margin, the probability that anything is called worse is at most alpha, whatever the number of cells and metrics: over
all draws of the baseline's samples, which its nights share (docs/nightly.md, "Two stages"). eval/gate/power.py explains
influences and paired errors.

The baseline is one network, or a recipe: k >= 3 training runs (`trainings`) that differ in their seeds. For one network
the errors are those of sampling. For a recipe the difference is to the mean of the k networks, and the variance of a
cell gains s^2 (max(1, FID / mean) + 1 / k), where s is the standard deviation of their FIDs and the mean is theirs. FID
is a squared distance, so the further networks are from the reference, the more their FIDs vary; so are KID, CMMD and
MIND. With s^2 (1 + 1 / k) alone, simulated nights had too many false alarms (docs/decisions.md).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from taugrid.config import Gate
from taugrid.eval.gate.critical import DRAWS, correlation, critical_value, recipe_critical_value
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

MIN_TRAININGS = 3
"""Training runs that make a recipe. With two, their spread would have one degree of freedom."""


class Scored(NamedTuple):
    """One network's cell: a metric of it, and how far each sample moves that, (N,) in the order of the indices."""

    value: float
    influence: Array


def size_of(networks: Sequence[Scored]) -> float:
    """The size of a metric, of which margins are shares: the mean of one network or a recipe's, but at least 2 se."""
    mean = abs(float(np.mean([network.value for network in networks])))
    return max(mean, INDISTINGUISHABLE_FROM_ZERO * math.sqrt(_own_variance(networks)))


def margin_of(networks: Sequence[Scored], share: float, metric: MetricColumn, floor: float = MARGIN_FLOOR) -> float:
    """The regression of a metric that is accepted, in its own unit.

    Args:
        networks: the baseline's network, or all of a recipe.
        share: of the metric's size. 0: no margin at all.
        metric: a distance without bias has a margin of at least `floor`, because it may be 0.
        floor: in standard errors of the baseline's metric.
    """
    of_error = floor * math.sqrt(_own_variance(networks)) if metric.may_be_zero and share else 0.0
    return max(share * size_of(networks), of_error)


def _own_variance(networks: Sequence[Scored]) -> float:
    return float(np.mean([standard_error(network.influence) ** 2 for network in networks]))


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
    trainings: int = 1
    """Number of the baseline's networks, whose FIDs and influences are averaged; the same for all cells."""
    spread: float = 0.0
    """s, the standard deviation of the metric over the baseline's networks (divisor k - 1); 0 for one network."""
    training_slope: float = 0.0
    """s^2 / FID: the growth of the variance between training runs with each unit of a true change."""
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
        baseline: Sequence[Scored],
        margin: float,
        seed_set: Hashable,
        metric: MetricColumn = FID,
    ) -> "Change":
        """The change from the baseline's one network, or from the mean of a recipe's, all with the same noise.

        Args:
            name: the name of the cell.
            new: tonight's network.
            baseline: one network, or all k of a recipe.
            margin: in units of the metric.
            seed_set: the seed set, equal for cells whose sample n has the same noise.
            metric: which of the numbers of a cell it is.

        Raises:
            ValueError: for 0 or 2 baseline networks, or unequal numbers of samples.
        """
        k = len(baseline)
        if k != 1 and k < MIN_TRAININGS:
            raise ValueError(f"a baseline is 1 network or at least {MIN_TRAININGS} trainings, not {k}")
        values = np.array([network.value for network in baseline])
        influence = np.mean([network.influence for network in baseline], axis=0)
        spread = float(values.std(ddof=1)) if k > 1 else 0.0
        worse = -1 if metric.higher_is_better else 1
        # Of a squared distance, variances grow with the distance; other metrics have no such law.
        per_unit = 0.0 if metric.higher_is_better else 1 / (size_of(baseline) or math.inf)
        return cls(
            name,
            worse * (new.value - float(values.mean())),
            margin,
            worse * (new.influence - influence),
            seed_set,
            sampling_slope=VARIANCE_GROWTH * _own_variance(baseline) * per_unit,
            trainings=k,
            spread=spread,
            training_slope=spread**2 * per_unit,
            metric=metric.name,
        )


class CellJudgement(NamedTuple):
    name: str
    metric: str
    verdict: Verdict

    difference: float
    """Positive for a regression, also where higher is better."""
    se: float
    """The standard error of the difference, from sampling, and for a recipe from training too."""
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
        ValueError: if a cell's influences do not vary, or cells differ in their number of training runs.
    """
    if not changes:
        return NightJudgement((), float("nan"), alpha)
    trainings = {change.trainings for change in changes}
    if len(trainings) > 1:
        raise ValueError(f"all cells of a night need the same number of trainings, not {sorted(trainings)}")
    correlations = correlation([change.influence for change in changes], [change.seed_set for change in changes])
    k = trainings.pop()
    critical = critical_value(correlations, alpha, draws) if k == 1 else recipe_critical_value(len(changes), k, alpha)
    standard_errors = standard_errors_for_power(critical, None if k == 1 else k - 1)
    return NightJudgement(tuple(_judged(change, critical, standard_errors) for change in changes), critical, alpha)


def screen(changes: Sequence[Change], alpha: float = ALPHA, draws: int = DRAWS) -> NightJudgement:
    """The screening test of a two-stage procedure, with the usual seeds; cells that are worse get a fresh seed's test.

    The usual seeds are the same every night, so an unlucky seed set would raise the same false alarm every night.
    A fresh seed's verdict, at alpha over these cells, has at most alpha false alarms whatever the usual seeds are: it
    is independent of the screening. The level is `SCREENING`, or alpha where that is larger. Not for a recipe:
    fresh seeds would not change its training runs, whose spread is most of the error.
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


def _judged(change: Change, critical: float, standard_errors: float) -> CellJudgement:
    sampling = Variance(standard_error(change.influence) ** 2, change.sampling_slope)
    training = Variance(change.spread**2 * (1 + 1 / change.trainings), change.training_slope)
    power = DetectionPower(change.margin, standard_errors, sampling, training)
    se = math.sqrt(sampling.at_zero + training.at(change.difference))
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
