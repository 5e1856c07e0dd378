"""TensorBoard: event files in the run directory, a folder for each row of the quality table, with S as the step.

Rows are drawn in one chart, since they have the same tags: the columns of quality.csv. Each session writes all folders
anew from the run directory, so that no step is there twice.
"""

import os
import re
import struct
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from taugrid.hashing import identity
from taugrid.orchestrator.trackers.results import Losses, TrackedCell, Tracker, flat
from taugrid.storage import user_cache

FOLDER = "tensorboard"

Points = Mapping[tuple[str, int], float | str | bytes]  # (tag, step) -> a number, Markdown, or a PNG file


class TensorboardTracker(Tracker):
    def start(self) -> str:
        rundir, name = self.results.rundir, f"{self.results.rundir.root.name}-{self.results.id[:8]}"
        if given := os.environ.get("TENSORBOARD_LOGDIR"):
            self._folder = Path(given).absolute() / name
        else:
            self._folder = rundir.root / FOLDER if rundir.storage.on_disk else user_cache() / FOLDER / name
        self._folders: dict[str, EventFolder] = {}
        rows: dict[str, dict[tuple[str, int], float | str | bytes]] = defaultdict(dict)
        for cell in self.results.all_scored():
            rows[cell.row] |= _points(cell)
        for row, points in rows.items():
            self._at(row).add(points)
        return str(self._folder)

    def cell(self, cell: TrackedCell) -> None:
        self._at(cell.row).add(_points(cell))

    def losses(self, model: str, losses: Losses) -> None:
        self._at(f"train {model}").add({(name, n): x for n, values in losses.items() for name, x in values.items()})

    def shared(self, files: Mapping[str, bytes]) -> None:
        self._at("figures").add({(Path(n).stem, 0): png for n, png in files.items() if n.endswith(".png")})

    def close(self, finished: bool) -> None:
        for folder in self._folders.values():
            folder.close()

    def _at(self, label: str) -> "EventFolder":
        if label not in self._folders:
            name = re.sub(r"[^\w.=+,-]+", "-", label)[:100]
            folder = self._folder / (name if name == label else f"{name}-{identity({'row': label})[:6]}")
            if folder.is_relative_to(self.results.rundir.root):
                self.results.rundir.storage.exists(folder)  # OSError if a link leads elsewhere
            self._folders[label] = EventFolder(folder)
        return self._folders[label]


class EventFolder:
    """The event files in one folder, which TensorBoard shows as a curve."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = None
        self._written: Points = {}

    def add(self, points: Points) -> None:
        """Write the points that are new. For the first ones, and if one has changed, a new file replaces all others."""
        old: list[Path] = []
        if self._writer is None or any(self._written.get(at, value) != value for at, value in points.items()):
            self.close()
            old = list(self._folder.glob("events.out.tfevents.*"))
            points, self._written = {**self._written, **points}, {}
            self._writer = EventFileWriter(str(self._folder))
            # Whoever has read the other files forgets them.
            self._writer.add_event(
                Event(step=0, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))
            )
        for (tag, step), value in points.items():
            if (tag, step) not in self._written:
                summary = Summary(value=[_value(tag, value)])
                self._writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()
        self._written = {**self._written, **points}
        for path in old:
            path.unlink()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _points(cell: TrackedCell) -> Points:
    about = {**flat(cell.settings), **flat(cell.protocol, "protocol.")}
    table = "\n".join(["| | |", "|-|-|", *(f"| {key} | `{text}` |" for key, text in about.items())])
    values: dict[str, float | str] = {**cell.metrics, "settings and protocol": table}
    return {(name, int(cell.settings["steps"])): value for name, value in values.items()}


def _value(tag: str, value: float | str | bytes) -> Summary.Value:
    if isinstance(value, str):
        text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        return Summary.Value(tag=tag, metadata=text, tensor=TensorProto(dtype=DT_STRING, string_val=[value.encode()]))
    if not isinstance(value, bytes):
        return Summary.Value(tag=tag, simple_value=value)
    width, height = struct.unpack(">II", value[16:24])  # of a PNG's first chunk
    picture = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=value)
    return Summary.Value(tag=tag, image=picture)
