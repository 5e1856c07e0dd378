"""The rule of the gate: one verdict for a night of many cells, and one for each metric of each cell.

For each metric of each cell, T = (difference - margin) / se, where the difference is the new FID, say, minus the
baseline's and se is its paired standard error; where higher is better, the baseline's minus the new one. It is *worse*
if T is above the night's critical value, *not worse* if the upper end of its interval is below the margin (*better* if
the baseline would be worse than it), and else *undecided*: too few samples. If nothing has changed by more than its
margin, the probability that anything is called worse is at most alpha, whatever the number of cells and metrics: over
all draws of the baseline's samples, which its nights share (docs/nightly.md, "Two stages").

The critical value is the quantile of the largest of many correlated normal variables. If each cell were tested at alpha
alone, 20 independent ones would raise a false alarm in 18 % of nights at alpha = 1 %. The quantile of the largest loses
less power than Bonferroni's bound where tests are correlated, as cells of one network and metrics of one cell are.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from taugrid.config import Gate
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.metrics.statistics import LEAST_CARRYING, Array, standard_error
from taugrid.registry.metrics import METRICS, MetricColumn

FID = METRICS["fid"].columns[0]

ALPHA = 0.01  # false alarms: the share of nights without a change beyond the margin in which some cell is called worse

MARGIN = 0.02
"""The margin as a share of the baseline's metric. New weights are never exactly equal to the old ones, and the paired
error shrinks with the change, so without a margin a change without consequence would raise an alarm."""

MARGIN_FLOOR = Gate().margin_floor
"""`gate.margin_floor`, where no config names another. A simulation, tests/unit/nights_of_kid.py, chose its default."""

INDISTINGUISHABLE_FROM_ZERO = 2.0
"""Shares are of a metric's value, or of this many of its standard errors if they are more. KID is without bias, so that
of a good network may be 0 or negative, and a share of it no margin. FID is always many standard errors from 0."""

SCREENING = 0.10
"""The level of the screening test, with a night's usual seeds, which selects cells for a test with a fresh seed."""

BEYOND_CHANCE = 5.0  # two estimates of one number differ by chance by this many standard errors in 3 of 10^7 cells

MAX_ERROR_RATIO = 3.0
"""A cell's error with the usual seeds over that with a fresh one: a larger ratio is not due to chance."""

POWER = 0.80  # the probability with which a regression of `DetectionPower.detectable` is called worse

VARIANCE_GROWTH = 0.7
"""The growth of the paired error's square with D / FID, in units of the square of the baseline's own error."""

DRAWS = 200_000
"""Simulated nights. At alpha = 1 % they give the quantile to 0.01 standard errors, and alpha to 2 % of itself."""

DRAWS_AT_ONCE = 20_000  # simulated nights in memory at a time
SEED = 20_600  # fixed, so that the same night always gets the same critical value


class Scored(NamedTuple):
    """One network's cell: a metric of it, and how far each sample moves that, (N,) in the order of the indices."""

    value: float
    influence: Array


def size_of(baseline: Scored) -> float:
    """The size of a metric, of which margins are shares: its absolute value, but at least 2 standard errors."""
    return max(abs(baseline.value), INDISTINGUISHABLE_FROM_ZERO * standard_error(baseline.influence))


def margin_of(baseline: Scored, share: float, metric: MetricColumn, floor: float = MARGIN_FLOOR) -> float:
    """The regression of a metric that is accepted, in its own unit: a `share` of its size, 0 for no margin at all. A
    distance without bias, which may be 0, has a margin of at least `floor` standard errors of the baseline's metric."""
    of_error = floor * standard_error(baseline.influence) if metric.may_be_zero and share else 0.0
    return max(share * size_of(baseline), of_error)


@dataclass(frozen=True, eq=False)
class Change:
    """How much worse one metric of a cell is than the baseline's; `Change.between` makes it."""

    name: str
    difference: float  # positive for a regression, also where higher is better
    margin: float  # the non-inferiority margin: the regression that is accepted
    influence: Array  # (N,): how far each sample moves the difference, in the order of the indices
    seed_set: Hashable  # equal for cells whose sample n has the same noise
    sampling_slope: float = 0.0  # `Variance.slope`
    metric: str = "fid"  # its column in quality.csv
    only_worse: bool = False
    """The new value alone has no standard error, because that would rest on too few samples: the verdict is worse or
    none, and T leaves out what the `LEAST_CARRYING` samples for the worse add to the difference. A baseline that has an
    error happens to lack such samples, so with them nights of equal networks would alarm more often than alpha."""

    @classmethod
    def between(
        cls, name: str, new: Scored, baseline: Scored, margin: float, seed_set: Hashable, metric: MetricColumn = FID
    ) -> "Change":
        """The change of a cell from the baseline's network, with the same noise and number of samples."""
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


