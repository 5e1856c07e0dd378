"""Distributions with closed forms: a Gaussian, for which the samples' moments are known too, and a pair of points.

For data from N(m, Sigma) the optimal eps is linear in x, so every step of the sampler is affine and commutes with
Sigma: mean, covariance and Frechet distance of the samples are known for every tau and eta. Two points have no such
form, but their optimal eps is not linear and their predicted x0 is clipped. The driver imports this, so it imports no
torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

GREY_LEVEL = 2 / 255  # the distance between neighbours of the 256 values that a pixel in [-1, 1] can have

STANDARD_DEVIATION, LARGEST_MEAN = 0.1, 0.1
"""Standard deviation and largest mean of the pixels of `gaussian`. They are small enough that less than one image in a
million has a value beyond [-1, 1], in the data and in the samples of every eta and sigma-hat along a linear or
quadratic tau of 5 steps or more, up to 3x8x8 (sigma-hat with a quadratic tau of 5 comes closest, at 4e-7). The
deviation, 13 grey levels, is large enough for rounding to 8 bits to act as independent noise (`rounded`)."""

ROW_CORRELATION, COLUMN_CORRELATION = 0.5, 0.6
"""Correlations of vertical and horizontal neighbours in `gaussian`. They differ, so that transposing is detectable."""

FIRST_WEIGHT = 0.4  # the weight of the first of `two_points`

BEYOND = (1.5, 1.2)
"""The first pixel of `two_points`. Both values are beyond 1, so that its predicted x0 is clipped at every time."""

SPREAD, DECAY = 0.3, -0.8
"""The points of `two_points` differ by SPREAD * DECAY^k in pixel k > 0: by many grey levels in the first few pixels,
but by a distance of only 0.5 in all, so that at times near 50 and 100 of 1000 the noise hides which point an image
comes from. Clipping the first pixel then moves the others: of 512 images of 10 and of 20 steps, a different clip mode
moved between 22 % and 91 % by more than a grey level. At 5 steps the two modes that clip give similar images."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) over images of d pixels in C order. The covariance is given by its eigenvectors."""

    mean: Float64Array  # (d,)
    eigenvalues: Float64Array  # (d,), positive
    eigenvectors: Float64Array  # (d, d), a column for each eigenvalue

    @property
    def covariance(self) -> Float64Array:
        """(d, d)."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T


@dataclass(frozen=True, eq=False)
class TwoPoints:
    """Two images of d pixels in C order, each with its probability."""

    points: Float64Array  # (2, d)
    weights: Float64Array  # (2,), adding up to 1


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes with one covariance: class c is N(m + offsets[c], Sigma), where `base` is N(m, Sigma)."""

    base: Gaussian
    offsets: Float64Array
    """(K + 1, d). The last row is that of the null label, K, for which a network predicts as for one more class."""

    @property
    def count(self) -> int:
        """K."""
        return len(self.offsets) - 1


def classes(shape: tuple[int, int, int]) -> Classes:
    """Three classes for images of `shape` (C, H, W): `gaussian`, with waves added to its mean; the null label has none.
    The waves of all classes do not cancel, so a wrong scale moves the mean of balanced labels too. Guided with a scale
    up to 3, means stay within 0.4, so less than one pixel in a million is beyond [-1, 1]."""
    base, count = gaussian(shape), 3
    phase = np.arange(len(base.mean)) / len(base.mean) + np.arange(count)[:, None] / (count + 1)
    waves = LARGEST_MEAN * np.cos(2 * np.pi * phase)
    return Classes(base, np.concatenate([waves, np.zeros((1, len(base.mean)))]))


def gaussian(shape: tuple[int, int, int]) -> Gaussian:
    """The Gaussian for images of `shape` (C, H, W): its mean rises in C order, neighbours in a channel are correlated.
    The covariance of two pixels of one channel is std^2 times the row correlation to the power of their distance in
    rows, times the same for columns. Channels are independent."""
    channels, height, width = shape
    rows, row_vectors = np.linalg.eigh(_powers(ROW_CORRELATION, height))
    columns, column_vectors = np.linalg.eigh(_powers(COLUMN_CORRELATION, width))
    return Gaussian(
        mean=_ramp(shape),
        eigenvalues=STANDARD_DEVIATION**2 * np.tile(np.kron(rows, columns), channels),
        eigenvectors=np.kron(np.eye(channels), np.kron(row_vectors, column_vectors)).astype(np.float64),
    )


def two_points(shape: tuple[int, int, int]) -> TwoPoints:
    """The points for images of `shape` (C, H, W): on both sides of `gaussian`'s mean, except in the first pixel."""
    middle = _ramp(shape)
    half = SPREAD / 2 * DECAY ** np.arange(len(middle))
    points = np.stack([middle + half, middle - half])
    points[:, 0] = BEYOND
    return TwoPoints(points, np.array([FIRST_WEIGHT, 1 - FIRST_WEIGHT]))


