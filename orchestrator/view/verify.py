"""Reads every byte of a run directory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from taugrid import parquet
from taugrid.errors import DamagedFile, MissingInput, WeightsChanged
from taugrid.eval.metrics.reference_statistics import read_statistics
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.report.reported import changed_files
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir import grown
from taugrid.orchestrator.rundir.directory import READER_THREADS, Damage, RunDir
from taugrid.orchestrator.rundir.events import unreadable_lines
from taugrid.orchestrator.rundir.extension import orphans_in_words
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.rundir.lease import Lease
from taugrid.orchestrator.rundir.listing import PARTS, Listing
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.score import ScoreWork
from taugrid.orchestrator.work.scorer import FILE as SCORER
from taugrid.storage import Storage, read_json, read_sealed
from taugrid.words import counted

PUT_BACK = "put it back before you sample more (images, features and scores do not need it)"
"""The fix for missing weights of a network."""

EVENTS_FIX = "remove the lines that can't be read (their times and devices are lost; no image or score is)"
"""The fix for a damaged file of events."""

STATISTICS_FIX = "remove it; the next run that scores a cell makes it again"
"""The fix for damaged statistics of a reference: a run without anything to score does not look at them."""

ORPHANS_FIX = "use a config that has these cells, or remove their folders"
"""The fix for images of cells that the config lacks: a run refuses them."""

CHANGED = "it has changed since it was written"

PLAN_KEYS = ("config_sha256", "models", "cells")
"""Keys of plan.json, which has no hash."""

NOT_TRAINED, NOT_SAMPLED, NOT_SCORED = "not trained yet", "not sampled yet", "not scored yet"
NOT_REPORTED = "not made yet"
UNFINISHED = (NOT_TRAINED, NOT_SAMPLED, NOT_SCORED, NOT_REPORTED)
"""The reasons for files that an unfinished run lacks, which are not damage."""


class Verified(NamedTuple):
    """The damaged files of a run directory, and those that were never made."""

    damages: list[Damage]
    unfinished: list[Damage]
    """The files that the run has not made yet."""


def verify(run: Run, tick: Callable[[int], None]) -> Verified:
    """Re-read every file of a run and decode every image, calling `tick(n)` after n images.

    Missing features are not damage: they are needed only to score, and may be deleted. With damage, the ledger then
    names nothing but the damaged files, so that the next run reads all; nothing else is changed. Several files are read
    at a time, since reading, hashing and decoding release Python's lock.
    """
    run.rundir.ledger.distrust()
    found = dict.fromkeys(_found(run, tick))
    damages = [damage for damage in found if damage.reason not in UNFINISHED]
    if damages:
        own = (each.path for each in damages if each.path.is_relative_to(run.rundir.root))  # not a checkpoint elsewhere
        with suppress(OSError):  # of a directory that may only be read
            run.rundir.ledger.forget({path: seen for path in own if (seen := run.rundir.version(path))})
    return Verified(damages, [damage for damage in found if damage.reason in UNFINISHED])


def _found(run: Run, tick: Callable[[int], None]) -> Iterator[Damage]:
    """What is damaged and, for the reasons `UNFINISHED`, what was never made."""
    plan, rundir = run.plan, run.rundir
    history = RunHistory.read(rundir)
    if (orphans := orphans_in_words(run.config, plan, rundir)) is not None:
        yield Damage(rundir.samples, orphans, ORPHANS_FIX)
    yield from _verify_orphans(plan, rundir, tick)
    listing = Listing(rundir)
    for cell in plan.cells:
        yield from _verify_samples(cell, rundir, listing, history, tick)
    yield from _verify_derived(rundir, tick)
    yield from _verify_scores(plan, rundir, history)
    yield from _verify_statistics(rundir)
    yield from _verify_documents(rundir)
    if "report" in history.stopped:
        yield from (Damage(rundir.root / name, NOT_REPORTED) for name in lacking_pages(rundir))


def _verify_orphans(plan: Plan, rundir: RunDir, tick: Callable[[int], None]) -> Iterator[Damage]:
    """The images of cells that the plan does not have."""
    check = partial(_verify_images, shape=None, storage=rundir.storage)
    for name in rundir.committed_cells({cell.id for cell in plan.cells}):
        yield from _read_all(rundir.storage.list(rundir.samples / name, PARTS), check, tick)


def _verify_derived(rundir: RunDir, tick: Callable[[int], None]) -> Iterator[Damage]:
    """The Parquet files of all kinds of work but sampling, whose images are decoded elsewhere."""
    kinds = [kind for kind in work_kinds() if kind.folder != rundir.samples.name]
    paths = [path for kind in kinds for path in rundir.storage.list(rundir.root / kind.folder, kind.files)]
    return _read_all(sorted(paths), partial(_verify_bytes, storage=rundir.storage), tick)


def _verify_statistics(rundir: RunDir) -> Iterator[Damage]:
    """The mean and scatter of references, and their floors."""
    for path in rundir.storage.list(rundir.features, "*/reference-*/*"):
        if path.suffix in (".npz", ".json"):
            rundir.storage.read(path)  # what can't be read now is not damage, but an error
            read = read_statistics if path.suffix == ".npz" else read_sealed
            if read(path, rundir.storage) is None:
                yield Damage(path, CHANGED, STATISTICS_FIX)


def lacking_pages(rundir: RunDir) -> list[str]:
    """The missing files that a report would write; none while a driver is running, which may write them."""
    storage = rundir.storage
    if not storage.list(rundir.scores, "*.json") or Lease(rundir).live_holder() is not None:
        return []
    table = read_json(rundir.tables / "quality.json", storage)
    is_empty = isinstance(table, dict) and not table.get("rows")  # then there is nothing to draw
    exists = {
        "tables/": storage.exists(rundir.tables / "quality.csv"),
        "figures/": is_empty or storage.exists(rundir.figures / "quality.png"),
        rundir.report.name: storage.exists(rundir.report),
    }
    return [name for name, is_there in exists.items() if not is_there]


def _verify_documents(rundir: RunDir) -> Iterator[Damage]:
    """The JSON files of a run but scores, its tables, figures and page, and its events."""
    storage = rundir.storage
    records = storage.list(rundir.models, str(rundir.model_record("*").relative_to(rundir.models)))
    changed = changed_files(rundir)
    yield from (Damage(path, CHANGED) for path in changed)
    for name in (SCORER, grown.FILE):
        if rundir.is_changed(name):
            yield Damage(rundir.root / name, CHANGED)
    for path in (rundir.tables / "quality.json", rundir.provenance, rundir.plan, *records):
        if path not in changed and storage.exists(path):
            value = read_json(path, storage)
            if not isinstance(value, dict):
                yield Damage(path, "it can't be read as a JSON object")
            elif path == rundir.plan and (lacking := [key for key in PLAN_KEYS if not value.get(key)]):
                yield Damage(path, f"it has no value for {', '.join(lacking)}")
    if any(rundir.committed_cells()) and not storage.exists(rundir.provenance):
        yield Damage(rundir.provenance, "missing")
    for path, lines in unreadable_lines(rundir).items():
        yield Damage(path, f"{counted(lines, 'line')} can't be read", EVENTS_FIX)


def _verify_scores(plan: Plan, rundir: RunDir, history: RunHistory) -> Iterator[Damage]:
    """Scores of any protocol. Cells without one are unfinished only in a run that was to score: others only sample."""
    listing = Listing(rundir)
    lacking = [cell for cell in plan.cells if not rundir.scores_of(cell, listing)]
    for cell in lacking:
        if f"{ScoreWork.name}/{cell.id}" in history.seconds:
            yield Damage(rundir.score(cell, "*"), "missing")
        elif len(lacking) < len(plan.cells) or "evaluate" in history.stages:
            yield Damage(rundir.score(cell, "*"), NOT_SCORED)
    for path in rundir.storage.list(rundir.scores, "*.json"):
        if read_sealed(path, rundir.storage) is None:
            yield Damage(path, CHANGED)


def _verify_samples(
    cell: Cell, rundir: RunDir, listing: Listing, history: RunHistory, tick: Callable[[int], None]
) -> Iterator[Damage]:
    if not rundir.is_ready(cell.model):
        yield Damage(rundir.models / cell.model.id, NOT_TRAINED)
        return
    damages: list[Damage] = []
    metadata: dict[str, Any] | None = None
    try:
        metadata = rundir.sample_metadata(cell)
        done = rundir.sampled(cell, metadata, every_byte=False, on_damage=damages.append, listing=listing)
    except (MissingInput, WeightsChanged) as error:  # the images can be read without them
        path = rundir.weights_file(cell.model, cell.settings.weights)
        if isinstance(error, WeightsChanged):
            damages.append(Damage(path, str(error), error.fix))
        else:
            damages.append(Damage(path, f"missing; {PUT_BACK}", PUT_BACK))
        done = rundir.sampled(cell, None, every_byte=False, on_damage=damages.append, listing=listing)
    planned = {rundir.sample_part(cell, shard): shard for shard in cell.shards}
    existing = [rundir.samples / cell.name / name for name in sorted(listing.samples(cell.name))]
    # Files of done shards that do not exist were removed: their record is whole.
    whole = [path for path in existing if path not in planned or planned[path].number in done]
    damages += _read_all(whole, partial(_verify_images, shape=cell.model.image_shape, storage=rundir.storage), tick)
    yield from damages
    for path, shard in planned.items():
        if shard.number in done:
            continue
        if path not in existing:
            yield Damage(path, "missing" if path.name in history.shards.get(cell.id, {}) else NOT_SAMPLED)
        elif all(damage.path != path for damage in damages):
            yield Damage(path, NOT_SAMPLED)  # whole, but it holds fewer images than it should


class _Read(NamedTuple):
    damages: list[Damage]
    images: int
    """The number of decoded images."""


def _read_all(paths: Sequence[Path], check: Callable[[Path], _Read], tick: Callable[[int], None]) -> Iterator[Damage]:
    """The damages that `check` finds in the files, in their order."""
    with ThreadPoolExecutor(READER_THREADS) as pool:
        for damages, images in pool.map(check, paths):
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
