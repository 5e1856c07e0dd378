"""Published data sets: digits, draws of known distributions, Fashion-MNIST, CIFAR-10, CelebA and LSUN.

Modules that read one of them (torchvision, scikit-learn, lmdb) are imported only then. Functions raise `UserError` if
files are missing or damaged, saying how to get them.
"""

import gzip
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taugrid.config import Data
from taugrid.errors import DamagedFile, UserError, joined_lines
from taugrid.images import to_uint8
from taugrid.registry.datasets import DATASETS
from taugrid.workers.data.decoding import DecodedImage, EncodedDataset, EncodedImage, Reader, SourceError
from taugrid.workers.data.folder import decode_file
from taugrid.workers.data.load import Labels, MissingImages, download, root_of
from taugrid.workers.diffusion import gaussian

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

T = TypeVar("T")

DIGITS_LEVELS = 16  # scikit-learn's digits count the dark pixels of 4x4 blocks: whole numbers from 0 to 16

DIGITS_FOR_TRAINING = DATASETS["digits"].num_images["train"]
"""The rest is by other writers, for the images are sorted by who wrote them."""

DRAWN_IMAGES = 10_000

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts its files

IDX_IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
IDX_LABELS = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}

SHA256 = {
    "train-images-idx3-ubyte": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "t10k-images-idx3-ubyte": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "train-labels-idx1-ubyte": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "t10k-labels-idx1-ubyte": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
"""SHA-256 of pixels and labels. MNIST's files have the same names, so the two data sets are easily confused."""

MOST_BYTES = 2**26  # of an IDX file, unpacked; the largest, of 60,000 images, has 47 MB

IDX_UINT8 = 0x00000800  # the first four bytes of an IDX file of bytes; the last of them is the number of dimensions

CELEBA_SIZE = (218, 178)  # (height, width) of an aligned image

CELEBA_ROWS, CELEBA_COLUMNS = slice(57, 185), slice(25, 153)
"""The 128x128 pixels of an aligned image that the DDIM authors' code uses."""

CELEBA_PARTITIONS = {"train": ("0",), "validation": ("1",), "test": ("2",), "all": ("0", "1", "2")}
"""The numbers of each split in list_eval_partition.txt."""


def read_digits(data: Data) -> NDArray[np.uint8]:
    """The digits of a split, (N, 8, 8) uint8, with the levels spread over 0 to 255."""
    from sklearn.datasets import load_digits

    images: NDArray[np.uint8] = np.rint(load_digits().images[_split(data)] * (255 / DIGITS_LEVELS)).astype(np.uint8)
    return images


def digits_labels(data: Data) -> Labels:
    """Which digit each image of a split shows."""
    from sklearn.datasets import load_digits

    return Labels(load_digits().target[_split(data)].astype(np.int32), data.dataset.classes)


def _split(data: Data) -> slice:
    train, test = slice(DIGITS_FOR_TRAINING), slice(DIGITS_FOR_TRAINING, None)
    return {"all": slice(None), "train": train, "test": test}[data.split]


def read_draws(data: Data) -> NDArray[np.uint8]:
    """10,000 draws, (N, C, H, W) uint8. The split `test` has different draws from `train` and `all`."""
    x = gaussian.draw(distribution(data), DRAWN_IMAGES, seed=1 if data.split == "test" else 0)
    return to_uint8(x.astype(np.float32))


def labels_of_draws(data: Data) -> Labels:
    """The class of each draw of `classes`."""
    return Labels((np.arange(DRAWN_IMAGES) % len(data.dataset.classes)).astype(np.int32), data.dataset.classes)


def distribution(data: Data) -> gaussian.Gaussian | gaussian.TwoPoints | gaussian.Classes:
    """The distribution that the images of `data` are drawn from; ValueError if it is not known."""
    if data.name == "gaussian":
        return gaussian.gaussian(data.image_shape)
    if data.name == "two-points":
        return gaussian.two_points(data.image_shape)
    if data.name == "classes":
        return gaussian.classes(data.image_shape)
    raise ValueError(f"the distribution of {data.name} is not known")


def _found(find: Callable[[], T | None], data: Data, name: str, missing: str) -> T:
    """What `find` finds, if need be after torchvision's download of `name`; `MissingImages` if there is nothing."""
    found = find()
    if found is None and data.download:
        download(name, root_of(data))
        found = find()
    if found is None:
        raise MissingImages(f"data: {missing}")
    return found


def read_fashion_mnist(data: Data) -> NDArray[np.uint8]:
    """The images of Fashion-MNIST, (N, 28, 28) uint8, from IDX files, gzipped or not, in `root`, in FashionMNIST/raw as
    torchvision puts them there, or, if `data.root` is not set, in the folder of Debian's package."""
    return _read_idx_files(data, IDX_IMAGES, "images")


def fashion_mnist_labels(data: Data) -> Labels:
    """The labels of the images of `read_fashion_mnist`, from the IDX files beside theirs."""
    return Labels(_read_idx_files(data, IDX_LABELS, "labels").astype(np.int32), data.dataset.classes)


def _read_idx_files(data: Data, files: Mapping[str, str], what: str) -> NDArray[np.uint8]:
    root = root_of(data)
    folders = [root, root / "FashionMNIST" / "raw", *([DEBIAN_FOLDER] if data.root is None else [])]
    parts = []
    for name in (name for split, name in files.items() if data.split in ("all", split)):
        candidates = [folder / f"{name}{ending}" for folder in folders for ending in (".gz", "")]
        missing = (
            f"Fashion-MNIST is missing (no {name}.gz or {name} in {', '.join(map(str, folders))}): put it there, or "
            "set root to the folder with its IDX files, or download: true"
        )
        path = _found(partial(_first_file, candidates), data, "FashionMNIST", missing)
        parts.append(read_idx(path, what))
        if hashlib.sha256(parts[-1].tobytes()).hexdigest() != SHA256[name]:
            raise UserError(
                f"data: {path} does not hold Fashion-MNIST's published {what} (perhaps MNIST's): get it again"
            )
    return np.concatenate(parts)


def _first_file(candidates: Sequence[Path]) -> Path | None:
    return next(filter(Path.is_file, candidates), None)


def read_idx(path: Path, what: str = "images") -> NDArray[np.uint8]:
    """An IDX file of images, (N, height, width), or of labels, (N,), uint8. One whose name ends in .gz is unpacked."""
    dimensions = {"images": 3, "labels": 1}[what]
    begin = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # a small .gz can hold any number of bytes
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {path} can't be read ({error}): get it again") from None
    kind, *shape = struct.unpack(f">I{dimensions}I", content[:begin].ljust(begin, b"\0"))
    if kind != IDX_UINT8 + dimensions or len(content) != begin + math.prod(shape):
        raise UserError(f"data: {path} is not a complete IDX file of {what}: get it again")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def read_cifar10(data: Data) -> NDArray[np.uint8]:
    """The images of CIFAR-10, (N, 3, 32, 32) uint8, read by torchvision, which checks the MD5 of each file."""
    images = np.concatenate([part.data for part in _cifar10(data)])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def cifar10_labels(data: Data) -> Labels:
    """The labels of the images of `read_cifar10`."""
    return Labels(np.concatenate([part.targets for part in _cifar10(data)]).astype(np.int32), data.dataset.classes)


def _cifar10(data: Data) -> "list[CIFAR10]":
    from torchvision.datasets import CIFAR10

    root, parts = root_of(data), {"train": (True,), "test": (False,), "all": (True, False)}[data.split]

    def find() -> "list[CIFAR10] | None":
        try:
            return [CIFAR10(str(root), train=train) for train in parts]
        except RuntimeError:  # torchvision's, for a missing or changed file
            return None

    return _found(
        find,
        data,
        "CIFAR10",
        f"CIFAR-10 is missing in {root / 'cifar-10-batches-py'}, or changed: unpack "
        f"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in {root}, or set root to its folder, or download: "
        "true",
    )


def read_celeba(data: Data) -> EncodedDataset:
    """The aligned images of CelebA in `root`/celeba, where torchvision puts them, or in `root` itself, cropped to
    128x128, in the order of list_eval_partition.txt."""
    root = root_of(data)

    def find() -> Path | None:
        found = [folder for folder in (root / "celeba", root) if (folder / "img_align_celeba").is_dir()]
        return next((folder for folder in found if (folder / "list_eval_partition.txt").is_file()), None)

    folder = _found(
        find,
        data,
        "CelebA",
        f"CelebA is missing (list_eval_partition.txt and img_align_celeba/ are neither in {root / 'celeba'} nor in "
        f"{root}): put them there, or set root to their folder, or download: true (Google Drive has a daily limit; to "
        "download by hand: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)",
    )
    partition = folder / "list_eval_partition.txt"
    lines = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(line) != 2 or line[1] not in CELEBA_PARTITIONS["all"] for line in lines):
        raise UserError(f"data: {partition} is not CelebA's (lines with a file name and 0, 1 or 2): get it again")
    names = [name for name, number in lines if number in CELEBA_PARTITIONS[data.split]]
    paths = [folder / "img_align_celeba" / name for name in names]
    return EncodedDataset(folder, [partition, *paths], Reader(len(paths), lambda first: paths[first:], _cropped))


