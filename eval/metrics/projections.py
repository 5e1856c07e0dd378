"""MIND, the Monge Inception Distance (Berthet et al. 2026, arXiv 2605.06797): optimal transport along random lines.

Directions and cuts are drawn as torch-fidelity 0.5 draws them, so the same features give the same number. Torch is
imported only for these draws.
"""

from typing import NamedTuple

import numpy as np

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import Array, FloatFeatures, require_finite
from taugrid.workers.heartbeat import alive

PROJECTED_AT_ONCE = 2**22
"""Numbers of a side that are projected at a time: 16 MB in float32, which are 83 directions at N = 50,000."""


def compute_mind(inputs: MetricInputs) -> MetricResult:
    settings, reference = inputs.settings, inputs.compared_with.features
    found = monge_distance(inputs.all_features, reference, settings.mind_projections, settings.seed)
    # Up to a constant, squared distances from the reference's mean: potentials grow as squares do.
    spread = np.einsum("nd,nd->n", reference, reference, dtype=np.float64) - 2 * (reference @ reference.mean(axis=0))
    of_reference = {"mind": found.reference_influence}
    return MetricResult({"mind": found.value}, {"mind": found.influence}, (), of_reference, {"mind": spread})


class MongeDistance(NamedTuple):
    value: float
    influence: Array  # (N,): how far each sample moves it, with the reference and the directions fixed
    reference_influence: Array  # (m,): how far each reference image moves it


def monge_distance(
    features: FloatFeatures, reference_features: FloatFeatures, projections: int, seed: int
) -> MongeDistance:
    """3 d times the mean over random directions of the squared Wasserstein-2 distance along each.

    The larger side is cut to a random n, the size of the smaller one. Between n and n numbers, optimal transport pairs
    them in their order.

    A sample's influence is its Kantorovich potential phi, with phi'(t) = 2 (t - T(t)) for the transport map T, averaged
    over directions. Between neighbours it is integrated by the trapezoid rule, the middle of all optimal potentials.
    Samples that were cut away have influence 0, and those of the others grow by N / n.

    Features (N, d) and (m, d) are in the order of their indices, on which the cut depends; raises ValueError if the
    samples' are not finite. `seed` seeds torch's generator on the CPU."""
    import torch

    require_finite(features)
    sides, d = (features, reference_features), features.shape[1]
    n = min(map(len, sides))
    generator = torch.Generator().manual_seed(seed)
    kept = [
        slice(None) if len(side) == n else torch.randperm(len(side), generator=generator)[:n].numpy() for side in sides
    ]
    x, y = (side[rows] for side, rows in zip(sides, kept, strict=True))
    drawn = torch.randn((projections, d), generator=generator)
    directions = (drawn / drawn.norm(dim=1, keepdim=True).clamp(min=1e-12)).numpy()
    total, potentials = 0.0, (np.zeros(n), np.zeros(n))
    at_once = max(1, PROJECTED_AT_ONCE // n)
    for start in range(0, projections, at_once):
        some = directions[start : start + at_once]
        for of_x, of_y in zip(some @ x.T, some @ y.T, strict=True):
            alive()
            total += _transport(of_x, of_y, *potentials)
    scale = 3 * d / projections
    influences = [np.zeros(len(side)) for side in sides]
    for influence, rows, potential in zip(influences, kept, potentials, strict=True):
        influence[rows] = (potential - potential.mean()) * (scale * len(influence) / n)
    return MongeDistance(total / n * scale, *influences)


def _transport(x: FloatFeatures, y: FloatFeatures, of_x: Array, of_y: Array) -> float:
    """The cost of moving x (n,) to y (n,), n times their squared distance. Adds their potentials to `of_x`, `of_y`."""
    orders = np.argsort(x), np.argsort(y)
    ordered = x[orders[0]].astype(np.float64), y[orders[1]].astype(np.float64)
    gaps = ordered[0] - ordered[1]
    sums = gaps[1:] + gaps[:-1]
    of_x[orders[0][1:]] += np.cumsum(np.diff(ordered[0]) * sums)
    of_y[orders[1][1:]] -= np.cumsum(np.diff(ordered[1]) * sums)
    return float(gaps @ gaps)
