"""The commands `status`, `verify`, `export` and `compare`, from nothing but the config and the disk."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from taugrid import parquet
from taugrid.config import Config
from taugrid.errors import DamagedFile, UserError
from taugrid.orchestrator.plan.cells import Cell, Plan, Shard
from taugrid.orchestrator.report.trainings import describe_models, training_price
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.extension import orphans_in_words
from taugrid.orchestrator.rundir.integrity import READERS, Damage
from taugrid.orchestrator.selection import find_cell
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.sample import images_to_keep
from taugrid.run_id import FILE as RUN_FILE
from taugrid.storage import Storage, read_json, read_sealed

PNG_OVERHEAD_BYTES = 200
"""Upper bound on an image's bytes beyond raw pixels: PNG's chunks, a row's share of Parquet's columns and pages."""


def describe(config: Config, plan: Plan, rundir: RunDir) -> dict[str, Any]:
    """Everything that `plan` and `status` show, as plain data."""
    rate = measured_rate(rundir)
    cells = [_describe_cell(cell, rundir) for cell in plan.cells]
    remaining = sum(cell["network_evaluations"] - cell["network_evaluations_done"] for cell in cells)
    shape = plan.models[0].image_shape
    models = describe_models(plan, cells, rundir, config.cluster.scratch)
    return {
        "name": config.name,
        "dir": rundir.shown,
        "models": models,
        "cells": cells,
        "shards": len(plan.shards),
        "images": sum(cell.settings.num_samples for cell in plan.cells),
        "network_evaluations": sum(shard.evaluations for shard in plan.shards),
        "network_evaluations_remaining": remaining,
        "remarks": [*plan.remarks, *filter(None, [orphans_in_words(config, plan, rundir)])],
        "bytes_at_most": sum(cell.settings.num_samples for cell in plan.cells) * (prod(shape) + PNG_OVERHEAD_BYTES),
        "evaluations_per_second_and_worker": rate,
        "worker_seconds_remaining": None if rate is None else round(remaining / rate, 1),
        **training_price(models),
    }


def _describe_cell(cell: Cell, rundir: RunDir) -> dict[str, Any]:
    done = rundir.sampled(cell, None, every_byte=False, on_damage=lambda damage: None)
    there = rundir.versions(rundir.samples / cell.name)
    begun = [s for s in cell.shards if s.number not in done and rundir.sample_part(cell, s) in there]
    images_done = sum(shard.images for shard in cell.shards if shard.number in done)
    images_done += sum(images_to_keep(rundir, cell, shard) for shard in begun)
    return {
        "cell": cell.shown_id,
        "name": cell.name.replace(cell.id, cell.shown_id),
        "label": cell.label,
        "model": cell.model.shown_id,
        "steps": cell.settings.steps,
        "eta": cell.settings.eta,
        **cell.axes,
        "num_samples": cell.settings.num_samples,
        "shards": len(cell.shards),
        "shards_done": len(done),
        "images_done": images_done,
        "images_removed": rundir.has_removed_images(cell),
        "network_evaluations": cell.network_evaluations,
        "network_evaluations_done": images_done * len(cell.tau),
        "scored": len(done) == len(cell.shards)
        and any(_is_of_n(rundir, path, cell) for path in rundir.scores_of(cell)),
    }


def _is_of_n(rundir: RunDir, score: Path, cell: Cell) -> bool:
    """Whether a score is of as many samples as the config asks for."""
    value = read_sealed(score, rundir.storage)
    return value is not None and value["protocol"]["num_samples"] == cell.settings.num_samples


def measured_rate(rundir: RunDir) -> float | None:
    """Network evaluations per second of one worker, over all shards sampled here; None before the first."""
    shards = [event for event in read_events(rundir) if event["event"] == "shard"]
    seconds = sum(event["seconds"] for event in shards)
    return sum(event["evaluations"] for event in shards) / seconds if seconds else None


def verify(config: Config, plan: Plan, rundir: RunDir, tick: Callable[[int], None]) -> list[Damage]:
    """Re-read every file of a run and decode every image, calling `tick(n)` after n images.

    It changes nothing, but if something is wrong it removes the ledger, so that the next run does not believe it.

    Several files are read at a time: reading, hashing and decoding release Python's lock.
    """
    found: list[Damage] = []
    storage = rundir.storage
    rundir.ledger.distrust()
    if (said := orphans_in_words(config, plan, rundir)) is not None:
        found.append(Damage(rundir.samples, said))
    planned = {cell.id for cell in plan.cells}
    for cell_id, name in rundir.committed_cells().items():
        if cell_id not in planned:
            paths = storage.list(rundir.samples / name, "part-*.parquet")
            found += _read_all(paths, partial(_verify_images, shape=None, storage=storage), tick)
    for cell in plan.cells:
        found += _verify_samples(cell, rundir, tick)
    derived = [
        path
        for kind in work_kinds()
        if kind.folder != rundir.samples.name  # whose images were decoded above
        for path in storage.list(rundir.root / kind.folder, kind.files)
    ]
    found += _read_all(sorted(derived), partial(_verify_bytes, storage=storage), tick)
    scored = [cell for cell in plan.cells if rundir.scores_of(cell)]
    found += [Damage(rundir.score(cell, "*"), "missing") for cell in plan.cells if scored and cell not in scored]
    changed = [path for path in storage.list(rundir.scores, "*.json") if read_sealed(path, storage) is None]
    found += [Damage(path, "it has changed since it was written") for path in changed]
    for path in (rundir.tables / "quality.json", rundir.provenance, rundir.root / RUN_FILE):
        if storage.exists(path) and not isinstance(read_json(path, storage), dict):
            found.append(Damage(path, "it can't be read as a JSON object"))
    if rundir.committed_cells() and not storage.exists(rundir.provenance):
        found.append(Damage(rundir.provenance, "missing"))
    if found:
        with suppress(OSError):  # of a directory that may only be read
            rundir.ledger.forget()
    return list(dict.fromkeys(found))


def _verify_samples(cell: Cell, rundir: RunDir, tick: Callable[[int], None]) -> list[Damage]:
    if not rundir.is_ready(cell.model):
        return [Damage(rundir.models / cell.model.id, "not trained yet; `taugrid run` continues")]
    found: list[Damage] = []
    metadata: dict[str, Any] | None = None
    try:
        metadata = rundir.sample_metadata(cell)
        done = rundir.sampled(cell, metadata, every_byte=False, on_damage=found.append)
    except UserError as error:  # of the weights: the images can be read without them
        found.append(Damage(rundir.weights_file(cell.model, cell.settings.weights), str(error)))
        done = rundir.sampled(cell, None, every_byte=False, on_damage=found.append)
    parts = [rundir.sample_part(cell, shard) for shard in cell.shards if shard.number in done]
    there = rundir.versions(rundir.samples / cell.name)
    whole = [path for path in parts if path in there]  # others were removed: their record is whole
    look = partial(_verify_images, shape=cell.model.image_shape, storage=rundir.storage)
    found += _read_all(whole, look, tick)
    planned = {rundir.sample_part(cell, shard) for shard in cell.shards}
    beyond = [path for path in rundir.storage.list(rundir.samples / cell.name, "part-*.parquet") if path not in planned]
    found += _read_all(beyond, look, tick)
    for shard in cell.shards:
        path = rundir.sample_part(cell, shard)
        if shard.number in done:
            continue
        if not rundir.storage.exists(path):
            found.append(Damage(path, "missing"))
        elif all(damage.path != path for damage in found):
            found.append(Damage(path, "it holds fewer images than the config asks for"))
    return found


class _Read(NamedTuple):
    """What was found in a file that was read to its end."""

    damages: list[Damage]
    images: int
    """How many were decoded."""


def _read_all(paths: Sequence[Path], look: Callable[[Path], _Read], tick: Callable[[int], None]) -> Iterator[Damage]:
    """The damages that `look` finds in the files, in their order."""
    with ThreadPoolExecutor(READERS) as pool:
        for damages, images in pool.map(look, paths):
            tick(images)
            yield from damages


def _verify_images(path: Path, shape: tuple[int, int, int] | None, storage: Storage) -> _Read:
    """Decode every image of a file; `shape` is (channels, height, width), or None if it is not known."""
    images = 0
    try:
        with storage.local_path(path) as local:
            parquet.inspect(local)
            for index, batch in parquet.read_images(local):
                if shape is not None and batch.shape[1:] != shape:
                    raise DamagedFile(f"its images have shape {batch.shape[1:]}, not {shape}")
                images += len(index)
    except (DamagedFile, ValueError) as error:
        return _Read([Damage(path, str(error).removeprefix(f"{local}: "))], images)
    return _Read([], images)


def _verify_bytes(path: Path, storage: Storage) -> _Read:
    try:
        parquet.inspect(path, storage=storage)
    except DamagedFile as error:
        return _Read([Damage(path, str(error))], 0)
    return _Read([], 0)


def compare(config: Config, plan: Plan, rundir: RunDir, name_a: str, name_b: str, join: bool) -> dict[str, Any]:
    """A row of differences.csv for any two cells of a run.

    Raises:
        UserError: if there is no such cell, one has no FID, or (without `join`) they can't be compared.
    """
    from taugrid.eval.tables.differences import pair
    from taugrid.orchestrator.plan.evaluation import evaluation
    from taugrid.orchestrator.report.collect import collect

    cells = [find_cell(plan, name) for name in (name_a, name_b)]
    collected = collect(plan, rundir, evaluation(config, plan, rundir.extractor))
    rows = {row["cell"]: row for row in collected.rows}
    unscored = [cell.label for cell in cells if cell.id not in rows]
    if unscored:
        raise UserError(f"{unscored[0]} has no complete score; run `taugrid evaluate` first")
    try:
        return pair(rows[cells[0].id], rows[cells[1].id], collected.evidence, join)
    except ValueError as error:
        raise UserError(f"{plan.with_labels(str(error))} (--join compares them anyway)") from None


def export(cell: Cell, rundir: RunDir, folder: Path) -> int:
    """Write a cell's images as PNG files named by index, with the bytes as in Parquet. Returns how many.

    Raises:
        UserError: if the cell has no images yet, some are missing or damaged, or the folder is not empty.
    """
    require_new_folder(folder)
    if rundir.has_removed_images(cell):
        raise UserError(f"the images of {cell.label} were removed; delete {rundir.removal_record(cell)} and run again")
    damages: list[Damage] = []
    done = rundir.sampled(cell, None, every_byte=True, on_damage=damages.append)
    if damages or len(done) < len(cell.shards):
        lacking = len(cell.shards) - len(done)
        raise UserError(
            f"{cell.label} has missing or damaged shards ({lacking} of {len(cell.shards)}); `taugrid run` makes them"
        )
    make_new_folder(folder)
    return sum(_export_part(rundir, cell, shard, folder) for shard in cell.shards)


def require_new_folder(folder: Path) -> None:
    """Raise `UserError` unless a folder for an export is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder} exists and is not an empty folder; give a new one")


def make_new_folder(folder: Path) -> None:
    """Make a folder for an export; `UserError` unless it is new or empty."""
    require_new_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from None


def _export_part(rundir: RunDir, cell: Cell, shard: Shard, folder: Path) -> int:
    pngs = parquet.read_png(rundir.sample_part(cell, shard), range(shard.start, shard.stop), rundir.storage)
    for index, png in pngs.items():
        (folder / f"{index:07d}.png").write_bytes(png)
    return len(pngs)
