"""`folder`: PNG and JPEG files in a folder and its subfolders."""

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.workers.data.decoding import EncodedDataset
from taugrid.workers.data.places import root_of
from taugrid.workers.data.readers.directory import EXTENSIONS, below, decode_file


def read(data: Data) -> EncodedDataset:
    """The PNG and JPEG files below `root`, or below its subfolder for a split, sorted by path.

    Linked subfolders are not entered, and names that begin with a dot are skipped.

    Raises:
        UserError: if there are none.
    """
    root = root_of(data) if data.split == "all" else root_of(data) / data.split
    if not root.is_dir():
        ways = "set data.root to the folder" + ("" if data.split == "all" else " above it, or data.split: all")
        raise UserError(f"data: there is no folder {root}: {ways}")
    paths = below(root, [f"*{ending}" for ending in EXTENSIONS])
    if not paths:
        raise UserError(f"data: {root} and its subfolders hold no .png, .jpg or .jpeg: set data.root to their folder")
    return EncodedDataset(root, paths, len(paths), lambda: paths, decode_file)
