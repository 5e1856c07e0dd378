"""events/NNNN.jsonl: the events of one driver session, one per line, with the time in UTC."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import UnionType
from typing import Any

from taugrid.orchestrator.observers import Observer
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import Storage, lines_of, write_text
from taugrid.words import with_urls

FILES = "[0-9]*.jsonl*"
_FILE = re.compile(r"(\d+)\.jsonl(\.\d{6})?")
"""NNNN.jsonl; in an object store, a session's file is continued in NNNN.jsonl.000001 and so on."""


_DONE = {"task", "worker", "device"}
_KEYS = {
    "session": {"stages"},
    "worker": {"worker", "node", "device", "versions", "threads"},
    "assigned": _DONE,
    "shard": {"cell", "path", "worker", "device", "images", "copied", "seconds", "evaluations", "committed", "own"},
    "extract": _DONE,
    "score": _DONE,
    "damaged": {"path"},
    "train": {"model"},
    "training failed": {"model", "reason", "log", "fails_again"},
}
"""Event -> the keys that its readers need. A line without them is damaged."""

_TYPES: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("event", "time", "cell", "path", "task", "worker", "node", "device", "model"), str),
    **dict.fromkeys(("images", "seconds", "evaluations", "copied", "threads"), int | float | None),
    "versions": dict,
}
"""Key -> the type of its value, in any event. A line with another is damaged."""


class Events:
    """Writes the events of a new session to its file, and reports them to an observer."""

    def __init__(self, run: Paths, observer: Observer | None = None) -> None:
        self._run, self.storage, self._observer = run, run.storage, observer or Observer()
        last = max(map(_session, _files(run)), default=0)
        self._lines: list[str] = []
        self.path = next(path for n in count(last + 1) if _reserve(path := run.events / f"{n:04d}.jsonl", run.storage))

    def add(self, event: str, **values: Any) -> None:
        self.note(event, **values)
        self.flush()

    def note(self, event: str, **values: Any) -> None:
        """Report one event; its line is written with the next `flush` or `add`."""
        now = datetime.now(UTC)
        record = {"time": now.isoformat(timespec="milliseconds"), "event": event, **values}
        self._lines.append(with_urls(json.dumps(record)) + "\n")
        self._observer.happened(now, record)

    def so_far(self) -> Iterator[dict[str, Any]]:
        """All events of all sessions, with those of this one that were not written yet."""
        self.flush()
        return read_events(self._run)

    def flush(self) -> None:
        """Write the lines, synced: nothing else says which device made a file. Each write is a request in a bucket."""
        if self._lines:
            lines, self._lines = self._lines, []
            self.storage.append(self.path, "".join(lines).encode(), synced=True)


def _reserve(path: Path, storage: Storage) -> bool:
    """Create an empty file, which reserves its name for this session; False if a different session has it."""
    with storage.temporary(path) as temporary:
        write_text(temporary, "")
        return storage.commit(path, temporary)


def _files(run: Paths) -> list[Path]:
    return [path for path in run.storage.list(run.events, FILES) if _FILE.fullmatch(path.name)]


def read_events(run: Paths) -> Iterator[dict[str, Any]]:
    """All events of all sessions, in order. A line that a kill cut short is skipped."""
    for lines in lines_of(run.storage, _files(run)):
        yield from filter(None, map(_event, lines))


def unreadable_lines(run: Paths) -> dict[Path, int]:
    """File -> the number of its damaged lines, except a last one that a kill cut short: it begins as JSON does."""
    unreadable = {}
    files = _files(run)
    for path, lines in zip(files, lines_of(run.storage, files), strict=True):
        damaged = 0
        for line in lines:
            if line.endswith(b"\n"):
                damaged += _event(line) is None
            else:
                damaged += not line.startswith(b"{")
        if damaged:
            unreadable[path] = damaged
    return unreadable


def _event(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None if the line is damaged."""
    try:
        event = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not _KEYS.get(str(event.get("event")), {"event"}) <= event.keys():
        return None
    return event if all(isinstance(event[key], _TYPES[key]) for key in event.keys() & _TYPES.keys()) else None


def _session(path: Path) -> int:
    return int(path.name.split(".")[0])
