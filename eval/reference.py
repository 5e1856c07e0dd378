"""What samples are compared with: moments of reference images, the root of their covariance, and features on demand.

Statistics are computed once and cached under a name made of all that determines them: the images' content, the
extractor, its weights and layer, and the preprocessing. Imports no torch.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.eval.features.names import ExtractorSpec
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root
from taugrid.eval.sources import Source, open_source
from taugrid.hashing import file_sha256, spaced_json_sha256
from taugrid.storage import LOCAL, Storage, replacing, user_cache
from taugrid.workers.data.readers.npz import NPZ_ERRORS, NPZ_IMAGES, require_whole_npz
from taugrid.workers.data.readers.picture import SourceError

Features = NDArray[np.float32]

CACHE_FORMAT = 1
"""Part of every key: raised when a cached file's meaning changes."""

ASYMMETRY = 1e-6
"""How far a covariance from a file may be from symmetric, as a share of its largest entry: float32 was used by some."""

NEGATIVITY = 1e-4
"""How far below 0 an eigenvalue of a covariance from a file may be, as a share of the largest. Rounding entries to
float32 moves eigenvalues by at most 6e-8 sqrt(d) of it, 3e-6 at d = 2048; summing in float32 by more."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The side of a comparison that all samples share."""

    moments: Moments
    root: Array
    """(d, d), `symmetric_root` of the moments' covariance."""
    num_images: int | None
    """None where only a mean and a covariance are known."""
    load_features: Callable[[], Features] | None = None
    """(m, d) float32 in the reference's order; None where they can't be had or were not asked for."""
    kept: dict[Hashable, Any] = field(default_factory=dict)
    """What metrics computed from the reference alone, for the next cell. Keys begin with the metric's name."""

    @cached_property
    def features(self) -> Features:
        """(m, d) float32, loaded once; ValueError where there are none."""
        if self.load_features is None:
            raise ValueError("the reference has no features: only its mean and covariance are known")
        return self.load_features()


@dataclass(frozen=True)
class MomentsFile:
    """An `.npz` with `mu` (d,) and `sigma` (d, d), as pytorch-fid and EDM keep their references."""

    path: str
    dimensions: int
    sha256: str
    """Of the file's bytes."""


def open_reference(path: str) -> Source | MomentsFile:
    """What `path` means as a reference: an `.npz` of mean and covariance, or images as `open_source` takes them.

    An `.npz` with both (guided-diffusion's) is taken for its images, which any extractor can see.

    Raises:
        workers.data.readers.picture.SourceError, taugrid.errors.DamagedFile: as `open_source`, and for a mean and
            covariance that are of no distribution.
    """
    file = Path(path).expanduser().absolute()
    if file.suffix == ".npz" and file.is_file():
        with _load(file) as arrays:
            if NPZ_IMAGES not in arrays and {"mu", "sigma"} & set(arrays):
                mean, _ = _mean_and_covariance(file, arrays)
                return MomentsFile(str(file), len(mean), file_sha256(file))
    return open_source(path)


def read_moments(file: MomentsFile) -> Moments:
    """The moments in a file. Their `n` is not known: 2 stands for it, with which scatter and covariance are equal."""
    with _load(Path(file.path)) as arrays:
        mean, covariance = _mean_and_covariance(Path(file.path), arrays)
    return Moments(2, mean, covariance)


def _load(path: Path) -> Any:
    require_whole_npz(path)
    return np.load(path, allow_pickle=False)


def _mean_and_covariance(path: Path, arrays: Any) -> tuple[Array, Array]:
    missing = {"mu", "sigma"} - set(arrays)
    if missing:
        raise SourceError(f"{path} has no {missing.pop()}; a reference of moments holds mu (d,) and sigma (d, d)")
    try:
        mean, covariance = arrays["mu"], arrays["sigma"]
    except NPZ_ERRORS as error:
        raise DamagedFile(f"{path}: mu or sigma can't be read: {' '.join(str(error).split())}") from None
    if (
        mean.ndim != 1
        or not len(mean)
        or covariance.shape != (len(mean), len(mean))
        or mean.dtype.kind + covariance.dtype.kind != "ff"
    ):
        raise SourceError(
            f"{path}: mu is {mean.dtype} of shape {mean.shape} and sigma {covariance.dtype} of shape "
            f"{covariance.shape}; taken are floats of shapes (d,) and (d, d), d > 0"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise SourceError(f"{path}: mu or sigma holds nan or infinity")
    if np.abs(covariance - covariance.T).max() > ASYMMETRY * np.abs(covariance).max():
        raise SourceError(f"{path}: sigma is not symmetric, so it is no covariance")
    eigenvalues = np.linalg.eigvalsh(covariance)
    if eigenvalues[0] < -NEGATIVITY * np.abs(eigenvalues).max():
        raise SourceError(
            f"{path}: sigma has eigenvalues from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}, so it is no covariance"
        )
    return mean, covariance


def default_cache() -> Path:
    """The folder of cached references where none is given: `taugrid/references` in the user's cache."""
    return user_cache() / "references"


def cache_key(content_sha256: str, extractor: ExtractorSpec, preprocessing: str) -> str:
    """64 hexadecimal digits that name statistics by everything that determines them.

    `content_sha256` is that of the images or of a moments file; paths, and what the extractor's file is called, are
    no part of it.
    """
    determines = {
        "format": CACHE_FORMAT,
        "content": content_sha256,
        "extractor": extractor.name,
        "weights": extractor.weights_sha256,
        "source": extractor.source_sha256,
        "layer": extractor.feature_layer,
        "preprocessing": preprocessing,
    }
    return spaced_json_sha256(determines)


class Statistics(NamedTuple):
    """What is cached of a reference."""

    moments: Moments
    root: Array


def load_or_compute(
    folder: Path | None, key: str, compute: Callable[[], Moments], storage: Storage = LOCAL
) -> Statistics:
    """The statistics that `folder` holds under `key`, or those that `compute` gives, which are then kept there.

    A damaged file is computed anew. Without a folder nothing is kept.
    """
    path = None if folder is None else folder / f"{key}.npz"
    found = None if path is None else _read(path, storage)
    if found is not None:
        return found
    moments = compute()
    computed = Statistics(moments, symmetric_root(moments.covariance))
    if path is not None:
        _write(path, computed, storage)
    return computed


def _arrays(statistics: Statistics) -> dict[str, NDArray[Any]]:
    moments, root = statistics
    return {"n": np.array(moments.n, "<i8"), "mean": moments.mean, "scatter": moments.scatter, "root": root}


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
        with storage.local_path(path) as local, _load(local) as file:
            statistics = Statistics(Moments(int(file["n"]), file["mean"], file["scatter"]), file["root"])
            whole = str(file["sha256"]) == _checksum(_arrays(statistics))
    except (DamagedFile, KeyError, *NPZ_ERRORS):
        return None
    return statistics if whole else None


def cached_features(folder: Path, key: str, num_images: int, extract: Callable[[], Iterable[Features]]) -> Path:
    """The file in `folder` with the features of a reference, made by `extract` unless it is there and whole.

    It is a feature file as those of a run: columns `index` and `features`.
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


def read_features(path: Path, storage: Storage = LOCAL) -> Features:
    """All features in a file, (m, d) float32."""
    return np.concatenate([chunk for _, chunk in parquet.read_features(path, "features", storage)])
