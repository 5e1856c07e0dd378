"""What a training tells of itself while it runs: log.jsonl, and the same for TensorBoard where that is asked for."""

import json
from pathlib import Path
from typing import NamedTuple

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
        """Go on after step `done`: what was logged of later steps, which will be done again, is dropped."""
        path = folder / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)  # a line is one write
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Readers drop the events of earlier files from purge_step on.
            self._events = SummaryWriter(events_folder(folder), purge_step=done + 1)

    def write(self, record: Record) -> None:
        """Add a step."""
        self._file.write(json.dumps(record._replace(seconds=round(record.seconds, 3))._asdict()) + "\n")
        if self._events is not None:
            for name in SCALARS:
                self._events.add_scalar(name, getattr(record, name), record.step)
            self._events.flush()  # a kill must not take what a checkpoint covers


def events_folder(folder: Path) -> Path:
    """Where TensorBoard's event files are while a training runs in `folder`."""
    return folder / "tensorboard"
