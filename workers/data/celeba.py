"""`celeba`: the aligned images, cropped to 128x128 as in the DDIM authors' code."""

from importlib.util import find_spec
from pathlib import Path

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.workers.data.decoding import EncodedDataset
from taugrid.workers.data.folder import decode_file
from taugrid.workers.data.load import MissingImages, download, root_of
from taugrid.workers.data.picture import DecodedImage, Reader, SourceError

SIZE = (218, 178)
"""(height, width) of an aligned image."""

ROWS, COLUMNS = slice(57, 185), slice(25, 153)
"""The 128x128 pixels of an aligned image that the DDIM authors' code uses."""

PARTITIONS = {"train": ("0",), "validation": ("1",), "test": ("2",), "all": ("0", "1", "2")}
"""The numbers of each split in list_eval_partition.txt."""


def read(data: Data) -> EncodedDataset:
    """The aligned images of CelebA, cropped to 128x128, in the order of list_eval_partition.txt.

    They are read from `root`/celeba, where torchvision puts them, or from `root` itself.

    Raises:
        UserError: if they are not there, saying how to get them.
    """
    root = root_of(data)
    candidates = [root / "celeba", root]
    folder = next(filter(_is_celeba, candidates), None)
    if folder is None and data.download:
        if find_spec("gdown") is None:
            raise UserError("data: CelebA is on Google Drive; pip install 'taugrid[celeba]' to download it")
        download("CelebA", root)
        folder = next(filter(_is_celeba, candidates), None)
    if folder is None:
        raise MissingImages(
            f"data: CelebA is missing (list_eval_partition.txt and img_align_celeba/ are neither in {candidates[0]} "
            f"nor in {root}): put them there, or set root to their folder, or download: true (Google Drive has a daily "
            "limit; to download by hand: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
        )
    partition = folder / "list_eval_partition.txt"
    lines = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(line) != 2 or line[1] not in PARTITIONS["all"] for line in lines):
        raise UserError(f"data: {partition} is not CelebA's (lines with a file name and 0, 1 or 2): get it again")
    names = [name for name, partition in lines if partition in PARTITIONS[data.split]]
    paths = [folder / "img_align_celeba" / name for name in names]
    return EncodedDataset(folder, [partition, *paths], Reader(len(paths), lambda first: paths[first:], _decode))


def _is_celeba(folder: Path) -> bool:
    return (folder / "list_eval_partition.txt").is_file() and (folder / "img_align_celeba").is_dir()


def _decode(path: Path) -> DecodedImage:
    picture = decode_file(path)
    if picture.pixels.shape[1:] != SIZE:
        height, width = picture.pixels.shape[1:]
        raise SourceError(f"{path} is {height}x{width}, but CelebA's aligned images are 218x178: use those")
    return picture._replace(pixels=picture.pixels[:, ROWS, COLUMNS])
