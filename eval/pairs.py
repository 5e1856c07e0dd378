"""Pairs of images: which image of one set belongs to which of another, and how far apart the two are."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from taugrid.eval.metrics.statistics import Array, standard_error
from taugrid.eval.sources import ImageSet, batches, names_of
from taugrid.threads import THREADS, ahead
from taugrid.workers.data.decoding import SourceError
from taugrid.workers.data.folder import EXTENSIONS

Order = NDArray[np.int64]  # (N,): positions in a source, pair by pair


WINDOW_SIGMA, WINDOW_RADIUS, K1, K2, LEVELS = 1.5, 5, 0.01, 0.03, 255
"""The window and the constants of SSIM as its authors give them: 11 x 11 pixels, 8 bits."""

VALUES_AT_ONCE = 2**20
"""Pixel values of each side that are compared at once, so that memory does not grow with the images' size."""

QUANTILES = (0, 0.01, 0.1, 0.5, 0.9, 1)

WORST = 10  # the number of pairs that are shown


class Pairing(NamedTuple):
    """Which images of A and B belong together."""

    about: str  # how they are paired, or why they are not, in one line
    names: tuple[str, ...] = ()  # of the pairs, in alphabetical order; empty: they are not paired
    orders: tuple[Order, Order] | tuple[()] = ()  # the positions of A's and of B's images, pair by pair


def pairing(a: ImageSet, b: ImageSet, column: str | None = None) -> Pairing:
    """Pair the images of two sets by the names of files and the values of a Parquet `column`, without their endings.

    Endings count if a folder has two files that differ in nothing else. Sets with other names, or without any, are not
    paired, unless they are the same images in the same order. Raises `SourceError` for a `column` that is not there,
    repeats a value, or has nothing to name."""
    if column is not None and "parquet" not in (a.kind, b.kind):
        raise SourceError(f"--pair-by {column} is a column of Parquet, and neither A nor B is Parquet: leave it out")
    found = {"A": names_of(a, column), "B": names_of(b, column)}
    if a.sha256 == b.sha256:
        names = found["A"] or [str(position) for position in range(a.num_images)]
        return Pairing("A and B are the same images", tuple(names), (np.arange(len(names)), np.arange(len(names))))
    for called, source in (("A", a), ("B", b)):
        if found[called] is None:
            way = "; --pair-by COLUMN names those of Parquet" if source.kind == "parquet" else ""
            return Pairing(f"unpaired: the images of {called} have no names{way}")
    names_a, names_b = _keys(found)
    for called, names, other, others in (("B", names_b, "A", names_a), ("A", names_a, "B", names_b)):
        if lacking := sorted(set(names) - set(others)):
            share = f"{len(lacking):,} of {len(names):,} names of {called}"
            return Pairing(f"unpaired: {share} are not in {other}, such as {lacking[0]}")
    (names_of_pairs, order_a), (_, order_b) = _sorted(names_a), _sorted(names_b)
    return Pairing(f"{len(names_a):,} pairs by name", names_of_pairs, (order_a, order_b))


def named_order(source: ImageSet, column: str | None = None) -> tuple[tuple[str, ...], Order] | None:
    """The names that pair the images of a set with those of another, in alphabetical order, and the positions of their
    images; None if it has none. Raises as `pairing`."""
    names = names_of(source, column)
    return None if names is None else _sorted(_keys({"DIR": names})[0])


def _sorted(names: list[str]) -> tuple[tuple[str, ...], Order]:
    order = sorted(range(len(names)), key=names.__getitem__)
    return tuple(names[position] for position in order), np.array(order)


def _keys(found: Mapping[str, list[str] | None]) -> list[list[str]]:
    """The names by which each side's images are paired."""
    sides = [names or [] for names in found.values()]
    for called, names in zip(found, sides, strict=True):
        if len(set(names)) < len(names):
            name, count = Counter(names).most_common(1)[0]
            raise SourceError(f"--pair-by: {count} images of {called} have the value {name}: give a column of names")
    stems = [[_without_ending(name) for name in names] for names in sides]
    return sides if any(len(set(names)) < len(names) for names in stems) else stems


def _without_ending(name: str) -> str:
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in EXTENSIONS else name


