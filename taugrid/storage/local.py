"""Folders of this machine, or of a file system that all machines mount at the same path."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import IO

from taugrid.errors import naming
from taugrid.retries import retried
from taugrid.storage.protocol import ANY, Level, Stat, check_inside

MAX_READ_BYTES = 2**27
"""Of a file that is read whole: records and pages are smaller, and a sparse file may claim any size. Events and the
ledger, which grow with the shards of a run, are read line by line (`files.lines_of`)."""

UNSYNCABLE = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
"""From file systems that can't sync a folder; those write names at once, or offer no way to make sure."""

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""From file systems without hard links, such as some mounts of networks and object stores."""


@dataclass(frozen=True)
class LocalStorage:
    """A folder, or any path: a file is written under a temporary name that begins with a dot, beside its own."""

    root: Path | None = None
    """The root of a run directory, perhaps a link. Nothing outside it is read, written or removed, even by a link. It
    is not made: it may have been unmounted or moved. None: any path may be used."""

    @property
    def on_disk(self) -> bool:
        return True

    def _check(self, path: Path) -> None:
        """`check_inside`, also of where links lead; OSError for one out of the root, and for a pipe or a device."""
        check_inside(path, self.root)
        if self.root is not None:
            with suppress(FileNotFoundError, NotADirectoryError):
                retried(partial(self._check_parts, str(path), str(self.root)))

    def _check_parts(self, path: str, place: str) -> None:
        for part in path[len(place) :].split("/"):
            if not part:
                continue
            place = f"{place}/{part}"
            mode = os.lstat(place).st_mode
            if S_ISLNK(mode):
                if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root or "/")):
                    raise OSError(errno.ELOOP, f"it is a link that leads out of {self.root}", place)
                mode = Path(place).stat().st_mode
            if not S_ISDIR(mode) and not S_ISREG(mode):
                raise OSError(errno.ESPIPE, "it is neither a file nor a folder", place)

    def _matching(self, folder: Path, pattern: str) -> Sequence[str]:
        """The names in a folder, which was checked, that match a pattern. Links are checked: others take no call."""
        names = {name: is_link for name, is_link in _entries(folder).items() if fnmatchcase(name, pattern)}
        for name, is_link in names.items():
            if is_link:
                self._check(folder / name)
        return list(names)

    def require(self, folder: Path, to_write: bool = False) -> None:
        pass

    def stat(self, path: Path) -> Stat:
        self._check(path)
        return _stat(retried(path.stat))

    def stats(self, folder: Path, pattern: str) -> Mapping[Path, Stat]:
        found = {}
        for path in self.list(folder, pattern):  # which has checked where links lead
            with suppress(FileNotFoundError):  # it has gone since
                found[path] = _stat(retried(path.stat))
        return found

    def walk(self, folder: Path) -> Mapping[Path, Stat]:
        self._check(folder)
        found = {}
        for place, _, names in os.walk(folder, onerror=_raise):
            for path in (Path(place, name) for name in names):
                with suppress(FileNotFoundError):  # it has gone since
                    if S_ISREG((status := retried(path.lstat)).st_mode):
                        found[path] = _stat(status)
        return found

    def exists(self, path: Path) -> bool:
        self._check(path)
        return is_there(path)

    def list(self, folder: Path, pattern: str) -> Sequence[Path]:
        # `Path.glob` would pass over folders that it cannot read, so that files would count as missing.
        check_inside(folder / pattern, self.root)
        self._check(folder)
        paths = [folder]
        for part in pattern.split("/"):
            if part == ".":
                continue
            if "*" in part or "[" in part:
                paths = [place / name for place in paths for name in self._matching(place, part)]
            else:
                paths = [path for place in paths if self.exists(path := place / part)]
        return sorted(paths)

    def level(self, folder: Path) -> Level:
        self._check(folder)
        names: dict[str, list[str]] = {"file": [], "folder": [], "unreadable": []}
        with os.scandir(folder) as entries:
            for entry in entries:
                kind = "unreadable"
                with suppress(OSError):
                    if entry.is_symlink():
                        self._check(folder / entry.name)
                    kind = "folder" if entry.is_dir() else "file" if entry.is_file() else kind
                names[kind].append(entry.name)
        return Level(dict.fromkeys(sorted(names["file"])), sorted(names["folder"]), sorted(names["unreadable"]))

    def read(self, path: Path, start: int = 0, length: int | None = None) -> bytes:
        self._check(path)

        def read() -> bytes:
            with path.open("rb") as file:
                if length is None and os.fstat(file.fileno()).st_size - start > MAX_READ_BYTES:
                    raise OSError(errno.EFBIG, f"it is larger than {MAX_READ_BYTES >> 20} MiB")
                file.seek(start)
                return file.read(length)

        with naming(path):
            return retried(read)

    def commit(self, path: Path, finished: Path, if_version: str | None = None) -> bool:
        self._check(path)
        sync_file(finished)
        if if_version is None:
            if not _name(finished, path):
                return False
        else:
            try:
                if if_version != ANY and self.stat(path).version != if_version:
                    return False
            except FileNotFoundError:
                return False
            rename(finished, path)
        sync_folder(path.parent)
        return True

    def append(self, path: Path, data: bytes, synced: bool = False) -> None:
        self._check(path)
        try:
            file = retried(lambda: _appending(path))
        except FileNotFoundError:  # the first of many makes its folder
            make_folder(path.parent, self.root)
            file = retried(lambda: _appending(path))
        with naming(path), file:
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())

    def move(self, path: Path, target: Path) -> None:
        self._check(path.parent)
        self._check(target)
        make_folder(target.parent, self.root)
        rename(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)

    def delete(self, path: Path) -> None:
        check_inside(path, self.root)
        self._check(path.parent)  # a link itself can be removed
        retried(lambda: path.unlink(missing_ok=True))

    def delete_all(self, paths: Sequence[Path], root: Path) -> None:
        for path in paths:
            self.delete(path)
        above = {folder for path in paths for folder in path.parents if root in folder.parents}
        for folder in sorted(above, reverse=True):  # the deepest first
            with suppress(OSError):  # it holds other files
                folder.rmdir()

    def delete_folder(self, folder: Path) -> None:
        self._check(folder)
        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def temporary(self, path: Path) -> Iterator[Path]:
        self._check(path)
        make_folder(path.parent, self.root)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            with naming(path):
                yield temporary
        finally:
            self.delete(temporary)

    def local_path(self, path: Path) -> AbstractContextManager[Path]:
        self._check(path)
        return nullcontext(path)

    readable = local_path

    @contextmanager
    def opened(self, path: Path) -> Iterator[tuple[IO[bytes], Stat]]:
        self._check(path)
        with retried(lambda: path.open("rb")) as file:
            yield file, _stat(os.fstat(file.fileno()))

    @contextmanager
    def local_folder(self, folder: Path) -> Iterator[Path]:
        self._check(folder)
        make_folder(folder, self.root)
        with naming(folder):
            yield folder


LOCAL = LocalStorage()  # the user's cache, and local run directories


def user_cache() -> Path:
    """Taugrid's folder in the user's cache: data sets, decoded images, statistics of references."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "taugrid"


