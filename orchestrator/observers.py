"""The interface of everything that follows a session beside its events file: progress display, experiment trackers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any

from taugrid.config import Config
from taugrid.errors import last_line

GROUP = "taugrid.observers"
"""The entry points under which a package names its observers: classes that are called without arguments."""


class Observer:
    """Receives the events of one session. A subclass overrides the methods that it needs."""

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        """A driver has the lock of the run directory (a path or a URL) and begins with `stages`."""

    def happened(self, time: datetime, event: Mapping[str, Any]) -> None:
        """An event, as the run directory's events/NNNN.jsonl records it: `event` has its name, and fields."""

    def session_finished(self, rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> None:
        """Every stage has ended. `rows` are the rows of the resulting table, `missing` is cell name -> reason."""

    def session_failed(self, error: BaseException) -> None:
        """An error or Ctrl-C ended the session."""


class Observers(Observer):
    """Several observers. One that raises is dropped with a line of warning, because the run must go on."""

    def __init__(self, observers: Iterable[Observer], say: Callable[[str], None]) -> None:
        self._observers = list(observers)
        self._say = say

    def add_installed(self) -> None:
        for entry in entry_points(group=GROUP):
            try:
                self._observers.append(entry.load()())
            except Exception as error:
                self._say(f"warning: the observer {entry.name} ({entry.value}) can't be used: {last_line(error)}")

    def session_started(self, config: Config, directory: str, stages: Sequence[str]) -> None:
        self._notify("session_started", config, directory, stages)

    def happened(self, time: datetime, event: Mapping[str, Any]) -> None:
        self._notify("happened", time, event)

    def session_finished(self, rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> None:
        self._notify("session_finished", rows, missing)

    def session_failed(self, error: BaseException) -> None:
        self._notify("session_failed", error)

    def _notify(self, method: str, *arguments: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, method)(*arguments)
            except Exception as error:
                self._observers.remove(observer)
                kind = f"{type(observer).__module__}:{type(observer).__qualname__}"
                self._say(f"warning: the observer {kind} failed and is not used any more: {last_line(error)}")
