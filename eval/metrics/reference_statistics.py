"""The statistics of a reference that metrics use: mean, covariance, its root, and features on demand.

They are computed once and cached under a name that depends on everything that determines them: the images' content, the
extractor, its weights and layer, and the preprocessing.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.eval.metrics.moments_file import MomentsFile, load_npz, read_moments
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root
from taugrid.eval.metrics.streams import Features, Stream, moments
from taugrid.storage import LOCAL, Storage, replacing, user_cache
from taugrid.workers.data.npz import NPZ_ERRORS


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """The reference's side of a comparison, the same for all cells."""

    moments: Moments
    root: Array
    """(d, d), `symmetric_root` of the moments' covariance."""
    num_images: int | None
    """None if only a mean and a covariance are known."""
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
    """The statistics of `num_images` feature vectors.

    Args:
        features: in the order of the images. Read only if `cache` does not hold the statistics.
        num_images: how many there are.
        cache: folder that keeps the statistics under `key`; None keeps nothing.
        key: see `eval.reference.Reference.cache_key`.
        load_features: returns all features at once, for metrics that need them; None: no metric does.
        storage: the storage of `cache`.
    """
    known, root = load_or_compute(cache, key, lambda: moments(features(), num_images), storage)
    return ReferenceStatistics(known, root, num_images, load_features)


def of_feature_files(
    paths: Sequence[Path], num_images: int, cache: Path, key: str, storage: Storage = LOCAL
) -> ReferenceStatistics:
    """The statistics of the features in Parquet files, in the order of their images."""

    def features() -> Iterator[Features]:
        return read_all(paths, storage)

    return of_features(features, num_images, cache, key, lambda: np.concatenate(list(features())), storage)


def default_cache() -> Path:
    """The default folder of cached references: `taugrid/references` in the user's cache."""
    return user_cache() / "references"


class Statistics(NamedTuple):
    moments: Moments
    root: Array


def load_or_compute(
    folder: Path | None, key: str, compute: Callable[[], Moments], storage: Storage = LOCAL
) -> Statistics:
    """The statistics that `folder` holds under `key`. If there are none, they are computed and kept there.

    A damaged file is replaced. Without a folder nothing is kept.
    """
    path = None if folder is None else folder / f"{key}.npz"
    found = None if path is None else _read(path, storage)
    if found is not None:
        return found
    known = compute()
    computed = Statistics(known, symmetric_root(known.covariance))
    if path is not None:
        _write(path, computed, storage)
    return computed


def _arrays(statistics: Statistics) -> dict[str, NDArray[Any]]:
    known, root = statistics
    return {"n": np.array(known.n, "<i8"), "mean": known.mean, "scatter": known.scatter, "root": root}


def _checksum(arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, statistics: Statistics, storage: Storage) -> None:
    arrays = _arrays(statistics)
    with replacing(path, storage) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, sha256=np.array(_checksum(arrays)))


def _read(path: Path, storage: Storage) -> Statistics | None:
    try:
        with storage.local_path(path) as local, load_npz(local) as file:
            statistics = Statistics(Moments(int(file["n"]), file["mean"], file["scatter"]), file["root"])
            whole = str(file["sha256"]) == _checksum(_arrays(statistics))
    except (DamagedFile, KeyError, *NPZ_ERRORS):
        return None
    return statistics if whole else None


def cached_features(folder: Path, key: str, num_images: int, extract: Callable[[], Iterable[Features]]) -> Path:
    """The file in `folder` with the features of a reference. If it is missing or damaged, `extract` makes them.

    It is a feature file like those of a run: columns `index` and `features`.
    """
    path = folder / f"{key}.parquet"
    try:
        part = parquet.inspect(path)
        if (part.start, part.stop) == (0, num_images):
            return path
    except (FileNotFoundError, DamagedFile):
        pass
    chunks = iter(extract())
    first = next(chunks)
    with parquet.PartWriter(path, parquet.feature_schema({"key": key}, first.shape[1], None)) as writer:
        start = 0
        for chunk in chain([first], chunks):
            writer.write({"index": np.arange(start, start + len(chunk)), "features": chunk})
            start += len(chunk)
        writer.commit(replace=True)
    return path


def read_all(paths: Sequence[Path], storage: Storage = LOCAL) -> Iterator[Features]:
    """The features in files, as (n, d) float32, a row group at a time.

    Raises:
        DamagedFile: if the indices of a file do not continue those of the one before.
    """
    expected = 0
    for path in paths:
        for index, values in parquet.read_features(path, "features", storage):
            if not np.array_equal(index, np.arange(expected, expected + len(index))):
                raise DamagedFile(f"{path}: its indices must continue from {expected}")
            expected += len(index)
            yield values
