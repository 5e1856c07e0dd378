"""Finds runs below folders and buckets, level by level, without looking into a run.

In a history of nights, only nights/ID/run counts: canaries and second looks belong to their night.
"""

import errno
import os
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from taugrid.errors import UserError
from taugrid.run_id import FILE as RUN_ID
from taugrid.run_id import is_run_directory
from taugrid.storage import LOCAL, Level, LocalStorage, Storage, open_place
from taugrid.words import with_urls

THREADS = 16
"""The number of folders that are listed, or runs that are read, at a time: most of it is waiting for the storage."""

MAX_FOLDERS = 20_000
"""The number of folders below a place that are listed before the search ends: somebody may give the root of a disk."""

MAX_NOTES = 20


class Place(NamedTuple):
    """A folder or bucket that the user named."""

    text: str
    root: Path
    storage: Storage

    @classmethod
    def of(cls, text: str) -> "Place":
        """`UserError` if the text can't be a place."""
        root, storage = open_place(text, "DIR")
        return cls(text, root, LOCAL if storage.on_disk else storage)


@dataclass(frozen=True)
class FoundFolder:
    """A run, or a night of a history, which may have no run."""

    root: Path  # the run directory, or the night's folder
    storage: Storage
    level: Level
    title: str  # the path below its place; unique on the board
    place: Place
    history: Path | None = None  # the folder of a night's history

    @property
    def directory(self) -> str:
        """The path or URL, as text that can be encoded."""
        return shown(str(self.root))


@dataclass
class Finds:
    runs: list[FoundFolder] = field(default_factory=list)
    nights: list[FoundFolder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be looked at, and why
    readable: bool = False  # whether some place could be listed


class _Folder(NamedTuple):
    """A folder to list, and what it may be of a history of nights."""

    path: Path
    history: Path | None = None
    role: Literal["", "nights", "night"] = ""


def find(places: Sequence[Place], known: Container[str] = ()) -> Finds:
    """The runs below `places`, in the order of their titles. Nothing raises: what can't be listed has a note. No file
    is read of `known` directories, which were runs before."""
    finds, seen = Finds(), set[str]()
    with ThreadPoolExecutor(THREADS) as pool:
        for place in places:
            _Search(place, finds, seen, known).walk(pool)
    finds.runs = _with_unique_titles(finds.runs)
    finds.notes[MAX_NOTES:] = [f"and {len(finds.notes) - MAX_NOTES:,} more"] if len(finds.notes) > MAX_NOTES else []
    return finds


@dataclass
class _Search:
    """The search below one place."""

    place: Place
    finds: Finds
    seen: set[str]  # the real paths of what was listed, so that links lead nowhere twice
    known: Container[str]

    def walk(self, pool: Executor) -> None:
        listed, left, frontier = 0, False, [_Folder(self.place.root)]
        while frontier and not left:
            new = [folder for folder in frontier if self._is_new(folder.path)]
            now, left = new[: MAX_FOLDERS - listed], len(new) > MAX_FOLDERS - listed
            listed += len(now)
            looks = pool.map(self._look, [folder.path for folder in now])
            found = zip(now, looks, strict=True)
            frontier = [inner for folder, (level, is_run) in found for inner in self._inside(folder, level, is_run)]
        if left:
            self._note(self.place.root, f"the search ended after {listed:,} folders; name folders further down")

    def _is_new(self, path: Path) -> bool:
        name = os.path.realpath(path) if self.place.storage.on_disk else f"{self.place.storage} {path}"
        is_new = name not in self.seen
        self.seen.add(name)
        return is_new

    def _storage(self, root: Path) -> Storage:
        return LocalStorage(root) if self.place.storage.on_disk else self.place.storage

    def _look(self, path: Path) -> tuple[Level | OSError | UserError, bool]:
        """What is in a folder, and whether it is a run. The search follows links, but not those that leave a run."""
        storage = self._storage(path)
        try:
            level = storage.level(path)
            may_be_run = bool({RUN_ID, "config.json"} & level.files.keys())
            if may_be_run and (shown(str(path)) in self.known or is_run_directory(path, storage)):
                return level, True
            return (self.place.storage.level(path) if level.unreadable else level), False
        except (OSError, UserError) as error:
            return error, False

    def _inside(self, folder: _Folder, level: Level | OSError | UserError, is_run: bool) -> Iterator[_Folder]:
        """The folders to list next; what `folder` itself is goes to the finds."""
        if isinstance(level, UserError):  # a run of another version
            self.finds.readable = True
            self.finds.notes.append(shown(str(level)))
            return
        if isinstance(level, OSError):
            self._note(folder.path, "it is not there" if level.errno == errno.ENOENT else str(level.strerror))
            return
        self.finds.readable = True
        if is_run:
            self.finds.runs.append(self._found(folder, level))
            return
        for name in level.unreadable:
            self._note(folder.path / name, "a broken link, or no permission to follow it")
        if folder.role == "night" and ("run" in level.folders or "verdict.json" in level.files):
            self.finds.nights.append(self._found(folder, level))
            if "run" in level.folders:
                yield _Folder(folder.path / "run")
            return
        for name in level.folders:
            inner = folder.path / name
            if folder.role == "nights":
                yield _Folder(inner, folder.history, "night")
            elif not name.startswith("."):
                yield _Folder(inner, folder.path, "nights") if name == "nights" else _Folder(inner)

    def _found(self, folder: _Folder, level: Level) -> FoundFolder:
        below = folder.path.relative_to(self.place.root)
        title = shown(str(below)) if below.parts else shown(folder.path.name or str(folder.path))
        return FoundFolder(folder.path, self._storage(folder.path), level, title, self.place, folder.history)

    def _note(self, path: Path, reason: str) -> None:
        self.finds.notes.append(f"{shown(str(path))}: {reason}")


def shown(text: str) -> str:
    """A path or URL for people; bytes of a name that are no UTF-8 become escapes."""
    return with_urls(text.encode("utf-8", "backslashreplace").decode())


def _with_unique_titles(runs: Sequence[FoundFolder]) -> list[FoundFolder]:
    """The runs in the order of their titles; those that share one get their place's name before it, or their path."""
    counts = Counter(run.title for run in runs)
    longer = [
        replace(run, title=f"{shown(run.place.root.name)}/{run.title}") if counts[run.title] > 1 else run
        for run in runs
    ]
    counts = Counter(run.title for run in longer)
    unique = [replace(run, title=run.directory) if counts[run.title] > 1 else run for run in longer]
    return sorted(unique, key=lambda run: run.title)
