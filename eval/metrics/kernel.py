"""KID (Binkowski et al. 2018): the squared maximum mean discrepancy of subsets, drawn as torch-fidelity draws them."""

from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.inputs import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import Array, MeanAndSpread, require_finite
from taugrid.eval.metrics.streams import FloatFeatures
from taugrid.registry.metrics import Limits, MetricSettings, Sizes
from taugrid.words import counted
from taugrid.workers.heartbeat import alive

Draws = Sequence[NDArray[np.int64]]

BLOCK = 1000
"""Rows and columns of a kernel matrix that are in memory at a time, whatever N: 28 MB with the steps between."""

ROWS_IN_CACHE = 32
"""Rows of a block whose powers are taken at a time: 0.5 MB in float64 with the step between."""

COST_OF_COUNTING = 1.1
"""The time for a pair that is counted in all subsets that hold it, over that for a pair of one subset."""


def kid_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    """The size of subsets: they are drawn without repetition, so they can't be larger than the smaller side."""
    wanted, possible = settings.kid_subset_size, min(settings.kid_subset_size, sizes.fewest)
    if possible == wanted:
        return Limits()
    remark = f"kid_subset_size is {possible} here, not {wanted}: one side has no more images"
    if possible == sizes.num_samples:
        remark += ", so every subset holds all samples, and KID's ± says nothing about their spread"
    return Limits(changes={"kid_subset_size": possible}, remark=remark)


def compute_kid(inputs: MetricInputs) -> MetricResult:
    """KID: its mean over subsets and their standard deviation."""
    settings, reference = inputs.settings, inputs.reference
    distance = kernel_distance(
        inputs.all_features,
        reference.features,
        settings.kid_subsets,
        settings.kid_subset_size,
        settings.seed,
        reference.kept,
    )
    return MetricResult({"kid_mean": distance.mean, "kid_std": distance.std})


def kernel_distance(
    features: FloatFeatures,
    reference_features: FloatFeatures,
    subsets: int,
    subset_size: int,
    seed: int,
    kept: MutableMapping[Hashable, Any] | None = None,
) -> MeanAndSpread:
    """KID: unbiased MMD^2 with the kernel (x . y / d + 1)^3, over `subsets` pairs of subsets drawn as torch-fidelity's.

    Inner products have the features' type; powers and sums are float64.

    Args:
        features: (n, d), in the order of the samples' indices, on which the draws depend.
        reference_features: (m, d), in the reference's order.
        subsets: number of pairs of subsets.
        subset_size: from 2 to the smaller of n and m; see `kid_limits`.
        seed: seeds NumPy's legacy generator.
        kept: keeps the reference's part between cells of the same n. It must serve only one reference.

    Raises:
        ValueError: for a subset size out of that range, or for features that are not finite.
    """
    require_finite(features)
    n, m = len(features), len(reference_features)
    if not 2 <= subset_size <= min(n, m):
        raise ValueError(
            f"KID subsets of {subset_size} can't be drawn from {counted(n, 'sample')} and {counted(m, 'reference')}; a "
            "subset has at least 2"
        )
    stream = np.random.RandomState(seed)
    drawn = [(stream.choice(n, subset_size, replace=False), stream.choice(m, subset_size, replace=False))
             for _ in range(subsets)]  # fmt: skip
    of_samples, of_reference = [a for a, _ in drawn], [b for _, b in drawn]
    kept = {} if kept is None else kept
    key = ("kid", n, subsets, subset_size, seed)
    if key not in kept:
        kept[key] = pair_sums(reference_features, reference_features, of_reference, of_reference)
    within = pair_sums(features, features, of_samples, of_samples) + kept[key]
    between = pair_sums(features, reference_features, of_samples, of_reference)
    distances = within / (subset_size * (subset_size - 1)) - 2 * between / subset_size**2
    return MeanAndSpread(float(distances.mean()), float(distances.std()))


def pair_sums(x: FloatFeatures, y: FloatFeatures, of_x: Draws, of_y: Draws) -> Array:
    """(subsets,): sums of the kernel over the pairs of each subset of `x` and its partner of `y`.

    If both are the same array, so must the subsets be, and no point is paired with itself. Subsets overlap: if x and y
    have fewer pairs than all subsets together, each pair is computed once and counted in every subset that holds it.
    """
    subsets, size = len(of_x), len(of_x[0])
    if len(x) * len(y) * COST_OF_COUNTING <= subsets * size**2:
        return _sums(x, y, _membership(of_x, len(x)), _membership(of_y, len(y)))
    whole, sums = np.ones((size, 1)), np.empty(subsets)
    for subset, (a, b) in enumerate(zip(of_x, of_y, strict=True)):
        chosen = x[a]
        sums[subset] = _sums(chosen, chosen if x is y else y[b], whole, whole)[0]
    return sums


def _membership(draws: Draws, count: int) -> Array:
    """(count, subsets) of 0 and 1."""
    of = np.zeros((count, len(draws)))
    for subset, chosen in enumerate(draws):
        of[chosen, subset] = 1
    return of


def _sums(x: FloatFeatures, y: FloatFeatures, in_x: Array, in_y: Array) -> Array:
    """(subsets,): the sums of `pair_sums`. A kernel of x with itself is symmetric, so half of it is computed."""
    alone = x is y
    total = np.zeros(in_x.shape[1])
    for rows in _blocks(0, len(x)):
        for columns in _blocks(rows.start if alone else 0, len(y)):
            alive()
            products = x[rows] @ y[columns].T  # of x with itself, NumPy computes one triangle
            mirrored = alone and columns != rows
            if alone and not mirrored:
                np.fill_diagonal(products, -x.shape[1])  # where the kernel is 0
            for some in _blocks(0, len(products), ROWS_IN_CACHE):
                kernel = _kernel(products[some], x.shape[1])
                sums = np.einsum("is,is->s", in_x[rows][some], kernel @ in_y[columns])
                total += 2 * sums if mirrored else sums
    return total


def _blocks(start: int, stop: int, size: int = BLOCK) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _kernel(products: FloatFeatures, dimensions: int) -> Array:
    base = products.astype(np.float64)
    base /= dimensions
    base += 1
    kernel = base * base  # numpy's ** 3 is many times slower
    kernel *= base
    return kernel
