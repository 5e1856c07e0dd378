"""Writes the board as a folder of static files, which needs no server: it opens from a disk, a bucket or GitHub Pages.

A folder is complete or not there: it is made beside its place, and renamed.
"""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from taugrid.errors import UserError
from taugrid.eval.pages.board import board_html
from taugrid.orchestrator.board.document import BoardDocument, BoardRow
from taugrid.orchestrator.board.find import THREADS
from taugrid.orchestrator.board.index import RunOnBoard
from taugrid.orchestrator.board.strips import strip
from taugrid.storage import LOCAL, is_url, write_json
from taugrid.storage.local import commit_folder, rename

MARKER = "taugrid-board.json"
"""A file by which a site is known as one of ours, which may be replaced."""

MAX_REPORT_BYTES = 5 * 2**20

_PLAIN = re.compile(r"[0-9A-Za-z]{1,64}")
"""Ids of cells that may be names of files."""


def check_target(text: str) -> Path:
    """The folder that `--to` names; `UserError` if it can't be written or holds something else."""
    if is_url(text):
        raise UserError(f"--to {text}: give a folder of this machine, and copy it there once it is written")
    folder = Path(text).absolute()
    try:
        level = LOCAL.level(folder)
    except FileNotFoundError:
        return folder
    except OSError as error:
        raise UserError(f"--to {text}: {error.strerror}; give a new folder") from None
    if (level.files or level.folders) and MARKER not in level.files:
        raise UserError(f"--to {text} is not empty, and not a board that taugrid wrote; give a new folder")
    return folder


def write_site(document: BoardDocument, folder: Path) -> int:
    """Write the page, the strips of images and the reports, in the place of an earlier board.

    Returns:
        The number of cells whose images could not be read.
    """
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    old = new.with_suffix(".old")
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(lambda row: _write_strip(row, new), document.rows))
            reports = dict(pool.map(lambda run: (run.key, _write_report(run, new)), document.runs))
        value = dict(document.value)
        value["images"] = {**value["images"], "rows": images}
        value["runs"] = [{**run, "report": reports[run["key"]]} for run in value["runs"]]
        _write(new / "index.html", board_html(value, live=False).encode())
        write_json(new / MARKER, {name: value[name] for name in ("format", "made", "version")}, LOCAL)
        if LOCAL.exists(folder):
            rename(folder, old)
        commit_folder(new, folder)
    finally:
        LOCAL.delete_folder(new)
        LOCAL.delete_folder(old)
    return sum(row.of("folders") is not None for row in document.rows) - sum(images)


def _write_strip(row: BoardRow, site: Path) -> bool:
    cell = str(row.values["cell"])
    if row.of("folders") is None or not _PLAIN.fullmatch(cell):
        return False
    try:
        picture = strip(row)
    except UserError:
        return False
    _write(site / "images" / row.run.key / f"{cell}.png", picture)
    return True


def _write_report(run: RunOnBoard, site: Path) -> str | None:
    """The report's place in the site; None if it has none, or one that is too large."""
    try:
        report = run.found.storage.read(run.found.root / "report.html")
    except OSError:
        return None
    if len(report) > MAX_REPORT_BYTES:
        return None
    _write(site / "runs" / run.key / "report.html", report)
    return f"runs/{run.key}/report.html"


def _write(path: Path, data: bytes) -> None:
    with LOCAL.temporary(path) as temporary:
        temporary.write_bytes(data)
        LOCAL.commit(path, temporary)
