"""`fashion-mnist`: IDX files from its authors, from torchvision or from Debian's package."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.workers.data.labels import Labels
from taugrid.workers.data.load import MissingImages, download, root_of

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
LABELS = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}

SHA256 = {
    "train-images-idx3-ubyte": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "t10k-images-idx3-ubyte": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "train-labels-idx1-ubyte": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "t10k-labels-idx1-ubyte": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
"""SHA-256 of pixels and labels. MNIST's files have the same names, so the two data sets are easily confused."""

MOST_BYTES = 2**26
"""Of an IDX file, unpacked; the largest, of 60,000 images, has 47 MB."""

IDX_UINT8 = 0x00000800
"""The first four bytes of an IDX file of bytes; the last of them is the number of dimensions."""


def read(data: Data) -> NDArray[np.uint8]:
    """The images of Fashion-MNIST, (N, 28, 28) uint8, from IDX files, gzipped or not.

    They are read from `root`, from its FashionMNIST/raw, where torchvision puts them, or, if `data.root` is not set,
    from the folder of Debian's package.

    Raises:
        UserError: if a file is missing or damaged, saying how to get it.
    """
    return _read(data, FILES, "images")


def labels(data: Data) -> Labels:
    """The labels of the images of `read`, from the IDX files beside theirs; raises the same errors."""
    return Labels(_read(data, LABELS, "labels").astype(np.int32), data.dataset.classes)


def _read(data: Data, files: Mapping[str, str], what: str) -> NDArray[np.uint8]:
    names = [name for split, name in files.items() if data.split in ("all", split)]
    return np.concatenate([_published(_find(data, name), name, what) for name in names])


def _published(path: Path, name: str, what: str) -> NDArray[np.uint8]:
    values = read_idx(path, what)
    if hashlib.sha256(values.tobytes()).hexdigest() != SHA256[name]:
        raise UserError(f"data: {path} does not hold Fashion-MNIST's published {what} (perhaps MNIST's): get it again")
    return values


def _find(data: Data, name: str) -> Path:
    root = root_of(data)
    folders = [root, root / "FashionMNIST" / "raw", *([DEBIAN_FOLDER] if data.root is None else [])]
    candidates = [folder / f"{name}{ending}" for folder in folders for ending in (".gz", "")]
    path = next(filter(Path.is_file, candidates), None)
    if path is None and data.download:
        download("FashionMNIST", root)
        path = next(filter(Path.is_file, candidates), None)
    if path is None:
        raise MissingImages(
            f"data: Fashion-MNIST is missing (no {name}.gz or {name} in {', '.join(map(str, folders))}): put it "
            "there, or set root to the folder with its IDX files, or download: true"
        )
    return path


def read_idx(path: Path, what: str = "images") -> NDArray[np.uint8]:
    """An IDX file of images, (N, height, width), or of labels, (N,), uint8. One whose name ends in .gz is unpacked.

    Raises:
        UserError: if it is not an IDX file of `what`, or is cut short.
    """
    dimensions = {"images": 3, "labels": 1}[what]
    begin = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # a small .gz can hold any number of bytes
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {path} can't be read ({error}): get it again") from None
    if len(content) < begin:
        raise UserError(f"data: {path} is not an IDX file of {what}: get it again")
    kind, *shape = struct.unpack(f">I{dimensions}I", content[:begin])
    if kind != IDX_UINT8 + dimensions or len(content) != begin + math.prod(shape):
        raise UserError(f"data: {path} is not a complete IDX file of {what}: get it again")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
