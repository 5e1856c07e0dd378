"""Accepts a run as a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taugrid.errors import NOT_WRITABLE, UserError
from taugrid.eval.gate.verdict import REGRESSIONS
from taugrid.orchestrator.baseline.compared import DEFAULT_METRICS, GateSettings, gate_of
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import (
    Baseline,
    open_baseline,
    parquet_beside,
    read_baseline,
    write_baseline,
)
from taugrid.orchestrator.baseline.images import snapshot_of_images
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import (
    MISSING_INFLUENCES,
    ImagesRequest,
    Snapshot,
    require_scores,
    snapshot_of_opened,
)
from taugrid.orchestrator.baseline.verdict import VERDICT, NightVerdict
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.work.scorer import FILE
from taugrid.registry.metrics import METRICS
from taugrid.storage import read_sealed
from taugrid.words import counted


def accept(directory: str, file: str, reason: str, force: bool = False) -> Baseline:
    """Write a run as the baseline file `file`, a path or a URL, and return the content of its JSON.

    An existing baseline is replaced; if the run is worse than it, or can't be compared with it, the file has a remark.
    `force` accepts the run of a night that was judged a regression, with a remark too.

    Raises:
        UserError: if it is not a run directory, has unscored cells, or was judged worse; or if the existing file is not
            a baseline.
    """
    open_baseline(file, "--to")
    run = open_existing(directory)
    return _accept(*_complete(run, force), file, reason, gate_of(run.config))


def accept_images(place: str, request: ImagesRequest, file: str, reason: str, progress: Progress) -> Baseline:
    """As `accept` for images in a folder, .npz or Parquet, which are scored in this process.

    Raises:
        UserError: if they can't be scored as requested, or no metric has a standard error.
    """
    open_baseline(file, "--to")
    snapshot = snapshot_of_images(place, request, progress)
    remarks = _require_judgeable(snapshot, request.metrics or DEFAULT_METRICS, place)
    return _accept(snapshot, remarks, file, reason, GateSettings(metrics=request.metrics or None), request)


def _accept(
    snapshot: Snapshot,
    remarks: list[str],
    file: str,
    reason: str,
    gate: GateSettings,
    images: ImagesRequest | None = None,
) -> Baseline:
    """Write the baseline file, with remarks on the one that it replaces."""
    path, storage = open_baseline(file, "--to")
    replaces = None
    if storage.exists(path):
        before = read_baseline(path, storage)
        replaces = before.accepted.parquet_sha256 if before.accepted else None
        try:
            comparison = compare_snapshots(snapshot, before, gate)
        except UserError as error:
            remarks.append(f"it could not be compared with the baseline that it replaces: {error}")
        else:
            # The distances between environments that the previous baseline had accepted stay accepted.
            accepted = {new.cell: old.distances for new, old in matched(snapshot, before).pairs}
            snapshot = _with_distances(snapshot, accepted)
            worse = [cell.label for cell in comparison.cells if cell.result in REGRESSIONS]
            if worse:
                remarks.append(f"accepted although worse than the baseline that it replaces: {', '.join(worse)}")
    elif storage.exists(parquet_beside(path)):
        beside = parquet_beside(path).name
        raise UserError(f"--to {file}: {beside} exists without it; remove that, or give another --to")
    try:
        return write_baseline(snapshot, path, storage, reason, remarks, replaces, images)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(f"--to {file}: can't write to {path.parent} ({error.strerror}); give another folder") from None


def _with_distances(snapshot: Snapshot, accepted: Mapping[str, Mapping[str, float]]) -> Snapshot:
    """The snapshot with further accepted distances of its cells, by their ids; its own are kept."""
    cells = (replace(cell, distances={**accepted.get(cell.cell, {}), **cell.distances}) for cell in snapshot.cells)
    return replace(snapshot, cells=tuple(cells))


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
    if not all(any(column.name in cell.metrics for column in columns) for cell in snapshot.cells):
        listed = " or ".join(names)
        raise UserError(f"{place} has cells without {listed}, by which later runs are judged; add it to "
                        "evaluate.metrics")  # fmt: skip
    if any(cell.scored(column.name) for cell in snapshot.cells for column in columns):
        return []
    titles = " or ".join(column.title for column in columns if column.name in snapshot.cells[0].metrics)
    why = f" ({reason})" if (reason := snapshot.cells[0].reason) else ""
    return [f"no cell has a standard error of {titles}{why}, so nothing can be judged against it"]


def _after_its_night(snapshot: Snapshot, run: Run, force: bool) -> tuple[Snapshot, list[str]]:
    """The snapshot of a night's run with the distances that its canaries measured, and remarks on its verdict.

    Accepting the night accepts these distances between images of different software or devices.
    """
    folder, storage = run.rundir.around
    value = read_sealed(folder / VERDICT, storage)
    if value is None:
        if folder.parent.name != "nights" or force:
            return snapshot, []
        state = f"{VERDICT} was changed or is damaged" if storage.exists(folder / VERDICT) else "it is not finished"
        raise UserError(
            f"night {folder.name} has no verdict ({state}); finish it with `taugrid nightly`, or add --force"
        )
    verdict, remarks = NightVerdict.read(value, folder), list[str]()
    if verdict.result in REGRESSIONS:
        if not force:
            raise UserError(
                f"night {verdict.night} was judged {verdict.result}; if it shall be the baseline of later "
                "nights, add --force"
            )
        remarks.append(f"accepted although night {verdict.night} was judged {verdict.result}")
    cells = verdict.comparison.cells if verdict.comparison else ()
    checks = [(cell.cell, cell.sampler.pair, cell.sampler.distance) for cell in cells]
    measured = {cell: {pair: far} for cell, pair, far in checks if pair is not None and far is not None}
    if measured:
        largest = max(far for distances in measured.values() for far in distances.values())
        remarks.append(
            f"its software or device was new: images up to {largest:.2g} grey levels from the last baseline's, on "
            "average, are accepted for this change, and twice that is allowed later"
        )
    return _with_distances(snapshot, measured), remarks
