"""Lists what may go from a run directory or a history of nights, and removes what the user agrees to."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.errors import FULL, UserError
from taugrid.orchestrator.clean.files import CATEGORIES, RunFiles
from taugrid.orchestrator.nightly.places import Night, find_history
from taugrid.orchestrator.nightly.write import remove_images, without_newest
from taugrid.orchestrator.rundir.lease import sole_driver
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.run_id import is_run_directory
from taugrid.storage import Stat, open_place
from taugrid.words import counted, in_columns, quantity


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
