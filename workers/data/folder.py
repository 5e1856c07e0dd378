"""`folder`: PNG and JPEG files in a folder and its subfolders; and images made elsewhere, directly in a folder."""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from taugrid.config import Data
from taugrid.errors import DamagedFile, UserError
from taugrid.workers.data.decoding import DecodedImage, EncodedDataset, EncodedImage, Reader, decode_image
from taugrid.workers.data.load import Labels, of_folders, root_of

EXTENSIONS = (".png", ".jpg", ".jpeg")
"""The endings that torch-fidelity reads. `files` also uses its order: files directly in the folder, by real path."""


def read(data: Data) -> EncodedDataset:
    """The PNG and JPEG files below `root`, or below its subfolder for a split, sorted by path; `UserError` if there are
    none."""
    root = root_of(data) if data.split == "all" else root_of(data) / data.split
    paths = below(root, [f"*{ending}" for ending in EXTENSIONS])
    if paths:
        return EncodedDataset(root, paths, Reader(len(paths), lambda first: paths[first:], decode_file))
    if not root.is_dir():
        ways = "set data.root to the folder" + ("" if data.split == "all" else " above it, or data.split: all")
        raise UserError(f"data: there is no folder {root}: {ways}")
    raise UserError(f"data: {root} and its subfolders hold no .png, .jpg or .jpeg: set data.root to their folder")


def labels(data: Data) -> Labels:
    """The labels of the images of `read`: the classes are the folders directly below the split's, sorted by name.
    `UserError` if an image is in none of them."""
    found = read(data)
    parts = [path.relative_to(found.root).parts for path in found.files]
    loose = next((path for path, names in zip(found.files, parts, strict=True) if len(names) == 1), None)
    if loose is not None:
        raise UserError(
            f"data: the images in {found.root} have no labels, since {loose.name} is in no subfolder: put the images "
            "of each class in a subfolder of its own"
        )
    return of_folders([names[0] for names in parts])


def reader(folder: Path) -> Reader:
    """The PNG and JPEG files directly in `folder`, sorted by real path."""
    paths = files(folder, EXTENSIONS)
    deeper = subfolder_with_images(folder)
    warnings = (f"images in subfolders of {folder}, such as {deeper}, are ignored",) if deeper else ()
    return Reader(len(paths), lambda first: paths[first:], _decode_listed, warnings)


def decode_file(path: Path) -> DecodedImage:
    """The image in a PNG or JPEG file; raises OSError, and see `decode_image`."""
    return decode_image(EncodedImage(str(path), path.read_bytes()))


def _decode_listed(path: str) -> DecodedImage:
    try:
        return decode_file(Path(path))
    except OSError as error:
        raise DamagedFile(f"{error.filename} can't be read: {error.strerror}") from None


def files(folder: Path, extensions: Sequence[str]) -> list[str]:
    """Real paths, sorted, of the files directly in `folder` with one of `extensions`."""
    return [path for path, _ in _listed(folder, extensions)]


def names(folder: Path) -> list[str]:
    """The names in `folder` of its images, in the order of `reader`."""
    return [name for _, name in _listed(folder, EXTENSIONS)]


def _listed(folder: Path, extensions: Sequence[str]) -> list[tuple[str, str]]:
    with os.scandir(folder) as entries:
        return sorted((os.path.realpath(e.path), e.name) for e in entries if Path(e.name).suffix.lower() in extensions)


def subfolder_with_images(folder: Path) -> str | None:
    """A folder below `folder` that holds images or Parquet; None if there is none."""
    for parent, _, names in os.walk(folder):
        if Path(parent) != folder and any(Path(n).suffix.lower() in (*EXTENSIONS, ".parquet") for n in names):
            return parent
    return None


def below(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below `root` whose relative path matches one of `patterns` (see `fits`), sorted by that path. Linked
    folders are not entered, and names that begin with a dot are skipped."""
    paths = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            relative = (Path(parent) / name).relative_to(root).as_posix()
            if not name.startswith(".") and fits(relative, patterns):
                paths.append(relative)
    return [root / relative for relative in sorted(paths)]


def fits(relative: str, patterns: Sequence[str]) -> bool:
    """Whether a relative path, in lower case, matches one of `patterns`. A star matches slashes too."""
    return any(fnmatchcase(relative.lower(), pattern) for pattern in patterns)
