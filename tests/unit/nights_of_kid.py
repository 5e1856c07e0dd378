"""Simulated nights that KID judges, alone or with FID.

A network turns the noise z of a sample into features of a z + b w, where w is the network's own, so all networks have
the same true KID. *Near*: features follow the reference's distribution, so KID is 0 and its first-order influences
vanish. *Far*: the reference is wider and elsewhere. The reference is a sample of its own, of `REFERENCES` images.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from taugrid.eval.gate.rule import MARGIN, MARGIN_FLOOR, Change, NightJudgement, Scored, judge, margin_of
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root
from taugrid.registry.metrics import COLUMNS, MetricColumn

CELLS, REFERENCES = 12, 2_000
COMMON = 0.6
"""The share of the noise's variance that the cells of a night have in common."""

Worse = Callable[[Array], Array]
"""What tonight's network does to its latents (N, d)."""


class Cubes(NamedTuple):
    """What KID's kernel, (x . y / d + 1)^3, needs of a set to be averaged over it without pairs: third moments."""

    rows: Array
    """(n, d + 1): x / sqrt(d) and 1, whose inner products are the kernel's cube roots."""
    mean: Array
    """((d + 1)^2, d + 1): the mean of the rows' third powers."""
    within: Array
    """(n,): the kernel's sum of each row with the others."""

    @classmethod
    def of(cls, features: Array) -> "Cubes":
        n, d = features.shape
        rows = np.concatenate([features.astype(np.float64) / np.sqrt(d), np.ones((n, 1))], axis=1)
        squares = (rows[:, :, None] * rows[:, None, :]).reshape(n, -1)
        mean = squares.T @ rows / n
        with_itself = np.einsum("ni,ni->n", rows, rows) ** 3
        return cls(rows, mean, n * np.einsum("ni,ni->n", squares @ mean, rows) - with_itself)


def kid(features: Array, reference: Cubes) -> Scored:
    """`discrepancy(features, ...)` by third moments, many times as fast for few features."""
    tonight = Cubes.of(features)
    n, m, size = len(tonight.rows), len(reference.rows), tonight.rows.shape[1]
    squares = (tonight.rows[:, :, None] * tonight.rows[:, None, :]).reshape(n, size**2)
    between = np.einsum("ni,ni->n", squares @ reference.mean, tonight.rows)
    value = tonight.within.sum() / (n * (n - 1)) + reference.within.sum() / (m * (m - 1)) - 2 * between.mean()
    return Scored(float(value), 2 * (tonight.within / (n - 2) - between))


class Compared(NamedTuple):
    """A cell by one metric, tonight and in the baseline."""

    cell: str
    tonight: Scored
    baseline: Scored
    column: MetricColumn

    def change(self, margin: float) -> Change:
        return Change.between(self.cell, self.tonight, self.baseline, margin, "block", self.column)

    def margin(self, floor: float = MARGIN_FLOOR) -> float:
        return margin_of(self.baseline, MARGIN, self.column, floor)


class World:
    """The cells of one kind of network, and what they are compared with."""

    def __init__(self, far: float, skewed: bool, dimensions: int) -> None:
        random = np.random.default_rng(21)
        self.skewed = skewed
        self.mixing = random.standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
        features = self._features(random.standard_normal((REFERENCES, dimensions)))
        reference = ((1 + 0.3 * far) * features + 0.4 * far).astype(np.float32)
        self.moments = Moments.of(reference)
        self.root = symmetric_root(self.moments.covariance)
        self.cubes = Cubes.of(reference)

    def _features(self, latent: Array) -> Array:
        mixed: Array = latent @ self.mixing
        return np.exp(0.5 * mixed) if self.skewed else mixed

    def _scores(self, latent: Array, metrics: tuple[str, ...]) -> dict[str, Scored]:
        """A cell by each metric; latent (N, d)."""
        features = self._features(latent).astype(np.float32)
        scores = {}
        if "kid" in metrics:
            scores["kid"] = kid(features, self.cubes)
        if "fid" in metrics:
            frechet = Frechet.of(Moments.of(features), self.moments, self.root)
            scores["fid"] = Scored(frechet.distance, frechet.influence(features))
        return scores

    def night(
        self, number: int, n: int, b: float, metrics: tuple[str, ...], worse: Worse = lambda latent: latent
    ) -> Iterator[Compared]:
        """A night whose noise and networks are new."""
        random = np.random.default_rng((22, number, 2))
        common = random.standard_normal((3, n, len(self.mixing)))
        for cell in range(CELLS):
            z, old, new = np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * random.standard_normal(common.shape)
            before, after = (np.sqrt(1 - b**2) * z + b * w for w in (old, new))
            baseline = self._scores(before, metrics)
            for name, tonight in self._scores(worse(after), metrics).items():
                yield Compared(str(cell), tonight, baseline[name], COLUMNS[name])


def by_floor(world: World, number: int, n: int, b: float, worse: Worse, draws: int) -> dict[float | str, str]:
    """Whether one night of FID and KID is "green", "red" or "open" by each floor of KID's margin, and by FID alone.

    Errors and the critical value do not depend on margins, so one test serves both floors.
    """
    cells = list(world.night(number, n, b, ("fid", "kid"), worse))
    by_fid = [cell for cell in cells if cell.column.name == "fid"]
    both = judge([cell.change(0.0) for cell in cells], draws=draws)
    alone = judge([cell.change(0.0) for cell in by_fid], draws=draws)
    colours = {floor: _colour(both, [cell.margin(floor) for cell in cells]) for floor in (0.0, MARGIN_FLOOR)}
    return {"FID alone": _colour(alone, [cell.margin() for cell in by_fid]), **colours}


def _colour(judgement: NightJudgement, margins: list[float]) -> str:
    t = [(cell.difference - margin) / cell.se for cell, margin in zip(judgement.cells, margins, strict=True)]
    if max(t) > judgement.critical:
        return "red"
    return "green" if max(t) < -judgement.critical else "open"
