"""The driver's side of trackers: a process for each, which reads the run directory by itself.

The driver waits only at the end of a session, for at most 30 seconds. A process that fails says why, and ends; one that
is slow goes on alone, for at most a minute.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.orchestrator.observers import Observer

WAIT_SECONDS = 30.0  # the longest that the end of a session waits for its trackers

QUIET_SECONDS = 3.0  # after this time, a line says what it waits for


def require(track: Sequence[str]) -> None:
    """Raise `UserError` if the package of a tracker is not installed."""
    for name in track:
        found = find_spec(name)
        # Without an origin it is only a folder of that name: W&B makes one in the working directory.
        if found is None or found.origin is None:
            raise UserError(f"track: {name} needs the package {name}; pip install 'taugrid[{name}]'")


class Trackers(Observer):
    """The trackers of a session, each in a process that starts with the session."""

    def __init__(self, names: Sequence[str], say: Callable[[str], None]) -> None:
        self._names, self._say = names, say
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        self._directory, self._reports = directory, "report" in stages
        for name in self._names:
            # -P: W&B and MLflow make folders with their own names in the working directory. A session of its own,
            # because Ctrl-C is the driver's, and because no library may ask a question on its terminal.
            process = self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", __package__, name, directory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)

    def happened(self, time: datetime, event: Mapping[str, Any]) -> None:
        self._pass_on()

    def session_finished(self, rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> None:
        since = time.monotonic()
        self._end(f"{'report' if self._reports else ''} {'' if missing else 'complete'}")
        if names := self._running(since + QUIET_SECONDS):
            self._say(f"track: waiting at most {WAIT_SECONDS:g} seconds for {names}")
        if names := self._running(since + WAIT_SECONDS):
            # They are not killed: what a service may still send for them would not be recorded, and be sent again.
            self._say(
                f"warning: track: waited {WAIT_SECONDS:g} seconds for {names}, and goes on; "
                f"`taugrid report {self._directory}` sends what is missing"
            )
        self._pass_on()
        for name, process in self.processes.items():
            if status := process.poll():
                reason = f"its process ended with status {status}"
                self._say(f"warning: track: {name} failed and is not used any more: {reason}")

    def session_failed(self, error: BaseException) -> None:
        """Leave the processes alone: they note the failure and end by themselves."""
        self._end("")

    def _pass_on(self) -> None:
        """Say what the processes have printed."""
        for process in self.processes.values():
            assert process.stdout is not None
            for line in (process.stdout.read(2**16) or b"").decode(errors="replace").splitlines():
                self._say(line)

    def _end(self, words: str) -> None:
        for process in self.processes.values():
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended before
                process.stdin.write(words.encode())
            process.stdin.close()

    def _running(self, until: float) -> str:
        """The names of those that have not ended at that time of the monotonic clock."""
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        return ", ".join(name for name, process in self.processes.items() if process.poll() is None)
