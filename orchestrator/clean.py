"""`taugrid clean`: what may go from a run directory or a history of nights, and its removal.

Of a run, files go that no table needs, and that work can make again. Their names decide: nothing is planned, no weights
are read, and no code that a config names is run.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from taugrid.errors import FULL, UserError
from taugrid.orchestrator.nightly.history import remove_images, without_newest
from taugrid.orchestrator.nightly.places import Night, find_history
from taugrid.orchestrator.plan.sources import TRAINED_WEIGHTS
from taugrid.orchestrator.rundir.lease import sole_driver
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.run_id import is_run_directory
from taugrid.storage import Stat, open_place
from taugrid.words import counted, in_columns, quantity

CATEGORIES = {
    "features": "features of scored cells; a new metric computes them again from the images",
    "damaged": "damaged files that were set aside; a run makes them again",
    "leftovers": "temporary files of killed processes; checkpoints of trainings that are done",
    "logs": "errors of tasks and workers",
    "images": "images of old nights; their scores, and a hash of each image, stay",
}
"""Name -> what it holds, and what makes it again."""

_TEMPORARY = re.compile(r"\..+[.-][0-9a-f]{12}\.tmp")
"""The names of `Storage.temporary`, and of a training's result before it is in place."""

_RUNNING = ".training-"
"""How `taugrid.jobs.running_folder` begins."""


class RunFiles:
    """The files of a run directory, and which of them may go."""

    def __init__(self, run: Paths) -> None:
        """Lists the directory. Links are not followed: what they point to stays."""
        self.run = run
        self._files = run.storage.walk(run.root)
        parts = {path.relative_to(run.root).parts for path, stat in self._files.items() if stat.size}
        self._scored = {p[1].partition("-")[0] for p in parts if p[0] == "scores" and p[-1].endswith(".json")}
        self._removed = {Path(each[-1]).stem for each in parts if each[0] == "removed"}
        weights = PurePosixPath(TRAINED_WEIGHTS).parts
        self._trained = {each[1] for each in parts if each[0] == "models" and each[2:] == weights}
        with_features = {each[2] for each in parts if each[0] == "features" and len(each) == 4}
        self._all_scored = all(map(self._may_lose_features, (name for name in with_features if _is_cell(name))))

    def of(self, category: str, before: float = math.inf) -> Mapping[Path, Stat]:
        """The files of a category. Of temporary ones only those from `before`, a time of the storage's clock."""
        found = {path: stat for path, stat in self._files.items() if self._category(path) == category}
        return {path: stat for path, stat in found.items() if category != "leftovers" or stat.modified < before}

    def _category(self, path: Path) -> str | None:
        first, *rest = path.relative_to(self.run.root).parts
        if first == "models" and rest[0].startswith(_RUNNING):
            return "leftovers" if rest[0].removeprefix(_RUNNING) in self._trained else None
        if any(_TEMPORARY.fullmatch(part) for part in (first, *rest)):
            return "leftovers"
        if first in ("damaged", "logs", "samples") and rest:
            return "images" if first == "samples" else first
        # The floors beside the reference's features are in tables, and only scoring makes them.
        if first == "features" and len(rest) == 3 and path.suffix != ".json":
            may_go = self._may_lose_features(rest[1]) if _is_cell(rest[1]) else self._all_scored
            return "features" if may_go else None
        return None

    def _may_lose_features(self, cell: str) -> bool:
        """Whether the cell is scored, and has its images, from which features can be made again."""
        return cell.rpartition("-")[2] in self._scored and cell not in self._removed


def _is_cell(folder: str) -> bool:
    return not folder.startswith("reference-")


class Removable(NamedTuple):
    """The files of a category, in all run directories together."""

    name: str
    files: int
    bytes: int
    about: str

    @property
    def size(self) -> str:
        return f"{quantity(self.bytes)}B"


