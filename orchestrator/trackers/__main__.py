"""The process of one tracker: `python -m taugrid.orchestrator.trackers NAME DIRECTORY`, which the driver starts.

It reads lines from stdin: `score CELL` when a cell has got a score, `end STAGES` when the session has finished. Without
the latter, stdin ends because the session failed or the driver was killed. Lines on stdout are for people.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from importlib import import_module

from taugrid.errors import last_line
from taugrid.orchestrator.trackers.results import RunResults, Tracker

CLASSES = {"mlflow": "MlflowTracker", "wandb": "WandbTracker", "tensorboard": "TensorboardTracker"}
"""The class of a tracker, in the module with its name."""

LONGEST_SECONDS = 60
"""From the end of stdin to the end of the process: a driver that was killed no longer ends it."""

LONGEST_REASON = 300
"""Characters of a reason: some name each attempt at a server."""


def follow(name: str, directory: str, lines: Iterable[str], say: Callable[[str], None]) -> bool:
    """Track the session that `lines` tell of. Returns False if the tracker failed; then it has said why."""
    try:
        results = RunResults(directory)
        tracker: Tracker = getattr(import_module(f"{__package__}.{name}"), CLASSES[name])(results)
        say(f"track: {name}: {tracker.start()}")
        finished = False
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "score" and (cell := results.scored(rest)) is not None:
                tracker.cell(cell)
            elif word == "end":
                tracker.finish("report" in rest.split(","))
                finished = True
        tracker.close(finished)
    except Exception as error:
        say(f"warning: track: {name} failed and is not used any more: {last_line(error)[:LONGEST_REASON]}")
        return False
    return True


def main() -> None:
    name, directory = sys.argv[1:]
    said = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what libraries print is neither the driver's output nor a line for people

    def lines() -> Iterable[str]:
        yield from sys.stdin
        signal.alarm(LONGEST_SECONDS)

    worked = follow(name, directory, lines(), lambda text: print(text, file=said))
    said.flush()
    os._exit(0 if worked else 1)  # libraries would wait for their servers at the exit


if __name__ == "__main__":
    main()
