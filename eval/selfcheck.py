"""The judge of `taugrid selfcheck`: compares a cell's images with a float64 loop of the paper, and its FID with theirs.

Nothing here uses the sampler, the noise, the oracle or the statistics of a run. The judge shares only the paper, the
definition of the noise and the data with them.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.statistics import Array
from taugrid.words import counted
from taugrid.workers.diffusion.gaussian import Classes, Gaussian, TwoPoints

DIFFERING_SHARE = 0.002
"""Largest share of pixels that may be off by one grey level. float32 moved up to 1.3 in 10,000 pixels across the border
between two levels, in 96 cells of 5 to 20 steps and 4x4 or 8x8 pixels. TF32 in the oracle's products would move 40 to
310 in 10,000, and truncation instead of rounding half of all."""

FID_TOLERANCE = 2e-6
"""Largest relative error of the table's FID. The features' float32 moved it by up to 2.6e-7 in the Gaussian cells;
covariances divided by N instead of N - 1 moved it by 8e-4 at N = 512."""

ROWS_AT_ONCE = 4096
"""Images that are recomputed at a time, so that memory does not grow with N."""


@dataclass(frozen=True, eq=False)
class CellSettings:
    data: Gaussian | TwoPoints | Classes
    path: "tuple[Visited, ...]"
    """Where the sampler calls the network, and then the image."""
    eta: float | Literal["sigma_hat"]
    clip: str
    seed: int
    num_samples: int
    guidance: float = 1.0
    """The scale g, for classes."""
    start: float = 1.0
    """The standard deviation of x_T."""
    sampler: Literal["ddim", "heun", "edm-heun"] = "ddim"
    churn: float = 0.0
    churn_noise: float = 1.0


class Visited(NamedTuple):
    """There, x = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float
    key: int
    """The integer that names the noise drawn there."""


IMAGE = Visited(1.0, 0.0, 0)


def ddpm_path(alpha_bar: Array, tau: Sequence[int]) -> tuple[Visited, ...]:
    """The levels at `tau`, increasing times in 1..T, from the last down; `alpha_bar` is (T + 1,)."""
    return (*(Visited(np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t]), t) for t in reversed(tau)), IMAGE)


