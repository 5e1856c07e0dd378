"""The folder that an export fills: files appear whole, and SHA256SUMS lists those of a complete export."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from taugrid.errors import FULL, UserError, naming
from taugrid.hashing import canonical_json, file_sha256
from taugrid.storage import LOCAL

SUMS = "SHA256SUMS"
"""What `sha256sum -c` reads. It ignores the first line, a comment, which says whose export this is."""
TEMPORARY = "taugrid-export"  # in the names of files that are being written
HEAD = "# taugrid export "
LINE = re.compile(r"^([0-9a-f]{64})  (.+)\n", re.MULTILINE)

Write = Callable[[Path], object]


@contextmanager
def filling(folder: Path, about: Mapping[str, Any]) -> Iterator["Target"]:
    """Fill a folder with an export, within the block, at whose end SHA256SUMS lists the files.

    Nothing is synced to the disk: a file that a power loss has cut does not have its SHA-256, and is written again.

    Args:
        folder: what an earlier export has completed in it stays.
        about: what is exported: `images` has the number of images of each cell, by its id.

    Raises:
        UserError: if the folder holds anything but an export of the same, or of some of its cells.
    """
    text = _text(folder / SUMS)
    if not text.startswith(HEAD):
        require_new_folder(folder)
    elif not _is_part(text.partition("\n")[0].removeprefix(HEAD), about):
        raise UserError(f"--to {folder} holds an export of other cells, images or form; give a new folder")

    def write(sums: Mapping[str, str]) -> None:
        lines = [f"{digest}  {file}\n" for file, digest in sorted(sums.items())]
        with whole(folder / SUMS, folder) as temporary:
            temporary.write_text("".join([f"{HEAD}{canonical_json(about)}\n", *lines]), encoding="utf-8")

    make_folder(folder)
    for left in LOCAL.list(folder, f".{TEMPORARY}.*.tmp"):  # by an export that was killed
        LOCAL.delete(left)
    with naming(folder / SUMS):
        if not text:
            write({})  # by which the folder is known if this export is killed
        target = Target(folder, {name: digest for digest, name in LINE.findall(text)})
        yield target
        write(target.done)


@dataclass
class Target:
    """A folder that is being filled."""

    folder: Path
    _known: Mapping[str, str]  # name -> SHA-256 of the files of an earlier export of the same that was completed
    done: dict[str, str] = field(default_factory=dict)  # as `_known`, of the files of this export
    notes: list[str] = field(default_factory=list)  # what the user is told at the end

    def has(self, name: str) -> bool:
        """Whether a file of an earlier export is still there, unchanged, or this one has written it."""
        digest = self._known.get(name)
        if digest is not None and (self.folder / name).is_file() and file_sha256(self.folder / name) == digest:
            self.done[name] = digest
        return name in self.done

    def put(self, name: str, write: Write) -> None:
        """Have `write` make a file at the path that it is given; then give it its name, in place of any other."""
        path = self.folder / name
        make_folder(path.parent)
        with whole(path, self.folder) as temporary:
            write(temporary)
            self.done[name] = file_sha256(temporary)

    def put_text(self, name: str, text: str) -> None:
        """The same for a short file, if its text is another now. One that the user changed stays, beside a new one."""
        data, path = text.encode(), self.folder / name
        if not self.has(name) and path.exists() and path.read_bytes() != data:
            name = str(PurePath(name).with_suffix(f".new{path.suffix}"))
            self.notes.append(f"{path} has been changed and stays; the new text is in {self.folder / name}")
        if not self.has(name) or (self.folder / name).read_bytes() != data:
            self.put(name, lambda temporary: temporary.write_bytes(data))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return ""


def _is_part(earlier: str, about: Mapping[str, Any]) -> bool:
    """Whether an export is of the same, of all its cells or some of them."""
    try:
        value = json.loads(earlier)
        return bool({**value, "images": about["images"] | value["images"]} == about)
    except (ValueError, TypeError, KeyError):
        return False


@contextmanager
def whole(path: Path, folder: Path) -> Iterator[Path]:
    """A path in `folder` to write to, whose file gets the name `path` at the end, or vanishes on an error."""
    try:
        with LOCAL.temporary(folder / TEMPORARY) as temporary, naming(path):
            yield temporary
            temporary.replace(path)
    except OSError as error:
        if error.errno in FULL:  # of a copy, it has the name of what is copied
            error.filename = str(path)
        raise


def put_file(path: Path, what: str, is_same: Callable[[Path], bool], write: Write) -> None:
    """Write a file that is the whole export, unless one is there that `is_same`; `UserError` if another is there."""
    make_folder(path.parent)
    if not (is_there := path.exists() or path.is_symlink()):
        with LOCAL.temporary(path) as temporary:
            write(temporary)
            is_there = not LOCAL.commit(path, temporary)
    if is_there and not (path.is_file() and is_same(path)):
        raise UserError(f"--to {path} exists and is not {what}; give a new file")


def require_new_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder} exists and is not an empty folder; give a new one")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; `UserError` if it can't be, except for want of space."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(f"can't write to {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"can't write to {folder}: it is read-only")
