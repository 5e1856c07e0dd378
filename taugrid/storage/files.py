"""JSON files, upload of folders, and appended files, for any storage."""

import errno
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeVar

from taugrid.errors import StoreError, naming
from taugrid.hashing import file_sha256, json_sha256
from taugrid.retries import retried
from taugrid.storage.local import LOCAL, MAX_READ_BYTES, write_text
from taugrid.storage.protocol import ANY, Storage
from taugrid.words import with_urls

SEAL_KEY = "sha256"
CHUNK_BYTES = 2**23  # of a file on a disk that is read line by line
PIECE_BYTES = 2**16  # of a piece of an appended file: then the next one begins
READS_TOGETHER = 32  # files that `together` reads at a time from an object store

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def replacing(path: Path, storage: Storage = LOCAL) -> Iterator[Path]:
    """A temporary local path whose file takes the place of `path` at the end, or vanishes on an error."""
    with storage.temporary(path) as temporary:
        yield temporary
        storage.commit(path, temporary, ANY)


def write_json(path: Path, value: Any, storage: Storage = LOCAL, once: bool = False) -> bool:
    """Write JSON whole or not at all; NaN is a ValueError. `once` replaces no file: False if another one is there."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with storage.temporary(path) as temporary:
        write_text(temporary, text)
        return _commit_once(path, temporary, storage) if once else storage.commit(path, temporary, ANY)


def read_json(path: Path, storage: Storage = LOCAL) -> Any | None:
    """A JSON file's value, or None if the file is missing or not JSON. OSError if it can't be read."""
    try:
        return json.loads(storage.read(path).decode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def write_sealed(path: Path, value: dict[str, Any], storage: Storage = LOCAL, once: bool = False) -> bool:
    """`write_json` of an object, with the SHA-256 of its canonical JSON under the key `sha256`."""
    return write_json(path, value | {SEAL_KEY: json_sha256(value)}, storage, once)


def read_sealed(path: Path, storage: Storage = LOCAL) -> dict[str, Any] | None:
    """The object that `write_sealed` wrote; None if the file is missing or has changed. OSError if it can't be read."""
    value = read_json(path, storage)
    if not isinstance(value, dict):
        return None
    seal = value.pop(SEAL_KEY, None)
    try:
        return value if seal == json_sha256(value) else None
    except ValueError:  # NaN, which is never written
        return None


def is_same(path: Path, finished: Path, storage: Storage) -> bool:
    """Whether a file has the bytes of a finished local file. Reads both."""
    try:
        with storage.local_path(path) as theirs:
            return file_sha256(theirs) == file_sha256(finished)
    except FileNotFoundError:
        return False


def upload_folder(folder: Path, finished: Path, last: str, storage: Storage) -> None:
    """Give a finished local folder its name in an object store. OSError if a file with other bytes is there; it stays.
    `last`, a file in it, appears once all others are there, and is removed if one of them was replaced meanwhile: a
    later driver that finds no `last` sets the folder aside."""
    names = [path.relative_to(finished) for path in sorted(finished.rglob("*")) if path.is_file()]
    versions = dict[Path, str]()

    def put(name: Path) -> None:
        if not _commit_once(folder / name, finished / name, storage):
            raise _of_others(folder / name)

    def check() -> None:
        there = storage.walk(folder)
        for path, version in versions.items():
            if path not in there or there[path].version != version:
                raise _of_others(path)

    for name in names:
        if name != Path(last):
            put(name)
            versions[folder / name] = storage.stat(folder / name).version
    check()
    put(Path(last))
    try:
        check()
    except StoreError:
        storage.delete(folder / last)
        raise


def _of_others(path: Path) -> StoreError:
    why = "another driver has put other content there; run the same command again"
    return StoreError(errno.EEXIST, why, with_urls(path.as_posix()))


def _commit_once(path: Path, finished: Path, storage: Storage) -> bool:
    """Give a finished local file its name. False: a file with other bytes has the name; it is kept."""
    return storage.commit(path, finished) or is_same(path, finished, storage)


