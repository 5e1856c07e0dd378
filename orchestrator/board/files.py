"""The files of a run that the board reads: their versions, and their content as plain values.

A directory may be half written, damaged, or of another version of taugrid: whatever can't be read is missing, with a
note. Text is cut, and numbers that JSON does not know become null.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from taugrid.errors import DamagedFile
from taugrid.hashing import json_sha256
from taugrid.orchestrator.board.find import FoundFolder
from taugrid.storage import Level, Stat

WATCHED = ("run.json", "config.json", "plan.json", "provenance.json", "report.html", "report.json")
TABLES = ("quality.json", "cells.csv", "differences.csv")
"""The files that an entry is read from, besides those of events."""

MAX_TEXT = 300
HEAD_BYTES = TAIL_BYTES = 2**14  # how much of the first and of the last file of events is read: whole events

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError, csv.Error,
              DamagedFile)  # fmt: skip
"""What reading a file of unknown content may raise; UnicodeDecodeError and JSONDecodeError are ValueErrors."""


class RecordedFiles:
    """The files of one run, as they are now."""

    def __init__(self, found: FoundFolder) -> None:
        self._root, self._storage, self._top = found.root, found.storage, found.level
        self.notes: list[str] = []
        self.stats: dict[str, Stat] = {}  # the watched files that are there, by their names below the run directory
        self._watch("", found.level, WATCHED)
        self._watch("tables/", self.level("tables"), TABLES)
        events = self.level("events")
        self._watch("events/", events, [name for name in events.files if ".jsonl" in name])
        self.removed = {name.removesuffix(".parquet") for name in self.level("removed").files}
        """The folders of images that were removed on purpose."""
        self.versions = {name: stat.version for name, stat in self.stats.items()}
        """Name -> a text that changes when the file does, or what is known of the images."""
        self.versions["images"] = json_sha256(["samples" in found.level.folders, sorted(self.removed)])

    def level(self, name: str) -> Level:
        """What is in a folder of the run; nothing if it is not there or can't be listed, which a note says."""
        try:
            if name in self._top.folders:
                return self._storage.level(self._root / name)
        except OSError as error:
            self.notes.append(f"{name}: {error.strerror}")
        return Level({}, (), ())

    def _watch(self, prefix: str, level: Level, names: Any) -> None:
        for name in names:
            if name in level.files:
                with suppress(OSError):  # it has gone since
                    stat = level.files[name] or self._storage.stat(self._root / prefix / name)
                    self.stats[prefix + name] = stat

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object; empty if the file is missing or damaged, which a note says."""
        if (data := self._read(name)) is None:
            return {}
        with suppress(ValueError, RecursionError):
            value = json.loads(data)
            if isinstance(value, dict):
                return value
        self.notes.append(f"{name} is damaged")
        return {}

    def csv(self, name: str) -> list[dict[str, str]]:
        """The rows of a table; none if the file is missing or damaged."""
        data = self._read(name)
        try:
            return [] if data is None else [dict(row) for row in csv.DictReader(io.StringIO(data.decode()))]
        except (ValueError, csv.Error):
            self.notes.append(f"{name} is damaged")
            return []

    def first_and_last_event(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those of all sessions; empty if there is none."""
        names = sorted(name for name in self.stats if name.startswith("events/"))
        first = [event for name in names[:1] for event in events_in(self._read(name, 0, HEAD_BYTES) or b"")]
        last: list[dict[str, Any]] = []
        while names and not last:  # a session that was killed at once leaves an empty file
            start = max(0, self.stats[names[-1]].size - TAIL_BYTES)
            last = list(events_in(self._read(names.pop(), start, TAIL_BYTES) or b""))
        return (first or [{}])[0], (last or [{}])[-1]

    def _read(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        if name not in self.stats:
            return None
        try:
            return self._storage.read(self._root / name, start, length)
        except OSError as error:
            self.notes.append(f"{name}: {error.strerror}")
            return None


def events_in(data: bytes) -> Iterator[dict[str, Any]]:
    """The events in whole lines; the first and the last line may be cut."""
    for line in data.splitlines():
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("time"), str):
                yield event


def text(value: Any) -> str:
    """A value as text that can be encoded, cut to `MAX_TEXT`."""
    found = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    cut = found if len(found) <= MAX_TEXT else f"{found[:MAX_TEXT]}…"
    return cut.encode("utf-8", "backslashreplace").decode()


def plain(value: Any) -> Any:
    """A value as null, a truth, a number or a text: NaN and infinity become null, lists become JSON."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return text(value)


def number(value: Any) -> float | None:
    """The finite number in a field of a CSV file; None if there is none."""
    with suppress(TypeError, ValueError):
        return found if math.isfinite(found := float(value)) else None
    return None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
