"""The seal of a Parquet file: a SHA-256 of all other bytes, before the footer, where readers of Parquet do not look.

It shows whether every byte is as it was written. Page checksums, which any reader can check, cover only the
pages: they miss a bit that flips in a page's header, an index or the footer.
"""

import hashlib
import io
from pathlib import Path
from typing import IO, NamedTuple

from taugrid.errors import DamagedFile, naming
from taugrid.retries import retried
from taugrid.storage import Storage

SEAL = b"taugrid.sha256:"
SEAL_BYTES = len(SEAL) + hashlib.sha256().digest_size
TAIL_BYTES = 8
"""Parquet ends with the footer's length (4 bytes, little-endian) and `PAR1`."""
CHUNK_BYTES = 2**20


def write_seal(path: Path) -> bytes:
    """Insert `SEAL` and the SHA-256 of all other bytes before the footer; returns that SHA-256.

    The file stays valid: the footer is found from the file's end, and its offsets point before the seal.
    """
    with retried(lambda: path.open("r+b")) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        footer = read_end(file).footer
        file.seek(footer)
        end = file.read()
        file.seek(footer)
        file.write(SEAL + digest + end)
    return digest


class FileEnd(NamedTuple):
    """The facts that can be read from a file's end."""

    size: int
    footer: int
    """The offset of Parquet's footer; negative if this is not a complete Parquet file."""
    digest: bytes | None
    """The SHA-256 in the seal before the footer, which is not checked; None: there is no seal."""


def read_end(file: IO[bytes]) -> FileEnd:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    footer = size - TAIL_BYTES - int.from_bytes(tail[:4], "little") if tail[4:] == b"PAR1" else -1
    if footer < SEAL_BYTES:
        return FileEnd(size, footer, None)
    file.seek(footer - SEAL_BYTES)
    seal = file.read(SEAL_BYTES)
    return FileEnd(size, footer, seal.removeprefix(SEAL) if seal.startswith(SEAL) else None)


def file_end(path: Path, storage: Storage) -> tuple[FileEnd, str]:
    """The facts in the end of a file, of which nothing else is read, and the version (`Stat.version`) that has them."""

    def read() -> tuple[FileEnd, str]:
        with storage.opened(path) as (file, stat):
            return read_end(file), stat.version

    with naming(path):
        return retried(read)


def check_seal(path: Path) -> None:
    """Raise `DamagedFile` unless every byte of a file is as it was written."""
    with path.open("rb") as file:
        end = read_end(file)
        if end.footer < SEAL_BYTES:
            raise DamagedFile("its end is missing")
        file.seek(0)
        digest, start = hashlib.sha256(), end.footer - SEAL_BYTES
        for offset in range(0, start, CHUNK_BYTES):
            digest.update(file.read(min(CHUNK_BYTES, start - offset)))
        seal = file.read(SEAL_BYTES)
        digest.update(file.read())
    if seal != SEAL + digest.digest():
        raise DamagedFile("its bytes have changed since it was written")
