"""MIND, the Monge Inception Distance (Berthet et al. 2026, arXiv 2605.06797): optimal transport along random lines.

Directions and cuts are drawn as torch-fidelity 0.5 draws them, so the same features give the same number. Torch is
imported only for these draws.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import Array, FloatFeatures, require_finite, standard_error
from taugrid.workers.heartbeat import alive

if TYPE_CHECKING:
    from torch import Generator

PROJECTED_AT_ONCE = 2**22
"""Numbers of a side that are projected at a time: 16 MB in float32, which are 83 directions at N = 50,000."""


def compute_mind(inputs: MetricInputs) -> MetricResult:
    settings, reference = inputs.settings, inputs.compared_with.features
    found = monge_distance(inputs.all_features, reference, settings.mind_projections, settings.seed)
    return MetricResult({"mind": found.value, "mind_se": standard_error(found.influence)}, {"mind": found.influence})


class MongeDistance(NamedTuple):
    value: float
    influence: Array
    """(N,): how far each sample moves it, with the reference and the directions fixed."""


def monge_distance(
    features: FloatFeatures, reference_features: FloatFeatures, projections: int, seed: int
) -> MongeDistance:
    """3 d times the mean over random directions of the squared Wasserstein-2 distance along each.

    The larger side is cut to a random n, the size of the smaller one. Between n and n numbers, optimal transport pairs
    them in their order.

    A sample's influence is its Kantorovich potential phi, with phi'(t) = 2 (t - T(t)) for the transport map T, averaged
    over directions. Between neighbours it is integrated by the trapezoid rule, the middle of all optimal potentials.
    Samples that were cut away have influence 0, and those of the others grow by N / n.

    Args:
        features: (N, d), in the order of the samples' indices, on which the cut depends.
        reference_features: (m, d), in the reference's order.
        projections: number of directions.
        seed: seeds torch's generator on the CPU.

    Raises:
        ValueError: for features that are not finite.
    """
    import torch

    require_finite(features)
    size, d = features.shape
    n = min(size, len(reference_features))
    generator = torch.Generator().manual_seed(seed)
    kept = _kept(size, n, generator)
    cut, reference = features[kept], reference_features[_kept(len(reference_features), n, generator)]
    drawn = torch.randn((projections, d), generator=generator)
    directions = (drawn / drawn.norm(dim=1, keepdim=True).clamp(min=1e-12)).numpy()
    total, potential = 0.0, np.zeros(n)
    at_once = max(1, PROJECTED_AT_ONCE // n)
    for start in range(0, projections, at_once):
        some = directions[start : start + at_once]
        for line, line_of_reference in zip(some @ cut.T, some @ reference.T, strict=True):
            alive()
            total += _transport(line, line_of_reference, potential)
    scale = 3 * d / projections
    influence = np.zeros(size)
    influence[kept] = (potential - potential.mean()) * (scale * size / n)
    return MongeDistance(total / n * scale, influence)


def _kept(size: int, n: int, generator: "Generator") -> "slice | NDArray[np.int64]":
    """Which n of `size` vectors are compared: all of them, or a random choice."""
    import torch

    return slice(None) if size == n else torch.randperm(size, generator=generator)[:n].numpy()


def _transport(x: FloatFeatures, y: FloatFeatures, potential: Array) -> float:
    """The cost of moving x (n,) to y (n,), n times their squared distance. Adds the potential of x to `potential`."""
    order = np.argsort(x)
    ordered = x[order].astype(np.float64)
    gaps = ordered - np.sort(y)
    steps = np.diff(ordered) * (gaps[1:] + gaps[:-1])
    potential[order[1:]] += np.cumsum(steps)
    return float(gaps @ gaps)
