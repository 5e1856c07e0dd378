"""ledger.jsonl: the files of a run that were read and found intact, so that the next command need not read them again.

A line holds the version of a file (`Stat.version`: size, inode, time) and its contents. A file is read again if its
version has changed, or its line is torn, changed or gone. Only the driver that holds the lock writes the ledger.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from taugrid.hashing import json_sha256
from taugrid.parquet import PartSummary
from taugrid.storage import Storage, lines_of, pieces, replacing, write_text

CHECK_DIGITS = 12  # hex digits of the hash of a line, at its end

DAMAGED = "damaged "
"""Before the version of a file that `verify` found damaged: no file has such a version, so a run reads it again."""

MAX_SUPERSEDED = 1_000  # the number of superseded lines above which the ledger is rewritten


class LedgerEntry(NamedTuple):
    version: str
    part: PartSummary
    """The contents. Only metadata that are texts are kept, since only those are compared."""


class Ledger:
    """The intact files below `root`. They are written down only after `keep`."""

    def __init__(self, root: Path, storage: Storage) -> None:
        self._root, self._storage = root, storage
        self._path = root / "ledger.jsonl"
        self._entries: dict[str, LedgerEntry] | None = None
        self._new: list[str] | None = None
        self._to_rewrite = False
        self._texts: dict[str, dict[str, str]] = {}  # metadata that many files share
        self._loading = Lock()  # several threads inspect files

    def keep(self) -> None:
        """From now on, write entries that are added to the file. Call it under the lock. If many lines are superseded,
        the file is rewritten; on a disk, without entries of files that are gone."""
        self._new = []
        self._load()
        if self._to_rewrite:
            # An object store is not asked which files are gone: 100,000 requests would take an hour.
            stays = self._storage.exists if self._storage.on_disk else lambda path: True
            self._rewrite((name, entry) for name, entry in self._load().items() if stays(self._root / name))

    def _rewrite(self, entries: Iterable[tuple[str, LedgerEntry]]) -> None:
        later = [piece for piece in pieces(self._storage, self._path) if piece != self._path]
        with replacing(self._path, self._storage) as temporary:
            write_text(temporary, "".join(_line(*entry) for entry in entries))
        for piece in later:
            self._storage.delete(piece)

    def distrust(self) -> None:
        """Forget all entries, in this process only, so that all files are read."""
        self._entries = {}

    def forget(self, damaged: Mapping[Path, str]) -> None:
        """Keep nothing on disk but the versions of the `damaged` files, so that the next run reads all files."""
        nothing = PartSummary(0, 0, {})
        self._rewrite((self._name(path), LedgerEntry(DAMAGED + seen, nothing)) for path, seen in damaged.items())

    def find(self, path: Path, version: str) -> PartSummary | None:
        """The contents of a file; None if it was not found intact, or its version has changed."""
        entry = self._load().get(self._name(path))
        return entry.part if entry is not None and entry.version == version else None

    def add(self, path: Path, version: str, part: PartSummary) -> None:
        """Add a file that was found intact; `version` is from before it was read. `flush` writes it down."""
        texts = {key: value for key, value in part.metadata.items() if isinstance(value, str)}
        texts = self._texts.setdefault(repr(texts), texts)
        name, entry = self._name(path), LedgerEntry(version, part._replace(metadata=texts))
        self._load()[name] = entry
        if self._new is not None:
            self._new.append(_line(name, entry))

    def flush(self) -> None:
        if self._new:
            lines, self._new = self._new, []
            self._storage.append(self._path, "".join(lines).encode())

    def _name(self, path: Path) -> str:
        return str(path).removeprefix(f"{self._root}/")  # `relative_to` takes 20 times as long, of 100,000 files

    def _load(self) -> dict[str, LedgerEntry]:
        with self._loading:
            if self._entries is None:
                entries = dict[str, LedgerEntry]()
                count = 0
                is_torn = False
                for line in chain.from_iterable(lines_of(self._storage, pieces(self._storage, self._path))):
                    count += 1
                    entry = _read(line, self._texts)
                    if entry is None or not line.endswith(b"\n"):
                        is_torn = True
                    if entry is not None:
                        entries[entry[0]] = entry[1]
                self._to_rewrite = is_torn or count - len(entries) > MAX_SUPERSEDED
                self._entries = entries
            return self._entries


def _line(name: str, entry: LedgerEntry) -> str:
    start, stop, metadata = entry.part
    value = {"file": name, "version": entry.version, "start": start, "stop": stop, "metadata": metadata}
    return json.dumps({**value, "check": _check(value)}) + "\n"


def _read(line: bytes, texts: dict[str, dict[str, str]]) -> tuple[str, LedgerEntry] | None:
    """The name and the entry in a line; None if the line is damaged. Equal metadata become one object, in `texts`."""
    try:
        value = json.loads(line.decode(errors="replace"))
        if value.pop("check") != _check(value):
            return None
        metadata = value["metadata"]
        part = PartSummary(value["start"], value["stop"], texts.setdefault(repr(metadata), metadata))
        return value["file"], LedgerEntry(value["version"], part)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def _check(value: Mapping[str, Any]) -> str:
    return json_sha256(value)[:CHECK_DIGITS]
