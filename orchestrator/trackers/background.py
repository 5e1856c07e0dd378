"""The driver's side of trackers: a process for each, which the driver tells what happens and never waits for.

It waits only at the end of a session, for at most 30 seconds. A process that fails says why in a line, and ends.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
        self.processes: list[TrackerProcess] = []

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        self._directory, self._reports = directory, "report" in stages
        self.processes = [TrackerProcess(name, directory, self._say) for name in self._names]

    def happened(self, time: datetime, event: Mapping[str, Any]) -> None:
        if event["event"] == "score" and event["committed"]:
            for process in self.processes:
                process.tell(f"score {event['task'].partition('/')[2]}")

    def session_finished(self, rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> None:
        since = time.monotonic()
        try:
            for process in self.processes:
                process.tell(f"end {'report' if self._reports else ''} {'' if missing else 'complete'}")
                process.pipe.close()
            if names := self._running(since + QUIET_SECONDS):
                self._say(f"track: waiting at most {WAIT_SECONDS:g} seconds for {names}")
            if names := self._running(since + WAIT_SECONDS):
                self._say(
                    f"warning: track: waited {WAIT_SECONDS:g} seconds for {names}, and goes on; "
                    f"`taugrid report {self._directory}` sends what is missing"
                )
        finally:
            for process in self.processes:
                process.kill()

    def session_failed(self, error: BaseException) -> None:
        """Leave the processes alone: they note the failure and end by themselves."""
        for process in self.processes:
            process.pipe.close()

    def _running(self, until: float) -> str:
        """The names of those that have not ended at that time of the monotonic clock."""
        for process in self.processes:
            process.reader.join(max(0.0, until - time.monotonic()))
        return ", ".join(process.name for process in self.processes if process.reader.is_alive())


class TrackerProcess(subprocess.Popen[str]):
    """The process of one tracker. A thread says what it prints for people, a line each, and why it failed."""

    def __init__(self, name: str, directory: str, say: Say) -> None:
        self.name, self._say, self._is_killed = name, say, False
        # -P: W&B and MLflow make folders with their own names in the working directory. A session of its own, because
        # Ctrl-C is the driver's, and because no library may ask a question on its terminal.
        super().__init__(
            [sys.executable, "-P", "-m", __package__, name, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.stdin is not None
        self.pipe = self.stdin
        os.set_blocking(self.pipe.fileno(), False)
        self.reader = threading.Thread(target=self._listen, daemon=True, name=f"track-{name}")
        self.reader.start()

    def tell(self, line: str) -> None:
        """Send a line, unless the process has ended, or has read so little that the pipe is full."""
        with suppress(OSError):
            os.write(self.pipe.fileno(), f"{line}\n".encode())  # a line this short goes whole

    def kill(self) -> None:
        """End the process if it runs."""
        self._is_killed = True
        super().kill()

    def _listen(self) -> None:
        assert self.stdout is not None
        last = ""
        with self.stdout as lines:
            for line in lines:
                if line.startswith(("track: ", "warning: track: ")):
                    self._say(line.rstrip("\n"))
                else:
                    last = f" ({line.strip()})"
        if self.wait() and not self._is_killed:
            status = f"its process ended with status {self.returncode}{last}"
            self._say(f"warning: track: {self.name} failed and is not used any more: {status}")
