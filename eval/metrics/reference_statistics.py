"""The reference's side of a comparison: mean, covariance, its root, and features on demand.

Mean and covariance are read from a file, as pytorch-fid and EDM keep them, or computed from features. They are cached
under a name that depends on everything that determines them: the images' content, the extractor, its weights and layer,
and the preprocessing.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from taugrid import parquet
from taugrid.errors import DamagedFile, joined_lines
from taugrid.eval.metrics.statistics import Array, Features, Moments, Stream, moments, symmetric_root
from taugrid.hashing import file_sha256
from taugrid.storage import LOCAL, Storage, replacing
from taugrid.workers.content import verified_copy
from taugrid.workers.data.decoding import SourceError
from taugrid.workers.data.npz import NPZ_ERRORS, NPZ_IMAGES, require_intact_npz, require_small_arrays

ASYMMETRY = 1e-6  # how asymmetric a covariance from a file may be, relative to its largest entry: some are in float32

NEGATIVITY = 1e-4
"""How far below 0 an eigenvalue of a covariance from a file may be, relative to the largest. Rounding entries to
float32 moves eigenvalues by at most 6e-8 sqrt(d) of it (3e-6 at d = 2048); summing in float32 moves them further."""

PRECISION = "taugrid_precision"  # the name of an array that only taugrid writes; other tools read `mu` and `sigma`

NO_ROOT: Array = np.empty((0, 0))  # the root where no metric needs it; only FID does


@dataclass(frozen=True)
class MomentsFile:
    """An `.npz` with `mu` (d,) and `sigma` (d, d), as pytorch-fid and EDM keep their references."""

    path: str
    dimensions: int
    sha256: str
    precision: str = "float32"
    """How the features were computed: what `taugrid export` wrote beside `mu` and `sigma`, if it was not float32."""


def open_moments(file: Path) -> MomentsFile | None:
    """The mean and covariance in an `.npz`; None if it holds none, or if it holds images, which any extractor can use.
    Raises `SourceError` if they belong to no distribution, `DamagedFile` if the file can't be read."""
    with load_npz(file) as arrays:
        if NPZ_IMAGES in arrays or not {"mu", "sigma"} & set(arrays):
            return None
        mean = _read_moments(file, arrays).mean
        try:
            precision = str(arrays[PRECISION]) if PRECISION in arrays else "float32"
        except NPZ_ERRORS as error:
            raise DamagedFile(f"{file}: {PRECISION} can't be read: {joined_lines(error)}") from None
    return MomentsFile(str(file), len(mean), file_sha256(file), precision)


def read_moments(file: MomentsFile) -> Moments:
    """The moments in a file; WorkerRefusal if this node has another one there than the driver opened, or none. Their
    `n` is unknown; it is set to 2, which makes scatter and covariance equal."""
    with verified_copy(Path(file.path), file.sha256) as copy, load_npz(copy) as arrays:
        return _read_moments(Path(file.path), arrays)


def load_npz(path: Path) -> Any:
    """The open `.npz` at `path`; DamagedFile if its archive is damaged, or its arrays are far larger than it is."""
    require_small_arrays(path)
    require_intact_npz(path)
    return np.load(path, allow_pickle=False)


