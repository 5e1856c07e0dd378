"""How often `--until told-apart` tells cells apart in the wrong order, and how many images it saves.

    python -m benchmarks.growing [--repeats 2000]

A score is its true value plus the mean of the samples' influences, which are linear here: three columns of four cells
whose influences correlate by 0.8, as those of cells with one seed do. Errors are estimated from the same samples. N
doubles from 500 to 8,000, in at most five looks. Wrong is a procedure that tells any cell apart from a best whose true
value is not smaller.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import NamedTuple
from unittest import mock

import numpy as np

from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables import seeds
from taugrid.eval.tables.alike import Contenders, look
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import FID

COLUMNS, CELLS = 3, 4
LEAST, LOOKS = 500, 5
CORRELATION = 0.8
DRAWS = 10_000
"""Simulated columns for each critical value: a quarter of the product's, to save time."""

SHAPES: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda random, size: random.standard_normal(size),
    "skewed": lambda random, size: random.exponential(size=size) - 1,
    "heavy": lambda random, size: random.standard_t(5, size) / np.sqrt(5 / 3),
}
"""Distributions of influences, with mean 0 and variance 1."""

WORLDS: Mapping[str, tuple[float, ...]] = {
    "all equal": (0.0, 0.0, 0.0, 0.0),
    "two best": (0.0, 0.0, 0.05, 0.2),
    "graded": (0.0, 0.01, 0.03, 0.1),
}
"""The true values in each column, in standard deviations of an influence."""

SPENDING: Mapping[str, Callable[[int], float]] = {
    "equal shares": lambda number: LOOKS,
    "6 / (pi k)^2": lambda number: np.pi**2 * number**2 / 6,
    "5 % each look": lambda number: 1,
}
"""Name -> by what the level of look k is divided."""


class Ended(NamedTuple):
    wrong: bool
    undecided: int
    images: int
    """All that were sampled."""
    largest: int
    """The largest N."""


def procedure(
    random: np.random.Generator,
    values: Array,
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array],
    shares: Callable[[int], float],
) -> Ended:
    """One run: `values` (columns, cells) are the true scores."""
    count, most = values.size, LEAST * 2 ** (LOOKS - 1)
    noise = np.sqrt(CORRELATION) * draw(random, (1, most)) + np.sqrt(1 - CORRELATION) * draw(random, (count, most))
    names = [str(place) for place in range(count)]
    true = dict(zip(names, values.ravel(), strict=True))
    groups: list[Contenders] = [list(part) for part in np.array_split(names, len(values))]
    sizes, wrong, n = dict.fromkeys(names, LEAST), False, LEAST
    for number in range(1, LOOKS + 1):
        alive = {cell for group in groups for cell in group}
        rows = {
            cell: {"cell": cell, "num_samples": n, FID.name: true[cell] + noise[int(cell), :n].mean()} for cell in alive
        }
        evidence = Evidence({cell: noise[int(cell), :n] for cell in alive}, dict.fromkeys(names, 0), {})
        found = look(groups, rows, evidence, FID, shares(number))
        for group in groups:
            best = min(group, key=lambda cell: rows[cell][FID.name])
            wrong |= any(true[cell] <= true[best] for cell in set(group) - found.undecided - {best})
        groups, n = found.groups, min(2 * n, most)
        if not groups or number == LOOKS:
            break
        sizes |= dict.fromkeys(found.undecided, n)
    return Ended(wrong, len(found.undecided), sum(sizes.values()), max(sizes.values()))


def report(repeats: int) -> None:
    """Print a row for each world, shape and spending."""
    print(
        "| true values | influences | level | wrong | undecided cells of 12 | images saved |\n|---|---|---|---|---|---|"
    )
    for world, column in WORLDS.items():
        values = np.tile(np.array(column), (COLUMNS, 1))
        for shape, draw in SHAPES.items():
            for spending, shares in SPENDING.items() if shape == "normal" else [*SPENDING.items()][:1]:
                ended = [procedure(np.random.default_rng((7, i)), values, draw, shares) for i in range(repeats)]
                wrong, undecided, images, largest = np.array(ended, dtype=float).T
                saved = 1 - images.sum() / (largest * values.size).sum()
                print(
                    f"| {world} | {shape} | {spending} | {wrong.mean():.1%} | {undecided.mean():.1f} | {saved:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2_000)
    with mock.patch.object(seeds, "DRAWS", DRAWS):
        report(parser.parse_args().repeats)
