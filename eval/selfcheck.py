"""The judge of `taugrid selfcheck`: compares a cell's images with a float64 loop of the paper, and its FID with theirs.

With `--sampler`, it compares them with the solution of the ODE in closed form. Nothing here uses the sampler, the
noise, the oracle or the statistics of a run. The judge shares only the paper, the definition of the noise and the data
with them.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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

ROWS_AT_ONCE = 4096  # images that are recomputed at a time, so that memory does not grow with N

STEPS = (25, 100, 200)
"""S of the cells of `--sampler`. Limits hold at the last S, orders between the first two: there an image's error falls
with the order, for DDIM from 0.96 to 0.24 grey levels, for UniPC from 0.0047 to 0.00003."""

SLACK = 0.25
"""How far the measured order may fall short. DDIM's was 1.0, Heun's 2.1, that of DPM-Solver++(2M) 2.0; the others end
below `ROUNDING`. DPM-Solver++(3M) with half of its second difference had 2.4, UniPC-2 3.1."""

ROUNDING = 2e-4
"""Grey levels by which float32 may move the mean pixel: it was 1.3e-4 at most in the cells of `selfcheck`."""

NEAR = 1.0
"""Largest mean difference at the last S, in grey levels. Of 100 linear steps of DDIM it was 0.5; a standard deviation
that is 10 % too large makes it 1.0."""

WIDE = 0.02
"""How far the FID may be above that of the ODE's images at the last S, as a share of the data's variance. A standard
deviation that is 14 % off makes it 0.02. Of 200 linear steps of DDPM it was 0.013."""

FAR = 6.0
"""Mean difference of one image, in grey levels, beyond which it is another image. Unrelated ones differ by 15."""

FOLLOWS = 0.9
"""Least correlation of images with the ODE's, for a sampler of unknown order to be judged as its solver. DDIM had
0.9997 at eta = 0, and 0.01 at eta = 1."""


class Visited(NamedTuple):
    """A place where x = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float
    key: int  # the integer that names the noise drawn there


@dataclass(frozen=True, eq=False)
class CellSettings:
    data: Gaussian | TwoPoints | Classes
    path: tuple[Visited, ...]  # where the sampler calls the network, and then the image
    eta: float | Literal["sigma_hat"]
    clip: str
    seed: int
    num_samples: int
    guidance: float = 1.0  # the scale g, for classes
    start: float = 1.0  # the standard deviation of x_T
    sampler: Literal["ddim", "heun", "edm-heun"] = "ddim"
    churn: float = 0.0
    churn_noise: float = 1.0


@dataclass(frozen=True)
class CellFindings:
    """The findings about a cell. No `problems` means that all is well."""

    differing_share: float  # of pixels that differ from the recomputed ones
    largest_difference: int  # of a pixel, in grey levels
    fid: dict[str, float] | None
    """`measured`, that of the table, and `recomputed` of the images on disk; None for data other than the Gaussian."""
    problems: tuple[str, ...]
    mean_difference: float | None = None
    """With --sampler: of a pixel from the ODE's image, in grey levels; None if the images do not follow the ODE. Its
    expectation is the mean absolute error, as rounding is unbiased, so it shows errors far below a level."""


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