def _ramp(shape: tuple[int, int, int]) -> Float64Array:
    return np.linspace(-LARGEST_MEAN, LARGEST_MEAN, math.prod(shape))


def _powers(correlation: float, n: int) -> Float64Array:
    return correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(np.float64)


def draw(distribution: Gaussian | TwoPoints | Classes, num_images: int, seed: int) -> Float64Array:
    """`num_images` independent draws, (N, d) float64, from NumPy's frozen legacy stream (NEP 19). A Gaussian is drawn
    with its Cholesky factor because that, unlike eigenvectors, is unique. Machines then differ only in the last digits,
    which changes an 8-bit pixel of 10,000 images of 8x8 with a probability of about 1e-8. Classes take turns."""
    if isinstance(distribution, Classes):
        turns = distribution.offsets[np.arange(num_images) % distribution.count]
        return turns + draw(distribution.base, num_images, seed)
    stream = np.random.RandomState(seed)
    if isinstance(distribution, TwoPoints):
        second = stream.random_sample(num_images) >= distribution.weights[0]
        points: Float64Array = distribution.points[second.astype(np.int64)]
        return points
    factor = np.linalg.cholesky(distribution.covariance)
    return distribution.mean + stream.standard_normal((num_images, len(factor))) @ factor.T


def rounded(pixels: Gaussian) -> Gaussian:
    """The moments after rounding to 8 bits, which adds a variance of (2/255)^2 / 12 if pixels span many grey levels."""
    return replace(pixels, eigenvalues=pixels.eigenvalues + GREY_LEVEL**2 / 12)


def share_beyond_1(pixels: Gaussian) -> float:
    """A bound on the share of images with a pixel outside [-1, 1]: the sum of the pixels' probabilities."""
    deviations = np.sqrt(np.square(pixels.eigenvectors) @ pixels.eigenvalues)
    return float(sum(
        math.erfc((1 - side * m) / (sd * math.sqrt(2))) / 2
        for m, sd in zip(pixels.mean.tolist(), deviations.tolist(), strict=True)
        for side in (-1, 1)
    ))  # fmt: skip


def sampled(
    data: Gaussian, levels: Sequence[float], eta: float | Literal["sigma_hat"], variance_at_first: float = 1.0
) -> Gaussian:
    """The distribution of x_0 under eqs. 9, 12 and 16 with the optimal eps for `data` and a normal x_T.

    That eps is sqrt(1 - a) (a Sigma + (1 - a) I)^-1 (x - sqrt(a) m). In the basis of Sigma's eigenvectors, each step is
    x -> gain x + shift m + noise z in each direction separately. Without signal, x0 is m and eps is x.

    `levels` are alpha_bar from the first point of a path to its last (`Point.scale` is for other processes than
    DDPM's). `eta` `sigma_hat` is eta = 1 with the larger noise, and none in the last step. `variance_at_first` is that
    of x_T over its point's scale."""
    m = data.eigenvectors.T @ data.mean
    mean, variance = np.zeros_like(m), variance_at_first * np.ones_like(m)
    for i, (a, a_prev) in zip(reversed(range(len(levels) - 1)), pairwise(levels), strict=True):
        sigma = np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev)) * (1.0 if eta == "sigma_hat" else eta)
        noise = sigma if eta != "sigma_hat" else np.sqrt(1 - a / a_prev) if i > 0 else 0.0
        slope = np.sqrt(1 - a) / (a * data.eigenvalues + 1 - a)  # of eps in x
        direction = np.sqrt(np.maximum(1 - a_prev - sigma**2, 0))
        if a > 0:
            per_eps = direction - np.sqrt(a_prev * (1 - a) / a)
            gain, shift = np.sqrt(a_prev / a) + per_eps * slope, -per_eps * slope * np.sqrt(a)
        else:
            gain, shift = direction, np.sqrt(a_prev)
        mean, variance = gain * mean + shift * m, gain**2 * variance + noise**2
    return Gaussian(data.eigenvectors @ mean, variance, data.eigenvectors)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + sum (sqrt(l_a) - sqrt(l_b))^2: the squared Frechet distance for equal eigenvectors."""
    if not np.array_equal(a.eigenvectors, b.eigenvectors):
        raise ValueError("the closed forms need Gaussians with the same eigenvectors")
    return float(np.square(a.mean - b.mean).sum() + np.square(np.sqrt(a.eigenvalues) - np.sqrt(b.eigenvalues)).sum())
