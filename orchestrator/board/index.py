"""The board's index: the entries of all runs below some places, kept in the user's cache.

An entry is read again when a file that it was read from has another version (time and size, or ETag). The cache may be
deleted at any time, and several boards may use it at once: each replaces it whole.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from taugrid import __version__
from taugrid.errors import UserError
from taugrid.hashing import json_sha256
from taugrid.orchestrator.board.entry import RunEntry, read_entry
from taugrid.orchestrator.board.files import RecordedFiles
from taugrid.orchestrator.board.find import THREADS, FoundFolder, Place, find, shown
from taugrid.orchestrator.board.nights import NightEntry, read_night
from taugrid.orchestrator.board.work import Work
from taugrid.storage import LOCAL, read_json, replacing, user_cache, write_text

FORMAT = 1
"""Raised when entries change their meaning."""


@dataclass(frozen=True)
class RunOnBoard:
    found: FoundFolder
    entry: RunEntry
    progress: dict[str, Any] | None = None
    """Of a run that a driver works on."""
    is_running: bool = False

    @property
    def key(self) -> str:
        """Its name in URLs: the same as long as the run stays where it is."""
        return key_of(self.found.directory)


@dataclass(frozen=True)
class Board:
    """What a look found."""

    runs: Sequence[RunOnBoard]
    nights: Sequence[tuple[FoundFolder, NightEntry]]
    notes: Sequence[str]
    readable: bool


@dataclass
class Index:
    """Looks at the runs below `places` whenever it is asked to, and reads what has changed."""

    places: Sequence[Place]
    _entries: dict[str, RunEntry] | None = None
    _work: dict[str, Work] = field(default_factory=dict)

    def look(self) -> Board:
        """The runs as they are now. Nothing raises: what can't be read has a note."""
        finds, before = find(self.places), self._loaded()
        with ThreadPoolExecutor(THREADS) as pool:
            runs = list(pool.map(lambda found: self._run(found, before.get(found.directory)), finds.runs))
            nights = list(pool.map(lambda found: read_night(found, before.get(found.directory)), finds.nights))
        entries = {run.found.directory: run.entry for run in runs}
        entries |= {found.directory: entry for found, entry in zip(finds.nights, nights, strict=True)}
        resting = {run.found.directory for run in runs if not run.is_running} | {f.directory for f in finds.nights}
        self._entries = entries
        if any(before.get(name) is not entries[name] for name in resting) or before.keys() - entries.keys():
            self._save(finds.notes.append)
        return Board(runs, list(zip(finds.nights, nights, strict=True)), finds.notes, finds.readable)

    def look_or_refuse(self) -> Board:
        """The runs as they are now; `UserError` if no place at all can be read."""
        board = self.look()
        if not board.readable:
            raise UserError("; ".join(board.notes))
        return board

    def _run(self, found: FoundFolder, before: RunEntry | None) -> RunOnBoard:
        files = RecordedFiles(found)
        is_known = before is not None and before.get("versions") == files.versions and not files.notes
        entry = before if is_known and before is not None else read_entry(files)
        if "lease.json" not in found.level.files:
            self._work.pop(found.directory, None)
            return RunOnBoard(found, entry)
        work = self._work.setdefault(found.directory, Work(found))
        is_running = work.has_driver()
        return RunOnBoard(found, entry, work.progress(entry["total"], files) if is_running else None, is_running)

    @property
    def _file(self) -> Any:
        names = sorted(f"{place.storage} {place.root}" for place in self.places)
        return user_cache() / "board" / f"{json_sha256(names)[:16]}.json"

    def _loaded(self) -> dict[str, RunEntry]:
        if self._entries is None:
            with suppress(OSError):
                value = read_json(self._file, LOCAL)
                if isinstance(value, dict) and value.get("by") == [FORMAT, __version__]:
                    self._entries = value["entries"]
        return self._entries or {}

    def _save(self, note: Callable[[str], None]) -> None:
        """Replace the index. A full or read-only cache costs time at the next start, and nothing else."""
        value = json.dumps({"by": [FORMAT, __version__], "entries": self._entries}, separators=(",", ":"))
        try:
            with replacing(self._file, LOCAL) as temporary:
                write_text(temporary, value)
        except OSError as error:
            note(f"{shown(str(self._file))}: the index can't be kept ({error.strerror})")


def key_of(directory: str) -> str:
    return f"r{json_sha256(directory)[:10]}"
