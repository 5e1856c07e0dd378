"""What a run directory holds, and what of it is damaged, determined once for all kinds of work."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.sources import part_bounds
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.scoring import Scoring, classes_of
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.protocol import shown
from taugrid.registry.metrics import SAMPLED


class CellState(NamedTuple):
    cell: Cell
    sampled: set[int]  # numbers of the shards whose images are complete
    extracted: set[int]  # numbers of the shards whose features are complete
    to_score: bool  # whether a score is wanted but missing, or its inputs have changed
    by_label: bool = False  # the same of its scores label by label

    @property
    def needs_features(self) -> bool:
        return self.to_score or self.by_label


class RunState(NamedTuple):
    """What exists of a run: every cell that there may be work for."""

    cells: tuple[CellState, ...]  # without those that `other_sampler` excludes
    reference: tuple[Path, ...] = ()  # the files with the reference's features, in the order of the images
    reference_missing: tuple[int, ...] = ()  # numbers of those (`eval.sources.part_bounds`) that are missing


@dataclass(frozen=True)
class Survey:
    """Finds what is missing in a run directory. Damaged files are reported and count as missing."""

    run: Run
    scoring: Scoring | None  # None: only images are wanted
    stages: frozenset[str]  # the stages that the run should do
    on_damage: Callable[[Damage], None]  # must move the file away
    selected: Plan | None = None  # the part of the run's plan that is to be done; None: all

    @property
    def plan(self) -> Plan:
        return self.selected or self.run.plan

    @property
    def rundir(self) -> RunDir:
        return self.run.rundir

    @cached_property
    def found(self) -> RunState:
        """The state when it was first read; without the stage `sample`, only cells with all their images. Raises
        `UserError` if a model is not trained yet, or a cell holds samples of other weights."""
        sampling, listing, found = "sample" in self.stages, Listing(self.rundir), list[tuple[Cell, set[int]]]()
        scoring = self.scoring if "evaluate" in self.stages else None
        paths, missing = ((), ()) if scoring is None else self._reference(scoring)
        for cell in self.plan.cells:
            if not sampling and not self.rundir.is_ready(cell.model):
                continue
            sampled = self._sampled(cell, listing)
            is_whole = len(sampled) == cell.num_shards
            if is_whole or (sampling and other_sampler(cell, self.rundir, listing) is None):
                found.append((cell, sampled))
        if scoring is None:
            return RunState(tuple(CellState(cell, sampled, set(), to_score=False) for cell, sampled in found))
        listing = Listing(self.rundir)  # anew: what came from images that are gone was removed
        wanted = [(cell, scoring.id(cell)) for cell, _ in found]
        scores = list(self.rundir.read_scores(wanted, listing))
        self.rundir.know_influences(wanted, listing)
        each = zip(found, scores, strict=True)
        states = [self._scored(cell, sampled, scoring, value, listing) for (cell, sampled), value in each]
        return RunState(tuple(states), paths, missing)

    def _sampled(self, cell: Cell, listing: Listing) -> set[int]:
        if not self.rundir.is_ready(cell.model):
            raise UserError(
                f"model {cell.model.called} is not trained yet; run `taugrid train` first, or `taugrid run` for "
                "everything"
            )
        gone: UserError | None = None
        metadata: dict[str, Any] | None = None
        try:
            metadata = self.rundir.sample_metadata(cell)
        except UserError as error:  # the weights are gone, which only matters if images are missing
            gone = error
        moved = list[Damage]()
        done = self.rundir.sampled(cell, metadata, every_byte=True, on_damage=moved.append, listing=listing)
        for damage in moved:
            self.on_damage(damage)
        if len(done) == cell.num_shards:
            return done
        if gone is not None:
            raise gone
        there = listing.samples(cell.name).keys() - {damage.path.name for damage in moved}
        vanished = [shard for shard in cell.shards if shard.number not in done and shard.name not in there]
        if vanished:
            self.rundir.forget_derived(cell, vanished, listing)
        return done

    def _scored(
        self, cell: Cell, sampled: set[int], scoring: Scoring, value: dict[str, Any] | None, listing: Listing
    ) -> CellState:
        """What is there of a cell; `value` is its score."""
        damages, id, expected = list[Damage](), scoring.id(cell), {"cell": cell.id}
        folder, scores = self.rundir.extractor_folder(scoring.extractor), listing.scores(cell)
        extracted = self.rundir.extracted(folder, cell, damages.append, listing)
        for damage in damages:
            self.on_damage(damage)
        scored = value is not None and (
            not any(column.sampling_error in value["metrics"] for column in SAMPLED)
            or self.rundir.has_intact_file(
                self.rundir.influence(cell, id), cell.settings.num_samples, self.on_damage, 0, expected, scores
            )
        )
        # Features may have been removed to save space: they are only needed for the score.
        to_score = bool(damages) or len(sampled) < cell.num_shards or not scored
        score, by_label = self.rundir.score(cell, id), False
        out_of_date = {score: scores.get(score.name)}
        if scoring.config.report.by is not None and (classes := classes_of(cell)) is not None:
            path = self.rundir.by_label(cell, scoring.by_label_id(cell))
            out_of_date[path] = self.rundir.version(path)
            by_label = to_score or not self.rundir.has_intact_file(path, classes, self.on_damage, 0, expected)
        if (to_score or by_label) and listing.has_removed_images(cell):
            there, lacking = listing.samples(cell.name), sampled - extracted
            if any(shard.number in lacking and shard.name not in there for shard in cell.shards):
                raise UserError(
                    f"{cell.label} is to be scored again, but its images were removed; delete "
                    f"{self.rundir.removal_record(cell)} to have them sampled again"
                )
        reason = "it has changed since it was written" if value is None else "what it was computed from is missing"
        for path, version in out_of_date.items() if to_score else ():  # jobs replace nothing
            # Another version is that of a driver that took this one, which was stopped, for dead.
            if version is not None and self.rundir.version(path) == version:
                self.on_damage(Damage(path, reason))
        return CellState(cell, sampled, extracted, to_score, by_label)

    def _reference(self, scoring: Scoring) -> tuple[tuple[Path, ...], tuple[int, ...]]:
        """The files of the reference's parts, and the numbers of those that are missing."""
        reference, folder = scoring.reference, self.rundir.extractor_folder(scoring.extractor)
        if reference.num_images is None:
            return (), ()  # moments are read as they are
        expected = {"reference": reference.sha256, "extractor": folder}
        paths = tuple(self.rundir.reference_parts(folder, reference))
        there = Listing(self.rundir).features(folder, paths[0].parent.name)
        missing = (
            number
            for number, (start, stop) in enumerate(part_bounds(reference.num_images))
            if not self.rundir.has_intact_file(paths[number], stop, self.on_damage, start, expected, there)
        )
        return paths, tuple(missing)


def other_sampler(cell: Cell, rundir: RunDir, listing: Listing) -> str | None:
    """Why a cell gets no more images: it has some that were made with other arguments or times than it would get now. A
    library's defaults can change with its version. ddim has none."""
    if (now := cell.sampler_block) is None:
        return None
    new = {**cell.sampler_description.arguments, "times": now["times"]}
    for name in sorted(listing.samples(cell.name)):
        path = rundir.samples / cell.name / name
        try:
            before = parquet.inspect(path, every_byte=False, storage=rundir.storage).metadata["sampler"]
        except (DamagedFile, FileNotFoundError, KeyError):
            continue
        old = {**before["arguments"], "times": before["times"]}
        for name in sorted(old.keys() | new.keys()):
            was, is_now = (json.dumps(values[name]) if name in values else None for values in (old, new))
            if was != is_now:
                versions = "".join(f" ({name} {before.get(name)})" for name in cell.sampler_description.versions)
                return (
                    f"its samples were made with {name} = {shown(was)}{versions}, but {cell.settings.sampler} now uses "
                    f"{shown(is_now)}; reinstall the old version, or sample in another run directory"
                )
    return None
