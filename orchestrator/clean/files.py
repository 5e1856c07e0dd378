"""What may go from a run directory: files that no table needs, and that work can make again.

Decided by the names of files alone: nothing is planned, no weights are read, and no code that a config names is run.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from taugrid.orchestrator.plan.sources import TRAINED_WEIGHTS
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import Stat

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
