"""The log of training: writes and reads log.jsonl, and writes the same for TensorBoard on request."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.jobs import Hopeless, running_folder
from taugrid.storage import LOCAL, Storage

LOG = "log.jsonl"  # its name, in Ray Train's folder and in the folder of a trained model

CHECKPOINT = "last_checkpoint"
"""The file in Ray Train's folder that holds the step of the last checkpoint: the folders' names do not say it."""

BYTES_OF_THE_END = 4096  # enough of a log for its last complete line

SCALARS = ("loss", "learning_rate", "gradient_norm")  # what TensorBoard shows, each under its name in the log

LOGGED_AT_START = 50
LOGGED_LINES = 1_000  # the first 50 steps are logged, and about a thousand after them, however long the training is


class Record(NamedTuple):
    step: int  # done, this one included
    loss: float  # the mean over the global batch, before the step's update
    learning_rate: float
    gradient_norm: float  # of the global batch's loss, before clipping
    workers: int
    seconds: float  # of training so far, over all attempts


class Log:
    """log.jsonl, with a line for each logged step. With `tensorboard`, also event files with `SCALARS`."""

    def __init__(self, folder: Path, done: int, tensorboard: bool) -> None:
        """Continue after step `done`. Records of later steps are dropped, because those steps will be repeated. Raises
        `Hopeless` if TensorBoard is requested but not installed."""
        path = folder / LOG
        kept = [record for record in whole_lines(path) if record["step"] <= done]
        folder.mkdir(parents=True, exist_ok=True)
        _replace(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._checkpoint = folder / CHECKPOINT
        self.checkpointed(done)
        self._file = path.open("a", buffering=1)  # a line is one write
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise Hopeless(
                    "train.tensorboard needs the package tensorboard on every node; install it there"
                ) from error
            shutil.rmtree(events_folder(folder), ignore_errors=True)  # what began later would lack steps
            self._events = SummaryWriter(events_folder(folder))
        for record in kept:
            self._show(record)

    def write(self, record: Record) -> None:
        fields = record._replace(seconds=round(record.seconds, 3))._asdict()
        self._file.write(json.dumps(fields) + "\n")
        self._show(fields)

    def checkpointed(self, step: int) -> None:
        """Write down that a checkpoint of `step` is in place."""
        _replace(self._checkpoint, str(step))

    def _show(self, record: dict[str, Any]) -> None:
        if self._events is not None:
            for name in record.keys() & SCALARS:  # not all were always logged
                self._events.add_scalar(name, record[name], record["step"])
            self._events.flush()  # a kill must not lose steps that a checkpoint covers


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def events_folder(folder: Path) -> Path:
    """The folder of TensorBoard's event files while training runs in `folder`."""
    return folder / "tensorboard"


def is_logged(step: int, steps: int) -> bool:
    """Whether `step` = 1, 2, ... of `steps` has a line in the log."""
    return step <= LOGGED_AT_START or step % max(1, steps // LOGGED_LINES) == 0 or step == steps


class TrainingProgress(NamedTuple):
    step: int  # done
    loss: float
    workers: int
    seconds: float = 0.0  # of training so far, over all attempts
    checkpoint: int = 0  # steps that its last checkpoint has done, from which it would continue


def training_progress(models_dir: str | Path, model_id: str, storage: Storage = LOCAL) -> TrainingProgress | None:
    """The last logged step of a training, finished or not; None before the first step."""
    committed = Path(models_dir) / model_id / "train" / LOG
    running = running_folder(models_dir, model_id) / LOG
    records = whole_lines(committed, storage, BYTES_OF_THE_END) or whole_lines(running, storage, BYTES_OF_THE_END)
    if not records:
        return None
    last = records[-1]
    try:
        checkpoint = int(storage.read(running.with_name(CHECKPOINT)))
    except FileNotFoundError:
        checkpoint = last["step"] if storage.exists(committed) else 0
    return TrainingProgress(last["step"], last["loss"], last["workers"], last["seconds"], checkpoint)


def whole_lines(log: Path, storage: Storage = LOCAL, end: int | None = None) -> list[dict[str, Any]]:
    """The records in a log.jsonl, or in its last `end` bytes; none if there is no such file. What is no whole line is
    skipped: a kill leaves half a line, a power loss may leave NULs."""
    try:
        start = 0 if end is None else max(0, storage.stat(log).size - end)
        data = storage.read(log, start, end)
    except FileNotFoundError:
        return []
    records = []
    for line in data.split(b"\n")[:-1]:
        with suppress(ValueError):
            records.append(json.loads(line))
    return records
