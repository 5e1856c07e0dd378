"""What the nightly gate sees of networks that are really worse, and what frozen seeds hide from it.

One cell of a night of `CELLS`. A network turns the noise z of a sample into a latent a z + b w, and that into features;
w is the network's own. So two networks have the same true FID, until one is made worse: its features are changed in one
of `WAYS`, by as much as raises FID by the change in question. Nothing is added to an estimate, and the influences are
those of the changed features.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from benchmarks.gate_worlds import MIXING, D, rate
from taugrid.eval.gate.rule import (
    ALPHA,
    MARGIN,
    SCREENING,
    CellJudgement,
    Change,
    Scored,
    Variance,
    critical_value,
    judge,
    rounded_up,
)
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root

EXAMPLE_EFFECT_SE = 3.0
"""What frozen seeds hide is measured for a regression of this many standard errors."""
CELLS, CORRELATION = 12, 0.4
"""Of a night, and of its cells' errors: they give the critical values."""
POPULATION = 200_000
SIZES = (300, 2_000)
OWN = (0.6, 0.2)
"""How much of a sample is of its network alone (b): far apart, as after much more training, and near."""
CALIBRATED = 300
"""Nights by which a way's strength is found."""
MORE = (600, 700, 800, 900, 1_000, 1_200)
DRIFTS, LONG = (0.0, 0.1, 1.0), 20
"""Frozen misses: the share of the variance of w that is new each night, and the nights of a block."""


class Cell:
    """A network's features, and their reference.

    Args:
        far: FID is far above its bias: the reference is wider and elsewhere. Else the features follow it.
        skewed: log-normal features in place of Gaussian ones.
    """

    def __init__(self, far: bool, skewed: bool) -> None:
        self.skewed = skewed
        features = self.features(np.random.default_rng(1).standard_normal((POPULATION, D)))
        self.mean, self.typical = features.mean(axis=0), self.features(np.zeros((1, D)))
        signs = np.array([1, -1, 1, 1, -1, 1])
        self.reference = Moments.of(1.3 * features + 0.4 * signs if far else features)
        self.root = symmetric_root(self.reference.covariance)
        away = self.mean - self.reference.mean
        elsewhere = np.roll(signs, 1) * 1.0
        elsewhere -= (elsewhere @ away) / (away @ away) * away if far else 0
        self.elsewhere = elsewhere / np.linalg.norm(elsewhere)

    def features(self, latent: Array) -> Array:
        mixed: Array = latent @ MIXING
        return np.exp(0.5 * mixed) if self.skewed else mixed

    def score(self, features: Array) -> Scored:
        frechet = Frechet.of(Moments.of(features), self.reference, self.root)
        return Scored(frechet.distance, frechet.influence(features))


def samples_to_halve_misses(critical: float, num_samples: int) -> int:
    """The N at which half as many seed sets hide a regression of `EXAMPLE_EFFECT_SE` standard errors at `num_samples`.

    Errors shrink with the root of N. `critical` is what T has to exceed in a night's screening test (`rule.screen`).
    """
    halved = critical - float(norm.ppf(missed_share(critical) / 2))
    return rounded_up(num_samples * (halved / EXAMPLE_EFFECT_SE) ** 2)


def missed_share(critical: float) -> float:
    """The share of seed sets with which a regression of `EXAMPLE_EFFECT_SE` standard errors stays below `critical`."""
    return float(norm.cdf(critical - EXAMPLE_EFFECT_SE))


def shifted(cell: Cell, features: Array, by: float) -> Array:
    """Moved, at right angles to the way to the reference."""
    return features + by * cell.elsewhere


def shrunk(cell: Cell, features: Array, by: float) -> Array:
    """Less varied in all directions."""
    return cell.mean + (features - cell.mean) / (1 + by)


def flattened(cell: Cell, features: Array, by: float) -> Array:
    """Less varied in half of the directions."""
    return cell.mean + (features - cell.mean) / np.where(np.arange(D) % 2, 1 + by, 1)


def collapsed(cell: Cell, features: Array, by: float) -> Array:
    """A share of the samples, by / (1 + by), are almost copies of a typical one."""
    chosen = 1_000 * features[:, 0] % 1 < by / (1 + by)  # a deterministic function of the sample
    return np.where(chosen[:, None], cell.typical + 0.1 * (features - cell.typical), features)


Way = Callable[[Cell, Array, float], Array]
WAYS: tuple[Way, ...] = (shifted, shrunk, flattened, collapsed)


class Pair(NamedTuple):
    """The baseline's features of N samples, and those of an equally good network: the same noise."""

    old: Array
    new: Array


def pairs(cell: Cell, n: int, own: float, count: int, stream: int) -> Iterator[Pair]:
    """`count` nights whose noise is new; `own` is the b of the module's docstring, and a^2 + b^2 = 1."""
    for number in range(count):
        z, old, new = np.random.default_rng((stream, number)).standard_normal((3, n, D))
        yield Pair(*(cell.features(np.sqrt(1 - own**2) * z + own * w) for w in (old, new)))


def judged(cell: Cell, old: Array, new: Array, critical: float, margin: float = MARGIN) -> CellJudgement:
    """The cell's judgement in a night with that critical value; alone it has alpha = P(Z > critical)."""
    baseline = cell.score(old)
    change = Change.between("cell", cell.score(new), baseline, margin * baseline.value, "block")
    return judge([change], alpha=float(norm.sf(critical))).cells[0]


