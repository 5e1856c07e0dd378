"""`lsun`: a category's LMDB of WebP images. The module lmdb is imported when one is read."""

import io
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from taugrid.config import Data
from taugrid.errors import DamagedFile, UserError, joined_lines
from taugrid.workers.data.decoding import EncodedDataset
from taugrid.workers.data.load import MissingImages, root_of
from taugrid.workers.data.picture import DecodedImage, EncodedImage, Reader


def read(data: Data) -> EncodedDataset:
    """The images of a category of LSUN, in the order of its LMDB's keys, as torchvision gives them.

    torchvision is not used: it keeps a pickle of the keys in the current folder, under a name that two databases can
    share.

    Raises:
        UserError: if the database or the module lmdb is missing, saying how to get it.
    """
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
    reader = Reader(count, lambda first: islice(_lmdb_values(folder), first, None), _decode)
    return EncodedDataset(folder, [folder / "data.mdb"], reader)


def _lmdb_values(folder: Path) -> Iterator[EncodedImage]:
    import lmdb

    try:
        with (
            lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as database,
            database.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                yield EncodedImage(f"{folder} {key.decode(errors='replace')}", value)
    except lmdb.Error as error:
        raise DamagedFile(f"{folder} can't be read: {error}") from None


def _decode(image: EncodedImage) -> DecodedImage:
    try:
        with Image.open(io.BytesIO(image.data), formats=("WEBP", "JPEG", "PNG")) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedFile(f"{image.name} can't be decoded: {joined_lines(error)}") from None
    return DecodedImage(image.name, pixels.transpose(2, 0, 1), lossy=True)
