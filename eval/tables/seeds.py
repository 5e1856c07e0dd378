"""Replicates, cells that differ only in a seed, and statistics over few seeds.

`train.seed` makes trainings, `seed` makes samplings of one training. If both vary, a training counts with the mean of
its samplings. Arrays have the seeds, or the comparisons of one family, on their last axis.

The best of a column is chosen by the same data, so it is best by luck too: of 20 equal cells, most tables would have
one that differs from it by 1.96 standard errors. `critical_range` and `level_against_best` are limits that all cells as
good as the measured best stay below with a probability of 95 %, so what is above them is worse.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.long_form import axes, score_columns
from taugrid.grids import SEEDS, TRAINING, UNITS
from taugrid.protocol import ProtocolFields, comparability_key
from taugrid.registry.metrics import COLUMNS

LEVEL = 0.05  # the significance level; intervals have the coverage 1 - LEVEL
HALVINGS = 40  # of the bracket of a p-value's logarithm: from 1,000 they lead to 1e-9
DRAWS = 40_000  # simulated columns, which give a level of 5 % to 0.1 %
DRAWS_AT_ONCE = 2_000
SEED = 20_600  # the same column always gets the same limit
MAX_SIMULATED = 60
"""For columns with more cells, the limit is Bonferroni's bound over their pairs, which is safe but less sharp."""


class MeanOverSeeds(NamedTuple):
    """The mean of differences over seeds, with its interval over seeds: arrays, or float64 scalars."""

    mean: Any
    sd: Any  # between seeds; NaN for one seed
    se: Any  # sd / sqrt(n)
    half_width: Any  # of the 95 % interval
    p: Any  # two-sided; NaN where nothing varies


def mean_over_seeds(differences: Array, shared: Array | float = 0.0) -> MeanOverSeeds:
    """The mean of differences (..., n) that are paired by seed, with its interval. With n = 1 only the mean is known.

    The differences' own spread misses what all of them share, such as the noise of one sampling seed. Its standard
    error `shared` (...) is known from N samples, so it is normal, while the spread has n - 1 degrees of freedom. The
    half width is sqrt((t sd / sqrt(n))^2 + (z shared)^2): Student's where nothing is shared, and never narrower than
    that. It covers 95 to 98 % (docs/decisions.md)."""
    n = differences.shape[-1]
    mean = differences.mean(axis=-1)
    unknown = np.full_like(mean, np.nan)[()]
    if n < 2:
        return MeanOverSeeds(mean, unknown, unknown, unknown, unknown)
    sd = differences.std(axis=-1, ddof=1)
    se = sd / np.sqrt(n)
    return MeanOverSeeds(mean, sd, se, half_width(LEVEL, n - 1, se, shared), _p(mean, n - 1, se, shared))


def half_width(level: Array | float, degrees: float, se: Array | float, shared: Array | float) -> Any:
    """Half the width of the interval that misses with the probability `level`: a t's part and a normal one."""
    return np.hypot(special.stdtrit(degrees, level / 2) * se, special.ndtri(level / 2) * shared)


def _p(mean: Array, degrees: int, se: Array, shared: Array | float) -> Any:
    """The level whose interval ends at 0. It lies between those of a normal and of a t with the whole error."""
    whole = np.hypot(se, shared)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviate = np.abs(mean / whole)
        of_t = 2 * special.stdtr(degrees, -deviate)
        if not np.any(np.greater(shared, 0)):
            return np.where(whole > 0, of_t, np.nan)[()]
        below, above = np.log(2) + special.log_ndtr(-deviate), np.log(of_t)
        for _ in range(HALVINGS):
            middle = (below + above) / 2
            reaches = half_width(np.exp(middle), degrees, se, shared) > np.abs(mean)
            below, above = np.where(reaches, middle, below), np.where(reaches, above, middle)
    return np.where(whole > 0, np.where(np.greater(shared, 0), np.exp(above), of_t), np.nan)[()]


def shared_error(of_mean: Array | float, of_each: Array) -> Any:
    """The standard error (...) of the sampling noise that all seeds share, from errors by influences.

    With errors e_i of the seeds' own values, which covary by c on average, the variance of their mean is (mean(var e_i)
    + (n - 1) c) / n. The spread between seeds misses c, which is returned as its root.

    `of_mean` (...) is the standard error over sampling of the mean over seeds, `of_each` (..., n) those of each seed's
    own value. A single seed shares nothing."""
    n = of_each.shape[-1]
    if n < 2:
        return np.zeros_like(of_mean)[()]
    common = (n * np.square(of_mean) - np.mean(np.square(of_each), axis=-1)) / (n - 1)
    return np.sqrt(np.maximum(common, 0.0))[()]