class DifferingPair(NamedTuple):
    """One pair of different images."""

    position: int  # in `Pairing.names`
    a: NDArray[np.uint8]  # (C, H, W)
    b: NDArray[np.uint8]


class Distances(NamedTuple):
    """How far apart the images of each pair are, in the order of `Pairing.names`."""

    psnr: Array  # (n,) in dB; infinite for identical images
    ssim: Array | None  # (n,); None for images that are smaller than its window
    worst: list[DifferingPair]
    """The `WORST` pairs with the lowest SSIM (else PSNR), worst first; identical images are not among them."""


def distances(a: ImageSet, b: ImageSet, paired: Pairing, progress: Callable[[int], None]) -> Distances:
    """PSNR and SSIM of each pair of images of one shape; `progress` is called with the number of pairs done."""
    assert paired.orders
    size = max(1, VALUES_AT_ONCE // prod(a.shape))
    has_ssim = min(a.shape[1:]) > 2 * WINDOW_RADIUS

    def measured(
        a: NDArray[np.uint8], b: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Array, Array]:
        return a, b, psnr(a, b), ssim(a, b) if has_ssim else np.empty(0)

    sides = (_in_order(source, order, size) for source, order in zip((a, b), paired.orders, strict=True))
    chunks = (partial(measured, side_a, side_b) for side_a, side_b in zip(*sides, strict=True))
    noise: list[Array] = []
    similarity: list[Array] = []
    worst: list[tuple[float, DifferingPair]] = []
    done = 0
    for images_a, images_b, psnrs, ssims in ahead(chunks, THREADS, 2 * THREADS):
        noise.append(psnrs)
        similarity.append(ssims)
        score = ssims if has_ssim else psnrs
        for i in np.argsort(score, kind="stable")[:WORST]:
            if np.isfinite(psnrs[i]):
                worst.append((score[i], DifferingPair(done + int(i), images_a[i].copy(), images_b[i].copy())))
        worst = sorted(worst, key=lambda scored: scored[0])[:WORST]
        done += len(psnrs)
        progress(done)
    ssim_of_all = np.concatenate(similarity) if has_ssim else None
    return Distances(np.concatenate(noise), ssim_of_all, [pair for _, pair in worst])


def _in_order(source: ImageSet, order: Order, size: int) -> Iterator[NDArray[np.uint8]]:
    """The images of a source in another order, `size` at a time; if it differs, by way of a file that vanishes."""
    if np.array_equal(order, np.arange(len(order))):
        yield from (batch.images for batch in batches(source, size))
        return
    with tempfile.TemporaryFile() as file:
        held = np.memmap(file, np.uint8, "w+", shape=(source.num_images, *source.shape))
        place = np.argsort(order)
        for batch in batches(source, size):
            held[place[batch.indices]] = batch.images
        yield from (held[start : start + size] for start in range(0, len(held), size))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Array:
    """(n,): the peak signal-to-noise ratio of images (n, C, H, W), 10 log10(255^2 / MSE) in dB; infinite if equal."""
    error = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        ratios: Array = 10 * np.log10(LEVELS**2 / error)
    return ratios


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Array:
    """(n,): the structural similarity (Wang et al. 2004, eq. 13) of images (n, C, H, W) of at least 11 x 11 pixels. It
    is the mean over all windows that lie within the image, and over the channels."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    windowed = partial(gaussian_filter, sigma=WINDOW_SIGMA, radius=WINDOW_RADIUS, axes=(2, 3))
    mean_x, mean_y = windowed(x), windowed(y)
    variances = windowed(x * x) - mean_x**2 + windowed(y * y) - mean_y**2
    covariance = windowed(x * y) - mean_x * mean_y
    c1, c2 = (K1 * LEVELS) ** 2, (K2 * LEVELS) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    inner = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    means: Array = index[..., inner, inner].mean(axis=(1, 2, 3))
    return means


def distribution(values: Array) -> dict[str, Any] | None:
    """The number of `values` (n,), their mean with its standard error, and quantiles; None of none."""
    if not len(values):
        return None
    return {
        "pairs": len(values),
        "mean": float(values.mean()),
        "se": standard_error(values) if len(values) > 1 else None,
        "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
    }
