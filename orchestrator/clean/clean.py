"""Lists what may go from a run directory or a history of nights, and removes what the user agrees to."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from taugrid.errors import UserError
from taugrid.orchestrator.clean.files import (
    ABOUT_IMAGES,
    CATEGORIES,
    IMAGES,
    Files,
    RunFiles,
    driver_of,
    require_run,
)
from taugrid.orchestrator.nightly.places import History, Night, find_history
from taugrid.orchestrator.nightly.write import remove_images, without_newest
from taugrid.orchestrator.rundir.lease import sole_driver
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import open_place
from taugrid.words import counted, in_columns, quantity

NO_NIGHT = "--keep-nights and --nights-before are for a history of nights; {} is none"


class Removable(NamedTuple):
    """The files of a category, in all run directories together."""

    name: str
    files: int
    bytes: int
    about: str

    @property
    def size(self) -> str:
        return f"{quantity(self.bytes)}B"


@dataclass(frozen=True)
class OldNights:
    """Which nights lose their images: all but the newest `keep`, or those before a day (YYYY-MM-DD, UTC)."""

    keep: int | None = None
    before: str | None = None

    def of(self, history: History) -> Sequence[Night]:
        nights = history.complete_nights()
        if self.keep is not None:
            return without_newest(nights, self.keep)
        if self.before is None:
            return []
        try:
            day = date.fromisoformat(self.before).isoformat()
        except ValueError:
            raise UserError(f"--nights-before {self.before} is not a day; give YYYY-MM-DD") from None
        return [night for night in nights if (night.verdict or {})["time"] < day]


class Cleaning:
    """One directory: a run, or a history whose complete nights' runs count. Unfinished nights are left alone."""

    def __init__(self, directory: str, old: OldNights) -> None:
        """Raise `UserError` if the directory is neither."""
        self.history = find_history(directory)
        self._old: Sequence[Night] = []
        if self.history is None:
            root, storage = open_place(directory, "DIR")
            storage.require(root)
            self.place: Paths = Paths(root, storage)
            require_run(self.place)
            if old != OldNights():
                raise UserError(NO_NIGHT.format(directory))
            self._runs = [self.place]
        else:
            self.place, self._old = self.history, old.of(self.history)
            nights = self.history.complete_nights()
            self._runs = [Paths(root, night.storage) for night in nights for root in night.run_directories]
        self._losing = {root for night in self._old for root in night.run_directories}

    @property
    def drivers(self) -> list[str]:
        """The drivers that work in the directory now, in words."""
        places = dict.fromkeys([self.place, *self._runs])
        return [driver for place in places if (driver := driver_of(place)) is not None]

    def listed(self, wanted: Collection[str]) -> list[Removable]:
        """What may go, by category: those `wanted`, and images of old nights. Removes nothing."""
        runs = [RunFiles(run) for run in self._runs]
        found = {name: [files for run in runs for files in self._files(run, name)] for name in (*CATEGORIES, IMAGES)}
        about = CATEGORIES | {IMAGES: ABOUT_IMAGES}
        return [
            Removable(name, sum(map(len, groups)), sum(stat.size for files in groups for stat in files.values()), text)
            for name, text in about.items()
            if (groups := found[name]) and (name in wanted or name == IMAGES)
        ]

    def _files(self, run: RunFiles, category: str) -> Iterator[Files]:
        """The files of a category in a run directory, if it has some. Who loses its images keeps its features."""
        loses_images = run.run.root in self._losing
        if category == IMAGES:
            files = run.images() if loses_images else {}
        else:
            files = {} if category == "features" and loses_images else run.removable(category)
        if files:
            yield files

    def remove(self, wanted: Collection[str], say: Callable[[str], None]) -> None:
        """Remove what may go now of these categories, under the lock of each directory.

        Raises:
            UserError: if a driver works in one of them; earlier ones are cleaned then.
        """
        with ExitStack() as stack:
            if self.history is not None:
                stack.enter_context(sole_driver(self.history, say=say))
            if IMAGES in wanted:
                remove_images(self._old, say)
            for run in self._runs:
                with sole_driver(run, say=say) as lease:
                    files = RunFiles(run)
                    for category in set(wanted) & CATEGORIES.keys():
                        removable = files.removable(category, lease.began)
                        run.storage.delete_all(list(removable), run.root)


def document(cleaning: Cleaning, found: Sequence[Removable], left: Sequence[Removable]) -> dict[str, Any]:
    """What was found, and what is left of it, as plain data: `taugrid clean --json` prints it."""
    sizes = {each.name: each.bytes for each in left}
    rows = [{**each._asdict(), "freed": each.bytes - sizes.get(each.name, 0)} for each in found]
    return {"dir": cleaning.place.shown, "categories": rows, "freed": sum(row["freed"] for row in rows)}


def text(found: Sequence[Removable]) -> str:
    """A line for each category."""
    rows = [(each.name, counted(each.files, "file"), each.size, each.about) for each in found]
    return "\n".join(in_columns(rows, right=(1, 2)))
