"""`taugrid clean`: what may go from a run directory or a history of nights, and its removal.

Files go that no table needs, and that work can make again. Their names decide: nothing is planned, and no code is run.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from taugrid.errors import UserError
from taugrid.orchestrator.nightly.history import remove_images, without_newest
from taugrid.orchestrator.nightly.places import Night, find_history
from taugrid.orchestrator.plan.sources import TRAINED_WEIGHTS
from taugrid.orchestrator.rundir.lease import sole_driver
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.run_id import is_run_directory
from taugrid.storage import Stat, open_place
from taugrid.words import quantity

CATEGORIES = {
    "features": "features of scored cells; a new metric computes them again from the images",
    "damaged": "damaged files that were set aside; a run makes them again",
    "leftovers": "temporary files of killed processes; checkpoints of trainings that are done",
    "logs": "errors of tasks and workers",
    "images": "images of old nights; their scores, and a hash of each image, stay",
}
"""Name -> what it holds, and what makes it again."""

_TEMPORARY = re.compile(r"\..+[.-][0-9a-f]{12}\.tmp")  # of `Storage.temporary`, and of a training's result
_RUNNING = ".training-"  # as `taugrid.jobs.running_folder` begins


def removable_files(run: Paths, before: float = math.inf) -> Mapping[str, Mapping[Path, Stat]]:
    """Category -> the files of a run that may go. Links are not followed: what they point to stays. Of leftovers only
    those from `before`, a time of the storage's clock."""
    files = {path.relative_to(run.root).parts: (path, stat) for path, stat in run.storage.walk(run.root).items()}
    names = [parts for parts, (_, stat) in files.items() if stat.size]
    scored = {parts[1].partition("-")[0] for parts in names if parts[0] == "scores" and parts[-1].endswith(".json")}
    without_images = {Path(parts[-1]).stem for parts in names if parts[0] == "removed"}
    weights = PurePosixPath(TRAINED_WEIGHTS).parts
    trained = {parts[1] for parts in names if parts[0] == "models" and parts[2:] == weights}
    with_features = {parts[2] for parts in names if parts[0] == "features" and len(parts) == 4}
    # Features are made again from images; those of the reference while some cell has features to score.
    spent = {cell for cell in with_features if cell.rpartition("-")[2] in scored and cell not in without_images}
    references = {cell for cell in with_features if cell.startswith("reference-")}
    if with_features - references <= spent:
        spent |= references
    found = defaultdict[str, dict[Path, Stat]](dict)
    for (first, *rest), (path, stat) in files.items():
        if first == "models" and rest[0].startswith(_RUNNING):
            category = "leftovers" if rest[0].removeprefix(_RUNNING) in trained else None
        elif any(_TEMPORARY.fullmatch(part) for part in (first, *rest)):
            category = "leftovers"
        elif first in ("damaged", "logs", "samples") and rest:
            category = "images" if first == "samples" else first
        elif first == "features" and len(rest) == 3 and path.suffix != ".json":  # the floors there only scoring makes
            category = "features" if rest[1] in spent else None
        else:
            category = None
        if category is not None and (category != "leftovers" or stat.modified < before):
            found[category][path] = stat
    return found


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
        """Of a history, images go of all nights but the newest `keep_nights`; None: of no night. Raises `UserError` if
        the directory is neither, or these do not fit it."""
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
        sizes = defaultdict[str, list[int]](list)
        for run in self._runs:
            files = removable_files(run)
            for category in self._losable(run, wanted):
                sizes[category] += [stat.size for stat in files.get(category, {}).values()]
        return [
            Removable(name, len(sizes[name]), sum(sizes[name]), about)
            for name, about in CATEGORIES.items()
            if sizes[name]
        ]

    def _losable(self, run: Paths, wanted: Collection[str]) -> list[str]:
        """Images go of old nights alone. They keep their features, which can't be made again then."""
        never = "features" if run.root in self._losing else "images"
        return [category for category in wanted if category != never]

    def remove(self, wanted: Collection[str], say: Callable[[str], None]) -> None:
        """Remove what may go now of these categories, under the lock of each directory. Raises `UserError` if a driver
        works in one of them; earlier ones are cleaned then."""
        with ExitStack() as stack:
            if self.history is not None:
                stack.enter_context(sole_driver(self.history, say=say))
            if "images" in wanted:
                remove_images(self._old, say)
            for run in self._runs:
                with sole_driver(run, say=say) as lease:
                    files = removable_files(run, lease.began or 0.0)
                    for category in self._losable(run, wanted):
                        if category != "images":
                            run.storage.delete_all(list(files.get(category, ())), run.root)


def document(cleaning: Cleaning, found: Sequence[Removable], left: Sequence[Removable]) -> dict[str, Any]:
    """What was found, and what is left of it, as `taugrid clean --json` prints it."""
    sizes = {each.name: each.bytes for each in left}
    rows = [{**each._asdict(), "freed": each.bytes - sizes.get(each.name, 0)} for each in found]
    return {"dir": cleaning.place.shown, "categories": rows, "freed": sum(row["freed"] for row in rows)}