def _cropped(path: Path) -> DecodedImage:
    picture = decode_file(path)
    height, width = picture.pixels.shape[1:]
    if (height, width) != CELEBA_SIZE:
        raise SourceError(f"{path} is {height}x{width}, but CelebA's aligned images are 218x178: use those")
    return picture._replace(pixels=picture.pixels[:, CELEBA_ROWS, CELEBA_COLUMNS])


def read_lsun(data: Data) -> EncodedDataset:
    """The images of a category of LSUN, in the order of its LMDB's keys, as torchvision gives them. It is not used: its
    pickle of the keys is in the current folder, under a name that two databases can share."""
    part = {"train": "train", "validation": "val"}[data.split]
    folder = root_of(data) / f"{data.category}_{part}_lmdb"
    if not (folder / "data.mdb").is_file():
        raise MissingImages(
            f"data: LSUN's {data.category} is missing (no {folder}/data.mdb): set root to the folder above "
            f"{folder.name}, which you get with the script from https://github.com/fyu/lsun and unpack"
        )
    if find_spec("lmdb") is None:
        raise UserError("data: LSUN needs the module lmdb: pip install 'taugrid[lsun]'")
    import lmdb

    try:
        with lmdb.open(str(folder), readonly=True, lock=False) as database:
            count = database.stat()["entries"]
    except lmdb.Error as error:
        raise UserError(f"data: {folder} is not a complete LMDB ({error}): get it again") from None
    return EncodedDataset(folder, [folder / "data.mdb"], Reader(count, partial(_lmdb_values, folder), _decode_lsun))


def _lmdb_values(folder: Path, first: int) -> Iterator[EncodedImage]:
    import lmdb

    try:
        with (
            lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as database,
            database.begin() as transaction,
        ):
            for key, value in islice(transaction.cursor(), first, None):
                yield EncodedImage(f"{folder} {key.decode(errors='replace')}", value)
    except lmdb.Error as error:
        raise DamagedFile(f"{folder} can't be read: {error}") from None


def _decode_lsun(image: EncodedImage) -> DecodedImage:
    try:
        with Image.open(io.BytesIO(image.data), formats=("WEBP", "JPEG", "PNG")) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedFile(f"{image.name} can't be decoded: {joined_lines(error)}") from None
    return DecodedImage(image.name, pixels.transpose(2, 0, 1), lossy=True)
