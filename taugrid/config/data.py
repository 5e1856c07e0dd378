"""`data`: the images that a model learns and that samples are compared with."""

from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from taugrid.config.section import Positive, Section


class Data(Section):
    """The images that a model learns and that samples are compared with."""

    name: Literal[
        "digits", "gaussian", "two-points", "fashion-mnist", "cifar10", "celeba", "lsun", "folder", "parquet"
    ] = "digits"
    """`digits`: scikit-learn's 1797 handwritten digits, grey 8x8. `gaussian` and `two-points`: distributions whose
    optimal eps is known (workers/diffusion/gaussian.py), of which 10,000 images are drawn. `fashion-mnist`, `cifar10`,
    `celeba`, `lsun`: those data sets, from `root`. `folder`: all PNG and JPEG files below `root`. `parquet`: the image
    column of Parquet files, such as Hugging Face's image data sets."""
    shape: tuple[Positive, Positive, Positive] | None = None
    """[channels, height, width]. Of `folder` and `parquet` it must be said; null: [1, 8, 8] for `gaussian` and
    `two-points`, [3, 64, 64] for `celeba`, [3, 256, 256] for `lsun`. Larger images are resized and cropped to it."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which part: of digits, `train` is the first 1437 and `test` the last 360; of a distribution, `test` is other
    draws; of a folder, the subfolder of that name; of Parquet, the files whose names begin with it."""
    category: str | None = None
    """Of `lsun`: bedroom, church_outdoor, ..."""
    limit: Positive | None = None
    """Only the first so many images; null: all."""
    root: str | None = None
    """Where the files are; null: where they usually are. Not part of any identity: the images
    are."""
    download: bool = False
    """Download what is missing, where its publishers allow that."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.shape or FIXED_SHAPES.get(self.name) or DEFAULT_SHAPES[self.name]

    @property
    def full_name(self) -> str:
        """`name`, of LSUN with its category: lsun/bedroom."""
        return f"{self.name}/{self.category}" if self.category else self.name

    @property
    def held_out(self) -> "Data":
        """What a model trained on this has not seen: the whole test split, if this is the training split; else this."""
        if self.split != "train":
            return self
        return self.model_copy(update={"split": "validation" if self.name == "lsun" else "test", "limit": None})

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: str | None) -> str | None:
        if root is None or "://" in root:
            return root
        return str(Path(root).expanduser().absolute())  # Ray's workers change directory

    @model_validator(mode="after")
    def _shape_is_free(self) -> "Data":
        if self.name in FIXED_SHAPES and self.shape is not None:
            raise ValueError(f"shape is not for {self.name}, whose images are of shape {list(FIXED_SHAPES[self.name])}")
        if self.name in ("folder", "parquet") and (self.shape is None or self.root is None):
            raise ValueError(f"{self.name} needs root, where the images are, and shape: [channels, height, width]")
        if self.shape is not None and self.shape[0] not in (1, 3):
            raise ValueError(f"shape must have 1 channel (grey) or 3 (RGB) in front, not {self.shape[0]}")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_name(self) -> "Data":
        if (self.name == "lsun") != (self.category is not None):
            raise ValueError("lsun needs category (bedroom, church_outdoor, ...), and nothing else has one")
        if self.split not in SPLITS.get(self.name, ("all", "train", "validation", "test")):
            raise ValueError(f"split of {self.name} must be one of {', '.join(SPLITS[self.name])}, not {self.split}")
        if self.name in ("folder", "lsun") and self.download:
            raise ValueError(f"download is not for {self.name}: taugrid does not download it; set root to where it is")
        if self.name in ("digits", "gaussian", "two-points") and (self.root is not None or self.download):
            raise ValueError(f"root and download are not for {self.name}, which comes with taugrid")
        if self.name != "parquet" and "://" in (self.root or ""):
            raise ValueError(f"root of {self.name} must be a folder, not {self.root}; hf:// is for parquet")
        return self


FIXED_SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
DEFAULT_SHAPES = {"gaussian": (1, 8, 8), "two-points": (1, 8, 8), "celeba": (3, 64, 64), "lsun": (3, 256, 256)}
SPLITS = {
    **dict.fromkeys(("digits", "gaussian", "two-points", "fashion-mnist", "cifar10"), ("all", "train", "test")),
    "lsun": ("train", "validation"),
}
"""The splits of data sets that don't have all of them."""
