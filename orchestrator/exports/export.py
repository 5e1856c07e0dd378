"""`taugrid export`: which cells, in which form, to which place."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taugrid.errors import DamagedFile, UserError
from taugrid.hashing import canonical_json
from taugrid.orchestrator.exports.dataset import put_dataset
from taugrid.orchestrator.exports.images import Tick, has_comment, put_pngs, write_npz
from taugrid.orchestrator.exports.results import latex, model_card
from taugrid.orchestrator.exports.target import Target, Write, filling, put_file
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.selection import find_cell
from taugrid.run_id import recorded_id

Chosen = tuple[list[Cell], list[str]]  # the cells to export, and why others of the run are left out, a line for each

TEXTS = {"model-card": model_card, "latex": latex}


def export_text(run: Run, form: str, to: Path, cell: str | None) -> None:
    """Write the tables of a run as one text. The same text again changes nothing. Raises `UserError` if there are no
    scores, or the file has another text."""
    text, what = TEXTS[form](run, cell).encode(), f"this {form}"
    put_file(to, what, lambda path: path.read_bytes() == text, partial(Path.write_bytes, data=text))


def export_images(
    run: Run, form: str, to: Path, progress: Progress, cell: str | None = None, by_label: bool = False
) -> Chosen:
    """Export the images of a cell, or of all. Returns them, with those that were left out because images are missing.
    Raises `UserError` if there is nothing to export, or `to` can't be used."""
    cells, left_out = choose(run, cell)
    if by_label and (without := [each.label for each in cells if each.label_rule is None]):
        raise UserError(
            f"--by-label: {without[0]} has no labels; leave it out, or give a CELL of a network with classes"
        )
    done, total = 0, sum(each.settings.num_samples for each in cells)

    def tick(count: int) -> None:
        nonlocal done
        progress.update(done := done + count)

    progress.begin("exporting", total, "images")
    try:
        if form != "npz" or to.suffix != ".npz":
            about = {"form": form, "cell": cell and cells[0].id, "by_label": by_label}
            with filling(to, about | _about(run, cells)) as target:
                _fill(target, about, run, cells, tick)
            for note in target.notes:
                progress.say(note)
        elif len(cells) > 1:
            raise UserError(f"--to {to}: a file takes one cell of {len(cells)}; give a CELL or a folder")
        else:
            (only,) = cells
            is_same = partial(has_comment, comment=_comment(run, only))
            put_file(to, "this cell", is_same, _npz(run, only, tick))
    except DamagedFile as error:
        raise UserError(f"{error}; `taugrid verify {run.rundir.shown}` says what to do") from None
    return cells, left_out


def choose(run: Run, name: str | None) -> Chosen:
    """The cell that `name` fits or, without one, all cells that have all their images. Raises `UserError` if no cell or
    several fit, or there is none with all its images."""
    wanted = run.plan.cells if name is None else [find_cell(run.plan, name)]
    listing = Listing(run.rundir)
    problems = {cell.id: _lacks(cell, run.rundir, listing) for cell in wanted}
    cells = [cell for cell in wanted if problems[cell.id] is None]
    left_out = list(filter(None, problems.values()))
    if not cells:
        raise UserError(left_out[0])
    return cells, left_out


def _lacks(cell: Cell, rundir: RunDir, listing: Listing) -> str | None:
    """Why a cell can't be exported, and what to do; None if all its images are there and intact."""
    if listing.has_removed_images(cell):
        return f"the images of {cell.label} were removed; delete {rundir.removal_record(cell)} and run again"
    damages: list[Damage] = []
    done = rundir.sampled(cell, None, every_byte=True, on_damage=damages.append, listing=listing)
    if damages or len(done) < cell.num_shards:
        number = cell.num_shards - len(done)
        return f"{cell.label} has missing or damaged shards ({number} of {cell.num_shards}); `taugrid run` makes them"
    return None


def _fill(target: Target, about: Mapping[str, Any], run: Run, cells: Sequence[Cell], tick: Tick) -> None:
    """Put the cells in the form that `about` says."""
    if about["form"] == "hf":
        put_dataset(target, run, cells, tick)
    for cell in cells if about["form"] == "png" else ():
        put_pngs(target, cell, run.rundir, "" if about["cell"] else f"{cell.name}/", about["by_label"], tick)
    for cell in cells if about["form"] == "npz" else ():
        if target.has(name := f"{cell.name}.npz"):
            tick(cell.settings.num_samples)
        else:
            target.put(name, _npz(run, cell, tick))


def _npz(run: Run, cell: Cell, tick: Tick) -> Write:
    return partial(write_npz, cell=cell, rundir=run.rundir, comment=_comment(run, cell), tick=tick)


def _comment(run: Run, cell: Cell) -> bytes:
    return canonical_json(_about(run, [cell])).encode()


def _about(run: Run, cells: Sequence[Cell]) -> dict[str, Any]:
    """The run's id, and how many images of which cells."""
    run_id = recorded_id(run.rundir.root, run.rundir.storage)
    return {"run": run_id, "images": {cell.id: cell.settings.num_samples for cell in cells}}
