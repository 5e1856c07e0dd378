"""Append-only files on an object store, whose objects can't grow: the driver's events, logs and ledger.

A file is a sequence of objects, its pieces: events/0001.jsonl, events/0001.jsonl.000001 and so on. A session rewrites
its last piece with every addition until the piece has `PIECE_BYTES`, and then begins a new one; it never rewrites
pieces of an earlier session.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TypeVar

from taugrid.storage.protocol import ANY, Storage

PIECE_BYTES = 2**16

READS_TOGETHER = 32
"""Files that `together` reads at a time from an object store."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Piece:
    path: Path
    data: bytes
    written: float


@dataclass
class _File:
    last: _Piece | None = None
    lock: Lock = field(default_factory=Lock)
    """Held while a request writes this file: others are written at the same time."""


_files: dict[tuple[Storage, Path], _File] = {}
_lock = Lock()


def append(storage: Storage, path: Path, data: bytes, pause: float) -> None:
    """Append to a file; `pause` is the minimum of seconds between two writes to the same object."""
    with _lock:
        file = _files.setdefault((storage, path), _File())
    with file.lock:
        piece = file.last
        if piece is None or len(piece.data) >= PIECE_BYTES:
            file.last = _new_piece(storage, path, data, pause, piece)
            return
        time.sleep(max(0.0, piece.written + pause - time.monotonic()))
        piece.data += data  # first: after an interrupt here, the next addition must not take it away again
        _write(storage, piece.path, piece.data, ANY)
        piece.written = time.monotonic()


def end_session(storage: Storage) -> None:
    """Make the next session append to new pieces, since other drivers may have written some in between."""
    with _lock:
        for key in [key for key in _files if key[0] == storage]:
            del _files[key]


def pieces(storage: Storage, path: Path) -> Sequence[Path]:
    """The objects that hold what was appended to `path`, in order."""
    names = storage.list(path.parent, f"{path.name}*")
    return [name for name in names if _number(path, name) is not None]


def together(storage: Storage, read: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`read` of each item, in order; in an object store, a few of them are read at a time, and held."""
    if storage.on_disk:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(READS_TOGETHER) as threads:
        for first in range(0, len(items), READS_TOGETHER):
            yield from threads.map(read, items[first : first + READS_TOGETHER])


def _number(path: Path, name: Path) -> int | None:
    """The number of a piece of `path`, 0 for the first; None if `name` is not a piece of it."""
    if name == path:
        return 0
    digits = name.name.removeprefix(f"{path.name}.")
    return int(digits) if digits.isdigit() and digits != name.name else None


def _new_piece(storage: Storage, path: Path, data: bytes, pause: float, before: _Piece | None) -> _Piece:
    existing = pieces(storage, path) if before is None else [before.path]
    if before is None and existing == [path] and storage.stat(path).size == 0:
        # An empty file is a reservation: this session has just created it to have the name for itself.
        time.sleep(pause)
        _write(storage, path, data, ANY)
        return _Piece(path, data, time.monotonic())
    last = _number(path, existing[-1]) if existing else None
    for number in count(0 if last is None else last + 1):
        piece = path.with_name(f"{path.name}.{number:06d}") if number else path
        if _write(storage, piece, data):
            return _Piece(piece, data, time.monotonic())
    raise AssertionError("count never ends")


def _write(storage: Storage, path: Path, data: bytes, if_version: str | None = None) -> bool:
    """Write an object. `ANY` replaces the one of this name; without it, False is returned if there is one."""
    with storage.temporary(path) as temporary:
        temporary.write_bytes(data)
        return storage.commit(path, temporary, if_version)
