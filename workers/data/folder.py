"""`folder`: PNG and JPEG files in a folder and its subfolders."""

from pathlib import Path
from typing import NamedTuple

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.registry.datasets import DATASETS
from taugrid.workers.data.decoding import EncodedDataset
from taugrid.workers.data.places import root_of
from taugrid.workers.data.readers.directory import EXTENSIONS, below, decode_file


class _Layout(NamedTuple):
    what: str
    name: str
    """`data.name` of what reads them."""
    keys: str
    """Other keys that it requires."""
    patterns: tuple[str, ...]
    """Of a file's path."""
    depth: int
    """How many folders above such a file `root` is; 0: it is the folder that was given."""


OTHER_LAYOUTS = (
    _Layout("IDX files", "fashion-mnist", "", ("*-images-idx3-ubyte", "*-images-idx3-ubyte.gz"), 1),
    _Layout("CIFAR-10's batches", "cifar10", "", ("data_batch_1", "*cifar-10-batches-py/data_batch_1"), 2),
    _Layout("LSUN's database", "lsun", "category: bedroom", ("data.mdb", "*_lmdb/data.mdb"), 2),
    _Layout("Parquet files", "parquet", "shape: [CHANNELS, HEIGHT, WIDTH]", ("*.parquet",), 0),
)
"""What people have who take `folder` for the name of any folder."""


def read(data: Data) -> EncodedDataset:
    """The PNG and JPEG files below `root`, or below its subfolder for a split, sorted by path.

    Linked subfolders are not entered, and names that begin with a dot are skipped.

    Raises:
        UserError: if there are none.
    """
    root = root_of(data) if data.split == "all" else root_of(data) / data.split
    paths = below(root, [f"*{ending}" for ending in EXTENSIONS])
    if paths:
        return EncodedDataset(root, paths, len(paths), lambda: paths, decode_file)
    if (meant := _other_data(root_of(data), data.split)) is not None:
        raise UserError(f"data: {meant}")
    if not root.is_dir():
        ways = "set data.root to the folder" + ("" if data.split == "all" else " above it, or data.split: all")
        raise UserError(f"data: there is no folder {root}: {ways}")
    raise UserError(f"data: {root} and its subfolders hold no .png, .jpg or .jpeg: set data.root to their folder")


def _other_data(root: Path, split: str) -> str | None:
    """What a folder holds if it is the files of another data set, and how `data` names that; else None."""
    for layout in OTHER_LAYOUTS:
        for path in below(root, layout.patterns)[:1]:
            place = path.parents[layout.depth - 1] if layout.depth else root
            keeps_split = split != "all" and split in DATASETS[layout.name].splits
            own_split = f"split: {split}" if keeps_split else ""
            write = ", ".join(filter(None, [f"name: {layout.name}", own_split, layout.keys, f"root: {place}"]))
            return f"{root} holds {layout.what}, not PNG or JPEG: write data: {{{write}}}"
    return None
