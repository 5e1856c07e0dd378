"""What the text of a reference means: a path, a run directory, or a data set with its split; references in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.config import Data, validate
from taugrid.config.load import CONFIG_NAME, load
from taugrid.errors import UserError
from taugrid.protocol import shortened
from taugrid.registry.datasets import DATASETS
from taugrid.registry.extractors import FeaturePrecision
from taugrid.storage import is_url
from taugrid.words import counted
from taugrid.workers.data.published import IDX_IMAGES


class ResolvedReference(NamedTuple):
    given: Data | str
    """A data set, or a path as `eval.sources.open_images` takes it."""
    extractor: str | None
    """A name for `eval.features.resolve.resolve`, which may be of custom code; None if any extractor will do."""
    weights: str | None = None
    """A file of weights of that extractor."""
    precision: FeaturePrecision = "float32"
    """The precision of the extractor's network."""


def resolve_reference(text: str) -> ResolvedReference:
    """The reference that a text names, tried in this order:

    - a run directory, by path or URL: what the run is scored against, with its extractor;
    - a folder with Fashion-MNIST's IDX files, or such a folder and a split of them: `data/fashion-mnist/train`;
    - a data set and, if it has parts, its category and split: `digits/test`, `lsun/bedroom/train`;
    - anything else as it is.

    Raises:
        UserError: for a run directory that can't be used, or without a split that is needed.
    """
    return _resolved(text, through=())


def _resolved(text: str, through: tuple[str, ...]) -> ResolvedReference:
    """The meaning of a text that the run directories `through` led to, each the reference of the one before."""
    path = Path(text).expanduser()
    if is_url(text) or (path / CONFIG_NAME).is_file():
        if text in through:
            raise UserError(f"{text} is a run directory whose evaluate.reference leads back to itself")
        return _of_run(text if is_url(text) else str(path), (*through, text))
    data = _idx_folder(path) if path.exists() else _idx_folder(path.parent, path.name) or _data_set(text)
    return ResolvedReference(text, None) if data is None else ResolvedReference(data, data.dataset.extractor)


def _of_run(directory: str, through: tuple[str, ...]) -> ResolvedReference:
    config = load(directory)
    reference = config.reference
    if isinstance(reference, str):
        reference = _resolved(reference, through).given
    extractor = config.evaluate.extractor or config.data.dataset.extractor
    return ResolvedReference(reference, extractor, config.evaluate.weights, config.evaluate.precision)


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
