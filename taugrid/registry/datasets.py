"""The data sets that `data.name` can name, with all that is known before any file is opened.

A new data set is a function in workers/data/ that reads it, and an entry in `DATASETS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, int, int]  # (channels, height, width) of an image

ALL_SPLITS = ("all", "train", "validation", "test")

KEYS = ("root", "shape", "category", "download")  # those that only some data sets take


@dataclass(frozen=True)
class Dataset:
    """A data set, or a way to supply images: the keys it takes, its shape, its splits, and its reader."""

    name: str
    description: str  # one line for the config's schema: what it is, and what its splits are if that is not obvious
    reader: str
    """Import string, module:function. Called with a `taugrid.config.Data`; returns all images of its split, as
    (N, H, W) or (N, C, H, W) uint8, or as a `workers.data.decoding.EncodedDataset` that is decoded once and cached."""
    labels: str = ""  # import string: returns the `workers.data.load.Labels` of these images; empty: none
    classes: tuple[str, ...] = ()  # the names of the classes, where they are known without a file
    shape: Shape | None = None  # of its images, or the default if `shape` is among `keys`; None: it is required
    splits: tuple[str, ...] = ("all", "train", "test")
    held_out: str = "test"  # the split that a model trained on `train` has not seen
    keys: frozenset[str] = frozenset({"root", "download"})  # of `KEYS`; without `root`, it comes with taugrid
    required: frozenset[str] = frozenset()  # the keys that must be set
    is_on_hub: bool = False  # whether `root` may be hf://datasets/ORG/NAME
    num_images: Mapping[str, int] = field(default_factory=dict)  # of a split or CATEGORY/SPLIT, as published
    is_published: bool = True  # whether the name determines the images; else a model has their SHA-256
    extractor: str | None = None  # the default one (registry/extractors.py); None: torch-fidelity's Inception

    def published_size(self, split: str, category: str | None = None) -> int | None:
        """The number of images in a split, or in all splits for `all`; None if it is not known."""
        if category is not None and f"{category}/{split}" in self.num_images:
            return self.num_images[f"{category}/{split}"]
        if split == "all" and self.num_images:
            return sum(self.num_images.values())
        return self.num_images.get(split)


def _draws(name: str, description: str, **fields: Any) -> Dataset:
    """Draws from a distribution whose optimal eps is known."""
    reader = "taugrid.workers.data.published:read_draws"
    usual: dict[str, Any] = {"shape": (1, 8, 8), "keys": frozenset({"shape"}), "extractor": "pixels"}
    return Dataset(name, description, reader, **usual, **fields)


_EVERY_DATASET = (
    Dataset(
        name="digits",
        description="scikit-learn's 1797 handwritten digits, grey; `train` is the first 1437, `test` the last 360",
        reader="taugrid.workers.data.published:read_digits",
        labels="taugrid.workers.data.published:digits_labels",
        classes=tuple("0123456789"),
        shape=(1, 8, 8),
        keys=frozenset(),
        num_images={"train": 1_437, "test": 360},
        extractor="digits-convnet",
    ),
    _draws("gaussian", "10,000 draws from a normal distribution, whose optimal eps is known; `test` has other draws"),
    _draws("two-points", "10,000 draws of one of two images, whose optimal eps is known; `test` has other draws"),
    _draws(
        "classes",
        "10,000 draws from three normal distributions in turn, one for each class; `test` has other draws",
        labels="taugrid.workers.data.published:labels_of_draws",
        classes=("0", "1", "2"),
    ),
    Dataset(
        name="fashion-mnist",
        description="70,000 articles of clothing, grey",
        reader="taugrid.workers.data.published:read_fashion_mnist",
        labels="taugrid.workers.data.published:fashion_mnist_labels",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        shape=(1, 28, 28),
        num_images={"train": 60_000, "test": 10_000},
        extractor="fashion-convnet",
    ),
    Dataset(
        name="cifar10",
        description="60,000 photographs of ten classes, RGB",
        reader="taugrid.workers.data.published:read_cifar10",
        labels="taugrid.workers.data.published:cifar10_labels",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        shape=(3, 32, 32),
        num_images={"train": 50_000, "test": 10_000},
    ),
    Dataset(
        name="celeba",
        description="202,599 aligned faces, RGB, cropped as in the DDIM paper",
        reader="taugrid.workers.data.published:read_celeba",
        shape=(3, 64, 64),
        splits=ALL_SPLITS,
        keys=frozenset({"shape", "root", "download"}),
        num_images={"train": 162_770, "validation": 19_867, "test": 19_962},
    ),
    Dataset(
        name="lsun",
        description="photographs of one category of LSUN, RGB",
        reader="taugrid.workers.data.published:read_lsun",
        shape=(3, 256, 256),
        splits=("train", "validation"),
        held_out="validation",
        keys=frozenset({"shape", "category", "root"}),
        required=frozenset({"category"}),
        # Yu et al. 2015, "LSUN". Of other categories' training splits any number of images is accepted.
        num_images={"bedroom/train": 3_033_042, "church_outdoor/train": 126_227, "validation": 300},
    ),
    Dataset(
        name="folder",
        description="all PNG and JPEG files below `root`; a split is the subfolder of that name",
        reader="taugrid.workers.data.folder:read",
        labels="taugrid.workers.data.folder:labels",
        splits=ALL_SPLITS,
        keys=frozenset({"shape", "root"}),
        required=frozenset({"shape", "root"}),
        is_published=False,
    ),
    Dataset(
        name="parquet",
        description="the image column of Parquet files, such as Hugging Face's data sets; a split is the files named "
        "SPLIT.parquet or SPLIT-*.parquet, and those in a folder named SPLIT",
        reader="taugrid.workers.data.parquet:read",
        labels="taugrid.workers.data.parquet:labels",
        splits=ALL_SPLITS,
        keys=frozenset({"shape", "root", "download"}),
        required=frozenset({"shape", "root"}),
        is_on_hub=True,
        is_published=False,
    ),
)

DATASETS = {dataset.name: dataset for dataset in _EVERY_DATASET}  # every data set by its name
