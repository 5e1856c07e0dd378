"""`celeba`: the aligned images, cut to 128x128 as in the DDIM authors' code."""

from importlib.util import find_spec
from pathlib import Path

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.workers.data.decoding import EncodedDataset
from taugrid.workers.data.places import download, root_of
from taugrid.workers.data.readers.directory import decode_file
from taugrid.workers.data.readers.picture import Picture, SourceError

SIZE = (218, 178)
"""(height, width) of an aligned image."""

ROWS, COLUMNS = slice(57, 185), slice(25, 153)
"""The 128x128 pixels of an aligned image that the DDIM authors' code uses."""

PARTITIONS = {"train": ("0",), "validation": ("1",), "test": ("2",), "all": ("0", "1", "2")}
"""How list_eval_partition.txt writes a split."""


def read(data: Data) -> EncodedDataset:
    """The aligned images of CelebA, cut to 128x128, in the order of list_eval_partition.txt.

    They are looked for in `root`/celeba, where torchvision puts them, and in `root` itself.

    Raises:
        UserError: if they are not there, saying how to get them.
    """
    root = root_of(data)
    candidates = [root / "celeba", root]
    found = next(filter(_is_celeba, candidates), None)
    if found is None and data.download:
        if find_spec("gdown") is None:
            raise UserError("data: CelebA lies at Google Drive: pip install 'taugrid[celeba]' to download it")
        download("CelebA", root)
        found = next(filter(_is_celeba, candidates), None)
    if found is None:
        raise UserError(
            f"data: CelebA is not here (list_eval_partition.txt and img_align_celeba/ in neither of {candidates[0]}, "
            f"{root}): set data.root to where they are, or data.download: true (Google Drive has a daily limit; by "
            "hand: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
        )
    partition = found / "list_eval_partition.txt"
    lines = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(line) != 2 or line[1] not in PARTITIONS["all"] for line in lines):
        raise UserError(f"data: {partition} is not CelebA's (lines of a file's name and 0, 1 or 2): get it anew")
    names = [name for name, partition in lines if partition in PARTITIONS[data.split]]
    paths = [found / "img_align_celeba" / name for name in names]
    return EncodedDataset(found, [partition, *paths], len(paths), lambda: paths, _decode)


def _is_celeba(folder: Path) -> bool:
    return (folder / "list_eval_partition.txt").is_file() and (folder / "img_align_celeba").is_dir()


def _decode(path: Path) -> Picture:
    picture = decode_file(path)
    if picture.pixels.shape[1:] != SIZE:
        height, width = picture.pixels.shape[1:]
        raise SourceError(f"{path} is {height}x{width}, but the aligned images of CelebA are 218x178: take those")
    return picture._replace(pixels=picture.pixels[:, ROWS, COLUMNS])
