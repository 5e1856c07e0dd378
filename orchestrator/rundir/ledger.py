"""ledger.jsonl: the files of a run that were read and found whole, so that the next command need not read them again.

A line holds what `Stat.version` said of a file (size, inode, time) and what the file holds. A file that has another
version now is read again; so is everything whose line is torn, changed or gone. Only the driver that holds the lock
writes it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from taugrid.hashing import json_sha256
from taugrid.parquet import Part
from taugrid.storage import Storage, pieces, replacing, write_text

CHECK_DIGITS = 12
"""Hex digits of the hash of a line, at its end."""

MOST_SUPERSEDED = 1_000
"""How many lines without effect may gather before the ledger is rewritten."""


class Known(NamedTuple):
    """A file that was found whole."""

    version: str
    part: Part
    """Of its metadata, only texts are kept: that is what files are told apart by."""


class Ledger:
    """What is known of the files below `root`. It is written only after `keep`."""

    def __init__(self, root: Path, storage: Storage) -> None:
        self._root, self._storage = root, storage
        self._path = root / "ledger.jsonl"
        self._entries: dict[str, Known] | None = None
        self._new: list[str] | None = None
        self._to_rewrite = False
        self._texts: dict[str, dict[str, str]] = {}  # metadata that many files share
        self._loading = Lock()  # several threads look at files

    def keep(self) -> None:
        """From now on, write down what is added. Call it under the lock.

        If much of the ledger has no effect any more, it is rewritten, on a disk without files that are gone.
        """
        self._new = []
        self._load()
        if self._to_rewrite:
            later = [piece for piece in pieces(self._storage, self._path) if piece != self._path]
            with replacing(self._path, self._storage) as temporary:
                known = self._load().items()
                write_text(temporary, "".join(_line(name, entry) for name, entry in known if self._stays(name)))
            for piece in later:
                self._storage.delete(piece)

    def _stays(self, name: str) -> bool:
        """Whether a file's line is kept. To ask an object store for each of 100,000 files would take an hour."""
        return not self._storage.on_disk or self._storage.exists(self._root / name)

    def distrust(self) -> None:
        """Forget everything, in this process only: all files are to be read."""
        self._entries = {}

    def forget(self) -> None:
        """Remove the ledger: the next command reads all files, and finds what this one has found."""
        for piece in pieces(self._storage, self._path):
            self._storage.delete(piece)

    def unreadable_lines(self) -> int:
        """How many lines on disk are not as they were written, but for a last one that a kill cut short."""
        whole = self._data().rpartition(b"\n")[0].decode(errors="replace").splitlines()
        return sum(_read(line) is None for line in whole)

    def _data(self) -> bytes:
        return b"".join(map(self._storage.read, pieces(self._storage, self._path)))

    def find(self, path: Path, version: str) -> Part | None:
        """What a file holds; None if it was not found whole, or has another version now."""
        entry = self._load().get(self._name(path))
        return entry.part if entry is not None and entry.version == version else None

    def add(self, path: Path, version: str, part: Part) -> None:
        """Note that a file was found whole. `version` was asked for before it was read. `flush` writes it down."""
        texts = {key: value for key, value in part.metadata.items() if isinstance(value, str)}
        texts = self._texts.setdefault(repr(texts), texts)
        name, entry = self._name(path), Known(version, part._replace(metadata=texts))
        self._load()[name] = entry
        if self._new is not None:
            self._new.append(_line(name, entry))

    def flush(self) -> None:
        if self._new:
            lines, self._new = self._new, []
            self._storage.append(self._path, "".join(lines).encode())

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _load(self) -> dict[str, Known]:
        with self._loading:
            if self._entries is None:
                data = self._data()
                lines = data.decode(errors="replace").splitlines()
                found = [entry for line in lines if (entry := _read(line)) is not None]
                self._entries = dict(found)
                superseded = len(lines) - len(self._entries)
                is_torn = len(found) < len(lines) or not data.endswith(b"\n")
                self._to_rewrite = bool(data) and (is_torn or superseded > MOST_SUPERSEDED)
            return self._entries


def _line(name: str, entry: Known) -> str:
    start, stop, metadata = entry.part
    value = {"file": name, "version": entry.version, "start": start, "stop": stop, "metadata": metadata}
    return json.dumps({**value, "check": _check(value)}) + "\n"


def _read(line: str) -> tuple[str, Known] | None:
    """The name and the entry in a line; None if it is not as it was written."""
    try:
        value = json.loads(line)
        if value.pop("check") != _check(value):
            return None
        part = Part(value["start"], value["stop"], value["metadata"])
        return value["file"], Known(value["version"], part)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _check(value: Mapping[str, Any]) -> str:
    return json_sha256(value)[:CHECK_DIGITS]