class Cleaning:
    """One directory: a run, or a history whose complete nights' runs count. Unfinished nights are left alone."""

    def __init__(self, directory: str, keep_nights: int | None = None) -> None:
        """Of a history, images go of all nights but the newest `keep_nights`; None: of no night.

        Raises:
            UserError: if the directory is neither, or these do not fit it.
        """
        self.history = find_history(directory)
        self._old: Sequence[Night] = []
        if self.history is not None:
            nights = self.history.complete_nights()
            self.place: Paths = self.history
            self._old = without_newest(nights, len(nights) if keep_nights is None else keep_nights)
            self._runs = [Paths(root, night.storage) for night in nights for root in night.run_directories]
        else:
            root, storage = open_place(directory, "DIR")
            storage.require(root)
            self.place = Paths(root, storage)
            self._runs = [self.place]
            if not is_run_directory(root, storage):
                raise UserError(
                    f"{directory} is neither a run directory nor a history of nights; give the one that `taugrid run` "
                    "or `taugrid nightly` made"
                )
            if keep_nights is not None:
                raise UserError(f"--keep-nights is for a history of nights; {directory} is none")
        self._losing = {root for night in self._old for root in night.run_directories}

    def listed(self, wanted: Collection[str]) -> list[Removable]:
        """What may go of the categories `wanted`. Removes nothing."""
        sizes: dict[str, list[int]] = {}
        for _, category, files in self._found(wanted):
            sizes.setdefault(category, []).extend(stat.size for stat in files.values())
        shown = [(name, sizes[name]) for name in CATEGORIES if sizes.get(name)]
        return [Removable(name, len(each), sum(each), CATEGORIES[name]) for name, each in shown]

    def _found(self, wanted: Collection[str]) -> Iterator[tuple[Paths, str, Mapping[Path, Stat]]]:
        """The files of each run directory, by category."""
        for run in self._runs:
            files = RunFiles(run)
            yield from ((run, category, files.of(category)) for category in wanted if self._may_lose(run, category))

    def _may_lose(self, run: Paths, category: str) -> bool:
        """Images go of old nights alone. They keep their features, which can't be made again then."""
        return category not in ("features", "images") or (category == "images") == (run.root in self._losing)

    def remove(self, wanted: Collection[str], say: Callable[[str], None]) -> None:
        """Remove what may go now of these categories, under the lock of each directory.

        Raises:
            UserError: if a driver works in one of them; earlier ones are cleaned then.
        """
        try:
            self._remove(wanted, say)
        except OSError as error:
            found = [(stat.size, path, run) for run, kind, files in self._found(wanted) if kind != "images"
                     for path, stat in files.items()]  # fmt: skip
            if error.errno not in FULL or not found:
                raise
            # Nobody can take a lock on a disk that is full. One file makes room for ours.
            _, path, run = max(found, key=lambda each: each[0])
            run.storage.delete_all([path], run.root)
            self._remove(wanted, say)

    def _remove(self, wanted: Collection[str], say: Callable[[str], None]) -> None:
        with ExitStack() as stack:
            if self.history is not None:
                stack.enter_context(sole_driver(self.history, say=say))
            if "images" in wanted:
                remove_images(self._old, say)
            for run in self._runs:
                with sole_driver(run, say=say) as lease:
                    files, before = RunFiles(run), lease.began or 0.0
                    for category in (each for each in wanted if each != "images" and self._may_lose(run, each)):
                        run.storage.delete_all(list(files.of(category, before)), run.root)


def document(cleaning: Cleaning, found: Sequence[Removable], left: Sequence[Removable]) -> dict[str, Any]:
    """What was found, and what is left of it, as plain data: `taugrid clean --json` prints it."""
    sizes = {each.name: each.bytes for each in left}
    rows = [{**each._asdict(), "freed": each.bytes - sizes.get(each.name, 0)} for each in found]
    return {"dir": cleaning.place.shown, "categories": rows, "freed": sum(row["freed"] for row in rows)}


def text(found: Sequence[Removable]) -> str:
    """A line for each category."""
    rows = [(each.name, counted(each.files, "file"), each.size, each.about) for each in found]
    return "\n".join(in_columns(rows, right=(1, 2)))
