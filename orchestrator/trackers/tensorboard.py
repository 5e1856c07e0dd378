"""TensorBoard: event files in the run directory, a folder for each row of the quality table, with S as the step.

Rows are drawn in one chart, since they have the same tags: the columns of quality.csv. What is there is read back, so
that no step is written twice.
"""

import os
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from taugrid.hashing import identity
from taugrid.orchestrator.trackers.results import TrackedCell, Tracker
from taugrid.storage import user_cache

FOLDER = "tensorboard"

Points = dict[tuple[str, int], Any]
"""(tag, step) -> a number, or the bytes of a PNG file."""


class TensorboardTracker(Tracker):
    def start(self) -> str:
        rundir, name = self.results.rundir, f"{self.results.rundir.root.name}-{self.results.id[:8]}"
        if given := os.environ.get("TENSORBOARD_LOGDIR"):
            self._folder = Path(given).absolute() / name
        else:
            self._folder = rundir.root / FOLDER if rundir.storage.on_disk else user_cache() / FOLDER / name
        self._folders: dict[str, EventFolder] = {}
        return str(self._folder)

    def cell(self, cell: TrackedCell) -> None:
        step = int(cell.settings["steps"])
        self._at(cell.row).add({(name, step): np.float32(value) for name, value in cell.metrics.items()})

    def finish(self, is_reported: bool) -> None:
        for called, log in self.results.losses().items():
            points = {(name, step): value for step, values in log.after(0) for name, value in values.items()}
            self._at(f"train {called}").add({at: np.float32(value) for at, value in points.items()})
        if is_reported:
            for cell in self.results.cells():
                self.cell(cell)
            for name, png in self.results.figures().items():
                self._at("figures").add_version(Path(name).stem, png)

    def close(self, finished: bool) -> None:
        for folder in self._folders.values():
            folder.close()

    def _at(self, label: str) -> "EventFolder":
        if label not in self._folders:
            name = re.sub(r"[^\w.=+,-]+", "-", label)
            unique = name if name == label.replace(" ", "-") else f"{name[:100]}-{identity({'row': label})[:6]}"
            self._folders[label] = EventFolder(self._folder / unique)
        return self._folders[label]


class EventFolder:
    """The event files in one folder, which TensorBoard shows as a curve."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = None
        self._known: Points = {}
        if folder.is_dir():
            found = EventAccumulator(str(folder), {SCALARS: 0, IMAGES: 0}).Reload()
            for tag in found.Tags()[SCALARS]:
                self._known |= {(tag, event.step): np.float32(event.value) for event in found.Scalars(tag)}
            for tag in found.Tags()[IMAGES]:
                self._known |= {(tag, event.step): event.encoded_image_string for event in found.Images(tag)}

    def add(self, points: Points) -> None:
        """Write the points that are not there. If one has changed, the files are written again, with all points."""
        if any(self._known.get(at, value) != value for at, value in points.items()):
            self.close()
            for path in self._folder.glob("events.out.tfevents.*"):
                path.unlink()
            points, self._known = self._known | points, {}
        new = {at: value for at, value in points.items() if at not in self._known}
        if new and self._writer is None:
            self._writer = EventFileWriter(str(self._folder))
        for (tag, step), value in new.items():
            assert self._writer is not None
            self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=[_value(tag, value)])))
        if self._writer is not None:
            self._writer.flush()
        self._known |= new

    def add_version(self, tag: str, png: bytes) -> None:
        """Write a picture as the next step, unless it is the last one."""
        steps = [step for other, step in self._known if other == tag]
        if not steps or self._known[tag, max(steps)] != png:
            self.add({(tag, max(steps, default=-1) + 1): png})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _value(tag: str, value: Any) -> Summary.Value:
    if not isinstance(value, bytes):
        return Summary.Value(tag=tag, simple_value=float(value))
    width, height = struct.unpack(">II", value[16:24])  # of a PNG's first chunk
    picture = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=value)
    return Summary.Value(tag=tag, image=picture)
