"""`taugrid export`: which cells, in which form, to which place."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from taugrid.errors import DamagedFile, UserError
from taugrid.hashing import canonical_json
from taugrid.orchestrator.exports.cells import Chosen, choose
from taugrid.orchestrator.exports.dataset import put_dataset
from taugrid.orchestrator.exports.images import Tick, has_comment, put_pngs, write_npz
from taugrid.orchestrator.exports.results import latex, model_card
from taugrid.orchestrator.exports.target import Target, make_folder, whole
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.run_id import FILE as RUN_FILE
from taugrid.storage import read_json

TEXTS = {"model-card": model_card, "latex": latex}
FORMATS = ("png", "npz", "hf", *TEXTS)


class Request(NamedTuple):
    """What the command line asks for."""

    form: str
    """One of `FORMATS`."""
    to: Path
    cell: str | None = None
    """None: all cells."""
    by_label: bool = False


def export_text(run: Run, request: Request) -> None:
    """Write the tables of a run as one text. The same text again changes nothing.

    Raises:
        UserError: if there are no scores, or the file has another text.
    """
    text, path = TEXTS[request.form](run, request.cell).encode(), request.to
    if path.exists():
        if path.is_dir() or path.read_bytes() != text:
            raise UserError(f"--to {path} exists and is not this {request.form}; give a new file")
        return
    make_folder(path.parent)
    with whole(path) as temporary:
        temporary.write_bytes(text)


def export_images(run: Run, request: Request, progress: Progress) -> Chosen:
    """Export the images of cells. Returns them, with those that were left out because images are missing.

    Raises:
        UserError: if there is nothing to export, or `to` can't be used.
    """
    chosen = choose(run, request.cell)
    if request.by_label and (without := [cell.label for cell in chosen.cells if cell.label_rule is None]):
        raise UserError(
            f"--by-label: {without[0]} has no labels; leave it out, or give a CELL of a network with classes"
        )
    done, total = 0, sum(cell.settings.num_samples for cell in chosen.cells)

    def tick(count: int) -> None:
        nonlocal done
        progress.update(done := done + count)

    progress.begin("exporting", total, "images")
    try:
        if request.form == "npz" and request.cell is not None and request.to.suffix == ".npz":
            _put_one_npz(run, request.to, chosen.cells[0], tick)
        else:
            _fill(run, request, chosen.cells, tick)
    except DamagedFile as error:
        raise UserError(f"{error}; `taugrid verify {run.rundir.shown}` says what to do") from None
    return chosen


def _fill(run: Run, request: Request, cells: list[Cell], tick: Tick) -> None:
    images = {cell.id: cell.settings.num_samples for cell in cells}
    one = request.cell and cells[0].id
    about = {"form": request.form, "run": _run_id(run), "cell": one, "by_label": request.by_label, "images": images}
    with Target(request.to, about).session() as target:
        if request.form == "hf":
            put_dataset(target, run, cells, tick)
        for cell in cells if request.form != "hf" else ():
            if request.form == "png":
                put_pngs(target, cell, run.rundir, "" if one else f"{cell.name}/", request.by_label, tick)
            elif target.has(name := f"{cell.name}.npz"):
                tick(cell.settings.num_samples)
            else:
                target.put(
                    name, partial(write_npz, cell=cell, rundir=run.rundir, comment=_comment(run, cell), tick=tick)
                )


def _put_one_npz(run: Run, path: Path, cell: Cell, tick: Tick) -> None:
    comment = _comment(run, cell)
    if path.exists():
        if path.is_dir() or not has_comment(path, comment):
            raise UserError(f"--to {path} exists and is not this cell's; give a new file")
        return
    make_folder(path.parent)
    with whole(path) as temporary:
        write_npz(temporary, cell, run.rundir, comment, tick)


def _comment(run: Run, cell: Cell) -> bytes:
    return canonical_json({"run": _run_id(run), "cell": cell.id, "images": cell.settings.num_samples}).encode()


def _run_id(run: Run) -> str:
    """The id of the run directory; a run of before there were any is known by its cells alone."""
    recorded = read_json(run.rundir.root / RUN_FILE, run.rundir.storage)
    return str(recorded.get("run", "")) if isinstance(recorded, dict) else ""
