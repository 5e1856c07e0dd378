"""Whether a driver works on a run, and how far it is: from lease.json and what is new in the events."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from taugrid.orchestrator.board.files import UNREADABLE, RecordedFiles, events_in
from taugrid.orchestrator.board.find import FoundFolder


class Work:
    """The progress of one run, for as long as there is a lease. Each byte of its events is read once."""

    def __init__(self, found: FoundFolder) -> None:
        self._root, self._storage = found.root, found.storage
        self._read: dict[str, int] = {}
        """File -> how much of it was read, in whole lines."""
        self._images: dict[tuple[str, str], tuple[float, int]] = {}
        """Cell and file -> time and images of a committed shard."""
        self._began = 0.0
        """The start of the last session."""

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
            if files.stats[name].size > self._read.get(name, 0):
                self._follow(name)
        shards = [shard for (cell, _), shard in self._images.items() if cell in planned]
        done, total = sum(images for _, images in shards), sum(planned.values())
        first, *later = sorted(shard for shard in shards if shard[0] >= self._began) or [(0.0, 0)]
        rate = sum(images for _, images in later) / max(time.time() - first[0], 1e-9)
        return {
            "done": min(done, total),
            "total": total,
            "left_seconds": round(max(0, total - done) / rate, 1) if rate > 0 else None,
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
        if event.get("event") == "session":
            self._began = at.timestamp()
        elif event.get("event") == "shard" and event["committed"]:
            self._images[str(event["cell"]), str(event["path"])] = at.timestamp(), int(event["images"])