def holm(p: Array) -> NDArray[np.float64]:
    """p-values (..., m) adjusted for the m comparisons of a family (Holm 1979). Rejecting what is below a level keeps
    the probability of any false rejection below that level, however the comparisons depend on each other. NaN stays NaN
    and does not count as a comparison."""
    order = np.argsort(p, axis=-1)  # NaN last
    ascending = np.take_along_axis(p, order, axis=-1)
    count = np.sum(~np.isnan(p), axis=-1, keepdims=True)
    factors = np.maximum(count - np.arange(p.shape[-1]), 1)
    adjusted = np.minimum(np.fmax.accumulate(factors * ascending, axis=-1), 1.0)
    adjusted = np.where(np.isnan(ascending), np.nan, adjusted)
    back = np.empty_like(adjusted)
    np.put_along_axis(back, order, adjusted, axis=-1)
    return back


def two_sided(z: float) -> float:
    """The p-value of a normal deviate."""
    return float(2 * special.ndtr(-abs(z)))


def critical_range(covariance: Array, level: float = LEVEL, counted: NDArray[np.bool_] | None = None) -> float:
    """The c with P(max |Z_i - Z_j| / se_ij > c) = `level` over pairs, for Z ~ N(0, covariance (k, k)), by simulation.

    The covariance is that of the cells' errors, and se_ij^2 = v_i + v_j - 2 c_ij. Pairs of cells with the same samples,
    whose se is 0 but for rounding, don't count, nor do pairs that are not `counted` (k, k), symmetric; None: all are. c
    is 1.96 for two cells at 5 %."""
    k = len(covariance)
    pairs = k * (k - 1) // 2 if counted is None else int(np.triu(counted, 1).sum())
    bound = float(-special.ndtri(level / max(2 * pairs, 2)))
    if pairs <= 1 or k > MAX_SIMULATED:
        return bound
    variances = np.diag(covariance)
    squares = variances[:, None] + variances - 2 * covariance
    errors = np.where(squares > 1e-12 * variances.max(), np.sqrt(np.maximum(squares, 0)), np.inf)
    if counted is not None:
        errors[~counted] = np.inf
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    random = np.random.default_rng(SEED)
    largest = np.zeros(DRAWS)
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        z = root @ random.standard_normal((k, DRAWS_AT_ONCE))
        for i in range(1, k):
            ratios = np.abs(z[:i] - z[i]) / errors[i, :i, None]
            np.maximum(largest[start : start + DRAWS_AT_ONCE], ratios.max(axis=0), out=largest[start:][:DRAWS_AT_ONCE])
    return min(max(float(np.quantile(largest, 1 - level)), float(-special.ndtri(level / 2))), bound)


@cache
def level_against_best(settings: int, seeds: int) -> float:
    """The p-value that the least of k - 1 comparisons with the measured best undercuts in 5 % of columns, if all k are
    equal: of Student's t for differences that are paired by seed, by simulation. The simulated settings are normal and
    vary alike; docs/decisions.md says what others do."""
    bound = LEVEL / max(settings * (settings - 1) / 2, 1)
    if settings <= 2 or settings > MAX_SIMULATED:
        return bound
    random = np.random.default_rng(SEED)
    least = np.empty(DRAWS)
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        values = random.standard_normal((DRAWS_AT_ONCE, settings, seeds))
        best = values.mean(axis=-1).argmin(axis=-1)
        p = mean_over_seeds(values - np.take_along_axis(values, best[:, None, None], axis=1)).p
        least[start : start + DRAWS_AT_ONCE] = np.nanmin(p, axis=-1)  # the best itself has none
    return max(float(np.quantile(least, LEVEL)), bound)


class Replicate(NamedTuple):
    cell: str
    seeds: tuple[Hashable, ...]  # the values of the seeds that vary