def judge(
    images: NDArray[np.uint8],
    index: NDArray[np.int64],
    cell: CellSettings,
    fid: float | None = None,
    reference: NDArray[np.uint8] | None = None,
    labels: NDArray[np.int64] | None = None,
) -> CellFindings:
    """Judge one cell by its `images` (n, C, H, W) from the files, in any order, with their recorded indices (n,). A
    Gaussian cell needs the `fid` in the run's table, from features uint8 / 127.5 - 1, and the images (M, C, H, W) that
    it compares with; classes need the recorded class of each image, (n,)."""
    problems = index_problems(index, cell.num_samples)
    difference = np.abs(images.reshape(len(images), -1).astype(np.int64) - recomputed(index, cell, labels))
    share, largest = float((difference > 0).mean()), int(difference.max())
    if largest > 1:
        off = int((difference > 1).any(axis=1).sum())
        problems.append(f"{off} of {len(images)} images not as (seed, n) gives them: up to {largest} grey levels off")
    elif share > DIFFERING_SHARE:
        explained = f"rounding explains {DIFFERING_SHARE:.1%}"
        problems.append(f"{share:.1%} of pixels are off by one grey level; {explained}")
    if isinstance(cell.data, Classes):
        assert labels is not None
        count = cell.data.count  # each block of so many samples has each class once, as of `balanced` labels
        blocks = labels[np.argsort(index)][: len(labels) // count * count].reshape(-1, count)
        if wrong := int((np.sort(blocks, axis=1) != np.arange(count)).any(axis=1).sum()):
            problems.append(f"{counted(wrong, 'block')} of {count} samples without each class once")
    if not isinstance(cell.data, Gaussian):
        return CellFindings(share, largest, None, tuple(problems))
    assert fid is not None
    assert reference is not None
    compared, of_fid = _compared_fid(fid, images, reference)
    return CellFindings(share, largest, compared, (*problems, *of_fid))


def _compared_fid(
    measured: float, images: NDArray[np.uint8], reference: NDArray[np.uint8]
) -> tuple[dict[str, float], list[str]]:
    """The FID in the table beside that of the images on disk, and at most one problem."""
    found = frechet_distance(images, reference)
    problems = []
    if abs(measured - found) > FID_TOLERANCE * found:
        problems.append(f"the table's FID is {measured:.8g}, that of the images on disk {found:.8g}")
    return {"measured": measured, "recomputed": found}, problems


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
    """The grey levels (n, d) of the samples `index`, (n,), in float64 from section 4 of the paper. Guided classes are
    recomputed as what they should be, one Gaussian for each class, and not by guidance: the mean of a sample of class c
    is g m_c + (1 - g) m_0."""
    parts = []
    for start in range(0, len(index), ROWS_AT_ONCE):
        rows, data = slice(start, start + ROWS_AT_ONCE), cell.data
        if isinstance(data, Classes):
            assert labels is not None
            offset = cell.guidance * data.offsets[labels[rows]] + (1 - cell.guidance) * data.offsets[-1]
            data = replace(data.base, mean=data.base.mean + offset)
        dims = data.points.shape[1] if isinstance(data, TwoPoints) else data.mean.shape[-1]
        x = _steps(cell, data, partial(standard_normals, cell.seed, index[rows], dims=dims))
        parts.append(_levels(x))
    return np.concatenate(parts)


def _levels(x: Array) -> NDArray[np.int64]:
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
    key. Box-Muller turns pairs of words into pairs of normals, rounded to float32."""
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
    """FID of the pixels, |m_a - m_b|^2 + tr A + tr B - 2 tr (A B)^1/2, of two arrays (n, C, H, W) or (n, d). L^T A L
    has the eigenvalues of A B where B = L L^T."""
    a, b = (pixels.reshape(len(pixels), -1) / 127.5 - 1 for pixels in (images, reference))
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    factor = np.linalg.cholesky(of_b)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(factor.T @ of_a @ factor), 0))
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(of_a + of_b) - 2 * roots.sum())


def ode_images(
    data: Gaussian, first: float, last: float, seed: int, index: NDArray[np.int64], start: float = 1.0
) -> Array:
    """(n, d): the solution of eq. 14's ODE for the samples `index`, (n,), and x0 as predicted there.

    For a Gaussian it takes x_T along each eigenvector of Sigma by a factor: x - alpha m grows as the standard deviation
    of x does. So the image that all solvers converge to is known from (seed, n), whatever their steps are; a sampler
    that adds noise has only the distribution of those images.

    It leads from x_T at alpha_bar = `first` to the network's last call at `last`. `start` is the standard deviation of
    x_T, if x has a variance of 1 at the first call where x0 has."""
    vectors, m, l = data.eigenvectors, data.mean @ data.eigenvectors, data.eigenvalues  # noqa: E741
    growth = np.sqrt((last * l + 1 - last) / (first * l + 1 - first))
    gain = np.sqrt(last) * l / (last * l + 1 - last) * growth
    x_T = start * standard_normals(seed, index, 0, len(m)) @ vectors
    images: Array = (m + gain * (x_T - np.sqrt(first) * m)) @ vectors.T
    return images


def judge_sampler(
    images: NDArray[np.uint8],
    index: NDArray[np.int64],
    num_samples: int,
    exact: Array,
    fid: float,
    reference: NDArray[np.uint8],
    follows: bool,
    is_last: bool,
) -> CellFindings:
    """Judge one cell by its images, as `judge`, against the ODE's: `exact` (n, d), `ode_images` of `index`. `follows`
    says that the sampler solves the ODE; if it is false, the images tell. `is_last` marks the cell with the largest S,
    at which the images should be near the ODE's."""
    flat = images.reshape(len(images), -1).astype(np.int64)
    levels = _levels(exact)
    difference = np.abs(flat - levels)
    problems = index_problems(index, num_samples)
    mean: float | None = None
    if equal := len(flat) - len(np.unique(flat, axis=0)):
        problems.append(f"{counted(equal, 'image')} equal to another one")
    centre = exact.mean(axis=0)
    if follows or np.corrcoef((flat / 127.5 - 1 - centre).ravel(), (exact - centre).ravel())[0, 1] > FOLLOWS:
        mean = float(difference.mean())
        if far := int((difference.mean(axis=1) > FAR).sum()):
            problems.append(f"{far} of {len(flat)} images not as the ODE takes their noise")
        if is_last and mean > NEAR:
            problems.append(f"pixels are off by {mean:.2g} grey levels on average, {NEAR:g} at most is expected")
    compared, of_fid = _compared_fid(fid, images, reference)
    if is_last:
        expected = frechet_distance(levels.astype(np.uint8), reference)
        if (beyond := compared["recomputed"] - expected) > WIDE * exact.var(axis=0).sum():
            problems.append(f"FID is {beyond:.4f} above {expected:.4f}, that of the ODE's images")
    share, largest = float((difference > 0).mean()), int(difference.max())
    return CellFindings(share, largest, compared, (*problems, *of_fid), mean)


def order_problems(sampler: str, order: int, differences: Mapping[int, float]) -> list[str]:
    """At most one line, if the mean differences at each S fall more slowly than the sampler's order says."""
    few, many, _ = STEPS
    measured = np.log(differences[few] / max(differences[many], ROUNDING)) / np.log(many / few)
    if differences[many] <= ROUNDING or measured >= order - SLACK:
        return []
    said = f"from {few} to {many} steps the error falls with order {measured:.1f}"
    return [f"{said}, where {sampler} has order {order}"]
