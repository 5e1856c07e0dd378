"""Files that grow, on a storage whose files can't: the driver's events, its logs and its ledger.

A session rewrites one object with every addition until it has `PIECE_BYTES`, and then begins another. The first has the
file's name, and the next ones a number behind it (events/0001.jsonl, events/0001.jsonl.000001). Readers join all of
them in the order of their names. Objects of earlier sessions stay as they are.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Protocol

from taugrid.storage.protocol import ANY, Storage

PIECE_BYTES = 2**16


class Rewritable(Storage, Protocol):
    @property
    def rewrite_seconds(self) -> float:
        """The least time between two writes to the same file."""


@dataclass
class _Piece:
    path: Path
    data: bytes
    written: float


_pieces: dict[tuple[Storage, Path], _Piece] = {}
_lock = Lock()


def append(storage: Rewritable, path: Path, data: bytes) -> None:
    with _lock:
        piece = _pieces.get((storage, path))
        if piece is None or len(piece.data) >= PIECE_BYTES:
            _pieces[storage, path] = _new_piece(storage, path, data)
            return
        time.sleep(max(0.0, piece.written + storage.rewrite_seconds - time.monotonic()))
        _write(storage, piece.path, piece.data + data, ANY)
        piece.data += data
        piece.written = time.monotonic()


def end_session(storage: Storage) -> None:
    """Have the next session append to new objects, since other drivers may have come in between."""
    with _lock:
        for key in [key for key in _pieces if key[0] == storage]:
            del _pieces[key]


def pieces(storage: Storage, path: Path) -> Sequence[Path]:
    """The files that hold what was appended to `path`, in order."""
    return [each for each in storage.list(path.parent, f"{path.name}*") if each == path or _number(path, each)]


def _number(path: Path, piece: Path) -> int:
    """The number of a piece; 0 for the first, and for other files."""
    digits = piece.name.removeprefix(f"{path.name}.")
    return int(digits) if digits.isdigit() and digits != piece.name else 0


def _new_piece(storage: Rewritable, path: Path, data: bytes) -> _Piece:
    there = pieces(storage, path)
    if there == [path] and storage.stat(path).size == 0:  # a name that this session has just taken
        time.sleep(storage.rewrite_seconds)
        _write(storage, path, data, ANY)
        return _Piece(path, data, time.monotonic())
    for number in count(_number(path, there[-1]) + 1 if there else 0):
        piece = path.with_name(f"{path.name}.{number:06d}") if number else path
        if _write(storage, piece, data):
            return _Piece(piece, data, time.monotonic())
    raise AssertionError("count never ends")


def _write(storage: Storage, path: Path, data: bytes, if_version: str | None = None) -> bool:
    with storage.temporary(path) as temporary:
        temporary.write_bytes(data)
        return storage.commit(path, temporary, if_version)
