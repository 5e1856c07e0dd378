"""References, identified by their content: a data set, external images, or a mean and a covariance."""

from dataclasses import dataclass
from pathlib import Path

from taugrid.config import Data
from taugrid.eval.metrics.reference_statistics import MomentsFile, open_moments
from taugrid.eval.reference_names import resolve_reference
from taugrid.eval.sources import ImageSet, open_images
from taugrid.hashing import json_sha256
from taugrid.protocol import ReferenceIdentity
from taugrid.registry.extractors import ExtractorSpec, FeaturePrecision

CACHE_FORMAT = 1
"""Part of every key: raised when the meaning of a cached file changes."""


@dataclass(frozen=True)
class Reference:
    """A reference and its identity; plain data."""

    given: ImageSet | MomentsFile

    @property
    def data(self) -> Data | None:
        """The data set that it is; None: it is none."""
        given = self.given.given if isinstance(self.given, ImageSet) else None
        return given if isinstance(given, Data) else None

    @property
    def num_images(self) -> int | None:
        """The number of images; None if only a mean and a covariance are given."""
        return self.given.num_images if isinstance(self.given, ImageSet) else None

    @property
    def sha256(self) -> str:
        return self.given.sha256

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of its images; None if unknown."""
        return self.given.shape if isinstance(self.given, ImageSet) else None

    @property
    def preprocessing(self) -> str | None:
        """The format in which its images reach the extractor; None if unknown."""
        return None if self.shape is None else f"8 bits, {'x'.join(str(side) for side in self.shape)}"

    def identity(self) -> ReferenceIdentity:
        name, split = (None, None) if self.data is None else (self.data.full_name, self.data.split)
        return ReferenceIdentity(name, split, self.num_images, self.preprocessing, self.sha256)

    def cache_key(self, extractor: ExtractorSpec, code: str | None = None) -> str:
        """64 hexadecimal digits that name its statistics, from everything that determines them.

        Paths, and the name of the extractor's file, are not part of it. `code` is the hash of a shipped extractor's
        code (`eval.features.load.code_sha256`). A run directory gives none: its scores outlive an upgrade.
        """
        determines = {
            "format": CACHE_FORMAT,
            "content": self.sha256,
            "extractor": extractor.name,
            "weights": extractor.weights_sha256,
            "source": extractor.source_sha256,
            "layer": extractor.feature_layer,
            "preprocessing": self.preprocessing or "moments",
            **extractor.other_precision,
            **({} if code is None else {"code": code}),
        }
        return json_sha256(determines)

    def require_same_features(self, extractor: str, dimensions: int | None, precision: FeaturePrecision) -> None:
        """Raise ValueError if a mean and covariance have a different number or precision of features than an extractor.

        `extractor` is its name; without its weights or code, its `dimensions` may be unknown.
        """
        if not isinstance(self.given, MomentsFile):
            return
        if dimensions is not None and self.given.dimensions != dimensions:
            raise ValueError(
                f"{self.given.path} has moments of {self.given.dimensions} features, but {extractor} has "
                f"{dimensions}: set the extractor that they were made with, or give images as the reference"
            )
        if self.given.precision != precision:
            raise ValueError(
                f"{self.given.path} has moments of features in {self.given.precision}, which are not compared with "
                f"others: set evaluate.precision: {self.given.precision}, or give images as the reference"
            )


def open_reference(given: Data | str) -> Reference:
    """The reference that a data set or a text means.

    `resolve_reference` reads a text. A path leads to an `.npz` with `mu` and `sigma`, or to images as in
    `open_images`. An `.npz` that also holds images (guided-diffusion's) counts as images, because any extractor can use
    those.

    Raises:
        workers.data.decoding.SourceError, DamagedFile: see `open_images`; for a mean and covariance that belong to no
            distribution.
        UserError: for a data set that can't be read.
    """
    if isinstance(given, str):
        given = resolve_reference(given).given
    moments = reference_of_moments(given) if isinstance(given, str) else None
    return moments or Reference(open_images(given))


def reference_of_moments(path: str) -> Reference | None:
    """The mean and covariance that `path` leads to as a reference; None if it leads to anything else.

    Raises:
        workers.data.decoding.SourceError, DamagedFile: see `open_moments`.
    """
    file = Path(path).expanduser().absolute()
    moments = open_moments(file) if file.suffix == ".npz" and file.is_file() else None
    return None if moments is None else Reference(moments)