class Variance(NamedTuple):
    """The variance of a difference as a function of the true change D, which a regression makes larger.

    An influence phi(x) says how far sample x moves an FID; the paired error se of a difference is the standard error of
    the mean of phi_new - phi_baseline. A network that is worse by D has other influences than the baseline, so

        se(D)^2 = se^2 + slope * D,    slope = `VARIANCE_GROWTH` * fid_se^2 / fid, both of the baseline's FID alone.

    The form comes from an FID of |delta|^2, where delta leads from the mean of the reference's features to m, that of
    the samples'. Moving m by Delta at right angles to delta gives D = |Delta|^2 and changes the influences,
    2 delta . (x - m), by 2 Delta . (x - m). Where features vary alike in all directions, the variances of the two have
    the ratio D / FID. tests/unit/worse_networks.py simulates how well this holds for other changes. KID,
    CMMD and MIND are squared distances as well and grow by the same law; the factor was measured for FID alone.
    """

    at_zero: float
    slope: float = 0.0

    def at(self, change: float) -> float:
        """The variance at a true change; an improvement has that of no change."""
        return self.at_zero + self.slope * max(0.0, change)


@dataclass(frozen=True)
class DetectionPower:
    """Which regressions of a cell are detected. A comparison's JSON has these fields."""

    margin: float
    errors: float  # by how many standard errors a change must exceed the margin to be called worse with `POWER`
    sampling: Variance  # from drawing N samples; it shrinks with N

    @property
    def detectable(self) -> float:
        """The smallest true change D that is called worse with probability `POWER`. It solves D - margin = errors *
        sampling.at(D)^1/2, a quadratic equation in D - margin."""
        square = self.errors**2
        half = square * self.sampling.slope / 2
        return self.margin + half + math.sqrt(half**2 + square * self.sampling.at(self.margin))

    def samples_needed(self, num_samples: int, regression: float) -> int | None:
        """The N at which `regression` is called worse with probability `POWER`, rounded up to two digits. `num_samples`
        is the N that `sampling` is for. None: no N would do, as the regression is within the margin."""
        if regression <= self.margin:
            return None
        variance_budget = ((regression - self.margin) / self.errors) ** 2
        return rounded_up(num_samples * self.sampling.at(regression) / variance_budget)

    def samples_to_decide(self, num_samples: int) -> int | None:
        """The N at which an equal network is called not worse with probability `POWER`, rounded up to two digits. The
        margin stays as it is. None if no N above `num_samples`, which `sampling` is for, is needed or would do."""
        if self.margin <= 0:
            return None
        needed = rounded_up(num_samples * self.sampling.at_zero * (self.errors / self.margin) ** 2)
        return needed if needed > num_samples else None


class CellJudgement(NamedTuple):
    """The verdict on one metric of a cell."""

    name: str
    metric: str
    verdict: Verdict
    difference: float  # positive for a regression, also where higher is better
    se: float  # the paired standard error of the difference
    margin: float
    t: float
    upper: float  # the true change is below it with a probability of 1 - alpha, for all cells and metrics at once
    detectable: float  # the smallest true change that would have been called worse with a probability of 80 %
    reach: DetectionPower  # `detectable` and the N that a given regression needs are computed from it


class NightJudgement(NamedTuple):
    """The verdicts on all cells."""

    cells: tuple[CellJudgement, ...]
    critical: float  # the value that T has to exceed; NaN without cells
    alpha: float

    @property
    def worse(self) -> list[CellJudgement]:
        return [cell for cell in self.cells if cell.verdict is Verdict.WORSE]


def judge(changes: Sequence[Change], alpha: float = ALPHA, draws: int = DRAWS) -> NightJudgement:
    """The verdicts on `changes`, with at most `alpha` false alarms for all of them together.

    Their joint influences say how the errors of cells and metrics correlate. A cell with the same samples on both sides
    must not be among them: nothing about it is random. `draws` is the number of nights that `critical_value` simulates.
    Raises `ValueError` if a cell's influences do not vary."""
    if not changes:
        return NightJudgement((), float("nan"), alpha)
    correlations = correlation([change.influence for change in changes], [change.seed_set for change in changes])
    critical = critical_value(correlations, alpha, draws)
    return NightJudgement(tuple(_judged(change, critical) for change in changes), critical, alpha)


