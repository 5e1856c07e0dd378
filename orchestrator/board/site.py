"""Writes the board as a folder of static files, which needs no server: it opens from a disk, a bucket or GitHub Pages.

A folder is complete or not there: it is made beside its place, and renamed.
"""

import re
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from taugrid.errors import UserError
from taugrid.eval.pages.environment import board_html
from taugrid.orchestrator.board.cells import strip
from taugrid.orchestrator.board.document import BoardDocument, BoardRow
from taugrid.orchestrator.board.find import THREADS, Place
from taugrid.orchestrator.board.index import RunOnBoard
from taugrid.storage import LOCAL, is_url, write_json
from taugrid.storage.local import commit_folder, rename

MARKER = "taugrid-board.json"  # a file by which a site is known as one of ours, which may be replaced

OURS = {"index.html", "images", "runs", MARKER}
MAX_REPORT_BYTES = 5 * 2**20

_PLAIN = re.compile(r"[0-9A-Za-z]{1,64}")  # ids of cells that may be names of files


def check_target(text: str, places: Sequence[Place]) -> Path:
    """The folder that `--to` names; `UserError` if it holds something else, or is below what is only read."""
    if is_url(text):
        raise UserError(f"--to {text}: give a folder of this machine, and copy it there once it is written")
    folder = Path(text).resolve()
    for place in places:
        if place.storage.on_disk and folder.is_relative_to(place.root.resolve()):
            raise UserError(f"--to {text} is below {place.text}, where the board writes nothing; give another folder")
    try:
        level = LOCAL.level(folder)
    except FileNotFoundError:
        return folder
    except OSError as error:
        raise UserError(f"--to {text}: {error.strerror}; give a new folder") from None
    names = {*level.files, *level.folders, *level.unreadable}
    if names and MARKER not in names:
        raise UserError(f"--to {text} is not empty, and not a board that taugrid wrote; give a new folder")
    if others := sorted(names - OURS):
        raise UserError(f"--to {text} also has {others[0]!r}, which is not the board's; give a new folder, and copy it")
    return folder


def write_site(document: BoardDocument, folder: Path) -> int:
    """Write the page, the strips of images and the reports, in the place of an earlier board.

    Returns:
        The number of cells whose images could not be read.

    Raises:
        UserError: if the folder can't be written; an earlier board is still there.
    """
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        images = _write(document, new)
        _replace(new, folder)
    except OSError as error:
        raise UserError(f"--to {folder} can't be written ({error.strerror}); give another folder") from None
    finally:
        LOCAL.delete_folder(new)
    return sum(row.of("folders") is not None for row in document.rows) - sum(images)


def _write(document: BoardDocument, new: Path) -> list[bool]:
    """Whether the images of each row are there."""
    with ThreadPoolExecutor(THREADS) as pool:
        images = list(pool.map(lambda row: _write_strip(row, new), document.rows))
        reports = dict(pool.map(lambda run: (run.key, _write_report(run, new)), document.runs))
    value = dict(document.value)
    value["images"] = {**value["images"], "rows": images}
    value["runs"] = [{**run, "report": reports[run["key"]]} for run in value["runs"]]
    _write_file(new / "index.html", board_html(value, live=False).encode())
    write_json(new / MARKER, {name: value[name] for name in ("made", "version")}, LOCAL)
    return images


def _replace(new: Path, folder: Path) -> None:
    """Give `new` the name `folder`; what is there is deleted after that, or gets its name back."""
    old = new.with_suffix(".old")
    is_there = LOCAL.exists(folder)
    if is_there:
        rename(folder, old)
    try:
        commit_folder(new, folder)
    except BaseException:
        if is_there:
            rename(old, folder)
        raise
    LOCAL.delete_folder(old)


def _write_strip(row: BoardRow, site: Path) -> bool:
    cell = str(row.values["cell"])
    if row.of("folders") is None or not _PLAIN.fullmatch(cell):
        return False
    try:
        picture = strip(row)
    except UserError:
        return False
    _write_file(site / "images" / row.run.key / f"{cell}.png", picture)
    return True


def _write_report(run: RunOnBoard, site: Path) -> str | None:
    """The report's place in the site; None if it has none, or one that is too large."""
    try:
        report = run.found.storage.read(run.found.root / "report.html", 0, MAX_REPORT_BYTES + 1)
    except OSError:
        return None
    if len(report) > MAX_REPORT_BYTES:
        return None
    _write_file(site / "runs" / run.key / "report.html", report)
    return f"runs/{run.key}/report.html"


def _write_file(path: Path, data: bytes) -> None:
    with LOCAL.temporary(path) as temporary:
        temporary.write_bytes(data)
        LOCAL.commit(path, temporary)