def edm_path(steps: int, sigma_min: float, sigma_max: float, rho: float) -> tuple[Visited, ...]:
    """Karras et al. 2022, eq. 5."""
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = [(ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** rho for i in range(steps)]
    return (*(Visited(1.0, sigma, _key(1.0, sigma)) for sigma in sigmas), IMAGE)


def flow_path(steps: int) -> tuple[Visited, ...]:
    """Equal steps of t from 1 to 0."""
    times = [1 - i / steps for i in range(steps)]
    return (*(Visited(1 - t, t, _key(1 - t, t)) for t in times), IMAGE)


def _key(alpha: float, sigma: float) -> int:
    """2^31 less 2^20 times the log SNR, 2 ln(alpha / sigma)."""
    return 2**32 - 1 if alpha == 0 else 2**31 - round(2**21 * float(np.log(alpha / sigma)))


class ComparedFid(NamedTuple):
    measured: float
    """That of the table."""
    recomputed: float
    """That of the images on disk, in float64."""

    @property
    def problems(self) -> list[str]:
        """At most one line."""
        if abs(self.measured - self.recomputed) <= FID_TOLERANCE * self.recomputed:
            return []
        return [f"the table's FID is {self.measured:.8g}, that of the images on disk {self.recomputed:.8g}"]


@dataclass(frozen=True)
class CellFindings:
    """The findings about a cell. No `problems` means that all is well."""

    differing_share: float
    """The share of pixels that differ from the recomputed ones."""
    largest_difference: int
    """The largest difference of a pixel, in grey levels."""
    fid: ComparedFid | None
    """None for data other than the Gaussian."""
    problems: tuple[str, ...]
    """A line for each problem."""
    mean_difference: float | None = None
    """With --sampler: of a pixel from the ODE's image, in grey levels; None if the images do not follow the ODE. Its
    expectation is the mean absolute error, as rounding is unbiased, so it shows errors far below a level."""


def judge(
    images: NDArray[np.uint8],
    index: NDArray[np.int64],
    cell: CellSettings,
    fid: float | None = None,
    reference: NDArray[np.uint8] | None = None,
    labels: NDArray[np.int64] | None = None,
) -> CellFindings:
    """Judge one cell by its images.

    Args:
        images: (n, C, H, W), from the files, in any order.
        index: (n,), the recorded sample index of each image.
        cell: the settings that they should have been made with.
        fid: the FID in the run's table, from features uint8 / 127.5 - 1.
        reference: (M, C, H, W), the images that `fid` compares with.
        labels: (n,), the recorded class of each image, for classes.

    Raises:
        ValueError: for a Gaussian cell, whose FID alone is judged, without `fid` or `reference`; for classes without
            labels.
    """
    problems = index_problems(index, cell.num_samples)
    difference = np.abs(images.reshape(len(images), -1).astype(np.int64) - recomputed(index, cell, labels))
    share, largest = float((difference > 0).mean()), int(difference.max())
    problems += _pixel_problems(difference, share, largest)
    if isinstance(cell.data, Classes):
        problems += label_problems(index, _given(labels), cell.data.count)
    if not isinstance(cell.data, Gaussian):
        return CellFindings(share, largest, None, tuple(problems))
    if fid is None or reference is None:
        raise ValueError("judging a Gaussian cell needs the table's FID and the reference's images")
    compared = ComparedFid(fid, frechet_distance(images, reference))
    return CellFindings(share, largest, compared, (*problems, *compared.problems))


def _pixel_problems(difference: NDArray[np.int64], share: float, largest: int) -> list[str]:
    """At most one line about |images - recomputed|, (n, d), with the share of pixels that differ and the largest."""
    if largest > 1:
        off = int((difference > 1).any(axis=1).sum())
        return [f"{off} of {len(difference)} images not as (seed, n) gives them: up to {largest} grey levels off"]
    if share > DIFFERING_SHARE:
        return [f"{share:.1%} of pixels are off by one grey level; rounding explains {DIFFERING_SHARE:.1%}"]
    return []


def index_problems(index: NDArray[np.int64], num_samples: int) -> list[str]:
    """Lines with the indices of 0..N-1 that are missing or repeated, and with those out of range."""
    counts = Counter(index.tolist())
    kinds = {
        "missing": sorted(set(range(num_samples)) - set(counts)),
        "repeated": sorted(n for n, count in counts.items() if count > 1),
        f"outside 0..{num_samples - 1}": sorted(n for n in counts if not 0 <= n < num_samples),
    }
    return [
        f"{counted(len(which), 'index', 'indices')} {kind}, the first is {which[0]}"
        for kind, which in kinds.items()
        if which
    ]


def recomputed(
    index: NDArray[np.int64], cell: CellSettings, labels: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The grey levels (n, d) of the samples `index`, (n,), in float64 from section 4 of the paper.

    Guided classes are recomputed as what they should be, one Gaussian for each class, and not by guidance.
    """
    rows = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(index), ROWS_AT_ONCE)]
    if isinstance(cell.data, Classes):
        classes, of = cell.data, _given(labels)
        return np.concatenate([_recomputed(index[at], cell, _guided(classes, cell.guidance, of[at])) for at in rows])
    return np.concatenate([_recomputed(index[at], cell, cell.data) for at in rows])


def _guided(classes: Classes, scale: float, labels: NDArray[np.int64]) -> Gaussian:
    """The distribution of each guided sample: its mean, (n, d), is g m_c + (1 - g) m_0."""
    offset = scale * classes.offsets[labels] + (1 - scale) * classes.offsets[-1]
    return replace(classes.base, mean=classes.base.mean + offset)


def label_problems(index: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> list[str]:
    """A line if one of the blocks of K samples does not have each class once, as `balanced` labels do."""
    ordered = labels[np.argsort(index)][: len(labels) // classes * classes].reshape(-1, classes)
    wrong = int((np.sort(ordered, axis=1) != np.arange(classes)).any(axis=1).sum())
    return [f"{counted(wrong, 'block')} of {classes} samples without each class once"] if wrong else []


def _given(labels: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if labels is None:
        raise ValueError("judging classes needs the labels of their images")
    return labels


def _recomputed(index: NDArray[np.int64], cell: CellSettings, data: Gaussian | TwoPoints) -> NDArray[np.int64]:
    dims = data.points.shape[1] if isinstance(data, TwoPoints) else data.mean.shape[-1]
    x = _steps(cell, data, lambda key: standard_normals(cell.seed, index, key, dims))
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.int64)


def _steps(cell: CellSettings, data: Gaussian | TwoPoints, normals: Callable[[int], Array]) -> Array:
    """The images, (n, d), of the noise of each key, (n, d)."""
    x = cell.start * normals(0)
    for a, b in pairwise(cell.path):
        if cell.sampler != "ddim":
            x = _heun(cell, data, x, a, b, normals)
            continue
        x0, eps = _predictions(cell, data, x, a)
        added = a.sigma**2 - (a.alpha / b.alpha * b.sigma) ** 2  # the variance of x_a given x_b
        eta = 1.0 if cell.eta == "sigma_hat" else cell.eta
        variance = eta**2 * (b.sigma / a.sigma) ** 2 * added  # eq. 16; for eta = 1, of x_b given x_a and x_0
        x = b.alpha * x0 + np.sqrt(max(b.sigma**2 - variance, 0)) * eps  # eq. 12
        if cell.eta == "sigma_hat":
            variance = added * (b.alpha**2 + b.sigma**2) / (a.alpha**2 + a.sigma**2)
        if b is not cell.path[-1] and variance > 0:
            x += np.sqrt(variance) * normals(a.key)
    return x


def _heun(
    cell: CellSettings, data: Gaussian | TwoPoints, x: Array, a: Visited, b: Visited, normals: Callable[[int], Array]
) -> Array:
    """A step of Karras et al. 2022, algorithm 2. The slope of x is that of its own process: eps of edm, v of a flow."""
    if cell.churn:
        churned = a.sigma * (1 + min(cell.churn / (len(cell.path) - 1), np.sqrt(2) - 1))
        x = x + cell.churn_noise * np.sqrt(churned**2 - a.sigma**2) * normals(a.key)
        a = a._replace(sigma=churned)
    x0, eps = _predictions(cell, data, x, a)
    ended = b.alpha * x0 + b.sigma * eps
    if b.sigma == 0:
        return ended
    x0_b, eps_b = _predictions(cell, data, ended, b)
    return ended + ((b.alpha - a.alpha) * (x0_b - x0) + (b.sigma - a.sigma) * (eps_b - eps)) / 2


def _predictions(cell: CellSettings, data: Gaussian | TwoPoints, x: Array, at: Visited) -> tuple[Array, Array]:
    """x_0 and eps, clipped as the cell says."""
    x0 = _expected_x0(data, x, at)
    eps = (x - at.alpha * x0) / at.sigma
    if cell.clip != "none":
        x0 = np.minimum(np.maximum(x0, -1), 1)
    if cell.clip == "x0_and_eps" or cell.sampler != "ddim":
        eps = (x - at.alpha * x0) / at.sigma
    return x0, eps


def _expected_x0(data: Gaussian | TwoPoints, x: Array, at: Visited) -> Array:
    """E[x_0 | x_t] by Bayes, (n, d): for a Gaussian by regression on x_t, for two points by their posterior weights."""
    posterior: Array
    if isinstance(data, Gaussian):
        covariance = data.covariance
        noise = at.sigma**2 * np.eye(len(covariance))
        gain = np.linalg.solve(at.alpha**2 * covariance + noise, at.alpha * covariance)
        posterior = data.mean + (x - at.alpha * data.mean) @ gain
    else:
        distances = np.square(x[:, None] - at.alpha * data.points).sum(axis=2)
        log_weights = np.log(data.weights) - distances / (2 * at.sigma**2)
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        posterior = weights @ data.points / weights.sum(axis=1, keepdims=True)
    return posterior


def standard_normals(seed: int, index: NDArray[np.int64], time: int, dims: int) -> Array:
    """The noise of the samples `index` at `time`, (n, dims), from its definition in `workers/diffusion/noise.py`.

    Philox4x32-10 with counter (block, time, index mod 2^32, index div 2^32) and the first 8 bytes of a SHA-256 as its
    key. Box-Muller turns pairs of words into pairs of normals, rounded to float32.
    """
    digest = hashlib.sha256(f"taugrid/sample/{seed}".encode()).digest()
    key = np.frombuffer(digest[:8], dtype="<u4").astype(np.uint64)
    n = index.astype(np.uint64)[:, None]
    block = np.arange(-(-dims // 4), dtype=np.uint64)
    word, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    counter = list(np.broadcast_arrays(block, np.uint64(time), n & low, n >> word))
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        counter = [right >> word ^ counter[1] ^ key[0], right & low, left >> word ^ counter[3] ^ key[1], left & low]
        key = key + np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64) & low
    u = (np.stack(counter, axis=2).reshape(len(index), -1, 2) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(u[..., 0])), 2 * np.pi * u[..., 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(len(index), -1)
    return pairs[:, :dims].astype(np.float32).astype(np.float64)


def frechet_distance(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """FID of the pixels, |m_a - m_b|^2 + tr A + tr B - 2 tr (A B)^1/2, of two arrays (n, C, H, W) or (n, d).

    L^T A L has the eigenvalues of A B where B = L L^T.
    """
    a, b = (pixels.reshape(len(pixels), -1) / 127.5 - 1 for pixels in (images, reference))
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    factor = np.linalg.cholesky(of_b)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(factor.T @ of_a @ factor), 0))
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(of_a + of_b) - 2 * roots.sum())
