"""References, identified by their content: a data set, external images, or a mean and a covariance.

And what the text of a reference means, and references in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.config import Data, validate
from taugrid.config.load import CONFIG_NAME, load
from taugrid.errors import UserError
from taugrid.eval.metrics.reference_statistics import MomentsFile, open_moments
from taugrid.eval.sources import ImageSet, open_images
from taugrid.hashing import json_sha256
from taugrid.protocol import ReferenceIdentity, shortened
from taugrid.registry.datasets import DATASETS
from taugrid.registry.extractors import ExtractorSpec, FeaturePrecision
from taugrid.storage import is_url
from taugrid.words import counted
from taugrid.workers.data.published import IDX_IMAGES

CACHE_FORMAT = 1  # part of every key: raised when the meaning of a cached file changes


@dataclass(frozen=True)
class Reference:
    """A reference and its identity; plain data."""

    given: ImageSet | MomentsFile

    @property
    def data(self) -> Data | None:
        """The data set that it is; None if it is none."""
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
        """64 hexadecimal digits that name its statistics, from everything that determines them, and no paths. `code` is
        the hash of a shipped extractor's code (`eval.features.load.code_sha256`). A run directory gives none: its
        scores outlive an upgrade."""
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
        Its `dimensions` may be unknown while its weights or code are missing."""
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
    """The reference that a data set or a text (see `resolve_reference`) means. A path leads to an `.npz` with `mu` and
    `sigma`, or to images as in `open_images`. An `.npz` that also holds images (guided-diffusion's) counts as images,
    because any extractor can use those. Raises as `open_images` and `open_moments`."""
    if isinstance(given, str):
        given = resolve_reference(given).given
    moments = reference_of_moments(given) if isinstance(given, str) else None
    return moments or Reference(open_images(given))


def reference_of_moments(path: str) -> Reference | None:
    """The mean and covariance that `path` leads to; None if it leads to anything else. Raises as `open_moments`."""
    file = Path(path).expanduser().absolute()
    moments = open_moments(file) if file.suffix == ".npz" and file.is_file() else None
    return None if moments is None else Reference(moments)


class ResolvedReference(NamedTuple):
    given: Data | str  # a data set, or a path as `open_images` takes it
    extractor: str | None
    """A name for `eval.features.resolve.resolve`, which may be of custom code; None if any extractor will do."""
    weights: str | None = None  # a file of weights of that extractor
    precision: FeaturePrecision = "float32"


def resolve_reference(text: str, through: tuple[str, ...] = ()) -> ResolvedReference:
    """The reference that a text names, tried in this order:

    - a run directory, by path or URL: what the run is scored against, with its extractor;
    - a folder with Fashion-MNIST's IDX files, or such a folder and a split of them: `data/fashion-mnist/train`;
    - a data set and, if it has parts, its category and split: `digits/test`, `lsun/bedroom/train`;
    - anything else as it is.

    Run directories `through` led to it, each the reference of the one before. Raises `UserError` for a run directory
    that can't be used, or without a split that is needed.
    """
    path = Path(text).expanduser()
    if is_url(text) or (path / CONFIG_NAME).is_file():
        if text in through:
            raise UserError(f"{text} is a run directory whose evaluate.reference leads back to itself")
        config = load(text if is_url(text) else str(path))
        reference, evaluate = config.reference, config.evaluate
        if isinstance(reference, str):
            reference = resolve_reference(reference, (*through, text)).given
        extractor = evaluate.extractor or config.data.dataset.extractor
        return ResolvedReference(reference, extractor, evaluate.weights, evaluate.precision)
    data = _idx_folder(path) if path.exists() else _idx_folder(path.parent, path.name) or _data_set(text)
    return ResolvedReference(text, None) if data is None else ResolvedReference(data, data.dataset.extractor)


def _idx_folder(folder: Path, split: str | None = None) -> Data | None:
    """The IDX files in a folder as a data set; None if it has none, or there is no such split."""
    splits = [
        name for name, file in IDX_IMAGES.items() if any((folder / f"{file}{end}").is_file() for end in ("", ".gz"))
    ]
    if not splits or split not in (None, *IDX_IMAGES):
        return None
    if split is None and len(splits) > 1:
        choices = " or ".join(str(folder / name) for name in splits)
        raise UserError(f"{folder} has IDX files of {' and '.join(splits)}; give {choices}")
    return validate(Data, {"name": "fashion-mnist", "root": str(folder), "split": split or splits[0]}, str(folder))


def _data_set(text: str) -> Data | None:
    """The data set that NAME, NAME/SPLIT or NAME/CATEGORY/SPLIT means; None if there is none by that name."""
    name, *parts = text.split("/")
    if name not in DATASETS or "root" in DATASETS[name].required:
        return None
    values = {"name": name}
    if parts and parts[-1] in DATASETS[name].splits:
        values["split"] = parts.pop()
    if parts and "category" in DATASETS[name].keys:
        values["category"] = parts.pop(0)
    if parts:
        splits = ", ".join(DATASETS[name].splits)
        raise UserError(f"{text}: {'/'.join(parts)} is not a split of {name}; its splits are {splits}")
    return validate(Data, values, text)


def reference_in_words(recorded: Mapping[str, Any]) -> str:
    """A reference as a protocol records it, by its name: "digits/train (1,437 images)"."""
    content = shortened(str(recorded["sha256"]))
    name = f"{recorded['dataset']}/{recorded['split']}" if recorded["dataset"] else f"the one with SHA-256 {content}"
    size = "mean and covariance" if recorded["num_images"] is None else counted(recorded["num_images"], "image")
    return f"{name} ({size})"


def images_in_words(recorded: Mapping[str, Any]) -> str:
    """The same by its images: "1,437 images of digits/train"."""
    count, name = recorded.get("num_images"), recorded.get("dataset")
    images = "a mean and a covariance" if count is None else counted(count, "image")
    return f"{images} of {name}/{recorded.get('split')}" if name else images
