"""Squared maximum mean discrepancies: KID with a cubic kernel, CMMD with a Gaussian one.

`kid_mean` is the mean over subsets, drawn as torch-fidelity draws them. `kid` and `cmmd` are unbiased estimates from
the whole set, U-statistics, which have a standard error of sampling.
"""

from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import Array, FloatFeatures, require_finite
from taugrid.registry.metrics import Limits, MetricSettings, Sizes
from taugrid.words import counted
from taugrid.workers.heartbeat import alive

Draws = Sequence[NDArray[np.int64]]

BLOCK = 2000
"""Rows and columns of a kernel matrix that are in memory at a time, whatever N: 16 MB of inner products in float32."""

ROWS_IN_CACHE = 64
"""Rows of a block whose kernel is computed at a time: 1 MB in float64, and as much for the step between."""

ALL_PAIRS = 10**8  # `kid` is of all pairs of two sets if they have no more than these: 10,000 vectors on each side

MOST_PARTS = 10  # above it, both sets are cut into up to so many parts, and part meets part

LEAST_FOR_ERROR = 3  # fewer vectors have no error: leaving one out leaves no pair

SIGMA, SCALE = 10, 1000
"""Width of CMMD's kernel and factor of its value, as in the paper (Jayasumana et al. 2024) and its code."""


def kid_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    """The size of subsets: they are drawn without repetition, so they can't be larger than the smaller side."""
    return Limits(changes={"kid_subset_size": min(settings.kid_subset_size, sizes.fewest)})


def kid_mean_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    """The same; subsets that hold all samples do not differ by them."""
    limits = kid_limits(settings, sizes)
    if limits.changes["kid_subset_size"] < sizes.num_samples:
        return limits
    return limits._replace(remark=f"each KID subset holds all {sizes.num_samples} samples: kid_std is not of sampling")


def compute_kid(inputs: MetricInputs) -> MetricResult:
    found = _kid(inputs)
    if min(inputs.num_samples, len(inputs.compared_with.features)) < LEAST_FOR_ERROR:
        return MetricResult(
            found.of_subsets, notes=(f"no kid: it needs at least {LEAST_FOR_ERROR} images on both sides",)
        )
    return found.whole.result("kid", found.of_subsets | {"kid": found.whole.value})


def compute_kid_mean(inputs: MetricInputs) -> MetricResult:
    return MetricResult({} if "kid" in inputs.settings.metrics else _kid(inputs).of_subsets)


def _kid(inputs: MetricInputs) -> "KernelDistance":
    settings, reference = inputs.settings, inputs.compared_with
    draws = (settings.kid_subsets, settings.kid_subset_size, settings.seed)
    return kernel_distance(inputs.all_features, reference.features, *draws, reference.kept)


def compute_cmmd(inputs: MetricInputs) -> MetricResult:
    """CMMD of any extractor's features, of all pairs whatever N, and `cmmd_biased`, the reference code's estimator. The
    latter also pairs each vector with itself, where the kernel is 1."""
    reference = inputs.compared_with
    found = discrepancy(inputs.all_features, reference.features, reference.kept, UNIT_GAUSSIAN)
    n, m = inputs.num_samples, len(reference.features)
    with_themselves = (SCALE - found.within) / n + (SCALE - found.within_reference) / m
    return found.result("cmmd", {"cmmd": found.value, "cmmd_biased": found.value + with_themselves})


class Kernel(NamedTuple):
    """A kernel as a function of inner products."""

    name: str
    lengths: Callable[[FloatFeatures], Array]  # what it needs of each vector besides inner products: (n, d) -> (n,)
    of: Callable[[FloatFeatures, Array, Array], Array]
    """(inner products (a, b), lengths (a, 1), lengths (b,)) -> (a, b) in float64."""
    scale: float  # the factor that its sums are multiplied by, instead of each entry


