"""The driver's side of trackers: a process for each, which the driver tells what happens and never waits for.

Only at the end of a session it waits, and not for long. A process that fails says why in a line, and ends.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.orchestrator.observers import Observer

WAIT_SECONDS = 30.0
"""The longest that the end of a session waits for its trackers."""

QUIET_SECONDS = 3.0
"""After this time, a line says what it waits for."""

Say = Callable[[str], None]


def require(track: Sequence[str]) -> None:
    """Raise `UserError` if the package of a tracker is not installed."""
    for name in track:
        found = find_spec(name)
        # Without an origin it is only a folder of that name: W&B makes one in the working directory.
        if found is None or found.origin is None:
            raise UserError(f"track: {name} needs the package {name}; pip install 'taugrid[{name}]'")


class Trackers(Observer):
    """The trackers of a session, each in a process that starts with the session."""

    def __init__(self, names: Sequence[str], say: Say) -> None:
        self._names, self._say = names, say
        self._processes: list[TrackerProcess] = []
        self._stages: Sequence[str] = ()
        self._directory = ""

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        self._stages, self._directory = stages, directory
        self._processes = [TrackerProcess(name, directory, self._say) for name in self._names]

    def happened(self, time: datetime, event: Mapping[str, Any]) -> None:
        if event["event"] == "score" and event["committed"]:
            for process in self._processes:
                process.tell(f"score {event['task'].partition('/')[2]}")

    def session_finished(self, rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> None:
        try:
            self._finish(f"end {','.join(self._stages)}")
        finally:
            for process in self._processes:
                process.kill()

    def session_failed(self, error: BaseException) -> None:
        """Leave the processes alone: they note the failure and end by themselves."""
        for process in self._processes:
            process.leave()

    def _finish(self, message: str) -> None:
        told, since, said = set[str](), time.monotonic(), False
        while waiting := [process for process in self._processes if process.is_running]:
            for process in waiting:
                if process.name not in told and process.tell(message):  # it may have been too busy to be told
                    told.add(process.name)
                    process.leave()
            names, waited = ", ".join(process.name for process in waiting), time.monotonic() - since
            if waited > WAIT_SECONDS:
                self._say(
                    f"warning: track: waited {WAIT_SECONDS:g} seconds for {names}, and goes on; "
                    f"`taugrid report {self._directory}` sends what is missing"
                )
                return
            if waited > QUIET_SECONDS and not said:
                said = True
                self._say(f"track: waiting at most {WAIT_SECONDS:g} seconds for {names}")
            time.sleep(0.05)
        for process in self._processes:
            process.close()


class TrackerProcess:
    """The process of one tracker. What it prints is said, one line each."""

    def __init__(self, name: str, directory: str, say: Say) -> None:
        self.name, self._say = name, say
        # -P: W&B and MLflow make folders with their own names in the working directory. A session of its own, because
        # Ctrl-C is the driver's, and because no library may ask a question on its terminal.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __package__, name, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._has_failed = False
        self._reader = threading.Thread(target=self._listen, daemon=True, name=f"track-{name}")
        self._reader.start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def tell(self, line: str) -> bool:
        """Send a line, unless the process has not read so many before that the pipe is full."""
        assert self._process.stdin is not None
        try:
            return os.write(self._process.stdin.fileno(), f"{line}\n".encode()) > 0  # a line this short goes whole
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # it has ended, or was told that nothing follows
            return True

    def leave(self) -> None:
        """Let it know that nothing follows."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def close(self) -> None:
        """Hear what it said last, after it has ended."""
        self.leave()
        self._reader.join(1.0)
        if self._process.returncode and not self._has_failed:
            self._say(
                f"warning: track: {self.name} failed and is not used any more: its process ended with status "
                f"{self._process.returncode}"
            )

    def kill(self) -> None:
        self.leave()
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._has_failed = self._has_failed or line.startswith("warning:")
                self._say(line.rstrip("\n"))