def together(storage: Storage, read: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`read` of each item, in order; in an object store, a few of them are read at a time, and held."""
    if storage.on_disk:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(READS_TOGETHER) as threads:
        for first in range(0, len(items), READS_TOGETHER):
            yield from threads.map(read, items[first : first + READS_TOGETHER])


# Append-only files on an object store, whose objects can't grow: the driver's events, logs and ledger. A file is a
# sequence of objects, its pieces: events/0001.jsonl, events/0001.jsonl.000001 and so on. A session rewrites its last
# piece with every addition until the piece has `PIECE_BYTES`; it never rewrites pieces of an earlier session.


@dataclass
class _Appended:
    """The last piece of a file that this session appends to."""

    lock: Lock = field(default_factory=Lock)  # held while a request writes this file: others are written meanwhile
    number: int | None = None
    data: bytes = b""
    written: float = 0.0


_appended: dict[tuple[Storage, Path], _Appended] = {}
_lock = Lock()


def append(storage: Storage, path: Path, data: bytes, pause: float) -> None:
    """Append to a file; `pause` is the minimum of seconds between two writes to the same object."""
    with _lock:
        file = _appended.setdefault((storage, path), _Appended())
    with file.lock:
        if file.number is None or len(file.data) >= PIECE_BYTES:
            file.number, file.data = _new_piece(storage, path, data, pause, file.number), data
        else:
            file.data += data  # first: after an interrupt here, the next addition must not take it away again
            try:
                time.sleep(max(0.0, file.written + pause - time.monotonic()))
            finally:  # Ctrl-C in the pause ends the run, and no later addition would write this one
                _write(storage, _piece(path, file.number), file.data, ANY)
        file.written = time.monotonic()


def end_session(storage: Storage) -> None:
    """Make the next session append to new pieces, since other drivers may have written some in between."""
    with _lock:
        for key in [key for key in _appended if key[0] == storage]:
            del _appended[key]


def pieces(storage: Storage, path: Path) -> Sequence[Path]:
    """The objects that hold what was appended to `path`, in order."""
    names = storage.list(path.parent, f"{path.name}*")
    return [name for name in names if name == path or name.name.removeprefix(f"{path.name}.").isdigit()]


def lines_of(storage: Storage, paths: Sequence[Path]) -> Iterator[Iterable[bytes]]:
    """The lines of each appended file, with their line ends. A file on a disk is read while its lines are consumed, so
    it may have any size; OSError (EFBIG) for a line of more than `MAX_READ_BYTES`."""
    if storage.on_disk:
        for path in paths:
            yield _lines_on_disk(storage, path)
    else:
        for data in together(storage, storage.read, paths):
            yield io.BytesIO(data)


def _lines_on_disk(storage: Storage, path: Path) -> Iterator[bytes]:
    with naming(path), storage.opened(path) as (file, _):
        start = 0
        rest = b""
        while data := retried(partial(_read_at, file, start)):
            start += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line + b"\n"
            if len(rest) > MAX_READ_BYTES:
                raise OSError(errno.EFBIG, f"it has a line of more than {MAX_READ_BYTES >> 20} MiB")
        if rest:
            yield rest


def _read_at(file: IO[bytes], start: int) -> bytes:
    """The next `CHUNK_BYTES` from `start`: the call can be repeated."""
    file.seek(start)
    return file.read(CHUNK_BYTES)


def _piece(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:06d}") if number else path


def _new_piece(storage: Storage, path: Path, data: bytes, pause: float, last: int | None) -> int:
    """Write `data` to a piece behind all others, whose number is returned."""
    if last is None:
        existing = pieces(storage, path)
        if existing == [path] and storage.stat(path).size == 0:
            # An empty file is a reservation: this session has just created it to have the name for itself.
            time.sleep(pause)
            _write(storage, path, data, ANY)
            return 0
        last = -1 if not existing else 0 if existing[-1] == path else int(existing[-1].suffix[1:])
    number = last + 1
    while not _write(storage, _piece(path, number), data):
        number += 1
    return number


def _write(storage: Storage, path: Path, data: bytes, if_version: str | None = None) -> bool:
    """Write an object. `ANY` replaces the one of this name; without it, False is returned if there is one."""
    with storage.temporary(path) as temporary:
        temporary.write_bytes(data)
        return storage.commit(path, temporary, if_version)
