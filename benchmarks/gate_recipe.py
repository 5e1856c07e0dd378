"""Retrained networks: how often the gate calls another training of the same recipe worse.

Networks of one recipe differ in a shift of all their samples, which no N averages out. Each network draws its own, with
a part that all of its cells share. Tonight's network and the baseline's trainings are exchangeable, so every alarm is a
false one.
"""

from collections import Counter

import numpy as np
from scipy.stats import t as student

from benchmarks.gate_worlds import D, Noise, World, rate
from taugrid.eval.gate.rule import ALPHA, Change, Scored, judge
from taugrid.eval.metrics.statistics import Array

TRAININGS = (3, 5, 10)
SPREADS = (0.05, 0.2)
"""The standard deviation of a training's shift, in each feature: less and more than sampling moves FID."""
COMMON_TRAINING = 0.5
"""Share of its variance that all cells have in common."""
COMMON_DRAWS = 20_000


def training(random: np.random.Generator, cells: int, spread: float) -> Array:
    """A training's shift (cells, D)."""
    common, own = random.standard_normal((1, D)), random.standard_normal((cells, D))
    shift: Array = spread * (np.sqrt(COMMON_TRAINING) * common + np.sqrt(1 - COMMON_TRAINING) * own)
    return shift


def retrained(world: World, random: np.random.Generator, z: Noise, spread: float) -> list[Scored]:
    """The cells of one training, on the night's noise z."""
    return world.score(z, Noise.draw(random, world.cells), training(random, world.cells, spread))


def changes(tonight: list[Scored], baseline: list[list[Scored]]) -> list[Change]:
    """Tonight's cells against all trainings of the baseline, margin 0."""
    return [
        Change.between(str(cell), new, [network[cell] for network in baseline], 0.0, "block")
        for cell, new in enumerate(tonight)
    ]


def shared_denominator(cells: int, trainings: int) -> float:
    """The quantile of the largest T if all cells had one spread: a multivariate t, with the cells' correlation 0.5.

    It was tried in place of Bonferroni's bound.
    """
    random = np.random.default_rng(11)
    normal = np.sqrt(0.5) * random.standard_normal((COMMON_DRAWS, 1))
    largest = normal[:, 0] + np.sqrt(0.5) * random.standard_normal((COMMON_DRAWS, cells)).max(axis=1)
    scale = np.sqrt(random.chisquare(trainings - 1, COMMON_DRAWS) / (trainings - 1))
    return float(np.quantile(largest / scale, 1 - ALPHA))


def report_retrained(world: World, nights: int, draws: int) -> None:
    """Print the share of nights with an alarm, by the recipe's rule and by what was tried beside it."""
    for spread in SPREADS:
        for k in TRAININGS:
            report_recipe(world, k, spread, nights, draws)


def report_recipe(world: World, k: int, spread: float, nights: int, draws: int) -> None:
    limits = {
        "each cell alone, a t": float(student.isf(ALPHA, k - 1)),
        "one spread for all cells": shared_denominator(world.cells, k),
    }
    alarms: Counter[str] = Counter()
    shares, critical = [], 0.0
    for night in range(nights):
        random = np.random.default_rng((12, world.cells, k, night))
        z = Noise.draw(random, world.cells)
        *baseline, tonight = (retrained(world, random, z, spread) for _ in range(k + 1))
        against_all = changes(tonight, baseline)
        recipe = judge(against_all, draws=draws)
        critical = recipe.critical
        alarms["recipe"] += bool(recipe.worse)
        alarms["one"] += bool(judge(changes(tonight, baseline[:1]), draws=draws).worse)
        for name, limit in limits.items():
            alarms[name] += any(cell.t > limit for cell in recipe.cells)
        middle = world.cells // 2
        fid, found = tonight[middle].value - against_all[middle].difference, recipe.cells[middle]
        shares.append(
            [against_all[middle].spread / fid, np.sqrt(found.reach.sampling.at_zero) / fid, found.detectable / fid]
        )
    typical = 100 * np.median(shares, axis=0)
    print(f"  k = {k}, shift {spread}: T > {critical:.2f}; false alarms {rate(alarms['recipe'], nights)}")
    print("    a cell's spread {:.1f} %, paired error {:.1f} %, detectable {:.0f} % of FID".format(*typical))
    tried = (f"{name} (T > {limit:.2f}) {rate(alarms[name], nights)}" for name, limit in limits.items())
    print(f"    had the limit been that of {'; of '.join(tried)}")
    print(f"    compared to one of the trainings: {rate(alarms['one'], nights)}", flush=True)
