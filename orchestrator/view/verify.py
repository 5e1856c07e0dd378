"""`taugrid verify`: reads every byte of a run directory, and says what is damaged and what to do."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
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

PLAN_KEYS = ("config_sha256", "models", "cells")  # keys of plan.json, which has no hash

NOT_TRAINED, NOT_SAMPLED, NOT_SCORED = "not trained yet", "not sampled yet", "not scored yet"
NOT_REPORTED = "not made yet"
UNFINISHED = (NOT_TRAINED, NOT_SAMPLED, NOT_SCORED, NOT_REPORTED)
"""The reasons for files that an unfinished run lacks, which are not damage."""


class Verified(NamedTuple):
    """The damaged files of a run directory, and those that were never made."""

    damages: list[Damage]
    unfinished: list[Damage]  # the files that the run has not made yet


def verify(run: Run, tick: Callable[[int], None]) -> Verified:
    """Re-read every file of a run and decode every image, calling `tick(n)` after n images.

    Missing features are not damage: they are needed only to score, and may be deleted. With damage, the ledger then
    names nothing but the damaged files, so that the next run reads all; nothing else is changed. Several files are read
    at a time, since reading, hashing and decoding release Python's lock."""
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
    decode, inspect = (partial(_read, storage=rundir.storage, decodes=decodes) for decodes in (True, False))
    for name in rundir.committed_cells({cell.id for cell in plan.cells}):
        yield from _read_all(rundir.storage.list(rundir.samples / name, PARTS), decode, tick)
    listing = Listing(rundir)
    for cell in plan.cells:
        yield from _verify_samples(cell, rundir, listing, history, tick)
    others = (kind for kind in work_kinds() if kind.folder != rundir.samples.name)  # whose files are not decoded
    paths = [path for kind in others for path in rundir.storage.list(rundir.root / kind.folder, kind.files)]
    yield from _read_all(sorted(paths), inspect, tick)
    yield from _verify_scores(plan, rundir, history)
    yield from _verify_statistics(rundir)
    yield from _verify_documents(rundir)
    if "report" in history.stopped:
        yield from (Damage(rundir.root / name, NOT_REPORTED) for name in lacking_pages(rundir))


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
    check = partial(_read, storage=rundir.storage, decodes=True, shape=cell.model.image_shape)
    damages += _read_all(whole, check, tick)
    yield from damages
    for path, shard in planned.items():
        if shard.number in done:
            continue
        if path not in existing:
            yield Damage(path, "missing" if path.name in history.shards.get(cell.id, {}) else NOT_SAMPLED)
        elif all(damage.path != path for damage in damages):
            yield Damage(path, NOT_SAMPLED)  # whole, but it holds fewer images than it should


Read = tuple[list[Damage], int]  # the damage of a file, and the number of its images that were decoded


def _read_all(paths: Sequence[Path], check: Callable[[Path], Read], tick: Callable[[int], None]) -> Iterator[Damage]:
    """The damages that `check` finds in the files, in their order."""
    with ThreadPoolExecutor(READER_THREADS) as pool:
        for damages, images in pool.map(check, paths):
            tick(images)
            yield from damages


def _read(path: Path, storage: Storage, decodes: bool, shape: tuple[int, int, int] | None = None) -> Read:
    """Read a Parquet file, and decode its images; `shape` is (channels, height, width), or None if it is not known."""
    images = 0
    try:
        with storage.local_path(path) as local:
            parquet.inspect(local)
            for index, batch in parquet.read_images(local) if decodes else ():
                if shape is not None and batch.shape[1:] != shape:
                    raise DamagedFile(f"its images have shape {batch.shape[1:]}, not {shape}")
                images += len(index)
    except (DamagedFile, ValueError) as error:
        return [Damage(path, str(error).removeprefix(f"{local}: "))], images
    return [], images


def unfinished_in_words(unfinished: Sequence[Damage], rundir: RunDir) -> list[str]:
    """A line with the numbers of files that were never made; none if nothing is missing."""
    counts = Counter(lack.reason for lack in unfinished)
    nouns = {NOT_TRAINED: "model", NOT_SAMPLED: "shard", NOT_SCORED: "cell"}
    phrases = [f"{counted(counts[reason], noun)} {reason}" for reason, noun in nouns.items() if counts[reason]]
    if not phrases:
        return []
    holder = Lease(rundir).live_holder()
    continues = f"`taugrid run {rundir.shown}` continues"
    if holder is not None:
        continues = f"a driver is running here ({holder})"
    return [f"{', '.join(phrases)}; {continues}"]


def remarks(rundir: RunDir) -> list[str]:
    """A remark on missing pages, which are not damage."""
    lacking = lacking_pages(rundir)
    return [f"{', '.join(lacking)}: not there; `taugrid report {rundir.shown}` makes them"] if lacking else []


@dataclass(frozen=True)
class Diagnosis:
    run: Run
    images: int  # the number of decoded images
    verified: Verified

    @cached_property
    def damaged(self) -> list[dict[str, Any]]:
        """The problems: file, cell or other owner, reason, and what to do: the fix, or a command."""
        rundir = self.run.rundir
        return [
            {
                "path": (shown := rundir.relative(damage.path)),
                "of": self.run.plan.label_in(shown),
                "reason": damage.reason,
                "next": damage.fix or f"taugrid run {rundir.shown}",
            }
            for damage in self.verified.damages
        ]

    @property
    def document(self) -> dict[str, Any]:
        rundir = self.run.rundir
        lacking = [{"path": rundir.relative(one.path), "reason": one.reason} for one in self.verified.unfinished]
        return {"dir": rundir.shown, "images": self.images, "damaged": self.damaged, "unfinished": lacking}

    @property
    def problems(self) -> list[str]:
        lines = []
        for shown, damage in zip(self.damaged, self.verified.damages, strict=True):
            more = f"; {damage.fix}" if damage.fix not in damage.reason else ""
            of = f" ({shown['of']})" if shown["of"] else ""
            lines.append(f"{shown['path']}{of}: {damage.reason}{more}")
        return lines

    @property
    def verdict(self) -> str:
        """The number of decoded images, and whether there are problems."""
        lacking = [*self.verified.unfinished, *remarks(self.run.rundir)]
        scored = self.run.rundir.storage.list(self.run.rundir.scores, "*.json")
        intact = "everything is intact" if scored and not lacking else "what is there is intact"
        intact += "" if scored else "; no cell is scored"
        verdict = f"{counted(len(self.damaged), 'problem')} found" if self.damaged else intact
        removed = sum(map(Listing(self.run.rundir).has_removed_images, self.run.plan.cells))
        of_removed = f"; images removed: {counted(removed, 'cell')}, whose records are checked" if removed else ""
        return f"{counted(self.images, 'image')} decoded{of_removed}; {verdict}"

    @property
    def advice(self) -> list[str]:
        """The command that makes damaged files again, the unfinished work, and remarks."""
        rundir = self.run.rundir
        damaged = sum(not damage.fix for damage in self.verified.damages)
        again = f"`taugrid run {rundir.shown}` makes {counted(damaged, 'file')} again; delete what it leaves damaged"
        unfinished = unfinished_in_words(self.verified.unfinished, rundir)
        return [*([again] if damaged else []), *unfinished, *remarks(rundir)]
