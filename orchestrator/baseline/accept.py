"""Accepts a run as a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from taugrid.errors import NOT_WRITABLE, UserError
from taugrid.eval.gate.rule import MIN_TRAININGS
from taugrid.eval.gate.verdict import REGRESSIONS
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.compared import DEFAULT_METRICS, GateSettings, gate_of
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import open_baseline, parquet_beside, read_baseline, write_baseline
from taugrid.orchestrator.baseline.images import ImagesRequest, snapshot_of_images
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import (
    MISSING_INFLUENCES,
    Snapshot,
    SnapshotCell,
    TrainingScores,
    require_scores,
    snapshot_of_opened,
)
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.work.scorer import FILE
from taugrid.registry.metrics import METRICS, SAMPLED
from taugrid.storage import read_sealed
from taugrid.words import counted

VERDICT = "verdict.json"
"""The file beside the run of a complete night."""


def accept(directories: Sequence[str], file: str, reason: str, force: bool = False) -> dict[str, Any]:
    """Write a run as the baseline file `file`, a path or a URL, and return the content of its JSON.

    Several runs are training runs of one recipe, which differ only in `train.seed`: later nights are compared with
    their mean. The canaries use the images and the network of the first.

    An existing baseline is replaced; if the run is worse than it, or can't be compared with it, the file has a remark.
    `force` accepts the run of a night that was judged a regression, with a remark too.

    Raises:
        UserError: if one is not a run directory, has unscored cells, was judged worse, or is from another recipe; or if
            the existing file is not a baseline.
    """
    open_baseline(file, "--to")
    if 1 < len(directories) < MIN_TRAININGS:
        raise UserError(
            f"give one DIR, or at least {MIN_TRAININGS}: two trainings are too few to estimate a recipe's spread"
        )
    runs = [open_existing(directory) for directory in directories]
    complete = [_complete(run, force) for run in runs]
    snapshot, remarks = complete[0][0], [remark for _, remarks in complete for remark in remarks]
    if len(runs) > 1:
        _require_one_recipe(runs)
        snapshot = _recipe([training for training, _ in complete])
    return _accept(snapshot, remarks, file, reason, gate_of(runs[0].config))


def accept_images(place: str, request: ImagesRequest, file: str, reason: str, progress: Progress) -> dict[str, Any]:
    """As `accept` for images in a folder, .npz or Parquet, which are scored in this process.

    Raises:
        UserError: if they can't be scored as requested, or no metric has a standard error.
    """
    open_baseline(file, "--to")
    snapshot = snapshot_of_images(place, request, progress)
    remarks = _require_judgeable(snapshot, request.metrics or DEFAULT_METRICS, place)
    return _accept(snapshot, remarks, file, reason, request.gate(), {"images": request.recorded})


def _accept(
    snapshot: Snapshot, remarks: list[str], file: str, reason: str, gate: GateSettings, more: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Write the baseline file, with remarks on the one that it replaces."""
    path, storage = open_baseline(file, "--to")
    replaces = None
    if storage.exists(path):
        before = read_baseline(path, storage)
        assert before.accepted is not None
        replaces = str(before.accepted["parquet_sha256"])
        try:
            comparison = compare_snapshots(snapshot, before, gate)
        except UserError as error:
            remarks.append(f"it could not be compared with the baseline that it replaces: {error}")
        else:
            snapshot = _with_distances(snapshot, before)
            worse = [cell.label for cell in comparison.cells if cell.result in REGRESSIONS]
            if worse:
                remarks.append(f"accepted although worse than the baseline that it replaces: {', '.join(worse)}")
    elif storage.exists(parquet_beside(path)):
        beside = parquet_beside(path).name
        raise UserError(f"--to {file}: {beside} exists without it; remove that, or give another --to")
    try:
        return write_baseline(snapshot, path, storage, reason, remarks, {"replaces": replaces, **more})
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(f"--to {file}: can't write to {path.parent} ({error.strerror}); give another folder") from None


def _with_distances(snapshot: Snapshot, before: Snapshot) -> Snapshot:
    """The snapshot with the distances between environments that the previous baseline had accepted."""
    accepted = {new.cell: old.distances for new, old in matched(snapshot, before).pairs}
    cells = (replace(cell, distances={**accepted.get(cell.cell, {}), **cell.distances}) for cell in snapshot.cells)
    return replace(snapshot, cells=tuple(cells))


def _require_one_recipe(runs: Sequence[Run]) -> None:
    """Raise `UserError` if the configs of the runs differ in their training by more than its seed."""
    for run in runs[1:]:
        if _training_of(run) != _training_of(runs[0]):
            raise UserError(
                f"{run.rundir.shown} is not from {runs[0].rundir.shown}'s recipe: the sections model, data, "
                "diffusion or train differ in more than train.seed"
            )


def _training_of(run: Run) -> dict[str, Any]:
    """The config of a run's training without its seed; of a loaded network, only its diffusion."""
    config = run.config.model_dump(mode="json")
    config["train"].pop("seed", None)
    sections = ("model", "train", "data") if run.plan.trained_here else ()
    diffusions = {json_sha256(model.diffusion.recorded) for model in run.plan.models}
    return {section: config[section] for section in sections} | {"diffusion": diffusions}


