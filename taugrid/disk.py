"""A disk that may be unwell: which errors are tried again, how they are told, and what survives a power loss."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from taugrid.errors import RunFailed, UserError, of_the_surroundings

T = TypeVar("T")

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN}
)
"""What a network file system, or a process with many files open, may get over within seconds."""

PAUSES_SECONDS = (0.1, 0.4, 1.6)
"""The pauses before a transient error is tried again; after the last one it is raised."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""What stays as it is until the user changes it: the same command would meet it again."""

UNUSABLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""What is said of a path that can be none, whatever is on the disk: a name is too long, or links go in a circle."""

UNSYNCABLE = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
"""What file systems that cannot sync a folder say; those write names at once, or offer no way to make sure."""


class StoreError(OSError):
    """What an object store answered. Its text says in words what is wrong and what to do; its file is a URL."""


def retried(call: Callable[[], T]) -> T:
    """What `call` returns. A transient error is tried again a few times, so `call` must be safe to repeat."""
    for seconds in PAUSES_SECONDS:
        try:
            return call()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(seconds)
    return call()


def rename(path: Path, target: Path) -> None:
    """Rename a file or folder, replacing any file there; a transient error is tried again.

    A network file system may have done it and lost its answer. Then the next attempt finds nothing to rename.
    """
    failed = False

    def attempt() -> None:
        nonlocal failed
        try:
            path.replace(target)
        except FileNotFoundError:
            if not failed or is_there(path) or not is_there(target):
                raise
        except OSError:
            failed = True
            raise

    retried(attempt)


def write_text(path: Path, text: str) -> None:
    """Write a file that nobody reads yet; a transient error is tried again."""
    retried(lambda: path.write_text(text, encoding="utf-8"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of reading or writing the file's name if it has none: those of open files do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def is_of_content(error: OSError) -> bool:
    """Whether the bytes are wrong, and not the reading: Arrow raises errors without a number for those."""
    return error.errno in (None, errno.EISDIR, errno.EINVAL)


def in_one_line(error: OSError) -> str:
    """What failed, where, and what to do."""
    place = error.filename or "a file"
    if isinstance(error, FileNotFoundError):
        return f"there is no {place} any more; put it back, then run the same command again"
    if isinstance(error, StoreError):
        return f"can't read or write {place}: {error.strerror}; then run the same command again"
    if error.errno in FULL:
        return f"the disk is full: can't write {place}; free some space and run the same command again"
    said = f"can't read or write {place}: {os.strerror(error.errno or 0)}; no file counts as damaged for this"
    if error.errno in FORBIDDEN:
        return f"{said}; make it readable and writable, then run the same command again"
    return f"{said}; run the same command again"


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Turn an error of the disk into `RunFailed`: it is no bug, and the user can do something about it.

    So is a named file that is not found: commands look for what they need when they begin, so it has vanished since.

    Raises:
        UserError: for a path that must be another one.
    """
    try:
        yield
    except OSError as error:
        if error.errno in UNUSABLE:
            raise UserError(f"{error.filename or 'a path'} can't be used: {error.strerror}; give another one") from None
        vanished = isinstance(error, FileNotFoundError) and error.filename is not None
        if error.errno is None or not (vanished or of_the_surroundings(error)):
            raise
        raise RunFailed(in_one_line(error)) from error


def sync_file(path: Path) -> None:
    """Return once the file's bytes are on the disk. A sync that fails is not tried again: it would seem to succeed."""
    with retried(lambda: path.open("rb")) as file, naming(path):
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk, where the file system can say so."""
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
    """Make a folder and those above it, but not `root`; the names of new ones are synced.

    Raises:
        FileNotFoundError: if there is no `root`.
    """
    if folder == root:
        retried(folder.stat)
        return
    try:
        retried(folder.mkdir)
    except FileNotFoundError:
        make_folder(folder.parent, root)
        retried(lambda: folder.mkdir(exist_ok=True))
    except OSError:  # it is there, or its place may not be written to, which is no matter if it is there
        if not folder.is_dir():
            raise
        return
    sync_folder(folder.parent)


def commit_folder(finished: Path, folder: Path) -> None:
    """Give a finished folder its name, whole: everything in it is on the disk before it is seen.

    Raises:
        OSError: if a folder of that name is there and not empty, which is kept.
    """
    for place, _, names in os.walk(finished, topdown=False, onerror=_raise):
        for name in names:
            sync_file(Path(place) / name)
        sync_folder(Path(place))
    rename(finished, folder)
    sync_folder(folder.parent)


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths below `folder` that match a glob pattern; `*` stands for no slash.

    `Path.glob` passes over folders that it cannot read, so that files would count as missing.
    """
    found = [folder]
    for part in pattern.split("/"):
        if part == ".":
            continue
        if "*" in part or "[" in part:
            found = [place / name for place in found for name in _names(place) if fnmatchcase(name, part)]
        else:
            found = [path for place in found if is_there(path := place / part)]
    return found


def _names(folder: Path) -> list[str]:
    try:
        return retried(lambda: [path.name for path in folder.iterdir()])
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_there(path: Path) -> bool:
    """Whether there is a file or a folder. An error of reading is raised: it is no answer."""
    with suppress(FileNotFoundError, NotADirectoryError):
        retried(path.stat)
        return True
    return False


def _raise(error: OSError) -> None:
    raise error
