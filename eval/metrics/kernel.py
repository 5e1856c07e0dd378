"""KID (Binkowski et al. 2018), the squared maximum mean discrepancy with a cubic kernel.

`kid_mean` is the mean over subsets, drawn as torch-fidelity draws them. `kid` is the unbiased estimate from all pairs,
a U-statistic, which has a standard error of sampling.
"""

from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import Array, FloatFeatures, MeanAndSpread, require_finite, standard_error
from taugrid.registry.metrics import Limits, MetricSettings, Sizes
from taugrid.words import counted
from taugrid.workers.heartbeat import alive

Draws = Sequence[NDArray[np.int64]]

BLOCK = 2000
"""Rows and columns of a kernel matrix that are in memory at a time, whatever N: 16 MB of inner products in float32."""

LEAST_FOR_ERROR = 3
"""Fewer vectors have no error: leaving one out leaves no pair."""

ROWS_IN_CACHE = 64
"""Rows of a block whose powers are taken at a time: 1 MB in float64, and as much for the step between."""


def kid_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    """The size of subsets: they are drawn without repetition, so they can't be larger than the smaller side."""
    wanted, possible = settings.kid_subset_size, min(settings.kid_subset_size, sizes.fewest)
    changes, remarks = {}, []
    if possible < wanted:
        changes = {"kid_subset_size": possible}
        remarks.append(f"kid_subset_size is {possible} here, not {wanted}: one side has no more images")
    if possible == sizes.num_samples:
        remarks.append(
            f"every KID subset holds all {possible} samples, so a ± over subsets says nothing about sampling"
        )
    return Limits(changes=changes, remark="; ".join(remarks) or None)


def compute_kid(inputs: MetricInputs) -> MetricResult:
    settings, reference = inputs.settings, inputs.compared_with
    distance = kernel_distance(
        inputs.all_features,
        reference.features,
        settings.kid_subsets,
        settings.kid_subset_size,
        settings.seed,
        reference.kept,
    )
    values = {"kid_mean": distance.mean, "kid_std": distance.std}
    if min(inputs.num_samples, len(reference.features)) < LEAST_FOR_ERROR:
        return MetricResult(values)
    all_pairs = discrepancy(inputs.all_features, reference.features, reference.kept)
    values |= {"kid": all_pairs.value, "kid_se": standard_error(all_pairs.influence)}
    values |= {"kid_reference_se": standard_error(all_pairs.reference_influence)}
    return MetricResult(values, {"kid": all_pairs.influence})


class Discrepancy(NamedTuple):
    """The unbiased squared maximum mean discrepancy of two samples."""

    value: float
    influence: Array
    """(n,): how far each sample moves it."""
    reference_influence: Array
    """(m,): how far each reference image moves it."""


def discrepancy(
    features: FloatFeatures, reference_features: FloatFeatures, kept: MutableMapping[Hashable, Any]
) -> Discrepancy:
    """MMD^2 of all pairs of `features` (n, d) and `reference_features` (m, d), without those of a vector with itself.

    Influences are the jackknife's: leaving out sample i moves the value by -phi_i / (n - 1), up to a constant.

    Args:
        features: of at least `LEAST_FOR_ERROR` vectors.
        reference_features: the same.
        kept: keeps the reference's part for the next cell. It must serve only one reference.

    Raises:
        ValueError: for features that are not finite.
    """
    require_finite(features)
    n, m = len(features), len(reference_features)
    if "kid rows" not in kept:
        kept["kid rows"] = row_sums(reference_features, reference_features)[0]
    within_reference = kept["kid rows"]
    within, _ = row_sums(features, features)
    between, of_reference = row_sums(features, reference_features)
    value = within.sum() / (n * (n - 1)) + within_reference.sum() / (m * (m - 1)) - 2 * between.sum() / (n * m)
    return Discrepancy(
        float(value),
        2 * (within / (n - 2) - between / m),
        2 * (within_reference / (m - 2) - of_reference / n),
    )


