"""`Storage`: the interface by which the driver and the workers reach a run directory, on a disk or an object store."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final, NamedTuple, Protocol

from taugrid.errors import UserError
from taugrid.words import with_urls

ANY: Final = "*"  # a value of `commit`'s `if_version`: replace any version of the file


class Stat(NamedTuple):
    """A file, without its content."""

    size: int  # bytes
    version: str  # changes whenever the file is written or replaced: size, inode and time, or an ETag
    modified: float  # time of the last write, in seconds by the storage's own clock


class Level(NamedTuple):
    """What is directly in a folder, by name."""

    files: Mapping[str, Stat | None]  # None: `stat` says it, in a call of its own
    folders: Sequence[str]
    unreadable: Sequence[str]  # neither: broken links, and what is behind a folder without rights


class Storage(Protocol):
    """Whole files by name. A storage is plain data: it travels with a job to the worker that does it.

    A name is a `Path`; an object store uses its parts as a key. Methods raise `FileNotFoundError` for a missing file
    and any other `OSError` for one that can't be read or written: that is not damage. Transient errors have been tried
    again before, except where repeating is not safe: appending to an open file, and syncing.
    """

    def __hash__(self) -> int:
        """Equal storages hold the same files, so that workers can keep what they loaded from it."""

    @property
    def on_disk(self) -> bool:
        """Whether a name is a path of this machine's file system, which other libraries can open."""

    def require(self, folder: Path, to_write: bool = False) -> None:
        """Raise `UserError` if nothing at the path of `folder`, which need not exist, can be used: no such bucket, no
        rights; with `to_write`, also if the store would overwrite files of others. No check on a disk."""

    def stat(self, path: Path) -> Stat:
        """The size, version and time of a file."""

    def exists(self, path: Path) -> bool:
        """Whether there is a file of this name, or a folder that holds files."""

    def list(self, folder: Path, pattern: str) -> Sequence[Path]:
        """The files and folders below `folder`, if there is one, that match a glob, sorted; `*` matches no slash."""

    def stats(self, folder: Path, pattern: str) -> Mapping[Path, Stat]:
        """The `stat` of each file that `list` finds, in as few requests as a list takes."""

    def level(self, folder: Path) -> Level:
        """What is directly in a folder, in one request. A missing one is an error on a disk, empty in a bucket."""

    def walk(self, folder: Path) -> Mapping[Path, Stat]:
        """The `stat` of each file below `folder`, at any depth. Links are neither followed nor listed."""

    def read(self, path: Path, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of a file from `start`: all, or `length` of them, fewer if the file ends earlier."""

    def commit(self, path: Path, finished: Path, if_version: str | None = None) -> bool:
        """Give a finished local file (of `temporary`, which may move it) its name, atomically. It is there after a
        power loss. Returns False if a different file has the name; it is kept.

        `if_version`: None never overwrites. `ANY` always does. A version (`Stat.version`) replaces that file only; a
        disk can't compare and rename in one step, so a writer that comes in between is replaced, too.
        """

    def append(self, path: Path, data: bytes, synced: bool = False) -> None:
        """Append to a file, or create it; what was `synced` is there after a power loss. Two writers are not safe.

        An object can't grow: a file may go on in others, whose names begin with its own and sort after it.
        """

    def move(self, path: Path, target: Path) -> None:
        """Rename a file or a folder, replacing any file there. Not atomic on every storage."""

    def delete(self, path: Path) -> None:
        """Remove a file, if it exists."""

    def delete_all(self, paths: Sequence[Path], root: Path) -> None:
        """Remove files, in few requests, and the folders below `root` that are empty then."""

    def delete_folder(self, folder: Path) -> None:
        """Remove a folder with everything in it, if it exists; whatever can't be removed stays."""

    def temporary(self, path: Path) -> AbstractContextManager[Path]:
        """A local path to write to before `commit` gives the file its name; removed at the end."""

    def local_path(self, path: Path) -> AbstractContextManager[Path]:
        """A local path of the file, for libraries that need one. It is valid within the context."""

    def readable(self, path: Path) -> AbstractContextManager[Path | IO[bytes]]:
        """A local path of the file, or an open file that fetches only what is read of it."""

    def opened(self, path: Path) -> AbstractContextManager[tuple[IO[bytes], Stat]]:
        """An open file as of `readable`, and the `stat` of the version that it reads, in one request."""

    def local_folder(self, folder: Path) -> AbstractContextManager[Path]:
        """A local folder to write tables and figures to; they are in `folder` when the context ends."""


def check_inside(path: Path, root: Path | None) -> None:
    """Raise `UserError` if a path is not `root` or below it. None: any path may be used.

    Every read, write and removal of a storage passes this check: files of a run directory name others, and whoever
    made the directory may have written anything there.
    """
    inner, whole = str(path), str(root).rstrip("/")
    if root is None or inner == whole:
        return
    if not inner.startswith(f"{whole}/") or ".." in inner[len(whole) :].split("/"):
        raise UserError(
            f"{with_urls(inner)} is outside {with_urls(str(root))}; its files name a wrong id or path, so do not use a "
            "directory of unknown origin"
        )
