"""The commands `status` and `compare`, from nothing but the config and the disk."""

from math import prod
from typing import Any

from taugrid.errors import UserError
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.report.trainings import describe_models, training_price
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.orchestrator.rundir.extension import orphans_in_words
from taugrid.orchestrator.rundir.grown import at
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.rundir.lease import Lease
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.selection import find_cell
from taugrid.orchestrator.work.sample import images_to_keep

PNG_OVERHEAD_BYTES = 200
"""Upper bound on an image's bytes beyond raw pixels: PNG's chunks, a row's share of Parquet's columns and pages."""


def describe_status(run: Run) -> dict[str, Any]:
    """What `status` shows: what `describe` says, the driver that is running there (None: no driver is), and a dead
    one that left its lease."""
    lease = Lease(run.rundir)
    holder, last = lease.live_holder(), lease.holder()
    driver = None if holder is None else {"host": holder.host, "process": holder.process, "last_seen": holder.heartbeat}
    killed = str(last) if last and holder is None else None
    return describe(run) | {"killed_driver": killed, "driver": driver}


def latent_bytes(cell: Cell) -> int:
    """The bytes of a latent in a sample file; 0 if none is kept."""
    return 4 * prod(cell.decoder.network_shape) if cell.settings.keep_latents else 0


def describe(run: Run) -> dict[str, Any]:
    """Everything that `plan` and `status` show, as plain data."""
    config, plan, rundir = run.config, run.plan, run.rundir
    history = RunHistory.read(rundir)
    rate = history.evaluations_per_second
    listing, scoring = Listing(rundir), rundir.recorded_scoring(config)
    wanted = [] if scoring is None else [(cell, scoring.id(cell)) for cell in plan.cells]
    scores = zip(wanted, rundir.read_scores(wanted, listing), strict=True)
    scored = {cell.name for (cell, _), score in scores if score is not None}
    cells = [_describe_cell(cell, rundir, listing, cell.name in scored) for cell in plan.cells]
    remaining = sum(cell["network_evaluations"] - cell["network_evaluations_done"] for cell in cells)
    models = describe_models(plan, cells, rundir, config.cluster.scratch, history)
    return {
        "name": config.name,
        "dir": rundir.shown,
        "models": models,
        "cells": cells,
        "reference": given if isinstance(given := config.reference, str) else given.name_and_split,
        "shards": plan.num_shards,
        "images": sum(cell.settings.num_samples for cell in plan.cells),
        "longest_shard_evaluations": plan.longest.first_shard.total_nfe if plan.cells else 0,
        "network_evaluations": sum(cell.total_nfe for cell in plan.cells),
        "network_evaluations_remaining": remaining,
        "cells_to_score": sum(not cell["scored"] for cell in cells),
        "remarks": [
            *plan.remarks,
            *filter(None, [orphans_in_words(run.config, plan, rundir)]),
        ],
        "bytes_at_most": sum(
            cell.settings.num_samples * (prod(cell.model.image_shape) + PNG_OVERHEAD_BYTES + latent_bytes(cell))
            for cell in plan.cells
        ),
        "evaluations_per_second_and_worker": rate,
        "worker_seconds_remaining": None if rate is None else round(remaining / rate, 1),
        **training_price(models),
    }


def _describe_cell(cell: Cell, rundir: RunDir, listing: Listing, is_scored: bool) -> dict[str, Any]:
    damages: list[Damage] = []
    done = rundir.sampled(cell, None, every_byte=False, on_damage=damages.append, listing=listing)
    is_done, images_done = len(done) == cell.num_shards, cell.settings.num_samples
    if not is_done:
        there = listing.samples(cell.name).keys() - {damage.path.name for damage in damages}
        begun = {*cell.shards_numbered(done), *cell.shards_in(there)}
        images_done = sum(s.images if s.number in done else images_to_keep(rundir, cell, s) for s in begun)
    return {
        "cell": cell.shown_id,
        "name": cell.name.replace(cell.id, cell.shown_id),
        "label": cell.label,
        "model": cell.model.shown_id,
        "sampler": cell.settings.sampler,
        "steps": cell.settings.steps,
        "eta": cell.eta,
        **cell.axes,
        "num_samples": cell.settings.num_samples,
        "shards": cell.num_shards,
        "shards_done": len(done),
        "images_done": images_done,
        "images_removed": listing.has_removed_images(cell),
        "network_evaluations": cell.total_nfe,
        "network_evaluations_done": images_done * cell.nfe,
        "scored": is_done and is_scored,
    }


def compare(run: Run, name_a: str, name_b: str, join: bool) -> dict[str, Any]:
    """A row of differences.csv for any two cells of a run; `metrics` has the difference of each metric by its column.
    Raises `UserError` if there is no such cell, one has no FID, or (without `join`) they can't be compared."""
    from taugrid.eval.tables.differences import DIFFERENCE_COLUMNS, pair, parts_by_metric
    from taugrid.orchestrator.report.collect import NO_IMAGES, collect

    plan, rundir = run.plan, run.rundir
    cells = [find_cell(plan, name) for name in (name_a, name_b)]
    smaller = min(cell.settings.num_samples for cell in cells)  # a cell that grew keeps its scores at smaller N
    least = {cell.id: cell.settings.num_samples for cell in run.configured.cells}
    compared = plan.with_cells(at(cell, max(smaller, least[cell.id])) for cell in cells)
    collected = collect(compared, rundir, run.scoring())
    rows = {row["cell"]: row for row in collected.rows}
    unscored = [cell.label for cell in cells if cell.id not in rows]
    if unscored:
        raise UserError(f"{unscored[0]} has no complete score; run `taugrid evaluate` first")
    try:
        row = pair(rows[cells[0].id], rows[cells[1].id], collected.evidence, join)
    except ValueError as error:
        raise UserError(f"{plan.with_labels(str(error))} (--join compares them anyway)") from None
    listing = Listing(rundir)
    lacking = [f"{cell.label}: {NO_IMAGES}" for cell in cells if rundir.lacks_images(cell, listing)]
    shown = {name: row[name] for name in DIFFERENCE_COLUMNS}
    return {**shown, "note": "; ".join(filter(None, [row["note"], *lacking])), "metrics": parts_by_metric(row)}