def _complete(run: Run, force: bool) -> tuple[Snapshot, list[str]]:
    """The snapshot of a run and remarks; `UserError` unless all its cells are scored."""
    directory = run.rundir.shown
    snapshot, remarks = _after_its_night(require_scores(snapshot_of_opened(run)), run, force)
    if snapshot.unscored:
        count, first = counted(len(snapshot.unscored), "cell"), next(iter(snapshot.unscored.values()))
        raise UserError(f"{directory} has {count} without a score ({first}); `taugrid run` completes it")
    if run.rundir.is_changed(FILE):
        raise UserError(f"{directory}: {FILE} was changed or is damaged; `taugrid run {directory}` makes it again")
    for cell in snapshot.cells:
        if cell.lacking:
            raise UserError(f"{directory}: {cell.name}: {MISSING_INFLUENCES}")
    return snapshot, [*remarks, *_require_judgeable(snapshot, run.config.gate.metrics or DEFAULT_METRICS, directory)]


def _require_judgeable(snapshot: Snapshot, names: Sequence[str], place: str) -> list[str]:
    """Raise `UserError` for cells without any of the metrics `names`; a remark if no cell has an error of one."""
    columns = [column for name in names for column in METRICS[name].columns if column.sampling_error]
    if not all(any(cell.has(column.name) for column in columns) for cell in snapshot.cells):
        listed = " or ".join(names)
        raise UserError(f"{place} has cells without {listed}, by which later runs are judged; add it to "
                        "evaluate.metrics")  # fmt: skip
    if any(cell.scored(column.name) for cell in snapshot.cells for column in columns):
        return []
    titles = " or ".join(column.title for column in columns if snapshot.cells[0].has(column.name))
    why = f" ({reason})" if (reason := snapshot.cells[0].reason) else ""
    return [f"no cell has a standard error of {titles}{why}, so nothing can be judged against it"]


def _recipe(trainings: Sequence[Snapshot]) -> Snapshot:
    """The snapshot of the first training run, with the scores of the others in its cells' `trainings`."""
    first, cells = trainings[0], []
    others = [_same_cells(training, first) for training in trainings[1:]]
    hashes = [cell.network.weights_sha256 for training in trainings for cell in training.cells[:1]]
    if len(set(hashes)) < len(hashes):
        raise UserError("two DIRs have the same weights; a recipe's trainings need different seeds")
    for cell in first.cells:
        same = [cells_of[cell.cell] for cells_of in others]
        found = replace(cell, trainings=tuple(TrainingScores(other.metrics, other.influences) for other in same))
        seeds_differ = any(other.seed_set != cell.seed_set for other in same)
        if seeds_differ or not any(found.scored(column.name) for column in SAMPLED):
            reasons = (other.reason for other in (cell, *same) if other.reason)
            why = "its trainings have samples of other seeds" if seeds_differ else next(reasons, "no standard error")
            raise UserError(
                f"{cell.name}: {why}; a recipe needs a metric's standard error, and the same `sample.seed`, in every "
                "training"
            )
        cells.append(found)
    return replace(first, cells=tuple(cells), trainings=tuple(training.source for training in trainings))


def _same_cells(training: Snapshot, first: Snapshot) -> dict[str, SnapshotCell]:
    """Cell id of the first training -> the same cell of `training`."""
    pairs, only_new, only_first = matched(training, first)
    if only_new or only_first:
        raise UserError(
            f"{training.source} and {first.source} have different cells; a recipe's trainings have the same grid"
        )
    return {old.cell: new for new, old in pairs}


def _after_its_night(snapshot: Snapshot, run: Run, force: bool) -> tuple[Snapshot, list[str]]:
    """The snapshot of a night's run with the distances that its canaries measured, and remarks on its verdict.

    Accepting the night accepts these distances between images of different software or devices.
    """
    folder, storage = run.rundir.around
    verdict = read_sealed(folder / VERDICT, storage)
    if verdict is None:
        if folder.parent.name != "nights" or force:
            return snapshot, []
        state = f"{VERDICT} was changed or is damaged" if storage.exists(folder / VERDICT) else "it is not finished"
        raise UserError(
            f"night {folder.name} has no verdict ({state}); finish it with `taugrid nightly`, or add --force"
        )
    remarks = []
    if verdict["result"] in REGRESSIONS:
        if not force:
            raise UserError(
                f"night {verdict['night']} was judged {verdict['result']}; if it shall be the baseline of later "
                "nights, add --force"
            )
        remarks.append(f"accepted although night {verdict['night']} was judged {verdict['result']}")
    checks = {cell["cell"]: cell.get("sampler") or {} for cell in (verdict["comparison"] or {"cells": []})["cells"]}
    checks = {name: check for name, check in checks.items() if check.get("distance") is not None}
    if checks:
        largest = max(check["distance"] for check in checks.values())
        remarks.append(
            f"its software or device was new: images up to {largest:.2g} grey levels from the last baseline's, on "
            "average, are accepted for this change, and twice that is allowed later"
        )
    measured = {name: {check["pair"]: check["distance"]} for name, check in checks.items()}
    cells = tuple(replace(cell, distances={**cell.distances, **measured.get(cell.cell, {})}) for cell in snapshot.cells)
    return replace(snapshot, cells=cells), remarks