def strength(cell: Cell, way: Way, nights: list[Pair], change: float) -> float:
    """How far to go `way`, so that FID rises by `change` on average."""
    goal = change + np.mean([cell.score(old).value for old, _ in nights])

    def beyond(by: float) -> float:
        return float(np.mean([cell.score(way(cell, new, by)).value for _, new in nights]) - goal)

    return float(brentq(beyond, 0, 30, xtol=1e-3))


def night_of_cells(alpha: float) -> float:
    """The critical value of a night of `CELLS`."""
    return critical_value(CORRELATION + (1 - CORRELATION) * np.eye(CELLS), alpha)


class Power(NamedTuple):
    """Of one world and way, as shares: the change, what it was called, and how much its error grew."""

    change: float
    one_stage: float
    two_stages: float
    constant_error: float
    """One stage, at the smaller change that would be detectable if the error did not grow with the change."""
    growth: float


def power(cell: Cell, way: Way, n: int, own: float, nights: int) -> Power:
    """How often a network that is really worse by `detectable` is called worse in a night of `CELLS`."""
    made, fresh = list(pairs(cell, n, own, nights, 7)), list(pairs(cell, n, own, nights, 8))
    usual, screening = night_of_cells(ALPHA), night_of_cells(SCREENING)
    equal = [judged(cell, *pair, usual) for pair in made]
    change = float(np.mean([found.detectable for found in equal]))
    constant = float(np.mean([replace(found.reach, sampling=Variance(found.se**2)).detectable for found in equal]))
    fid = np.mean([cell.score(old).value for old, _ in made])

    def seen(pairs: list[Pair], by: float) -> list[CellJudgement]:
        return [judged(cell, old, way(cell, new, by), usual) for old, new in pairs]

    by = strength(cell, way, made[:CALIBRATED], change)
    first, second = seen(made, by), seen(fresh, by)
    old = seen(made, strength(cell, way, made[:CALIBRATED], constant))
    alone = float(norm.isf(ALPHA))
    return Power(
        change / fid,
        float(np.mean([found.t > usual for found in first])),
        float(np.mean([a.t > screening and b.t > alone for a, b in zip(first, second, strict=True)])),
        float(np.mean([found.t > usual for found in old])),
        float(np.mean([found.se for found in first]) / np.mean([found.se for found in equal])),
    )


def report_power(nights: int) -> None:
    """Print the power of every world and way."""
    for own in OWN:
        for far, skewed, n in product((True, False), (False, True), SIZES):
            cell = Cell(far, skewed)
            found = [power(cell, way, n, own, nights) for way in WAYS]
            words = f"b = {own}, {'far' if far else 'near'}, {'skewed' if skewed else 'Gaussian'}, N = {n}"
            print(f"  {words}: detectable {100 * found[0].change:.0f} % of FID", flush=True)
            for way, each in zip(WAYS, found, strict=True):
                print(
                    f"    {way.__name__:9}: one stage {100 * each.one_stage:.0f} %, two {100 * each.two_stages:.0f} %; "
                    f"error x {each.growth:.2f}; with a constant error {100 * each.constant_error:.0f} %"
                )
            means = [100 * np.mean([each[i] for each in found]) for i in (1, 2, 3)]
            print("    mean     : one stage {:.0f} %, two {:.0f} %; with a constant error {:.0f} %".format(*means))


def report_frozen_misses(nights: int) -> None:
    """Print the share of blocks of noise in which a worse network is not singled out, and how it falls with N.

    The change is `EXAMPLE_EFFECT_SE` standard errors beyond margin 0 at the first N: the errors of the worse network.
    """
    cell, base, own = Cell(True, False), 600, 0.6
    critical = night_of_cells(SCREENING)
    made = list(pairs(cell, base, own, max(nights, CALIBRATED), 9))
    by = 0.0
    for _ in range(3):  # the error depends on the change
        errors = [judged(cell, old, shifted(cell, new, by), critical, 0.0).se for old, new in made[:CALIBRATED]]
        by = strength(cell, shifted, made, EXAMPLE_EFFECT_SE * float(np.mean(errors)))
    print(f"  T > {critical:.2f} is singled out; a change of {EXAMPLE_EFFECT_SE:g} se at N = {base}; {nights} blocks")
    expected = f"{100 * missed_share(critical):.1f} %, half of it at N = {samples_to_halve_misses(critical, base)}"
    print(f"  missed, by `missed_share`: {expected}")

    def missed(pair: Pair) -> bool:
        return judged(cell, pair.old, shifted(cell, pair.new, by), critical, 0.0).t <= critical

    for n in MORE:
        found = sum(missed(pair) for pair in pairs(cell, n, own, nights, 10))
        print(f"  N = {n}: missed {rate(found, nights)}", flush=True)
    for drift in DRIFTS:
        blocks = nights // LONG
        never = sum(all(missed(pair) for pair in frozen(cell, base, own, drift, number)) for number in range(blocks))
        new = f"{100 * drift:.0f} % of w new each night"
        print(f"  N = {base}, {new}: missed in all of {LONG} nights {rate(never, blocks)}", flush=True)


def frozen(cell: Cell, n: int, own: float, drift: float, number: int) -> Iterator[Pair]:
    """The nights of one block of noise: z and the baseline are frozen, tonight's w is new by `drift`."""
    random = np.random.default_rng((13, number))
    z, old, first = random.standard_normal((3, n, D))
    for _ in range(LONG):
        new = np.sqrt(1 - drift) * first + np.sqrt(drift) * random.standard_normal((n, D))
        yield Pair(*(cell.features(np.sqrt(1 - own**2) * z + own * w) for w in (old, new)))
