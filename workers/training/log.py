"""What a training tells of itself while it runs: log.jsonl, and the same for TensorBoard where that is asked for."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.workers.training.fit import Hopeless, whole_lines

SCALARS = ("loss", "learning_rate", "gradient_norm")
"""What TensorBoard shows, each under its name in the log."""


class Record(NamedTuple):
    """A logged step."""

    step: int
    """Steps done with it."""
    loss: float
    """The mean over the global batch, before the step's update."""
    learning_rate: float
    gradient_norm: float
    """Of the global batch's loss, before clipping."""
    workers: int
    seconds: float
    """Spent on training so far, over all attempts."""


class Log:
    """log.jsonl: a line for each logged step. With `tensorboard`, event files with `SCALARS` too."""

    def __init__(self, folder: Path, done: int, tensorboard: bool) -> None:
        """Go on after step `done`: what was logged of later steps, which will be done again, is dropped.

        Raises:
            Hopeless: if TensorBoard is asked for and not installed.
        """
        path = folder / "log.jsonl"
        kept = [record for record in whole_lines(path) if record["step"] <= done]
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)  # a line is one write
        self._events = _events(folder) if tensorboard else None
        for record in kept:
            self._show(record)

    def write(self, record: Record) -> None:
        """Add a step."""
        fields = record._replace(seconds=round(record.seconds, 3))._asdict()
        self._file.write(json.dumps(fields) + "\n")
        self._show(fields)

    def _show(self, record: dict[str, Any]) -> None:
        if self._events is not None:
            for name in record.keys() & SCALARS:  # not all were always logged
                self._events.add_scalar(name, record[name], record["step"])
            self._events.flush()  # a kill must not take what a checkpoint covers


def _events(folder: Path) -> Any:
    """Writes event files, which begin anew: earlier ones lack steps if TensorBoard was not always asked for."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Hopeless("train.tensorboard needs the package tensorboard on every node; install it there") from error
    shutil.rmtree(events_folder(folder), ignore_errors=True)
    return SummaryWriter(events_folder(folder))


def events_folder(folder: Path) -> Path:
    """Where TensorBoard's event files are while a training runs in `folder`."""
    return folder / "tensorboard"
