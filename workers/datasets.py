"""Published data sets, folders and Parquet files, as 8-bit images: where their files are, and how they are read.

Imports neither torch nor torchvision, unless a data set is read that only torchvision can read.
"""

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import Data
from orchestrator.errors import UserError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_MNIST_FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}

FASHION_MNIST_SHA256 = {
    "train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
}
"""SHA-256 of its pixels. MNIST's files have the same names, so that one can be taken for the other."""

IDX_UINT8_3D = 0x00000803
"""The first four bytes of an IDX file of bytes in three dimensions."""


def default_root() -> Path:
    """Where data sets are downloaded to, and looked for, unless `data.root` says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "taugrid" / "datasets"


def fashion_mnist(data: Data) -> NDArray[np.uint8]:
    """The images of Fashion-MNIST, (N, 28, 28) uint8, from IDX files, packed by gzip or not.

    They are looked for in `root` and in its FashionMNIST/raw, as torchvision lays them out; without a root also where
    Debian's package puts them.

    Raises:
        UserError: if a file is missing or damaged, saying how to get it.
    """
    splits = ("train", "test") if data.split == "all" else (data.split,)
    return np.concatenate([_fashion_mnist_split(_fashion_mnist_file(data, split), split) for split in splits])


def _fashion_mnist_split(path: Path, split: str) -> NDArray[np.uint8]:
    images = read_idx(path)
    if hashlib.sha256(images.tobytes()).hexdigest() != FASHION_MNIST_SHA256[split]:
        raise UserError(f"data: {path} does not hold Fashion-MNIST's images as published (MNIST's, perhaps?)")
    return images


def _fashion_mnist_file(data: Data, split: str) -> Path:
    root = default_root() if data.root is None else Path(data.root)
    folders = [root, root / "FashionMNIST" / "raw", *([DEBIAN_FASHION_MNIST] if data.root is None else [])]
    name = FASHION_MNIST_FILES[split]
    for path in (folder / f"{name}{ending}" for folder in folders for ending in (".gz", "")):
        if path.is_file():
            return path
    raise UserError(
        f"data: Fashion-MNIST is not here ({name}.gz in none of {', '.join(map(str, folders))}): set data.root to a "
        "folder of its IDX files, or data.download: true, or install Debian's package dataset-fashion-mnist"
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The images of an IDX file, (N, height, width) uint8; a name that ends in .gz is unpacked.

    Raises:
        UserError: if it is no IDX file of images, or not all of it.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {path} can't be read ({error}): get it anew") from None
    if len(content) < 16:
        raise UserError(f"data: {path} is no IDX file of images: get it anew")
    kind, *shape = struct.unpack(">IIII", content[:16])
    if kind != IDX_UINT8_3D or len(content) != 16 + math.prod(shape):
        raise UserError(f"data: {path} is no whole IDX file of images: get it anew")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)