def _read_moments(path: Path, arrays: Any) -> Moments:
    missing = {"mu", "sigma"} - set(arrays)
    if missing:
        raise SourceError(f"{path} has no {missing.pop()}; a reference of moments holds mu (d,) and sigma (d, d)")
    try:
        mean, covariance = arrays["mu"], arrays["sigma"]
    except NPZ_ERRORS as error:
        raise DamagedFile(f"{path}: mu or sigma can't be read: {joined_lines(error)}") from None
    fits = mean.ndim == 1 and len(mean) and covariance.shape == (len(mean), len(mean))
    if not fits or mean.dtype.kind + covariance.dtype.kind != "ff":
        raise SourceError(
            f"{path}: mu and sigma must be floats of shapes (d,) and (d, d), d > 0, not {mean.dtype} of shape "
            f"{mean.shape} and {covariance.dtype} of shape {covariance.shape}"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise SourceError(f"{path}: mu or sigma holds nan or infinity")
    if np.abs(covariance - covariance.T).max() > ASYMMETRY * np.abs(covariance).max():
        raise SourceError(f"{path}: sigma is not symmetric, so it can't be a covariance")
    eigenvalues = np.linalg.eigvalsh(covariance)
    if eigenvalues[0] < -NEGATIVITY * np.abs(eigenvalues).max():
        raise SourceError(
            f"{path}: sigma has eigenvalues from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}, so it can't be a "
            "covariance"
        )
    return Moments(2, mean, covariance)


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """The reference's side of a comparison, the same for all cells."""

    moments: Moments
    root: Array  # (d, d), `symmetric_root` of the moments' covariance
    num_images: int | None  # None if only a mean and a covariance are known
    load_features: Callable[[], Features] | None = None
    """Returns (m, d) float32 in the reference's order; None if they are unavailable or not needed."""
    kept: dict[Hashable, Any] = field(default_factory=dict)
    """What metrics computed from the reference alone, for the next cell. Keys begin with the metric's name."""

    @cached_property
    def features(self) -> Features:
        """(m, d) float32, loaded once; ValueError if there are none."""
        if self.load_features is None:
            raise ValueError("the reference has no features: only its mean and covariance are known")
        return self.load_features()


def of_moments(file: MomentsFile, cache: Path | None, key: str, storage: Storage = LOCAL) -> ReferenceStatistics:
    """The statistics in a file of mean and covariance; `cache` keeps the root under `key`."""
    known, root = load_or_compute(cache, key, lambda: read_moments(file), storage)
    return ReferenceStatistics(known, root, None)


def of_features(
    features: Stream,
    num_images: int,
    cache: Path | None,
    key: str,
    load_features: Callable[[], Features] | None = None,
    storage: Storage = LOCAL,
) -> ReferenceStatistics:
    """The statistics of `num_images` feature vectors, in the order of the images. The folder `cache` keeps them under
    `key` (`eval.reference.Reference.cache_key`): features are read only if it lacks them. None keeps nothing.
    `load_features` returns all features at once; None: no metric needs them."""
    known, root = load_or_compute(cache, key, lambda: moments(features(), num_images), storage)
    return ReferenceStatistics(known, root, num_images, load_features)


def of_feature_files(
    paths: Sequence[Path], num_images: int, cache: Path, key: str, storage: Storage = LOCAL
) -> ReferenceStatistics:
    """The statistics of the features in Parquet files, in the order of their images."""
    features = partial(read_all, paths, storage)
    return of_features(features, num_images, cache, key, lambda: np.concatenate(list(features())), storage)


def load_or_compute(
    folder: Path | None, key: str, compute: Callable[[], Moments], storage: Storage = LOCAL
) -> tuple[Moments, Array]:
    """The moments and root that `folder` holds under `key`. If there are none, they are computed and kept there. A
    damaged file is replaced. Without a folder nothing is kept."""
    path = None if folder is None else folder / f"{key}.npz"
    if path is not None and (cached := read_statistics(path, storage)) is not None:
        return cached
    known = compute()
    root = symmetric_root(known.covariance)
    if path is not None:
        arrays = {"n": np.array(known.n, "<i8"), "mean": known.mean, "scatter": known.scatter, "root": root}
        with replacing(path, storage) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, sha256=np.array(_checksum(arrays)))
    return known, root


def _checksum(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read_statistics(path: Path, storage: Storage = LOCAL) -> tuple[Moments, Array] | None:
    """The moments and root in a file of `load_or_compute`; None if it is missing or damaged."""
    try:
        with storage.local_path(path) as local, load_npz(local) as file:
            arrays = {name: file[name] for name in ("n", "mean", "scatter", "root")}
            if str(file["sha256"]) != _checksum(arrays):
                return None
    except (DamagedFile, KeyError, *NPZ_ERRORS):
        return None
    return Moments(int(arrays["n"]), arrays["mean"], arrays["scatter"]), arrays["root"]


def read_all(paths: Sequence[Path], storage: Storage = LOCAL, column: str = "features") -> Iterator[Features]:
    """A column of feature files, (n, d) float32 of a row group at a time; DamagedFile if their indices have gaps."""
    expected = 0
    for path in paths:
        for index, values in parquet.read_features(path, column, storage):
            if not np.array_equal(index, np.arange(expected, expected + len(index))):
                raise DamagedFile(f"{path}: its indices must continue from {expected}")
            expected += len(index)
            yield values
