"""Which files a folder holds, and a reader of its images."""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from taugrid.errors import DamagedFile
from taugrid.workers.data.readers.picture import Picture, Reader, decode, decoded

EXTENSIONS = (".png", ".jpg", ".jpeg")
"""The endings that torch-fidelity reads. `files` also uses its order: files directly in the folder, by real path."""


def files(folder: Path, extensions: Sequence[str]) -> list[str]:
    """Real paths, sorted, of the files directly in `folder` with one of `extensions`."""
    with os.scandir(folder) as entries:
        return sorted(os.path.realpath(e.path) for e in entries if Path(e.name).suffix.lower() in extensions)


def subfolder_with_images(folder: Path) -> str | None:
    """A folder below `folder` that holds images or Parquet; None if there is none."""
    for parent, _, names in os.walk(folder):
        if Path(parent) != folder and any(Path(n).suffix.lower() in (*EXTENSIONS, ".parquet") for n in names):
            return parent
    return None


def below(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below `root` whose relative path matches one of `patterns` (see `fits`), sorted by that path.

    Linked folders are not entered, and names that begin with a dot are skipped.
    """
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            relative = (Path(parent) / name).relative_to(root).as_posix()
            if not name.startswith(".") and fits(relative, patterns):
                found.append(relative)
    return [root / relative for relative in sorted(found)]


def fits(relative: str, patterns: Sequence[str]) -> bool:
    """Whether a relative path, in lower case, matches one of `patterns`. A star matches slashes too."""
    return any(fnmatchcase(relative.lower(), pattern) for pattern in patterns)


def decode_file(path: Path) -> Picture:
    """The image in a PNG or JPEG file; raises as `decode`, and OSError."""
    return decode(str(path), path.read_bytes())


def folder_reader(folder: Path) -> Reader:
    """The PNG and JPEG files directly in `folder`, sorted by real path."""
    paths = files(folder, EXTENSIONS)
    deeper = subfolder_with_images(folder)
    warnings = (f"images in subfolders of {folder}, such as {deeper}, are ignored",) if deeper else ()

    def pictures(first: int) -> Iterator[Picture]:
        return decoded(_decode_listed, paths[first:])

    return Reader(len(paths), pictures, warnings)


def _decode_listed(path: str) -> Picture:
    try:
        return decode_file(Path(path))
    except OSError as error:
        raise DamagedFile(f"{error.filename} can't be read: {error.strerror}") from None
