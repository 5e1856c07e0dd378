"""`taugrid export`: which cells, in which form, to which place."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.errors import DamagedFile, UserError
from taugrid.hashing import canonical_json
from taugrid.orchestrator.exports.cells import Chosen, choose
from taugrid.orchestrator.exports.dataset import put_dataset
from taugrid.orchestrator.exports.images import Tick, has_comment, put_pngs, write_npz
from taugrid.orchestrator.exports.results import latex, model_card
from taugrid.orchestrator.exports.target import Target, Write, put_file
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.run_id import FILE as RUN_FILE
from taugrid.storage import read_json

TEXTS = {"model-card": model_card, "latex": latex}


class Request(NamedTuple):
    """What the command line asks for."""

    form: str
    """As in the command line."""
    to: Path
    cell: str | None = None
    """None: all cells."""
    by_label: bool = False


def export_text(run: Run, request: Request) -> None:
    """Write the tables of a run as one text. The same text again changes nothing.

    Raises:
        UserError: if there are no scores, or the file has another text.
    """
    text, what = TEXTS[request.form](run, request.cell).encode(), f"this {request.form}"
    put_file(request.to, what, lambda path: path.read_bytes() == text, partial(Path.write_bytes, data=text))


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
        if request.form != "npz" or request.to.suffix != ".npz":
            for note in _fill(run, request, chosen.cells, tick):
                progress.say(note)
        elif len(chosen.cells) > 1:
            raise UserError(f"--to {request.to}: a file takes one cell of {len(chosen.cells)}; give a CELL or a folder")
        else:
            (cell,) = chosen.cells
            is_same = partial(has_comment, comment=_comment(run, cell))
            put_file(request.to, "this cell", is_same, _npz(run, cell, tick))
    except DamagedFile as error:
        raise UserError(f"{error}; `taugrid verify {run.rundir.shown}` says what to do") from None
    return chosen


def _fill(run: Run, request: Request, cells: Sequence[Cell], tick: Tick) -> list[str]:
    one = request.cell and cells[0].id
    about = {"form": request.form, "cell": one, "by_label": request.by_label} | _about(run, cells)
    with Target(request.to, about).session() as target:
        if request.form == "hf":
            put_dataset(target, run, cells, tick)
        for cell in cells if request.form == "png" else ():
            put_pngs(target, cell, run.rundir, "" if one else f"{cell.name}/", request.by_label, tick)
        for cell in cells if request.form == "npz" else ():
            if target.has(name := f"{cell.name}.npz"):
                tick(cell.settings.num_samples)
            else:
                target.put(name, _npz(run, cell, tick))
    return target.notes


def _npz(run: Run, cell: Cell, tick: Tick) -> Write:
    return partial(write_npz, cell=cell, rundir=run.rundir, comment=_comment(run, cell), tick=tick)


def _comment(run: Run, cell: Cell) -> bytes:
    return canonical_json(_about(run, [cell])).encode()


def _about(run: Run, cells: Sequence[Cell]) -> dict[str, Any]:
    """The run's id, and how many images of which cells. Runs older than ids are known by their cells."""
    recorded = read_json(run.rundir.root / RUN_FILE, run.rundir.storage) or {}
    return {"run": recorded.get("run"), "images": {cell.id: cell.settings.num_samples for cell in cells}}
