"""False alarms of nights of equal networks that KID judges, alone or with FID.

A network turns the noise z of a sample into features of a z + b w, where w is the network's own, so all networks have
the same true KID. *Near*: features follow the reference's distribution, so KID is 0 and its first-order influences
vanish. *Far*: the reference is wider and elsewhere. The reference is a sample of its own, of `REFERENCES` images.
"""

from collections import Counter
from collections.abc import Hashable, MutableMapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gate_worlds import rate
from taugrid.eval.gate.rule import MARGIN, Change, Scored, judge, screen, size_of
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.kernel import discrepancy
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root
from taugrid.registry.metrics import COLUMNS

CELLS, REFERENCES = 12, 2_000
NIGHTS = (  # whether far, whether skewed, dimensions, N, b, metrics
    *((far, skewed, 64, 500, 0.6, ("kid",)) for far in (False, True) for skewed in (False, True)),
    *((far, skewed, 16, 500, 0.6, ("fid", "kid")) for far in (False, True) for skewed in (False, True)),
    (False, False, 64, 500, 0.1, ("kid",)),
    (False, False, 64, 2_000, 0.6, ("kid",)),
)
COMMON = 0.6
"""The share of the noise's variance that the cells of a night have in common."""


class World(NamedTuple):
    """The cells of one kind of network, and what they are compared with."""

    far: bool
    skewed: bool
    mixing: Array
    reference: Array
    moments: Moments
    root: Array
    kept: MutableMapping[Hashable, Any]

    @classmethod
    def made(cls, far: bool, skewed: bool, dimensions: int) -> "World":
        random = np.random.default_rng(21)
        mixing = random.standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
        plain = cls(far, skewed, mixing, mixing, Moments.of(mixing), mixing, {})
        features = plain.features(random.standard_normal((REFERENCES, dimensions)))
        reference = (1.3 * features + 0.4 if far else features).astype(np.float32)
        moments = Moments.of(reference)
        return cls(far, skewed, mixing, reference, moments, symmetric_root(moments.covariance), {})

    def features(self, latent: Array) -> Array:
        mixed: Array = latent @ self.mixing
        return np.exp(0.5 * mixed) if self.skewed else mixed

    def scores(self, latent: Array, metrics: tuple[str, ...]) -> dict[str, Scored]:
        """A cell by each metric; latent (N, d)."""
        features, found = self.features(latent).astype(np.float32), {}
        if "kid" in metrics:
            kernel = discrepancy(features, self.reference, self.kept)
            found["kid"] = Scored(kernel.value, kernel.influence)
        if "fid" in metrics:
            frechet = Frechet.of(Moments.of(features), self.moments, self.root)
            found["fid"] = Scored(frechet.distance, frechet.influence(features))
        return found

    def night(self, key: tuple[int, ...], n: int, own: float, metrics: tuple[str, ...]) -> list[Change]:
        """The changes of a night whose noise and networks are new, with the gate's margin."""
        random = np.random.default_rng((22, *key))
        common, changes = random.standard_normal((3, n, len(self.mixing))), []
        for cell in range(CELLS):
            own_noise = random.standard_normal(common.shape)
            z, old, new = np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * own_noise
            sides = [self.scores(np.sqrt(1 - own**2) * z + own * w, metrics) for w in (old, new)]
            for name, after in sides[1].items():
                before = [sides[0][name]]
                margin = MARGIN * size_of(before)
                changes.append(Change.between(str(cell), after, before, margin, "block", COLUMNS[name]))
        return changes


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
