"""Whether a driver works on a run, and how far it is: from lease.json and what is new in the events."""

import time
from datetime import datetime
from typing import Any

from taugrid.orchestrator.board.files import UNREADABLE, RecordedFiles, events_in
from taugrid.orchestrator.board.find import FoundFolder

WINDOW_SECONDS = 60.0
"""The rate is that of the last shards, over this time."""


class Work:
    """The progress of one run, for as long as there is a lease. Each byte of its events is read once."""

    def __init__(self, found: FoundFolder) -> None:
        self._root, self._storage = found.root, found.storage
        self._read: dict[str, int] = {}
        """File -> how much of it was read, in whole lines."""
        self._images: dict[tuple[str, str], int] = {}
        """Cell and file -> the images of a committed shard."""
        self._done: list[tuple[float, int]] = []
        """Time and images of shards, of the last session."""
        self._updated: str | None = None

    def has_driver(self) -> bool:
        from taugrid.orchestrator.rundir.lease import Lease  # the first run at work loads what drivers need
        from taugrid.orchestrator.rundir.paths import Paths

        try:
            return Lease(Paths(self._root, self._storage)).live_holder() is not None
        except UNREADABLE:
            return False

    def progress(self, total: int, files: RecordedFiles) -> dict[str, Any]:
        for name in sorted(name for name in files.stats if name.startswith("events/")):
            if files.stats[name].size > self._read.get(name, 0):
                self._follow(name)
        done = sum(self._images.values())
        now, first = time.time(), self._done[0][0] if self._done else 0.0
        recent = [(at, images) for at, images in self._done if at > self._done[-1][0] - WINDOW_SECONDS]
        seconds = now - max(first, recent[0][0]) if recent else 0.0
        rate = sum(images for _, images in recent[1:]) / seconds if seconds > 0 else 0.0
        left = max(0, total - done) / rate if rate > 0 else None
        return {
            "done": done,
            "total": max(total, done),
            "unit": "images",
            "left_seconds": None if left is None else round(left, 1),
            "updated": self._updated,
        }

    def _follow(self, name: str) -> None:
        start = self._read.get(name, 0)
        try:
            data = self._storage.read(self._root / name, start)
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read[name] = start + len(whole)
        for event in events_in(whole):
            try:
                self._add(event)
            except UNREADABLE:
                continue

    def _add(self, event: dict[str, Any]) -> None:
        at = datetime.fromisoformat(event["time"])
        self._updated = at.isoformat(timespec="seconds")
        if event.get("event") == "session":
            self._done = []
        elif event.get("event") == "shard" and event["committed"]:
            images = int(event["images"])
            self._images[str(event["cell"]), str(event["path"])] = images
            self._done.append((at.timestamp(), images))
