"""Checks that a worker loads the content that the driver planned with: a node may hold other files of the same names.

A file is read once, into a private copy that is hashed and that libraries open. Times of files decide nothing.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

from taugrid.errors import WorkerRefusal
from taugrid.hashing import file_sha256
from taugrid.storage import LOCAL, Storage
from taugrid.words import this_node

CHUNK_BYTES = 2**22
SHOWN_DIGITS = 12  # how many digits of a hash a message shows


def require_same(what: str | Path, actual: str, expected: str) -> None:
    """Raise `WorkerRefusal` unless the SHA-256 of `what`, as this node loaded it, is the driver's."""
    if actual != expected:
        raise WorkerRefusal(
            f"node {this_node()}: {what} has SHA-256 {actual[:SHOWN_DIGITS]} there, but {expected[:SHOWN_DIGITS]} "
            "where the run was planned; copy the driver's there"
        )


@contextmanager
def verified_copy(path: Path, sha256: str, storage: Storage = LOCAL) -> Iterator[Path]:
    """A private copy of a file, of the same name and alone in its folder, whose bytes are those that were hashed.
    `WorkerRefusal` if there is no such file on this node, or its SHA-256 is not `sha256`."""
    with ExitStack() as stack:
        if storage.on_disk:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taugrid-"))) / path.name
            with _opened(path) as file, copy.open("wb") as target:
                shutil.copyfileobj(file, target, CHUNK_BYTES)
        else:
            try:
                copy = stack.enter_context(storage.local_path(path))
            except FileNotFoundError:
                raise _missing(path) from None
        require_same(path, file_sha256(copy), sha256)
        yield copy


@contextmanager
def unchanged(path: Path, sha256: str) -> Iterator[None]:
    """Check a file's hash before and after a block that opens the file itself. Raises the errors of `verified_copy`."""

    def check() -> None:
        with _opened(path) as file:
            require_same(path, hashlib.file_digest(file, "sha256").hexdigest(), sha256)

    check()
    yield
    check()


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None


def _missing(path: Path) -> WorkerRefusal:
    return WorkerRefusal(f"node {this_node()}: there is no file {path}; put it where every worker sees it")