# Calls of the file system: tried again where that is safe, and synced so that names survive a power loss


def _name(finished: Path, path: Path) -> bool:
    """Name a file; False if a different file has this name. Without hard links the name is first created, empty: only
    one writer can, and only its own file replaces that."""
    try:
        retried(lambda: os.link(finished, path))
    except FileExistsError:
        return finished.samefile(path)  # then a network file system has lost its first answer
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            retried(lambda: path.touch(exist_ok=False))
        except FileExistsError:
            return False
        rename(finished, path)
    return True


def rename(path: Path, target: Path) -> None:
    """Rename a file or folder, replacing any file there; a transient error is tried again."""
    retried(lambda: path.replace(target))


def write_text(path: Path, text: str) -> None:
    """Write a file that has no reader yet; a transient error is tried again."""
    retried(lambda: path.write_text(text, encoding="utf-8"))


def sync_file(path: Path) -> None:
    """Return once the file's bytes are on the disk. A sync that fails is not tried again: it would seem to succeed."""
    with retried(lambda: path.open("rb")) as file, naming(path):
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk, if the file system can sync folders."""
    descriptor = retried(lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCABLE:
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Make a folder and those above it, but not `root`, which must exist; the names of new ones are synced."""
    if folder == root:
        retried(folder.stat)
        return
    try:
        retried(folder.mkdir)
    except FileNotFoundError:
        make_folder(folder.parent, root)
        retried(lambda: folder.mkdir(exist_ok=True))
    except OSError:  # it is there, or its folder is read-only, which does not matter if it is there
        if not folder.is_dir():
            raise
        return
    sync_folder(folder.parent)


def commit_folder(finished: Path, folder: Path) -> None:
    """Give a finished folder its name, whole: everything in it is on the disk before the name appears. OSError if a
    folder of that name is there and not empty, which is kept."""
    for place, _, names in os.walk(finished, topdown=False, onerror=_raise):
        for name in names:
            sync_file(Path(place) / name)
        sync_folder(Path(place))
    rename(finished, folder)
    sync_folder(folder.parent)


def _stat(status: os.stat_result) -> Stat:
    return Stat(status.st_size, f"{status.st_size}-{status.st_ino}-{status.st_mtime_ns}", status.st_mtime)


def _entries(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is a link."""

    def read() -> dict[str, bool]:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}

    try:
        return retried(read)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _appending(path: Path) -> IO[bytes]:
    """A file to append to; OSError (ELOOP) if it is a link, hard or not: what is written would be elsewhere too."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab")
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise OSError(errno.ELOOP, "it is a hard link of another file; replace it by a copy")
    return file


def is_there(path: Path) -> bool:
    """Whether a file or folder exists. Other errors are raised: they leave it unknown."""
    with suppress(FileNotFoundError, NotADirectoryError):
        retried(path.stat)
        return True
    return False


def _raise(error: OSError) -> None:
    raise error