def cubic(dimensions: int) -> Kernel:
    """KID's kernel, (x . y / d + 1)^3 (Binkowski et al. 2018)."""

    def of(products: FloatFeatures, _: Array, __: Array) -> Array:
        root = products.astype(np.float64)
        root += dimensions
        cube = root * root  # numpy's ** 3 is many times slower
        cube *= root
        return cube

    return Kernel("kid", lambda x: np.zeros(len(x)), of, float(dimensions) ** -3)


def _inverse_lengths(x: FloatFeatures) -> Array:
    """1 / |x|, and 0 for a vector of length 0, which has no direction and stays as it is."""
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    inverse: Array = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return inverse


def _unit_gaussian(products: FloatFeatures, of_x: Array, of_y: Array) -> Array:
    """exp(-|x - y|^2 / (2 sigma^2)) of unit vectors x and y; -|x - y|^2 / 2 is x . y - (x . x + y . y) / 2."""
    exponents = products.astype(np.float64)
    exponents *= of_x
    exponents *= of_y
    exponents -= (of_x > 0) / 2.0
    exponents -= (of_y > 0) / 2.0
    exponents /= SIGMA**2
    return np.exp(exponents, out=exponents)


UNIT_GAUSSIAN = Kernel("cmmd", _inverse_lengths, _unit_gaussian, SCALE)
"""CMMD's kernel. Features are brought to unit length first, as the reference pipeline does with CLIP's."""


class Discrepancy(NamedTuple):
    """The unbiased squared maximum mean discrepancy of two sets, of n samples and m reference images."""

    value: float
    influence: Array  # (n,): how far each sample moves it
    reference_influence: Array  # (m,): how far each reference image moves it
    within: float  # the kernel's mean over pairs of samples
    within_reference: float
    typical: Array
    """(m,): proportional to the kernel's mean of each reference image with the others. It has the tails of influences,
    and samples don't change it."""

    def result(self, name: str, values: dict[str, float]) -> MetricResult:
        """With `values`, among them that of the column `name`, which the influences are of."""
        return MetricResult(values, {name: self.influence}, (), {name: self.reference_influence}, {name: self.typical})


def discrepancy(
    features: FloatFeatures,
    reference_features: FloatFeatures,
    kept: MutableMapping[Hashable, Any],
    kernel: Kernel | None = None,
) -> Discrepancy:
    """MMD^2 of all pairs of `features` (n, d) and `reference_features` (m, d), without those of a vector with itself.

    Influences are the jackknife's: leaving out sample i moves the value by -phi_i / (n - 1), up to a constant. `kept`
    keeps the part of its one reference for the next cell. The `kernel` is KID's if none is given. Both sides need
    `LEAST_FOR_ERROR` vectors; raises ValueError if they are not finite."""
    require_finite(features)
    kernel = kernel or cubic(features.shape[1])
    if kernel.name not in kept:
        kept[kernel.name] = Term.of(kernel, reference_features, reference_features)
    within, between = Term.of(kernel, features, features), Term.of(kernel, features, reference_features)
    return _together(within, kept[kernel.name], between)


def _together(within: "Term", of_reference: "Term", between: "Term") -> Discrepancy:
    return Discrepancy(
        within.mean + of_reference.mean - 2 * between.mean,
        2 * (within.of_x - between.of_x),
        2 * (of_reference.of_x - between.of_y),
        within.mean,
        of_reference.mean,
        of_reference.of_x,
    )


class KernelDistance(NamedTuple):
    """KID over subsets, its mean and standard deviation (divisor n) as torch-fidelity's, and that of the whole set."""

    of_subsets: dict[str, float]  # `kid_mean` and `kid_std`
    whole: Discrepancy