class Averaged(NamedTuple):
    """A table in long form without seeds: a row for each group of replicates, under the id of the first."""

    frame: pd.DataFrame
    """Seconds and columns of scores have means over replicates, and errors are standard errors of these means. Without
    replicates, all are unchanged."""
    errors: pd.DataFrame
    """Standard errors of the means: a row for each id, a column for each score. Empty without replicates."""
    spreads: pd.DataFrame  # standard deviations between replicates, as `errors`
    members: Mapping[str, tuple[Replicate, ...]]  # id -> its replicates; none of a setting without scores
    over: str  # the seed key that `errors` are over; empty without replicates

    def _counts(self) -> dict[str, int]:
        """Id -> the number of distinct values of `over` in its group."""
        members = self.members if self.over else {}
        return {cell: len({member.seeds[0] for member in its}) for cell, its in members.items()}

    @property
    def most(self) -> int:
        return max(self._counts().values(), default=0)

    @property
    def fewer(self) -> dict[str, int]:
        """Id -> its number of replicates, for groups with fewer than the largest."""
        most = self.most
        return {cell: count for cell, count in self._counts().items() if 0 < count < most}

    def caption(self) -> str:
        """Explains a value and the numbers after it; empty without replicates."""
        if not self.over:
            return ""
        unit, groups = UNITS[self.over], [{member.seeds for member in members} for members in self.members.values()]
        uneven = ", or of n where it says so" if self.fewer else ""
        single = f" A single {unit} has no ±, and no difference from it is tested." if 1 in self.fewer.values() else ""
        # Trainings that were sampled with the same seed share its noise.
        is_shared = self.over == TRAINING and any(len({its[1:] for its in group}) < len(group) for group in groups)
        shared = " The noise of the sampling seed that they share is not in it." if is_shared else ""
        return (
            f"Each value is the mean of {self.most} {unit}s ({self.over}){uneven}, ± its standard error, that is, the "
            f"standard deviation between {unit}s (in brackets) over the square root of their number.{shared}{single}"
        )


def varying_seeds(frame: pd.DataFrame) -> list[str]:
    """The seeds that have several values."""
    return [seed for seed in SEEDS if seed in frame and frame[seed].nunique(dropna=False) > 1]


def averaged(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields] = {}) -> Averaged:
    """`frame` with the means of replicates in their place; rows stay in the order of each group's first. Replicates
    share every setting, also those of all metrics, and their comparability key."""
    seeds = varying_seeds(frame)
    plain = frame.drop(columns=[seed for seed in SEEDS if seed in frame])
    if not seeds:
        single = {cell: (Replicate(cell, ()),) for cell in frame["cell"]}
        return Averaged(plain, pd.DataFrame(), pd.DataFrame(), single, "")
    settings = [name for name in axes(frame.columns) if name not in SEEDS]
    settings += ["sampler", "spacing", "clip", "num_samples", "sigma", "eta", "steps"]
    settings += ["model"] if TRAINING not in seeds else []
    keys = {name: comparability_key(protocol, COLUMNS) for name, protocol in protocols.items()}
    keyed = frame[settings].assign(protocol=frame["protocol"].map(lambda name: keys.get(name, "")))
    scores = [column for column in score_columns() if column.name in frame]
    firsts, members = [], {}
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    spreads: dict[str, dict[str, float]] = defaultdict(dict)
    for _, part in keyed.groupby([*settings, "protocol"], sort=False, dropna=False):
        group = frame.loc[part.index]
        cell, first = group["cell"].iloc[0], plain.loc[part.index[0]].copy()
        scored = group[group[[column.name for column in scores]].notna().any(axis=1)]
        values = scored[["cell", *seeds]].itertuples(index=False, name=None)
        first["seconds"] = scored["seconds"].mean()  # over those that are known
        members[cell] = tuple(Replicate(str(one), tuple(its)) for one, *its in values)
        for column in scores:
            # Each value of the first seed counts once, with the mean over the other.
            by_seed = group.groupby(seeds[0], sort=False)[column.name].mean().dropna()
            mean = mean_over_seeds(np.array(by_seed if len(by_seed) else [math.nan], dtype=np.float64))
            first[column.name], errors[cell][column.name], spreads[cell][column.name] = mean.mean, mean.se, mean.sd
            if column.error is not None and column.error in frame:
                first[column.error] = mean.se
        firsts.append(first)
    averages = pd.DataFrame(firsts).reset_index(drop=True).astype(plain.dtypes.to_dict())
    standard_errors, deviations = pd.DataFrame.from_dict(errors, "index"), pd.DataFrame.from_dict(spreads, "index")
    return Averaged(averages, standard_errors, deviations, members, seeds[0])
