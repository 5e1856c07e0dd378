"""Whether intervals of ablations and the marks of tables hold what they promise, in simulations.

    python -m benchmarks.intervals [--parts effects marks infinity] [--repeats 2000]

Samples are influences of FID: each of its setting's noise, which all trainings share, and of its own. A skewed world
has exponential trainings and samples in place of normal ones. No part trains or samples a network.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from taugrid.eval.metrics.extrapolation import fid_infinity
from taugrid.eval.metrics.frechet import frechet_distance
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root
from taugrid.eval.tables.ablation.seeds import (
    LEVEL,
    critical_range,
    holm,
    level_against_best,
    mean_over_seeds,
    shared_error,
)

PARTS = ("effects", "marks", "infinity")
COMPARISONS = 9
N = 100
"""Samples of a cell."""
AT_ONCE = 100
"""Repeats in memory at a time."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
KINDS: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "skewed": lambda random, shape: random.standard_exponential(shape) - 1,
}


def skewed_against_a_constant(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Skewed settings, the first of which, the base, never varies: nothing makes their differences symmetric."""
    values = KINDS["skewed"](random, shape)
    values[:, :1] = 0
    return values


class World(NamedTuple):
    """Where differences between trainings come from, in units of a cell's error of sampling."""

    between: float
    """The standard deviation between trainings."""
    shared: float
    """The share of a sample's influence (of its variance) that it has in every training."""


WORLDS = (World(0, 0.9), World(0.5, 0.9), World(1, 0.9), World(1, 0.5), World(3, 0.9), World(1, 0))


class Effects(NamedTuple):
    """Differences of settings from a base, whose truth is 0."""

    differences: Array
    """(repeats, comparisons, trainings)."""
    shared: Array
    """(repeats, comparisons): the error of the noise that trainings share, as estimated from influences."""


def effects(random: np.random.Generator, world: World, draw: Draw, trainings: int, repeats: int) -> Effects:
    """`COMPARISONS` settings and their base."""
    settings = COMPARISONS + 1
    common = draw(random, (repeats, settings, 1, N))
    own = draw(random, (repeats, settings, trainings, N))
    influences = np.sqrt(world.shared) * common + np.sqrt(1 - world.shared) * own
    influences = influences[:, 1:] - influences[:, :1]
    trained = world.between / np.sqrt(N) * draw(random, (repeats, settings, trainings))
    of_each = influences.std(axis=-1, ddof=1) / np.sqrt(N)
    of_mean = influences.mean(axis=2).std(axis=-1, ddof=1) / np.sqrt(N)
    return Effects(influences.mean(axis=-1) + trained[:, 1:] - trained[:, :1], shared_error(of_mean, of_each))


def report_effects(repeats: int) -> None:
    """The coverage of intervals and Holm's family-wise errors, with the shared noise and without it."""
    print(f"{COMPARISONS} comparisons with one base, {repeats} repeats; in brackets, without the shared noise")
    for kind, draw in (KINDS | {"skewed against a constant": skewed_against_a_constant}).items():
        for trainings in (3, 5, 10):
            for world in WORLDS:
                random = np.random.default_rng((23, trainings))
                covered, false = [], []
                for _ in range(0, repeats, AT_ONCE):
                    drawn = effects(random, world, draw, trainings, AT_ONCE)
                    for shared in (drawn.shared, np.zeros_like(drawn.shared)):
                        found = mean_over_seeds(drawn.differences, shared)
                        covered.append(np.abs(found.mean) <= found.half_width)
                        false.append((holm(found.p) < LEVEL).any(axis=-1))
                coverage = [100 * np.mean(covered[i::2]) for i in (0, 1)]
                errors = [100 * np.mean(false[i::2]) for i in (0, 1)]
                print(
                    f"{kind}, {trainings} trainings, sd between them {world.between:g}, shared {world.shared:.0%}: "
                    f"coverage {coverage[0]:.1f} % ({coverage[1]:.1f}), any false alarm {errors[0]:.1f} % "
                    f"({errors[1]:.1f})",
                    flush=True,
                )


def report_marks(repeats: int) -> None:
    """How often some of k equal cells has no mark: with one training each, and over trainings."""
    print(
        f"columns of k equal cells, {repeats} repeats: share with a cell without a mark; in brackets, at 5 % for each"
    )
    for k in (4, 20):
        for kind, draw in KINDS.items():
            print(f"k = {k}, {kind}, one training: {_one_training(k, draw, repeats)}", flush=True)
            for trainings in (3, 5, 10):
                for spread in (1, 10):
                    said = _over_trainings(k, trainings, spread, draw, repeats)
                    print(f"k = {k}, {kind}, {trainings} trainings, spreads 1 to {spread}: {said}", flush=True)


def _one_training(k: int, draw: Draw, repeats: int) -> str:
    random, samples, missed = np.random.default_rng((24, k)), 4 * N, []
    scales = np.linspace(1, 2, k)[:, None]
    for _ in range(repeats):
        influences = scales * (draw(random, (1, samples)) + draw(random, (k, samples)))
        values = influences.mean(axis=1)
        covariance = np.cov(influences) / samples
        best = values.argmin()
        variances = np.diag(covariance) + covariance[best, best] - 2 * covariance[best]
        z = np.delete(values - values[best], best) / np.sqrt(np.delete(variances, best))
        missed.append((z.max() >= critical_range(covariance), z.max() >= critical_range(np.eye(2))))
    return "{:.1f} % ({:.1f})".format(*(100 * np.mean(missed, axis=0)))


def _over_trainings(k: int, trainings: int, spread: float, draw: Draw, repeats: int) -> str:
    random = np.random.default_rng((25, k, trainings))
    values = np.geomspace(1, spread, k)[:, None] * draw(random, (repeats, k, trainings))
    best = values.mean(axis=-1).argmin(axis=-1)
    p = mean_over_seeds(values - np.take_along_axis(values, best[:, None, None], axis=1)).p
    least = np.nanmin(p, axis=-1)
    return "{:.1f} % ({:.1f})".format(
        *(100 * np.mean(least < limit) for limit in (level_against_best(k, trainings), LEVEL))
    )


def report_infinity(repeats: int) -> None:
    """The scatter of fid_infinity between sets of samples, beside that of FID."""
    for d in (16, 64):
        scales = np.geomspace(2, 0.5, d)
        n = 10**9
        reference = Moments(n, np.zeros(d), np.diag(scales**2) * (n - 1))
        root = symmetric_root(reference.covariance)
        for per_dimension in (4, 10, 20, 50):
            for stretch in (1.0, 1.05, 1.3):
                random = np.random.default_rng((26, d))
                plain, extrapolated = [], []
                for seed in range(min(repeats, 200)):
                    features = stretch * random.standard_normal((per_dimension * d, d)) * scales
                    plain.append(frechet_distance(Moments.of(features), reference, root))
                    extrapolated.append(fid_infinity(features, reference, root, seed=seed))
                ratio = np.std(extrapolated) / np.std(plain)
                true = np.square((stretch - 1) * scales).sum()
                said = (np.mean(extrapolated), ratio, np.mean(np.array(extrapolated) < 0))
                print(
                    f"{d} features, N = {per_dimension * d}, FID {np.mean(plain):.3f}, true {true:.3f}: "
                    "fid_infinity {:.3f}, scatters {:.2f} times as much, {:.0%} negative".format(*said),
                    flush=True,
                )


def main() -> None:
    """Print the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=2000)
    given = parser.parse_args()
    reports = {"effects": report_effects, "marks": report_marks, "infinity": report_infinity}
    with threadpool_limits(1):
        for part in given.parts:
            reports[part](given.repeats)


if __name__ == "__main__":
    main()
