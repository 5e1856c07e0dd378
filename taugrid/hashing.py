"""SHA-256 of files and values. These hashes name runs, cells and caches, so the hashed bytes must never change."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IDENTITY_DIGITS = 10  # hex digits, 40 bits: two of a thousand cells clash once in two million times

_IDENTITY = re.compile(f"[0-9a-f]{{{IDENTITY_DIGITS}}}")


class SourceFile(NamedTuple):
    module: str
    path: str  # its path on the machine that read it. Not part of any id
    sha256: str  # hash of its syntax tree, without comments and docstrings (`workers.custom.syntax`)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_start(path: Path, count: int) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(count)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> str:
    """JSON in ASCII, with sorted keys and no spaces: equal values give equal text; ValueError for NaN or infinity."""
    return _CANONICAL.encode(value)


def json_sha256(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hex digits; ValueError for NaN or infinity."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def identity(values: Mapping[str, Any]) -> str:
    """The id of whatever `values` determine: the first 10 hex digits of `json_sha256`."""
    return json_sha256(values)[:IDENTITY_DIGITS]


def checked_identity(value: Any) -> str:
    """An id that was read from a file; ValueError if `identity` gives no such text. Ids are parts of paths."""
    if isinstance(value, str) and _IDENTITY.fullmatch(value):
        return value
    raise ValueError(f"not an id: {value!r}")


def digest_of_shape(shape: Sequence[int]) -> "hashlib._Hash":
    """A SHA-256 that already covers the images' shape (as int64, little-endian); the caller adds their bytes."""
    return hashlib.sha256(np.array(shape, dtype="<i8").tobytes())


def digests_of(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(n,): the first 8 bytes of the SHA-256 of each of the images (n, C, H, W)."""
    hashes = b"".join(hashlib.sha256(image.tobytes()).digest()[:8] for image in images)
    return np.frombuffer(hashes, "<i8")
