"""Checks that a worker loads the content that the driver planned with: a node may hold other files of the same names.

A file is read once, into a private copy that is hashed and that libraries open. Times of files decide nothing. Imports
no torch.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

from taugrid.errors import ContentMismatch
from taugrid.hashing import file_sha256
from taugrid.storage import LOCAL, Storage
from taugrid.words import this_node

CHUNK_BYTES = 2**22
SHOWN_DIGITS = 12
"""How many digits of a hash a message shows."""


def require_same(what: str | Path, actual: str, expected: str) -> None:
    """Raise `ContentMismatch` unless the SHA-256 of `what`, as this node loaded it, is the driver's."""
    if actual != expected:
        raise ContentMismatch(
            f"node {this_node()}: {what} has SHA-256 {actual[:SHOWN_DIGITS]} there, but {expected[:SHOWN_DIGITS]} "
            "where the run was planned; copy the driver's there"
        )


@contextmanager
def verified_copy(path: Path, sha256: str, storage: Storage = LOCAL) -> Iterator[Path]:
    """A private copy of a file, of the same name and alone in its folder, made of the very bytes that were hashed.

    Raises:
        ContentMismatch: if there is no such file on this node, or its SHA-256 is not `sha256`.
        OSError: if it can't be read, or the copy can't be written.
    """
    if not storage.on_disk:
        with ExitStack() as stack:
            yield _downloaded(path, sha256, storage, stack)
        return
    with tempfile.TemporaryDirectory(prefix="taugrid-") as folder:
        copy = Path(folder) / path.name
        with _opened(path) as file, copy.open("wb") as target:
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        require_same(path, digest.hexdigest(), sha256)
        yield copy


def _downloaded(path: Path, sha256: str, storage: Storage, stack: ExitStack) -> Path:
    try:
        copy = stack.enter_context(storage.local_path(path))
    except FileNotFoundError:
        raise ContentMismatch(f"{path} is gone from the object store; run the same command again") from None
    if (actual := file_sha256(copy)) != sha256:
        raise ContentMismatch(
            f"{path} was changed after the run was planned: it has SHA-256 {actual[:SHOWN_DIGITS]}, and had "
            f"{sha256[:SHOWN_DIGITS]}; put the old one back, or run the same command again"
        )
    return copy


@contextmanager
def unchanged(path: Path, sha256: str) -> Iterator[None]:
    """Check a file's hash before and after a block that opens the file itself. Raises the errors of `verified_copy`."""
    _require_file(path, sha256)
    yield
    _require_file(path, sha256)


def _require_file(path: Path, sha256: str) -> None:
    with _opened(path) as file:
        require_same(path, hashlib.file_digest(file, "sha256").hexdigest(), sha256)


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise ContentMismatch(
            f"node {this_node()}: there is no file {path}; put it where every worker sees it"
        ) from None