def kernel_distance(
    features: FloatFeatures,
    reference_features: FloatFeatures,
    subsets: int,
    subset_size: int,
    seed: int,
    kept: MutableMapping[Hashable, Any] | None = None,
) -> KernelDistance:
    """KID over `subsets` pairs of subsets drawn as torch-fidelity's, and of the whole set.

    The latter is `discrepancy` as long as two sets have at most `ALL_PAIRS`. Above, a mean over all pairs would take
    many times as long as everything else, so each of its three means (in the samples, in the reference, between them)
    is over random parts: the sets are cut by `seed` into as few parts as leave `ALL_PAIRS`, at most `MOST_PARTS`, and a
    vector meets those of one part. The estimate stays unbiased, and each sample keeps an influence; only the noise of
    second order grows. Inner products have the features' type; kernels and sums are float64.

    Features (n, d) and (m, d) are in the order of their indices, on which the draws depend. `kept` keeps the part of
    its one reference between cells of the same n. Raises ValueError for a subset size beyond 2 to min(n, m) (see
    `kid_limits`), or for features that are not finite."""
    require_finite(features)
    n, m = len(features), len(reference_features)
    if not 2 <= subset_size <= min(n, m):
        raise ValueError(
            f"KID subsets of {subset_size} can't be drawn from {counted(n, 'sample')} and {counted(m, 'reference')}; a "
            "subset has at least 2"
        )
    stream = np.random.RandomState(seed)
    of_samples, of_reference = [], []
    for _ in range(subsets):
        of_samples.append(stream.choice(n, subset_size, replace=False))
        of_reference.append(stream.choice(m, subset_size, replace=False))
    kernel, kept = cubic(features.shape[1]), {} if kept is None else kept
    key = ("kid", n, subsets, subset_size, seed)
    if key not in kept:
        kept[key] = Term.of(kernel, reference_features, reference_features, (of_reference, of_reference), seed)
    own = Term.of(kernel, features, features, (of_samples, of_samples), seed)
    between = Term.of(kernel, features, reference_features, (of_samples, of_reference), seed)
    within = own.by_subset + kept[key].by_subset
    distances = within / (subset_size * (subset_size - 1)) - 2 * between.by_subset / subset_size**2
    of_subsets = {"kid_mean": float(distances.mean()), "kid_std": float(distances.std())}
    return KernelDistance(of_subsets, _together(own, kept[key], between))


class Term(NamedTuple):
    """One of the three means of a discrepancy, over the pairs of x (n, d) and y (m, d), or of x with itself."""

    mean: float
    of_x: Array
    """(n,): how far each of x moves the mean, up to a constant. It counts half if x is y, as the vector is on both
    sides."""
    of_y: Array  # (m,): the same of y; unused if x is y
    by_subset: Array  # (subsets,): the kernel's sum over the pairs of each subset of x and its partner of y

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        x: FloatFeatures,
        y: FloatFeatures,
        draws: tuple[Draws, Draws] = ((), ()),
        seed: int | None = None,
    ) -> "Term":
        """The term of `x` and `y`; if both are the same array, no vector is paired with itself. Subsets overlap: if x
        and y have fewer pairs than all subsets together, each pair is computed once and counted in every subset that
        holds it. `draws` are indices in x and in y. Without a `seed` x and y are never cut into parts."""
        alone, parts = x is y, _parts(x, y, seed)
        one_pass = len(x) * len(y) <= sum(len(a) * len(b) for a, b in zip(*draws, strict=True))  # as fast, within 3 %
        whole = kernel_sums(kernel, x, y, draws) if one_pass or len(parts) == 1 else None
        by_subset = whole[2] if whole and one_pass else _subset_sums(kernel, x, y, draws)
        mean, of_x, of_y = 0.0, np.empty(len(x)), np.empty(len(y))
        for a, b in parts:
            some = x[a] if len(parts) > 1 else x
            sums = whole if whole and len(parts) == 1 else kernel_sums(kernel, some, some if alone else y[b])
            mean += sums[0].sum() / (len(a) * (len(b) - alone) * len(parts))
            of_x[a] = sums[0] * (len(x) / (len(a) * len(parts) * max(len(b) - 2 * alone, 1)))
            if not alone:
                of_y[b] = sums[1] * (len(y) / (len(b) * len(parts) * len(a)))
        return cls(mean, of_x, of_y, by_subset)


