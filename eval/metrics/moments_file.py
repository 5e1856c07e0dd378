"""Files with the mean and covariance of a reference, as pytorch-fid and EDM keep them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taugrid.errors import DamagedFile
from taugrid.eval.metrics.statistics import Array, Moments
from taugrid.hashing import file_sha256
from taugrid.workers.content import verified_copy
from taugrid.workers.data.npz import NPZ_ERRORS, NPZ_IMAGES, require_whole_npz
from taugrid.workers.data.picture import SourceError

ASYMMETRY = 1e-6
"""How asymmetric a covariance from a file may be, relative to its largest entry: some are in float32."""

NEGATIVITY = 1e-4
"""How far below 0 an eigenvalue of a covariance from a file may be, relative to the largest. Rounding entries to
float32 moves eigenvalues by at most 6e-8 sqrt(d) of it (3e-6 at d = 2048); summing in float32 moves them further."""


PRECISION = "taugrid_precision"
"""The name of an array that only taugrid writes; other tools read `mu` and `sigma`."""


@dataclass(frozen=True)
class MomentsFile:
    """An `.npz` with `mu` (d,) and `sigma` (d, d), as pytorch-fid and EDM keep their references."""

    path: str
    dimensions: int
    sha256: str
    """SHA-256 of the file's bytes."""
    precision: str = "float32"
    """How the features were computed: what `taugrid export` wrote beside `mu` and `sigma`, if it was not float32."""


def open_moments(file: Path) -> MomentsFile | None:
    """The mean and covariance in an `.npz`; None if it holds none, or if it holds images, which any extractor can use.

    Raises:
        workers.data.picture.SourceError: for a mean and covariance that belong to no distribution.
        DamagedFile: for a file that can't be read.
    """
    with load_npz(file) as arrays:
        if NPZ_IMAGES in arrays or not {"mu", "sigma"} & set(arrays):
            return None
        mean, _ = _mean_and_covariance(file, arrays)
        precision = _precision(file, arrays)
    return MomentsFile(str(file), len(mean), file_sha256(file), precision)


def read_moments(file: MomentsFile) -> Moments:
    """The moments in a file. Their `n` is unknown; it is set to 2, which makes scatter and covariance equal.

    Raises:
        OtherContent: if this node has another file there than the driver opened, or none.
    """
    with verified_copy(Path(file.path), file.sha256) as copy, load_npz(copy) as arrays:
        mean, covariance = _mean_and_covariance(Path(file.path), arrays)
    return Moments(2, mean, covariance)


def load_npz(path: Path) -> Any:
    """The open `.npz` at `path`; DamagedFile if its archive is damaged."""
    require_whole_npz(path)
    return np.load(path, allow_pickle=False)


def _precision(path: Path, arrays: Any) -> str:
    try:
        return str(arrays[PRECISION]) if PRECISION in arrays else "float32"
    except NPZ_ERRORS as error:
        raise DamagedFile(f"{path}: {PRECISION} can't be read: {' '.join(str(error).split())}") from None


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
    return mean, covariance
