"""The process of one tracker: `python -m taugrid.orchestrator.trackers NAME DIRECTORY`, which the driver starts.

Once a minute, and when stdin ends, it takes from the run directory what is new. At the end of a session the driver
writes `report` if tables were written, and `complete` if nothing is missing. An end without a word is a failure, or the
driver was killed. Lines on stdout are for people.
"""

import fcntl
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from taugrid.errors import last_line
from taugrid.orchestrator.trackers.results import RunResults, Tracker
from taugrid.storage import user_cache

CLASSES = {"mlflow": "MlflowTracker", "wandb": "WandbTracker", "tensorboard": "TensorboardTracker"}
"""The class of a tracker, in the module with its name."""

SYNC_SECONDS = 60.0  # time between two looks at the run directory

LONGEST_SECONDS = 60
"""The process ends this long after stdin does: no driver ends it, and the process of the next session waits for it."""

LONGEST_REASON = 300  # the longest error message that is shown; some libraries list every retry


def follow(name: str, directory: str, wait: Callable[[], str | None], say: Callable[[str], None]) -> None:
    """Track a session until `wait` returns the driver's last words, and not None. If the tracker fails, say why."""
    try:
        results = RunResults(directory)
        lock = user_cache() / "trackers" / f"{results.id}-{name}"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as alone:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(alone, fcntl.LOCK_EX)  # the process of the last session may still write
            tracker: Tracker = getattr(import_module(f"{__package__}.{name}"), CLASSES[name])(results)
            say(f"track: {name}: {tracker.start()}")
            words = None
            while words is None:
                words = wait()
                for cell in results.newly_scored():
                    tracker.cell(cell)
                for model, losses in results.losses().items():
                    tracker.losses(model, losses)
            if "report" in words:
                for cell in results.cells():
                    tracker.cell(cell)
                tracker.shared(results.files())
            tracker.close("complete" in words)
    except Exception as error:
        say(f"warning: track: {name} failed and is not used any more: {last_line(error)[:LONGEST_REASON]}")


def last_words() -> str | None:
    """All that stdin has, once it has something; None if a minute passes before."""
    if not select.select([sys.stdin], [], [], SYNC_SECONDS)[0]:
        return None
    return sys.stdin.read()


def end_after_driver() -> None:
    """End this process some time after stdin does, also while a library waits for a server."""
    select.select([sys.stdin], [], [])
    signal.alarm(LONGEST_SECONDS)


def main() -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    for stream in (1, 2):  # what libraries print is not for people
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    threading.Thread(target=end_after_driver, daemon=True).start()
    follow(sys.argv[1], sys.argv[2], last_words, lambda text: print(text, file=said))
    said.flush()
    os._exit(0)  # libraries would wait for their servers at the exit


if __name__ == "__main__":
    main()
