"""Folders of this machine, or of a file system that all machines mount at the same path."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from taugrid.disk import commit_folder, is_there, make_folder, matching, naming, rename, retried, sync_file, sync_folder

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""What file systems without hard links say; some network and object-store mounts are such."""


@dataclass(frozen=True)
class LocalStorage:
    """Folders of this machine, or of a file system that all machines mount at the same path.

    A file is written to its folder under a temporary name that begins with a dot, so that naming it is one step of the
    file system.
    """

    root: Path | None = None
    """Of a run directory: folders are made below it, but not the root itself, which may have been unmounted or moved.
    None: any folder is made."""

    @property
    def on_disk(self) -> bool:
        return True

    def require(self, folder: Path) -> None:
        """See `Storage`. Errors of a folder say themselves what is wrong."""

    def require_creation(self, folder: Path) -> None:
        """See `Storage`. A link never overwrites."""

    def read(self, path: Path) -> bytes:
        with naming(path):
            return retried(path.read_bytes)

    def read_range(self, path: Path, start: int, length: int) -> bytes:
        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)

        with naming(path):
            return retried(read)

    def size(self, path: Path) -> int:
        return retried(path.stat).st_size

    def version(self, path: Path) -> str:
        found = retried(path.stat)
        return f"{found.st_size}-{found.st_ino}-{found.st_mtime_ns}"

    def versions(self, folder: Path, pattern: str) -> Mapping[Path, str]:
        found = {}
        for path in self.list(folder, pattern):
            with suppress(FileNotFoundError):  # it has gone since
                found[path] = self.version(path)
        return found

    def modified(self, path: Path) -> float:
        return retried(path.stat).st_mtime

    def exists(self, path: Path) -> bool:
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
        sync_file(finished)
        rename(finished, path)
        sync_folder(path.parent)

    def replace_if(self, path: Path, finished: Path, version: str) -> bool:
        try:
            if self.version(path) != version:
                return False
        except FileNotFoundError:
            return False
        self.replace(path, finished)
        return True

    def other_bytes(self, path: Path, finished: Path) -> bool:
        return False

    def create_folder(self, folder: Path, finished: Path, last: str) -> None:
        """See `Storage`. Renamed whole, so `last` has no part in it."""
        commit_folder(finished, folder)

    def append(self, path: Path, data: bytes) -> None:
        """See `Storage`. Readers see it at once."""
        with naming(path), self._opened_to_append(path) as file:  # closing it writes, too
            file.write(data)

    def _opened_to_append(self, path: Path) -> IO[bytes]:
        try:
            return retried(lambda: path.open("ab"))
        except FileNotFoundError:  # its folder is made by the first of many
            make_folder(path.parent, self.root)
            return retried(lambda: path.open("ab"))

    def move(self, path: Path, target: Path) -> None:
        make_folder(target.parent, self.root)
        rename(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)

    def delete(self, path: Path) -> None:
        retried(lambda: path.unlink(missing_ok=True))

    def delete_folder(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def delete_temporaries(self, folder: Path, pattern: str, before: float) -> None:
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

    def readable(self, path: Path) -> AbstractContextManager[Path]:
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


def user_cache() -> Path:
    """Taugrid's folder in the user's cache: data sets, decoded images, statistics of references."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "taugrid"
