"""False alarms of nights of equal networks that KID judges, alone or with FID.

A network turns the noise z of a sample into features of a z + b w, where w is the network's own, so all networks have
the same true KID. *Near*: features follow the reference's distribution, so KID is 0 and its first-order influences
vanish. *Far*: the reference is wider and elsewhere. The reference is a sample of its own, of `REFERENCES` images.

`report_floors` is about nights of two metrics whose KID is near 0 and whose FID decides: how many nights of equal
networks are green, and how many of worse ones red, by the floor of KID's margin (`gate.margin_floor`). The floors
judge the same nights, so each red night that a floor loses is its cost.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import beta

from benchmarks.gate_worlds import rate
from taugrid.eval.gate.rule import MARGIN, Change, NightJudgement, Scored, judge, margin_of, screen
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root
from taugrid.registry.metrics import COLUMNS, MetricColumn

CELLS, REFERENCES = 12, 2_000
NIGHTS = (  # whether far, whether skewed, dimensions, N, b, metrics
    *((far, skewed, 64, 500, 0.6, ("kid",)) for far in (False, True) for skewed in (False, True)),
    *((far, skewed, 16, 500, 0.6, ("fid", "kid")) for far in (False, True) for skewed in (False, True)),
    (False, False, 64, 500, 0.1, ("kid",)),
    (False, False, 64, 2_000, 0.6, ("kid",)),
)
FLOORS = (0.0, 0.1, 0.12, 0.15, 0.2, 0.3)
"""In standard errors of the baseline's KID; at 0 the margin is 2 % of two of them."""
HEALTHY = ((0.2, 500, 0.01), (0.1, 2_000, 0.01), (0.2, 2_000, 0.015), (0.35, 500, 0.015))
"""How far the reference is, N and b, at which FID alone makes nights of equal networks green."""
WORSE = (("shrunk", 0.01, 0.007), ("shrunk", 0.1, 0.018), ("shrunk", 0.4, 0.045),
         ("shifted", 0.01, 0.004), ("shifted", 0.1, 0.012), ("shifted", 0.4, 0.035))  # fmt: skip
"""How networks with noise b of their own are worse, and by how much, at N = 500: their samples vary less, by this
share, or have moved away from the reference, by this much in each feature."""
Worse = Callable[[Array], Array]
"""What tonight's network does to its latents (N, d)."""
COMMON = 0.6
"""The share of the noise's variance that the cells of a night have in common."""


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
        own = np.einsum("ni,ni->n", rows, rows) ** 3
        return cls(rows, mean, n * np.einsum("ni,ni->n", squares @ mean, rows) - own)


def kid(features: Array, reference: Cubes) -> Scored:
    """`discrepancy(features, ...)` by third moments, many times as fast for few features."""
    tonight = Cubes.of(features)
    n, m, size = len(tonight.rows), len(reference.rows), tonight.rows.shape[1]
    squares = (tonight.rows[:, :, None] * tonight.rows[:, None, :]).reshape(n, size**2)
    between = np.einsum("ni,ni->n", squares @ reference.mean, tonight.rows)
    value = tonight.within.sum() / (n * (n - 1)) + reference.within.sum() / (m * (m - 1)) - 2 * between.mean()
    return Scored(float(value), 2 * (tonight.within / (n - 2) - between))


class World(NamedTuple):
    """The cells of one kind of network, and what they are compared with."""

    far: float
    skewed: bool
    mixing: Array
    reference: Array
    moments: Moments
    root: Array
    cubes: "Cubes"

    @classmethod
    def made(cls, far: float, skewed: bool, dimensions: int) -> "World":
        random = np.random.default_rng(21)
        mixing = random.standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
        plain = cls(far, skewed, mixing, mixing, Moments.of(mixing), mixing, Cubes.of(mixing))
        features = plain.features(random.standard_normal((REFERENCES, dimensions)))
        reference = ((1 + 0.3 * far) * features + 0.4 * far).astype(np.float32)
        moments = Moments.of(reference)
        return cls(far, skewed, mixing, reference, moments, symmetric_root(moments.covariance), Cubes.of(reference))

    def features(self, latent: Array) -> Array:
        mixed: Array = latent @ self.mixing
        return np.exp(0.5 * mixed) if self.skewed else mixed

    def scores(self, latent: Array, metrics: tuple[str, ...]) -> dict[str, Scored]:
        """A cell by each metric; latent (N, d)."""
        features, found = self.features(latent).astype(np.float32), {}
        if "kid" in metrics:
            found["kid"] = kid(features, self.cubes)
        if "fid" in metrics:
            frechet = Frechet.of(Moments.of(features), self.moments, self.root)
            found["fid"] = Scored(frechet.distance, frechet.influence(features))
        return found

    def pairs(
        self, key: tuple[int, ...], n: int, own: float, metrics: tuple[str, ...], worse: Worse
    ) -> Iterator[tuple[str, Scored, Scored, MetricColumn]]:
        """Cell, tonight's score, the baseline's and the metric, of a night whose noise and networks are new."""
        random = np.random.default_rng((22, *key))
        common = random.standard_normal((3, n, len(self.mixing)))
        for cell in range(CELLS):
            own_noise = random.standard_normal(common.shape)
            z, old, new = np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * own_noise
            before, after = (np.sqrt(1 - own**2) * z + own * w for w in (old, new))
            sides = [self.scores(latent, metrics) for latent in (before, worse(after))]
            for name, scored in sides[1].items():
                yield str(cell), scored, sides[0][name], COLUMNS[name]

    def night(self, key: tuple[int, ...], n: int, own: float, metrics: tuple[str, ...]) -> list[Change]:
        """The changes of such a night of equal networks, with the gate's margin."""
        return [
            Change.between(cell, after, before, margin_of(before, MARGIN, column), "block", column)
            for cell, after, before, column in self.pairs(key, n, own, metrics, lambda latent: latent)
        ]


