"""Simulated nights of a network that is really worse.

One cell of a night of `CELLS`. A network turns the noise z of a sample into a latent a z + b w, and that into features;
w is the network's own. So two networks have the same true FID, until one is made worse: its features are changed in one
of `WAYS`, by as much as raises FID by the change in question. Nothing is added to an estimate, and the influences are
those of the changed features.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

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
)
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root

D = 6
MIXING = np.random.default_rng(99).standard_normal((D, D)) / np.sqrt(D)
POPULATION = 200_000
CELLS, CORRELATION = 12, 0.4
"""Of a night, and of its cells' errors: they give the critical values."""
CALIBRATED = 300
"""Nights by which a way's strength is found."""


class Cell:
    """A network's features, and their reference.

    Args:
        far: FID is far above its bias: the reference is wider and elsewhere. Else the features follow it.
        skewed: log-normal features in place of Gaussian ones.
    """

    def __init__(self, far: bool, skewed: bool) -> None:
        self.skewed = skewed
        features = self.features(np.random.default_rng(1).standard_normal((POPULATION, D)))
        self.mean = features.mean(axis=0)
        self.typical = self.features(np.zeros((1, D)))
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


def pairs(cell: Cell, n: int, b: float, count: int, stream: int) -> Iterator[Pair]:
    """`count` nights whose noise is new; a^2 + b^2 = 1."""
    for number in range(count):
        z, old, new = np.random.default_rng((stream, number)).standard_normal((3, n, D))
        yield Pair(*(cell.features(np.sqrt(1 - b**2) * z + b * w) for w in (old, new)))


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
    """The shares of nights in which the change was called worse."""

    one_stage: float
    two_stages: float
    constant_error: float
    """One stage, at the smaller change that would be detectable if the error did not grow with the change."""


def power(cell: Cell, way: Way, n: int, b: float, nights: int) -> Power:
    """How often a network that is really worse by `detectable` is called worse in a night of `CELLS`."""
    made = list(pairs(cell, n, b, nights, 7))
    fresh = list(pairs(cell, n, b, nights, 8))
    usual = night_of_cells(ALPHA)
    screening = night_of_cells(SCREENING)
    alone = float(norm.isf(ALPHA))
    equal = [judged(cell, *pair, usual) for pair in made]
    change = float(np.mean([cell.detectable for cell in equal]))
    constant = float(np.mean([replace(cell.reach, sampling=Variance(cell.se**2)).detectable for cell in equal]))

    def ts(nights: list[Pair], by: float) -> Array:
        return np.array([judged(cell, old, way(cell, new, by), usual).t for old, new in nights])

    by = strength(cell, way, made[:CALIBRATED], change)
    first, second = ts(made, by), ts(fresh, by)
    by_constant = ts(made, strength(cell, way, made[:CALIBRATED], constant))
    return Power(
        float(np.mean(first > usual)),
        float(np.mean((first > screening) & (second > alone))),
        float(np.mean(by_constant > usual)),
    )


EXAMPLE_EFFECT_SE = 3.0
"""A change of so many standard errors is what frozen seeds may hide."""


def blocks_that_hide(critical: float, base: int, sizes: tuple[int, ...], blocks: int) -> dict[int, float]:
    """N -> the share of blocks of noise with which T stays below `critical` for a change of `EXAMPLE_EFFECT_SE`.

    The standard errors are those of the worse network at N = `base`, and the margin is 0.
    """
    cell, b = Cell(far=True, skewed=False), 0.6
    made = list(pairs(cell, base, b, CALIBRATED, 9))
    by = 0.0
    for _ in range(3):  # the error depends on the change
        errors = [judged(cell, old, shifted(cell, new, by), critical, 0.0).se for old, new in made]
        by = strength(cell, shifted, made, EXAMPLE_EFFECT_SE * float(np.mean(errors)))

    def is_hidden(pair: Pair) -> bool:
        return judged(cell, pair.old, shifted(cell, pair.new, by), critical, 0.0).t <= critical

    return {n: float(np.mean([is_hidden(pair) for pair in pairs(cell, n, b, blocks, 10)])) for n in sizes}
