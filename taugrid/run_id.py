"""What a run directory is, and `run.json`: the format of its files, and its id, which a worker reads before it writes.

A worker that does not find the id is somewhere else: an unmounted folder is often still there, empty, and takes
whatever is written, and a folder that was renamed may have been made again.
"""

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taugrid.errors import UserError, WorkerRefusal
from taugrid.storage import Storage, read_json, replacing, write_text
from taugrid.words import this_node, with_urls

FILE = "run.json"

FORMAT = 2  # raised when taugrid can no longer read the directories that it made before: of runs, and of nights

SECTIONS = ("sample", "diffusion", "evaluate")
"""Sections of every config.json of a run; no file of that name has them that is of something else."""


@dataclass(frozen=True)
class RunId:
    """A run directory: where it is, and its unique id."""

    root: str
    id: str


def claim(root: Path, storage: Storage) -> RunId:
    """The id of the run directory `root`, which must exist. A new one gets its id here, in the driver."""
    run_id = recorded_id(root, storage)
    if run_id is None:
        text = json.dumps({"run": uuid.uuid4().hex, "format": FORMAT}) + "\n"
        with replacing(root / FILE, storage) as temporary:  # never empty: that would be no run directory
            write_text(temporary, text)
        run_id = recorded_id(root, storage)
    return RunId(str(root), str(run_id))


def check_run(run: RunId, storage: Storage) -> None:
    """Raise `WorkerRefusal` unless this machine has that run directory. OSError if it can't be read."""
    actual = recorded_id(Path(run.root), storage)
    if actual != run.id:
        fault = "no run directory is there" if actual is None else f"a different one is there (run {actual[:8]})"
        raise WorkerRefusal(
            f"node {this_node()} does not see the run directory {run.root}: {fault}; every worker must see it at "
            "the same path"
        )


def recorded_id(root: Path, storage: Storage) -> str | None:
    """The id that a run directory has; None if it has none, as `claim` writes it."""
    return _id_in(read_json(root / FILE, storage))


def _id_in(value: Any) -> str | None:
    run_id = value.get("run") if isinstance(value, dict) and value.keys() - {"format"} == {"run"} else None
    return run_id if isinstance(run_id, str) and re.fullmatch("[0-9a-f]{32}", run_id) else None


def is_run_directory(root: Path, storage: Storage) -> bool:
    """Whether a folder holds what taugrid alone writes: the id of a run, or a config.json with a run's sections;
    `UserError` if another version of taugrid made it, so that its run.json has another format or is missing."""
    value = read_json(root / FILE, storage)
    if _id_in(value) is None:
        config = read_json(root / "config.json", storage)
        if not isinstance(config, dict) or not all(isinstance(config.get(section), dict) for section in SECTIONS):
            return False
    require_format(value, root)
    return True


def require_format(value: Any, place: Path) -> None:
    """Raise `UserError` unless this version of taugrid wrote `value`, a file of the run or night at `place`."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        made = with_urls(str(place))
        raise UserError(f"{made} is of another version of taugrid, or has lost its run.json; use a new folder")
