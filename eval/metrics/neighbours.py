"""Precision and recall: the share of samples inside the reference's balls, and the reverse.

Kynkaanniemi et al. 2019, by torch-fidelity's rules: a vector's ball reaches to its k-th nearest neighbour other than
itself and includes its surface. Distances are `torch.cdist` in the features' type, as in torch-fidelity. Torch is
imported only for the computation, because the driver asks this module whether it is possible.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import FloatFeatures, require_finite
from taugrid.registry.metrics import Limits, MetricSettings, Sizes
from taugrid.workers.heartbeat import alive

if TYPE_CHECKING:
    from torch import Tensor

DISTANCES_AT_ONCE = 2**26
"""Distances in memory at a time, 256 MB in float32: all of 8192 x 8192, or 1342 rows of 50,000 x 50,000."""


def prc_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    if sizes.fewest <= settings.prc_neighborhood:
        return Limits(f"it needs more than prc_neighborhood {settings.prc_neighborhood} images on both sides")
    return Limits()


def compute_prc(inputs: MetricInputs) -> MetricResult:
    """Precision and recall. The reference's radii are computed once for all cells. With the reference's balls fixed,
    precision is a share of independent samples. Recall has no error: its samples' balls overlap, and leaving out one at
    a time gives errors 1.3 to 1.8 times too large (docs/decisions.md)."""
    reference, neighbourhood = inputs.compared_with, inputs.settings.prc_neighborhood
    key = ("prc", neighbourhood)
    if key not in reference.kept:
        reference.kept[key] = ball_radii(reference.features, neighbourhood)
    samples, found = covered(inputs.all_features, reference.features, neighbourhood, reference.kept[key])
    values = {"precision": float(samples.mean()), "recall": float(found.mean())}
    return MetricResult(values, {"precision": samples.astype(np.float64)})


def covered(
    features: FloatFeatures,
    reference_features: FloatFeatures,
    neighbourhood: int,
    reference_radii: "Tensor | None" = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of `features` (n, d) and of `reference_features` (m, d) are in some ball of the other side: (n,), (m,).

    A ball reaches to the neighbour number `neighbourhood`; torch-fidelity's default is 3. `reference_radii` (m,) are
    `ball_radii` of the reference, if many cells share it: the time is n (n + m), or m^2 more. Raises ValueError as
    `ball_radii`."""
    import torch

    radii = ball_radii(features, neighbourhood)
    if reference_radii is None:
        reference_radii = ball_radii(reference_features, neighbourhood)
    samples, reference = torch.from_numpy(features), torch.from_numpy(reference_features)
    inside_reference = torch.zeros(len(samples), dtype=torch.bool)
    inside_samples = torch.zeros(len(reference), dtype=torch.bool)
    for block in _blocks(len(reference), columns=len(samples)):
        distances = torch.cdist(reference[block], samples)
        inside_samples[block] = (distances <= radii).any(dim=1)
        inside_reference |= (distances <= reference_radii[block, None]).any(dim=0)
    return inside_reference.numpy(), inside_samples.numpy()


def ball_radii(features: FloatFeatures, neighbourhood: int) -> "Tensor":
    """The distance (n,) from each of `features` (n, d) to its `neighbourhood`-th nearest neighbour; raises ValueError
    if they are not finite, or no more than `neighbourhood`."""
    import torch

    if not 1 <= neighbourhood < len(features):
        raise ValueError(
            f"{len(features)} feature vectors have no neighbour number {neighbourhood}: precision and recall need "
            f"at least 1 neighbour and {neighbourhood + 1} vectors on each side"
        )
    require_finite(features)
    vectors = torch.from_numpy(features)
    # The nearest neighbour is the vector itself.
    radii = [
        torch.cdist(vectors[block], vectors).topk(neighbourhood + 1, largest=False).values[:, -1]  # kthvalue takes 12 x
        for block in _blocks(len(vectors), columns=len(vectors))
    ]
    return torch.cat(radii)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, DISTANCES_AT_ONCE // columns)
    for start in range(0, rows, step):
        alive()
        yield slice(start, start + step)
