"""The files of a history of nights (docs/nightly-history.md). A night is one run of `taugrid nightly`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from taugrid.errors import UserError
from taugrid.orchestrator.baseline.compared import VERDICT, NightVerdict
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.run_id import is_run_directory
from taugrid.storage import Storage, is_url, open_place, read_sealed
from taugrid.words import with_urls

CANARY = "canary"  # the prefix of the folders of a night's canaries, beside its run

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Night:
    """The files of one night."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.id = folder.name
        self.folder, self.storage = folder, storage
        self.run = folder / "run"
        self.verdict_file = folder / VERDICT
        self.summary = folder / "summary.md"

    @property
    def run_name(self) -> str:
        """The path or URL of its run directory, as commands accept it."""
        return with_urls(str(self.run))

    def other(self, why: str) -> UserError:
        """The error of a call that needs another night."""
        return UserError(f"night {self.id} {why}; give --id NAME for another night")

    @property
    def run_directories(self) -> list[Path]:
        """The existing run directories of its run, canaries and second looks."""
        canaries = [path.parent for path in self.storage.list(self.folder, f"{CANARY}-*/config.json")]
        folders = (self.run, *canaries, self.folder / "fresh", self.folder / "grown")
        return [path for path in folders if self.storage.exists(path / "config.json")]

    @property
    def directories_with_images(self) -> list[Path]:
        """Those of `run_directories` that hold images."""
        with_images = []
        for root in self.run_directories:
            if self._has_files(Paths(root, self.storage).samples, "*/*.parquet"):
                with_images.append(root)
        return with_images

    @property
    def has_lost_images(self) -> bool:
        """Whether its images were removed, all of them. False of a night that never had any."""
        was_removed = self._has_files(Paths(self.run, self.storage).removed, "*.parquet")
        return was_removed and not self.directories_with_images

    def _has_files(self, folder: Path, pattern: str) -> bool:
        return bool(self.storage.list(folder, pattern))

    @property
    def verdict(self) -> NightVerdict | None:
        """The verdict of a complete night; None if it is unfinished or the file was changed. Raises `UserError` if
        another version of taugrid wrote it."""
        value = read_sealed(self.verdict_file, self.storage)
        return None if value is None else NightVerdict.read(value, self.folder)

    @property
    def has_begun(self) -> bool:
        """Whether it has a run. Raises `UserError` if another version of taugrid began that."""
        if not self.storage.exists(self.run / "config.json"):
            return False
        is_run_directory(self.run, self.storage)  # refuses one that another version made
        return True


class Nights(NamedTuple):
    """The nights of a history."""

    judged: Sequence[tuple[Night, NightVerdict]]  # with a verdict of this version, oldest first
    unreadable: Mapping[str, str]  # id -> why a night that another version judged or began can't be read
    unfinished: Sequence[Night]  # begun, without a verdict, in the order of their ids


class History(Paths):
    """A history of nights. Only the holder of its lock writes to it."""

    option = "--history"

    def __init__(self, root: Path, storage: Storage | None = None) -> None:
        super().__init__(root, storage)
        self.nights = self.root / "nights"
        self.parquet = self.root / "history.parquet"
        self.index = self.root / "index.html"
        self.default_baseline = self.root / "baseline.json"

    def night(self, name: str) -> Night:
        """The night of that id; `UserError` if it can't be a folder's name."""
        if not NAME.fullmatch(name):
            raise UserError(f"--id {name}: give letters, digits, dots, dashes and underscores")
        return Night(self.nights / name, self.storage)

    def read(self) -> Nights:
        """Its nights, from their folders."""
        judged, unreadable, unfinished = list[tuple[Night, NightVerdict]](), dict[str, str](), list[Night]()
        for folder in self.storage.list(self.nights, "*"):
            night = Night(folder, self.storage)
            try:
                verdict = night.verdict
                if verdict is not None:
                    judged.append((night, verdict))
                elif night.has_begun:
                    unfinished.append(night)
            except UserError as error:
                unreadable[night.id] = str(error)
        judged.sort(key=lambda night: (night[1].time, night[0].id))
        return Nights(judged, unreadable, unfinished)

    def complete_nights(self) -> Sequence[Night]:
        """The nights with a verdict of this version, oldest first."""
        return [night for night, _ in self.read().judged]


def open_history(text: str) -> History:
    """The history that `--history` names, which may be new; `UserError` for a place that is something else."""
    if not text or (not is_url(text) and Path(text).exists() and not Path(text).is_dir()):
        raise UserError(f"--history {text or 'is empty'}: give a folder or a URL")
    history = _history_at(text, "--history")
    storage = history.storage
    names = sorted(path.name for path in storage.list(history.root, "*") if not path.name.startswith("."))
    own = {"nights", history.lease.name, "baseline.json", "baseline.parquet"}
    if storage.exists(history.config) or ("nights" not in names and set(names) - own):
        more = ", ..." if len(names) > 3 else ""
        raise UserError(
            f"--history {text} is not empty and no history of nights (it holds {', '.join(names[:3])}{more}); give the "
            "folder that holds all nights, or a new one"
        )
    return history


def find_history(text: str) -> History | None:
    """The history, with a night at least, at a place that may also be a run directory; None if there is none."""
    if not text or (not is_url(text) and not Path(text).is_dir()):
        return None
    history = _history_at(text, "DIR")
    if history.storage.exists(history.config):
        return None
    begun = (history.storage.list(history.nights, pattern) for pattern in (f"*/{VERDICT}", "*/run/config.json"))
    return history if any(begun) else None


def _history_at(text: str, named: str) -> History:
    root, storage = open_place(text, named)
    storage.require(root)
    return History(root, storage)
