"""`fashion-mnist`: IDX files from its authors, from torchvision or from Debian's package."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.workers.data.load import MissingImages, download, root_of

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}

SHA256 = {
    "train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
}
"""SHA-256 of the pixels. MNIST's files have the same names, so the two data sets are easily confused."""

IDX_UINT8_3D = 0x00000803
"""The first four bytes of an IDX file of bytes in three dimensions."""


def read(data: Data) -> NDArray[np.uint8]:
    """The images of Fashion-MNIST, (N, 28, 28) uint8, from IDX files, gzipped or not.

    They are read from `root`, from its FashionMNIST/raw, where torchvision puts them, or, if `data.root` is not set,
    from the folder of Debian's package.

    Raises:
        UserError: if a file is missing or damaged, saying how to get it.
    """
    splits = ("train", "test") if data.split == "all" else (data.split,)
    return np.concatenate([_split(_find(data, split), split) for split in splits])


def _split(path: Path, split: str) -> NDArray[np.uint8]:
    images = read_idx(path)
    if hashlib.sha256(images.tobytes()).hexdigest() != SHA256[split]:
        raise UserError(f"data: {path} does not hold Fashion-MNIST's published images (perhaps MNIST's): get it again")
    return images


def _find(data: Data, split: str) -> Path:
    root, name = root_of(data), FILES[split]
    folders = [root, root / "FashionMNIST" / "raw", *([DEBIAN_FOLDER] if data.root is None else [])]
    candidates = [folder / f"{name}{ending}" for folder in folders for ending in (".gz", "")]
    path = next(filter(Path.is_file, candidates), None)
    if path is None and data.download:
        download("FashionMNIST", root)
        path = next(filter(Path.is_file, candidates), None)
    if path is None:
        raise MissingImages(
            f"Fashion-MNIST is missing (no {name}.gz or {name} in {', '.join(map(str, folders))})",
            "the folder with its IDX files",
            "data.download: true",
            "install Debian's package dataset-fashion-mnist",
        )
    return path


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The images of an IDX file, (N, height, width) uint8. A file whose name ends in .gz is unpacked.

    Raises:
        UserError: if it is not an IDX file of images, or is cut short.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {path} can't be read ({error}): get it again") from None
    if len(content) < 16:
        raise UserError(f"data: {path} is not an IDX file of images: get it again")
    kind, *shape = struct.unpack(">IIII", content[:16])
    if kind != IDX_UINT8_3D or len(content) != 16 + math.prod(shape):
        raise UserError(f"data: {path} is not a complete IDX file of images: get it again")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)