def report_metrics(nights: int, draws: int) -> None:
    """Print the false alarms of every world, by one stage and by two, at margin 0 and at the gate's."""
    for far, skewed, d, n, own, metrics in NIGHTS:
        world, alarms = World.made(far, skewed, d), Counter[str]()
        for night in range(nights):
            usual = world.night((night, 0), n, own, metrics)
            fresh: list[Change] | None = None
            for share in (0.0, MARGIN):
                first = usual if share else [replace(change, margin=0.0) for change in usual]
                alarms[f"margin {100 * share:g} %, one stage"] += bool(judge(first, draws=draws).worse)
                if names := {cell.name for cell in screen(first, draws=draws).worse}:
                    fresh = world.night((night, 1), n, own, metrics) if fresh is None else fresh
                    again = [replace(change, margin=change.margin if share else 0.0)
                             for change in fresh if change.name in names]  # fmt: skip
                    alarms[f"margin {100 * share:g} %, two stages"] += bool(judge(again, draws=draws).worse)
        words = f"{'far' if far else 'near'}, {'skewed' if skewed else 'Gaussian'}, d = {d}, N = {n}, b = {own}"
        told = "; ".join(f"{name}: {rate(count, nights)}" for name, count in alarms.items())
        print(f"  {words}, {' and '.join(metrics)}: {told}", flush=True)


def report_floors(nights: int, draws: int) -> None:
    """Print how many nights of equal networks are green, and of worse ones red, for each of `FLOORS`."""
    lost: Counter[float | str] = Counter()
    for far, n, own in HEALTHY:
        world = World.made(far, False, 16)
        made = [by_floor(world, night, n, own, lambda latent: latent, draws) for night in range(nights)]
        print(f"  equal, far by {far}, N = {n}, b = {own}, green of {nights} (at least, with 95 % confidence):")
        for floor in made[0]:
            green = sum(night[floor] == "green" for night in made)
            least = beta.ppf(0.05, green, nights - green + 1) if green else 0.0
            print(f"    {floor}: {green}, {100 * green / nights:.1f} % ({100 * least:.1f} %)", flush=True)
    for way, own, by in WORSE:
        world = World.made(0.2, False, 16)
        step = by * np.linalg.solve(world.mixing.T, np.ones(16))
        push = partial(np.multiply, 1 - by) if way == "shrunk" else partial(np.add, -step)
        made = [by_floor(world, night, 500, own, push, draws) for night in range(nights)]
        reds = {floor: sum(night[floor] == "red" for night in made) for floor in made[0]}
        lost.update({floor: reds[0.0] - count for floor, count in reds.items()})
        print(
            f"  {way} by {by}, b = {own}, red of {nights}: {', '.join(f'{f}: {n}' for f, n in reds.items())}",
            flush=True,
        )
    of = nights * len(WORSE)
    print(
        "  red nights lost against floor 0:", ", ".join(f"{floor}: {rate(max(0, lost[floor]), of)}" for floor in FLOORS)
    )


def by_floor(world: World, night: int, n: int, own: float, worse: Worse, draws: int) -> dict[float | str, str]:
    """Whether one night is "green", "red" or "open" by each floor, and by FID alone.

    Errors and the critical value do not depend on margins, so one test serves all floors.
    """
    pairs = list(world.pairs((night, 2), n, own, ("fid", "kid"), worse))
    changes = [Change.between(cell, after, before, 0.0, "block", column) for cell, after, before, column in pairs]

    def margins(floor: float, *names: str) -> list[float]:
        return [margin_of(before, MARGIN, column, floor) for *_, before, column in pairs if column.name in names]

    both, fid = judge(changes, draws=draws), judge([at for at in changes if at.metric == "fid"], draws=draws)
    found: dict[float | str, str] = {"FID alone": _colour(fid, margins(0.0, "fid"))}
    return found | {floor: _colour(both, margins(floor, "fid", "kid")) for floor in FLOORS}


def _colour(judgement: NightJudgement, margins: list[float]) -> str:
    t = [(cell.difference - margin) / cell.se for cell, margin in zip(judgement.cells, margins, strict=True)]
    if max(t) > judgement.critical:
        return "red"
    return "green" if max(t) < -judgement.critical else "open"
