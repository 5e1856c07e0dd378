"""The process of one tracker: `python -m taugrid.orchestrator.trackers NAME DIRECTORY`, which the driver starts.

It reads lines from stdin: `score CELL` when a cell has got a score, and `end` with `report` if tables were written and
`complete` if nothing is missing. Without `end`, the session failed or the driver was killed. Lines on stdout are for
people.
"""

import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Thread

from taugrid.errors import last_line
from taugrid.orchestrator.trackers.results import RunResults, Tracker
from taugrid.storage import user_cache

CLASSES = {"mlflow": "MlflowTracker", "wandb": "WandbTracker", "tensorboard": "TensorboardTracker"}
"""The class of a tracker, in the module with its name."""

LONGEST_SECONDS = 60
"""The process ends this long after stdin closes, because a killed driver can't end it."""

LOSSES_SECONDS = 60.0
"""After this time without a line, the logs of trainings are looked at."""

LONGEST_REASON = 300
"""The longest error message that is shown; some libraries list every retry."""


def follow(name: str, directory: str, lines: Iterable[str], say: Callable[[str], None]) -> None:
    """Track the session that `lines` tell of. If the tracker fails, say why."""
    try:
        results = RunResults(directory)
        lock = user_cache() / "trackers" / f"{results.id}-{name}"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as alone:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(alone, fcntl.LOCK_EX)  # the process of the last session may still write
            tracker: Tracker = getattr(import_module(f"{__package__}.{name}"), CLASSES[name])(results)
            say(f"track: {name}: {tracker.start()}")
            _follow(tracker, results, lines)
    except Exception as error:
        say(f"warning: track: {name} failed and is not used any more: {last_line(error)[:LONGEST_REASON]}")


def _follow(tracker: Tracker, results: RunResults, lines: Iterable[str]) -> None:
    is_complete = False
    for line in lines:
        word, *rest = line.split()
        if word == "score":
            for cell in filter(None, map(results.scored, rest)):
                tracker.cell(cell)
            continue
        for model, losses in results.losses().items():
            tracker.losses(model, losses)
        if "report" in rest:
            for cell in results.cells():
                tracker.cell(cell)
            tracker.shared(results.files())
        is_complete = "complete" in rest
    tracker.close(is_complete)


def heard() -> Iterator[str]:
    """The lines of stdin, and `losses` after each minute without any, for trainings that run."""
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        signal.alarm(LONGEST_SECONDS)
        lines.put("")

    def line() -> str:
        try:
            return lines.get(timeout=LOSSES_SECONDS)
        except Empty:
            return "losses"

    Thread(target=read, daemon=True).start()
    return iter(line, "")


def main() -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    for stream in (1, 2):  # what libraries print is not for people
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    follow(sys.argv[1], sys.argv[2], heard(), lambda text: print(text, file=said))
    said.flush()
    os._exit(0)  # libraries would wait for their servers at the exit


if __name__ == "__main__":
    main()
