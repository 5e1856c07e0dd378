"""What a run directory asks of the place where it lies.

`Storage` is small enough for an object store: a name is a whole file, nothing is renamed under a reader, and a file
that must not be overwritten is created by one request. The driver and the workers reach a run directory only through
it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol


class Storage(Protocol):
    """Whole files by name. A storage is plain data: it travels with a job to the worker that does it.

    A name is a `Path`; a storage other than a local folder uses its parts as a key. Methods raise `FileNotFoundError`
    for a missing file (unless they say otherwise) and another `OSError`, with its number, for one that can't be read or
    written: an error while reading is not damage. What may pass within seconds has been tried again before, unless
    repeating it is not safe: appending to an open file, and syncing.

    What `create`, `replace` and `replace_if` have named is there after a power loss, with all its bytes.
    """

    def __hash__(self) -> int:
        """Equal storages are the same place, so that workers can keep what they loaded from it."""

    @property
    def on_disk(self) -> bool:
        """Whether a name is a path of this machine's file system, which other libraries can open."""

    def require(self, folder: Path) -> None:
        """Raise `UserError` if the place of `folder` can't be used at all: no such bucket, no rights, a wrong clock.

        The folder itself need not exist.
        """

    def require_creation(self, folder: Path) -> None:
        """Raise `UserError` if files can't be created in `folder` without overwriting those of others."""

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""

    def read_range(self, path: Path, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; fewer if the file ends earlier."""

    def size(self, path: Path) -> int:
        """The size of a file in bytes."""

    def version(self, path: Path) -> str:
        """What changes whenever the file of this name is written or replaced: size, inode and time, or an ETag."""

    def versions(self, folder: Path, pattern: str) -> Mapping[Path, str]:
        """The `version` of each file that `list` finds, in as few requests as a list takes."""

    def modified(self, path: Path) -> float:
        """When a file was last written: seconds by the storage's own clock, which may differ from this machine's."""

    def exists(self, path: Path) -> bool:
        """Whether there is a file of this name, or a folder that holds files."""

    def list(self, folder: Path, pattern: str) -> Sequence[Path]:
        """The files below `folder` that match a glob pattern, sorted; `*` does not match a slash.

        A missing folder has no files; that is not an error.
        """

    def create(self, path: Path, finished: Path) -> bool:
        """Give a finished local file (of `temporary`) its name, atomically, and never overwrite.

        Returns False if a file is already there, which is kept.
        """

    def replace(self, path: Path, finished: Path) -> None:
        """Give a finished local file (of `temporary`) its name, atomically, replacing any file there."""

    def replace_if(self, path: Path, finished: Path, version: str) -> bool:
        """As `replace`, if the file there still has this version; else keep what is there and return False.

        A local folder cannot compare and rename in one step, so a writer that comes in between is replaced.
        """

    def other_bytes(self, path: Path, finished: Path) -> bool:
        """Whether the file of this name, which someone else created, is known to differ from a finished local file.

        A local folder does not look: there the file system's lock keeps a second driver out, and a second copy of a
        task may come from another kind of device.
        """

    def create_folder(self, folder: Path, finished: Path, last: str) -> None:
        """Give a finished local folder its name. `last`, a file in it, appears once all others are there.

        Raises:
            OSError: if a folder of that name is there, with other bytes in `last`; it is kept.
        """

    def append(self, path: Path, data: bytes) -> None:
        """Append to a file, or create it. For the driver's logs: two writers at a time are not safe.

        A file may go on in others, whose names begin with its own and sort after it: an object can't grow.
        """

    def move(self, path: Path, target: Path) -> None:
        """Rename a file or a folder, replacing any file there. Not atomic on every storage."""

    def delete(self, path: Path) -> None:
        """Remove a file, if it exists."""

    def delete_folder(self, folder: Path) -> None:
        """Remove a folder with everything in it, if it exists; whatever can't be removed stays."""

    def delete_temporaries(self, folder: Path, pattern: str, before: float) -> None:
        """Remove what killed writers left in matching folders below `folder`, if it was last written before a time.

        `before` is of the storage's clock, as `modified` tells it.
        """

    def temporary(self, path: Path) -> AbstractContextManager[Path]:
        """A local path to write to before `create` or `replace` gives the file its name; removed at the end.

        It is for libraries that need a real path (matplotlib, pyarrow, NumPy).
        """

    def local_path(self, path: Path) -> AbstractContextManager[Path]:
        """A local path of the file, for libraries that need one. It is valid within the context."""

    def readable(self, path: Path) -> AbstractContextManager[Path | IO[bytes]]:
        """A local path of the file, or an open file that fetches only what is read of it."""

    def local_folder(self, folder: Path) -> AbstractContextManager[Path]:
        """A local folder to write tables and figures to; they are in `folder` when the context ends."""