def _parts(x: FloatFeatures, y: FloatFeatures, seed: int | None) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Which of `x` meet which of `y` (indices), so that the pairs of all parts are about `ALL_PAIRS`. Parts are random,
    because images may be in the order of their classes. x and y are cut in different ways, since image i of both may be
    of one origin."""
    count = min(MOST_PARTS, ceil(len(x) * len(y) / ALL_PAIRS))
    if seed is None or count == 1:
        return [(np.arange(len(x)), np.arange(len(y)))]
    stream = np.random.RandomState(seed)
    of_x, of_y = (np.array_split(stream.permutation(len(side)), count) for side in (x, y))
    return list(zip(of_x, of_x if x is y else of_y, strict=True))


def kernel_sums(
    kernel: Kernel, x: FloatFeatures, y: FloatFeatures, draws: tuple[Draws, Draws] = ((), ())
) -> tuple[Array, Array, Array]:
    """The sums over `x` (n, d) and `y` (m, d), each pair computed once; no vector is paired with itself if x is y. They
    are of each of x with all of y (n,), of each of y with all of x (m,), unused if x is y, and by subset."""
    of_x, of_y, by_subset = np.zeros(len(x)), np.zeros(len(y)), np.zeros(len(draws[0]))
    in_x, in_y = np.zeros((len(x), len(by_subset))), np.zeros((len(y), len(by_subset)))
    for subset, (chosen_x, chosen_y) in enumerate(zip(*draws, strict=True)):
        in_x[chosen_x, subset] = 1
        in_y[chosen_y, subset] = 1
    for rows, columns, values, mirrored in _values(kernel, x, y):
        of_x[rows] += values.sum(axis=1)
        (of_x if mirrored else of_y)[columns] += values.sum(axis=0)
        if len(by_subset):
            by_subset += (1 + mirrored) * np.einsum("is,is->s", in_x[rows], values @ in_y[columns])
    return of_x * kernel.scale, of_y * kernel.scale, by_subset * kernel.scale


def _subset_sums(kernel: Kernel, x: FloatFeatures, y: FloatFeatures, draws: tuple[Draws, Draws]) -> Array:
    """(subsets,): the sums over the subsets, one subset after the other."""
    sums = np.zeros(len(draws[0]))
    for subset, (a, b) in enumerate(zip(*draws, strict=True)):
        chosen = x[a]
        for _, _, values, mirrored in _values(kernel, chosen, chosen if x is y else y[b]):
            sums[subset] += (1 + mirrored) * values.sum()
    return sums * kernel.scale


def _values(kernel: Kernel, x: FloatFeatures, y: FloatFeatures) -> Iterator[tuple[slice, slice, Array, bool]]:
    """All values of the kernel, `ROWS_IN_CACHE` of a block at a time: rows, columns, values, and whether they also
    stand for their mirror image. Those of x with itself are symmetric, so half of the blocks are computed; they are 0
    for a vector with itself."""
    alone, of_x, of_y = x is y, kernel.lengths(x)[:, None], kernel.lengths(y)
    for rows in _slices(0, len(x), BLOCK):
        for columns in _slices(rows.start if alone else 0, len(y), BLOCK):
            alive()
            products = x[rows] @ y[columns].T  # of x with itself, NumPy computes one triangle
            for some in _slices(rows.start, rows.stop, ROWS_IN_CACHE):
                first = some.start - rows.start
                values = kernel.of(products[first : first + ROWS_IN_CACHE], of_x[some], of_y[columns])
                if alone and columns == rows:
                    np.fill_diagonal(values[:, first:], 0)
                yield some, columns, values, alone and columns != rows


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
