"""Where files live, and how they appear: whole or not at all.

`Storage` is everything that a run directory asks of a file system. It is small enough for an object store: a name is
a whole file, nothing is renamed under a reader, and a file that must not be overwritten is created by one request. The
driver and the workers reach a run directory only through it.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from taugrid.disk import is_there, make_folder, matching, naming, rename, retried, sync_file, sync_folder, write_text
from taugrid.hashing import json_sha256

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""What file systems without hard links say; some network and object-store mounts are such."""


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

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""

    def read_range(self, path: Path, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; fewer if the file ends earlier."""

    def size(self, path: Path) -> int:
        """The size of a file in bytes."""

    def version(self, path: Path) -> str:
        """What changes whenever the file of this name is written or replaced: size, inode and time, or an ETag."""

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

    def append(self, path: Path, data: bytes) -> None:
        """Append to a file, or create it. For the driver's logs: two writers at a time are not safe."""

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

    def local_folder(self, folder: Path) -> AbstractContextManager[Path]:
        """A local folder to write tables and figures to; they are in `folder` when the context ends."""


@dataclass(frozen=True)
class LocalStorage:
    """Folders of this machine, or of a file system that all machines mount at the same path.

    A file is written to its folder under a temporary name that begins with a dot, so that naming it is one step of the
    file system.
    """

    root: Path | None = None
    """Of a run directory: folders are made below it, but not the root itself, which may have been unmounted or moved.
    None: any folder is made."""

    def read(self, path: Path) -> bytes:
        """See `Storage`."""
        with naming(path):
            return retried(path.read_bytes)

    def read_range(self, path: Path, start: int, length: int) -> bytes:
        """See `Storage`."""

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)

        with naming(path):
            return retried(read)

    def size(self, path: Path) -> int:
        """See `Storage`."""
        return retried(path.stat).st_size

    def version(self, path: Path) -> str:
        """See `Storage`."""
        found = retried(path.stat)
        return f"{found.st_size}-{found.st_ino}-{found.st_mtime_ns}"

    def modified(self, path: Path) -> float:
        """See `Storage`."""
        return retried(path.stat).st_mtime

    def exists(self, path: Path) -> bool:
        """See `Storage`."""
        return is_there(path)

    def list(self, folder: Path, pattern: str) -> Sequence[Path]:
        """See `Storage`. A folder that has a file's name is listed too, so that it is found out as damage."""
        return sorted(matching(folder, pattern))

    def create(self, path: Path, finished: Path) -> bool:
        """See `Storage`. By `os.link`, which never overwrites."""
        sync_file(finished)
        try:
            retried(lambda: os.link(finished, path))
        except FileExistsError:
            if not finished.samefile(path):  # else it is ours: a network file system has lost its first answer
                return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if is_there(path):  # equal bytes make the race harmless
                return False
            rename(finished, path)
        sync_folder(path.parent)
        return True

    def replace(self, path: Path, finished: Path) -> None:
        """See `Storage`."""
        sync_file(finished)
        rename(finished, path)
        sync_folder(path.parent)

    def replace_if(self, path: Path, finished: Path, version: str) -> bool:
        """See `Storage`."""
        try:
            if self.version(path) != version:
                return False
        except FileNotFoundError:
            return False
        self.replace(path, finished)
        return True

    def append(self, path: Path, data: bytes) -> None:
        """See `Storage`. Readers see it at once."""
        make_folder(path.parent, self.root)
        with naming(path), retried(lambda: path.open("ab")) as file:  # closing it writes, too
            file.write(data)

    def move(self, path: Path, target: Path) -> None:
        """See `Storage`."""
        make_folder(target.parent, self.root)
        rename(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)

    def delete(self, path: Path) -> None:
        """See `Storage`."""
        retried(lambda: path.unlink(missing_ok=True))

    def delete_folder(self, folder: Path) -> None:
        """See `Storage`."""
        shutil.rmtree(folder, ignore_errors=True)

    def delete_temporaries(self, folder: Path, pattern: str, before: float) -> None:
        """See `Storage`."""
        for path in matching(folder, f"{pattern}/.*.tmp"):
            with suppress(FileNotFoundError):
                if self.modified(path) < before:
                    self.delete(path)

    @contextmanager
    def temporary(self, path: Path) -> Iterator[Path]:
        """See `Storage`. The path is in the folder of `path`, which is made if it is missing."""
        make_folder(path.parent, self.root)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            with naming(path):
                yield temporary
        finally:
            self.delete(temporary)

    def local_path(self, path: Path) -> AbstractContextManager[Path]:
        """See `Storage`. The path itself."""
        return nullcontext(path)

    @contextmanager
    def local_folder(self, folder: Path) -> Iterator[Path]:
        """See `Storage`. The folder itself, made if it is missing: writers use `replacing`."""
        make_folder(folder, self.root)
        with naming(folder):
            yield folder


LOCAL = LocalStorage()
"""The folders of this machine: the user's cache, and local run directories."""


@contextmanager
def replacing(path: Path, storage: Storage = LOCAL) -> Iterator[Path]:
    """A temporary local path whose file takes the place of `path` at the end, or vanishes on an error."""
    with storage.temporary(path) as temporary:
        yield temporary
        storage.replace(path, temporary)


def write_json(path: Path, value: Any, storage: Storage = LOCAL) -> None:
    """Write JSON whole or not at all; NaN is a ValueError, because other readers refuse it."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with replacing(path, storage) as temporary:
        write_text(temporary, text)


def read_json(path: Path, storage: Storage = LOCAL) -> Any | None:
    """A JSON file's value, or None if the file is missing or not JSON. OSError if it can't be read."""
    try:
        return json.loads(storage.read(path).decode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None


SEAL_KEY = "sha256"


def write_sealed(path: Path, value: dict[str, Any], storage: Storage = LOCAL) -> None:
    """`write_json` of an object, with the SHA-256 of its canonical JSON under the key `sha256`."""
    write_json(path, value | {SEAL_KEY: json_sha256(value)}, storage)


def read_sealed(path: Path, storage: Storage = LOCAL) -> dict[str, Any] | None:
    """What `write_sealed` wrote, or None if the file is missing or has changed since. OSError if it can't be read."""
    value = read_json(path, storage)
    if not isinstance(value, dict):
        return None
    seal = value.pop(SEAL_KEY, None)
    try:
        return value if seal == json_sha256(value) else None
    except ValueError:  # NaN, which is never written
        return None


def user_cache() -> Path:
    """Taugrid's folder in the user's cache: data sets, decoded images, statistics of references."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "taugrid"
