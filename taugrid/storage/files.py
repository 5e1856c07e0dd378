"""JSON files, comparison and upload of folders, for any storage."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taugrid.errors import StoreError
from taugrid.hashing import file_sha256, json_sha256
from taugrid.storage.local import LOCAL, write_text
from taugrid.storage.protocol import ANY, Storage
from taugrid.words import with_urls


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


SEAL_KEY = "sha256"


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
    later driver that finds no `last` sets the folder aside.
    """
    files = {path.relative_to(finished): path for path in finished.rglob("*") if path.is_file()}
    versions = dict[Path, str]()

    def put(name: Path) -> None:
        if not _commit_once(folder / name, files[name], storage):
            raise _others(folder / name)

    def check() -> None:
        there = storage.walk(folder)
        for path, version in versions.items():
            if path not in there or there[path].version != version:
                raise _others(path)

    for name in sorted(files.keys() - {Path(last)}):
        put(name)
        versions[folder / name] = storage.stat(folder / name).version
    check()
    put(Path(last))
    try:
        check()
    except StoreError:
        storage.delete(folder / last)
        raise


def _others(path: Path) -> StoreError:
    why = "another driver has put other content there; run the same command again"
    return StoreError(errno.EEXIST, why, with_urls(path.as_posix()))


def _commit_once(path: Path, finished: Path, storage: Storage) -> bool:
    """Give a finished local file its name. False: a file with other bytes has the name; it is kept."""
    return storage.commit(path, finished) or is_same(path, finished, storage)
