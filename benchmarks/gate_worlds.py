"""Simulated cells for benchmarks/gate.py: a network turns noise into features, which are scored as real ones are."""

from typing import NamedTuple

import numpy as np

from taugrid.eval.gate.rule import Change, Scored
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root

D, N = 6, 600
SHARED, OWN = 0.8, 0.6
"""a and b: how much of a sample is of its noise, and how much of the network."""
COMMON = 0.6
"""Share of the noise's variance that the cells of a night have in common. Real cells: see docs/decisions.md."""
MIXING = np.random.default_rng(99).standard_normal((D, D)) / np.sqrt(D)


class Noise(NamedTuple):
    """What N samples of all cells are made from: the common part (N, D), and each cell's own (cells, N, D)."""

    common: Array
    own: Array

    @classmethod
    def draw(cls, random: np.random.Generator, cells: int) -> "Noise":
        return cls(random.standard_normal((N, D)), random.standard_normal((cells, N, D)))

    def of_cell(self, cell: int) -> Array:
        mixed: Array = np.sqrt(COMMON) * self.common + np.sqrt(1 - COMMON) * self.own[cell]
        return mixed


class World:
    """Cells of one kind of network, and their reference."""

    def __init__(self, cells: int, margin: float = 0.0) -> None:
        """`margin` is a share of the baseline's FID."""
        self.cells, self.margin = cells, margin
        self.scales, self.shifts = np.linspace(1.1, 1.6, cells), np.linspace(0.1, 0.5, cells)
        self.reference = Moments.of(np.maximum(np.random.default_rng(1).standard_normal((100_000, D)) @ MIXING, 0))
        self.root = symmetric_root(self.reference.covariance)

    def score(self, z: Noise, w: Noise) -> list[Scored]:
        """The cells of the network whose own noise is w."""
        found = []
        for cell in range(self.cells):
            x = SHARED * z.of_cell(cell) + OWN * w.of_cell(cell)
            features = np.maximum(x @ MIXING * self.scales[cell] + self.shifts[cell], 0)
            frechet = Frechet.of(Moments.of(features), self.reference, self.root)
            found.append(Scored(frechet.distance, frechet.influence(features)))
        return found

    def changes(self, baseline: list[Scored], tonight: list[Scored]) -> list[Change]:
        return [
            Change.between(str(cell), new, old, self.margin * old.value, "block")
            for cell, (old, new) in enumerate(zip(baseline, tonight, strict=True))
        ]


def rate(hits: int, of: int) -> str:
    share = hits / of
    return f"{100 * share:.2f} % ± {100 * np.sqrt(share * (1 - share) / of):.2f} ({hits} of {of})"
