"""The board's index: the entries of all runs below some places, kept in the user's cache, a file for each place.

An entry is read again when a file that it was read from has another version (time and size, or ETag). The cache may be
deleted at any time, and several boards may use it at once: each replaces it whole.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
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
    key: str
    """Its name in URLs: the same as long as the run stays where it is."""
    found: FoundFolder
    entry: RunEntry
    progress: dict[str, Any] | None = None
    """Of a run that a driver works on."""
    is_running: bool = False


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
    _kept: dict[Place, dict[str, RunEntry]] = field(default_factory=dict)
    _work: dict[str, Work] = field(default_factory=dict)

    def look(self) -> Board:
        """The runs as they are now. Nothing raises: what can't be read has a note."""
        finds = find(self.places)
        before = {place: self._loaded(place) for place in self.places}
        with ThreadPoolExecutor(THREADS) as pool:
            runs = list(pool.map(lambda found: self._run(found, _known(before, found)), finds.runs))
            nights = list(pool.map(lambda found: read_night(found, _known(before, found)), finds.nights))
        entries = [*((run.found, run.entry) for run in runs), *zip(finds.nights, nights, strict=True)]
        running = {run.found.directory for run in runs if run.is_running}
        for place, known in before.items():
            now = {found.directory: entry for found, entry in entries if found.place == place}
            changed = {name for name in known.keys() | now.keys() if known.get(name) is not now.get(name)}
            self._kept[place] = now
            if changed - running:  # what changes every few seconds is written along with what does not
                self._save(place, finds.notes.append)
        return Board(runs, list(zip(finds.nights, nights, strict=True)), finds.notes, finds.readable)

    def look_or_refuse(self) -> Board:
        """The runs as they are now; `UserError` if no place at all can be read."""
        board = self.look()
        if not board.readable:
            raise UserError(f"{'; '.join(board.notes)}; give folders or URLs below which there are runs")
        return board

    def _run(self, found: FoundFolder, before: RunEntry | None) -> RunOnBoard:
        files, key = RecordedFiles(found), key_of(found.directory)
        is_known = before is not None and before.get("versions") == files.versions and not files.notes
        entry = before if is_known and before is not None else read_entry(files)
        if "lease.json" not in found.level.files:
            self._work.pop(found.directory, None)
            return RunOnBoard(key, found, entry)
        work = self._work.setdefault(found.directory, Work(found))
        is_running = work.has_driver()
        return RunOnBoard(key, found, entry, work.progress(entry["total"], files) if is_running else None, is_running)

    def _loaded(self, place: Place) -> dict[str, RunEntry]:
        if place not in self._kept:
            self._kept[place] = {}
            with suppress(OSError):
                value = read_json(_file(place), LOCAL)
                if isinstance(value, dict) and value.get("by") == [FORMAT, __version__]:
                    self._kept[place] = dict(value["entries"])
        return self._kept[place]

    def _save(self, place: Place, note: Callable[[str], None]) -> None:
        """Replace the index. A full or read-only cache costs time at the next start, and nothing else."""
        value = json.dumps({"by": [FORMAT, __version__], "entries": self._kept[place]}, separators=(",", ":"))
        try:
            with replacing(_file(place), LOCAL) as temporary:
                write_text(temporary, value)
        except OSError as error:
            note(f"{shown(str(_file(place)))}: the index can't be kept ({error.strerror})")


def _file(place: Place) -> Path:
    return user_cache() / "board" / f"{json_sha256(f'{place.storage} {place.root}')[:16]}.json"


def _known(entries: Mapping[Place, Mapping[str, RunEntry]], found: FoundFolder) -> RunEntry | None:
    return entries[found.place].get(found.directory)


def key_of(directory: str) -> str:
    return f"r{json_sha256(directory)[:10]}"