def screen(changes: Sequence[Change], alpha: float = ALPHA, draws: int = DRAWS) -> NightJudgement:
    """The screening test of a two-stage procedure, with the usual seeds; cells that are worse get a fresh seed's test.

    The usual seeds are the same every night, so an unlucky seed set would raise the same false alarm every night. A
    fresh seed's verdict, at alpha over these cells, has at most alpha false alarms whatever the usual seeds are: it is
    independent of the screening. The level is `SCREENING`, or alpha where that is larger."""
    return judge(changes, max(SCREENING, alpha), draws)


def is_denied(usual: tuple[float, float], fresh: tuple[float, float]) -> bool:
    """Whether a fresh seed contradicts a regression with the usual seeds by more than chance explains. A fault of
    today's code can do this. With the usual seeds the baseline's samples were made earlier, by sound code; with a fresh
    seed today's code samples both networks, so the fault cancels. Both sides are (difference, its error)."""
    gap = usual[0] - fresh[0]
    return gap > BEYOND_CHANCE * math.hypot(usual[1], fresh[1]) or usual[1] > MAX_ERROR_RATIO * fresh[1]


def correlation(influences: Sequence[Array], seed_sets: Sequence[Hashable]) -> Array:
    """(k, k), the correlation of the mean influences of k cells, or metrics of them: the errors of their differences.

    `influences` has (N_i,) for each. Samples n of two cells with equal seed sets share their noise; others are
    independent. Cells with one seed set may differ in N: they share the first samples. Raises `ValueError` if a cell's
    influences do not vary."""
    unit = []
    for influence in influences:
        centred = influence - influence.mean()
        length = float(np.linalg.norm(centred))
        if length == 0:
            raise ValueError("a cell's influences do not vary, so its difference has no error")
        unit.append(centred / length)
    correlations = np.eye(len(unit))
    for i, first in enumerate(unit):
        for j in range(i):
            if seed_sets[i] == seed_sets[j]:
                common = min(len(first), len(unit[j]))
                correlations[i, j] = correlations[j, i] = first[:common] @ unit[j][:common]
    return correlations


def critical_value(correlations: Array, alpha: float, draws: int = DRAWS) -> float:
    """The c with P(max Z > c) = alpha for Z ~ N(0, R): by simulation, and never beyond Bonferroni's bound.
    `correlations` is R, (k, k), which may be singular: cells can have the same samples. `alpha`, in (0, 1), is the
    probability of at least one false alarm in the whole night."""
    k = len(correlations)
    alone, bound = -NormalDist().inv_cdf(alpha), -NormalDist().inv_cdf(alpha / k)
    if k == 1:
        return alone
    values, vectors = np.linalg.eigh(correlations)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    random, largest = np.random.default_rng(SEED), list[Array]()
    for start in range(0, draws, DRAWS_AT_ONCE):
        largest.append((random.standard_normal((min(DRAWS_AT_ONCE, draws - start), k)) @ root.T).max(axis=1))
    return min(max(float(np.quantile(np.concatenate(largest), 1 - alpha)), alone), bound)


def _judged(change: Change, critical: float) -> CellJudgement:
    se = standard_error(change.influence)
    power = DetectionPower(change.margin, standard_errors_for_power(critical), Variance(se**2, change.sampling_slope))
    by_few = 0.0
    if change.only_worse:  # what the largest of all influences add to the mean
        largest = np.sort(change.influence - change.influence.mean())[-LEAST_CARRYING:]
        by_few = float(largest.clip(0).sum()) / len(change.influence)
    t = (change.difference - by_few - change.margin) / se
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


def standard_errors_for_power(critical: float) -> float:
    """The number of standard errors by which a true T must exceed 0 to exceed `critical` with probability `POWER`."""
    return critical + NormalDist().inv_cdf(POWER)


def rounded_up(n: float) -> int:
    """`n` with two significant digits, rounded up."""
    unit: int = 10 ** max(0, math.floor(math.log10(n)) - 1)
    return math.ceil(n / unit) * unit
