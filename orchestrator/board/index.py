"""The board's index: the entries of all runs below some places, kept in a file of the user's cache, and work on them.

An entry is read again when a file that it was read from has another version (time and size, or ETag). The cache may be
deleted at any time, and several boards may use it at once: each replaces it whole.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from taugrid import __version__
from taugrid.errors import UserError
from taugrid.hashing import json_sha256
from taugrid.orchestrator.board.entry import NightEntry, RunEntry, read_entry, read_night
from taugrid.orchestrator.board.files import UNREADABLE, RecordedFiles, events_in
from taugrid.orchestrator.board.find import THREADS, FoundFolder, Place, find, shown
from taugrid.storage import LOCAL, read_json, replacing, user_cache, write_text

MOST_BYTES = 2**26  # of events that are read at once

FORMAT = 5  # raised when entries change their meaning


class Work:
    """The progress of one run, for as long as there is a lease. Each byte of its events is read once."""

    def __init__(self, found: FoundFolder) -> None:
        self._root, self._storage = found.root, found.storage
        self._read: dict[str, int] = {}  # file -> how much of it was read, in whole lines
        self._images: dict[tuple[str, str], tuple[float, int, int]] = {}
        """Cell and file -> time, sampled and copied images of a committed shard."""
        self._began = 0.0  # the start of the last session

    def has_driver(self) -> bool:
        from taugrid.orchestrator.rundir.lease import Lease  # the first run at work loads what drivers need
        from taugrid.orchestrator.rundir.paths import Paths

        try:
            return Lease(Paths(self._root, self._storage)).live_holder() is not None
        except UNREADABLE:
            return False

    def progress(self, planned: Mapping[str, int], files: RecordedFiles) -> dict[str, Any]:
        """How many of the planned images there are; `planned` is cell -> N."""
        for name in sorted(name for name in files.stats if name.startswith("events/")):
            self._follow(name, files.stats[name].size)
        shards = [shard for (cell, _), shard in self._images.items() if cell in planned]
        done = sum(sampled + copied for _, sampled, copied in shards)
        total = sum(planned.values())
        first, *later = sorted(shard for shard in shards if shard[0] >= self._began) or [(0.0, 0, 0)]
        rate = sum(sampled for _, sampled, _ in later) / max(time.time() - first[0], 1e-9)
        return {
            "done": min(done, total),
            "total": total,
            "left_seconds": round(max(0, total - done) / rate, 1) if rate > 0 else None,
        }

    def _follow(self, name: str, size: int) -> None:
        """Add the events between what was read and `size`; a large file is read in parts."""
        while (start := self._read.get(name, 0)) < size:
            length = MOST_BYTES if size - start > MOST_BYTES else None
            try:
                data = self._storage.read(self._root / name, start, length)
            except OSError:
                return
            whole = data[: data.rfind(b"\n") + 1]
            if not whole:
                return
            self._read[name] = start + len(whole)
            for event in events_in(whole):
                with suppress(*UNREADABLE):
                    self._add(event)

    def _add(self, event: dict[str, Any]) -> None:
        at = datetime.fromisoformat(event["time"])
        if event.get("event") == "session":
            self._began = at.timestamp()
        elif event.get("event") == "shard" and event["committed"]:
            counts = int(event["images"]), int(event["copied"])
            self._images[str(event["cell"]), str(event["path"])] = at.timestamp(), *counts


@dataclass(frozen=True)
class RunOnBoard:
    key: str  # its name in URLs: the same as long as the run stays where it is
    found: FoundFolder
    entry: RunEntry
    progress: dict[str, Any] | None = None  # of a run that a driver works on; None: there is none


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
    _kept: dict[str, RunEntry] | None = None  # directory -> entry, of runs and nights
    _work: dict[str, Work] = field(default_factory=dict)

    def look(self) -> Board:
        """The runs as they are now. Nothing raises: what can't be read has a note."""
        before = self._loaded() if self._kept is None else self._kept
        finds = find(self.places, before)
        with ThreadPoolExecutor(THREADS) as pool:
            runs = list(pool.map(lambda found: self._run(found, before.get(found.directory)), finds.runs))
            nights = list(pool.map(lambda found: read_night(found, before.get(found.directory)), finds.nights))
        self._kept = {run.found.directory: run.entry for run in runs}
        self._kept |= {found.directory: entry for found, entry in zip(finds.nights, nights, strict=True)}
        changed = {name for name in before.keys() | self._kept if before.get(name) is not self._kept.get(name)}
        if changed - {run.found.directory for run in runs if run.progress}:  # those would be written at each look
            self._save(finds.notes.append)
        return Board(runs, list(zip(finds.nights, nights, strict=True)), finds.notes, finds.readable)

    def look_or_refuse(self) -> Board:
        """The runs as they are now; `UserError` if no place at all can be read."""
        board = self.look()
        if not board.readable:
            raise UserError("; ".join([*board.notes, "give folders or URLs below which there are runs"]))
        return board

    def _run(self, found: FoundFolder, before: RunEntry | None) -> RunOnBoard:
        files, key = RecordedFiles(found), key_of(found.directory)
        is_known = before is not None and before.get("versions") == files.versions and not files.notes
        entry = before if is_known and before is not None else read_entry(files)
        if "lease.json" not in found.level.files:
            self._work.pop(found.directory, None)
            return RunOnBoard(key, found, entry)
        work = self._work.setdefault(found.directory, Work(found))
        return RunOnBoard(key, found, entry, work.progress(entry["planned"], files) if work.has_driver() else None)

    @property
    def _file(self) -> Path:
        places = sorted(f"{place.storage} {place.root}" for place in self.places)
        return user_cache() / "board" / f"{json_sha256(places)[:16]}.json"

    def _loaded(self) -> dict[str, RunEntry]:
        with suppress(*UNREADABLE):
            value: Any = read_json(self._file, LOCAL)
            if value["by"] == [FORMAT, __version__]:
                return dict(value["entries"])
        return {}

    def _save(self, note: Callable[[str], None]) -> None:
        """Replace the index. A full or read-only cache costs time at the next start, and nothing else."""
        value = json.dumps({"by": [FORMAT, __version__], "entries": self._kept}, separators=(",", ":"))
        try:
            with replacing(self._file, LOCAL) as temporary:
                write_text(temporary, value)
        except OSError as error:
            note(f"{shown(str(self._file))}: the index can't be kept ({error.strerror})")


def key_of(directory: str) -> str:
    return f"r{json_sha256(directory)[:10]}"