def row_sums(x: FloatFeatures, y: FloatFeatures) -> tuple[Array, Array]:
    """The kernel's sums (n,) of each of `x` (n, d) over all of `y` (m, d), and the reverse, (m,).

    If both are the same array, no vector is paired with itself.
    """
    of_x, of_y = np.zeros(len(x)), np.zeros(len(y))
    for rows, columns, products, times in _products(x, y):
        for some in _blocks(0, len(products), ROWS_IN_CACHE):
            root = _root(products[some], x.shape[1])
            cube = root * root
            cube *= root
            of_x[rows][some] += cube.sum(axis=1)
            if times == 2:
                of_x[columns] += cube.sum(axis=0)
            elif x is not y:
                of_y[columns] += cube.sum(axis=0)
    scale = float(x.shape[1]) ** 3
    return of_x / scale, (of_x if x is y else of_y) / scale


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
    if len(x) * len(y) <= subsets * size**2:  # both ways take as long for a pair, within 3 %
        return _counted(x, y, _membership(of_x, len(x)), _membership(of_y, len(y)))
    chosen_x = np.empty((size, x.shape[1]), x.dtype)  # once: fresh memory for each subset costs 2 %
    chosen_y = chosen_x if x is y else np.empty_like(chosen_x, dtype=y.dtype)
    sums = np.empty(subsets)
    for subset, (a, b) in enumerate(zip(of_x, of_y, strict=True)):
        np.take(x, a, axis=0, out=chosen_x, mode="clip")  # the default mode would copy once more
        if x is not y:
            np.take(y, b, axis=0, out=chosen_y, mode="clip")
        sums[subset] = _sum(chosen_x, chosen_y)
    return sums


def _membership(draws: Draws, count: int) -> Array:
    """(count, subsets) of 0 and 1."""
    of = np.zeros((count, len(draws)))
    for subset, chosen in enumerate(draws):
        of[chosen, subset] = 1
    return of


def _counted(x: FloatFeatures, y: FloatFeatures, in_x: Array, in_y: Array) -> Array:
    """(subsets,): the sums of `pair_sums` from the subsets' members, see `_membership`."""
    cubes = np.zeros(in_x.shape[1])
    for rows, columns, products, times in _products(x, y):
        for some in _blocks(0, len(products), ROWS_IN_CACHE):
            root = _root(products[some], x.shape[1])
            cube = root * root  # numpy's ** 3 is many times slower
            cube *= root
            cubes += times * np.einsum("is,is->s", in_x[rows][some], cube @ in_y[columns])
    cubes /= x.shape[1] ** 3
    return cubes


def _sum(x: FloatFeatures, y: FloatFeatures) -> float:
    """The sum of the kernel over all pairs of x and y."""
    cubes = 0.0
    for _, _, products, times in _products(x, y):
        for some in _blocks(0, len(products), ROWS_IN_CACHE):
            root = _root(products[some], x.shape[1])
            cubes += times * float(np.vdot(root * root, root))
    return cubes / float(x.shape[1]) ** 3


class Products(NamedTuple):
    """A block of the inner products of x and y."""

    rows: slice
    columns: slice
    values: FloatFeatures
    times: int
    """2 if the block also stands for its mirror image."""


def _products(x: FloatFeatures, y: FloatFeatures) -> Iterator[Products]:
    """All inner products. Those of x with itself are symmetric, so half of the blocks are computed."""
    alone = x is y
    for rows in _blocks(0, len(x), BLOCK):
        for columns in _blocks(rows.start if alone else 0, len(y), BLOCK):
            alive()
            values = x[rows] @ y[columns].T  # of x with itself, NumPy computes one triangle
            mirrored = alone and columns != rows
            if alone and not mirrored:
                np.fill_diagonal(values, -x.shape[1])  # where the kernel is 0
            yield Products(rows, columns, values, 2 if mirrored else 1)


def _blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _root(products: FloatFeatures, dimensions: int) -> Array:
    """Return x . y + d in float64: its cube is d^3 times the kernel. Sums are divided by d^3, instead of entries."""
    root = products.astype(np.float64)
    root += dimensions
    return root
