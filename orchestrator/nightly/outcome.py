"""The verdict of a night, from its comparison, and the pictures of its worst cells.

The pictures show the baseline's images above tonight's of the same noise.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from taugrid.eval.figures.pictures import before_and_after
from taugrid.eval.gate.verdict import INCOMPLETE, NO_BASELINE, REGRESSIONS, Verdict, worst
from taugrid.eval.nights import NightModel
from taugrid.hashing import identity
from taugrid.orchestrator.baseline.compared import BaselineComparison, CellComparison
from taugrid.orchestrator.baseline.matching import labels
from taugrid.orchestrator.baseline.pixels import ImageBatch
from taugrid.orchestrator.baseline.snapshot import Snapshot
from taugrid.orchestrator.baseline.text import decisive, tests, worst_first
from taugrid.orchestrator.baseline.verdict import NightBaseline, NightScore, NightVerdict
from taugrid.orchestrator.nightly.places import Night
from taugrid.orchestrator.plan.cells import name_of
from taugrid.storage import Storage

MAX_STRIPS = 4
"""The number of cells that have a picture."""

IMAGES = 8
"""The number of images in a row of a picture."""


def verdict_of(
    night: Night,
    tonight: Snapshot,
    baseline: Snapshot | None,
    comparison: BaselineComparison | None,
    missing: Mapping[str, str],
) -> NightVerdict:
    """The verdict; pictures of the worst cells are written too."""
    label_of = labels(tonight.cells)
    failed = {label_of[cell.cell]: cell.failed for cell in tonight.cells if cell.failed}
    result, strips, step = night_result(comparison, baseline, bool(failed)), None, None
    if baseline is None and not failed and not missing:
        step = _acceptance(night, tonight, "FILE")
    if baseline is not None and comparison is not None:
        strips = _strips_of_the_worst(night, tonight, baseline, comparison)
        step = _next(night, tonight, baseline, comparison, result, bool(failed))
    scores = [
        NightScore(
            cell.cell,
            cell.name,
            label_of[cell.cell],
            dict(cell.settings),
            dict(cell.metrics),
            cell.network.weights_sha256,
        )
        for cell in tonight.cells
    ]
    return NightVerdict(
        night=night.id,
        name=tonight.name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        result=result,
        missing=dict(missing),
        failed=failed,
        not_judged=() if comparison is None or missing else tuple(comparison.not_judged),
        baseline=None if baseline is None else _baseline(baseline),
        model=_networks(tonight),
        images=tonight.images,
        scores=tuple(scores),
        comparison=comparison,
        software=tonight.software,
        next=step,
        strips=strips,
    )


def night_result(
    comparison: BaselineComparison | None, baseline: Snapshot | None, has_failed: bool
) -> Verdict | Literal["no baseline", "incomplete"]:
    """The worst verdict of all cells; a cell that failed has collapsed, also if the baseline does not have it."""
    results = [] if comparison is None else [comparison.result]
    if results or has_failed:
        return worst([*results, *([Verdict.COLLAPSED] if has_failed else [])])
    return NO_BASELINE if baseline is None else INCOMPLETE


def _baseline(baseline: Snapshot) -> NightBaseline:
    accepted = baseline.accepted
    return NightBaseline(
        place=baseline.source,
        id=accepted.parquet_sha256 if accepted else None,
        accepted=accepted.accepted if accepted else None,
        reason=accepted.reason if accepted else None,
        model=_networks(baseline),
        git_commit=baseline.software.git_commit,
    )


def _networks(snapshot: Snapshot) -> tuple[NightModel, ...]:
    """The distinct networks of a run: where their weights are or were, and their SHA-256."""
    networks: dict[str | None, NightModel] = {}
    for network in (cell.network for cell in snapshot.cells if cell.images is None):
        place = network.folder or network.weights_file or network.callable
        networks[network.weights_sha256] = NightModel(place, network.weights_sha256)
    return tuple(networks.values())


def _next(
    night: Night, tonight: Snapshot, baseline: Snapshot, comparison: BaselineComparison, result: str, has_failed: bool
) -> str:
    """The next step: find out why cells fail, sample more, or make tonight's network the baseline."""
    if has_failed:
        return "find out why the cells above fail; this night can't be a baseline"
    if result == Verdict.UNDECIDED:
        return _to_decide([cell for cell in comparison.cells if cell.result == Verdict.UNDECIDED])
    to = baseline.source if baseline.accepted else "FILE"
    if comparison.only_baseline:
        return (
            "a run of the cells that only the baseline has; later nights lack them if you accept this one: "
            f"{_acceptance(night, tonight, to)}"
        )
    if result in REGRESSIONS:
        return f"if the change is meant, {_acceptance(night, tonight, to, ' --force')}"
    return _acceptance(night, tonight, to)


def _to_decide(undecided: Sequence[CellComparison]) -> str:
    """The way to decide more of the undecided cells; empty if more images may decide nothing."""
    needed = [n for cell in undecided if (n := decisive(cell)) is not None]
    if any(cell.grows for cell in undecided):
        return f"to decide more, sample the undecided cells again with `--grow-to {max(needed, default='N')}`"
    return "to decide more, let baseline and nights have more images" if needed else ""


def _acceptance(night: Night, tonight: Snapshot, to: str, force: str = "") -> str:
    what = f"{night.run_name} --to {to} --reason TEXT{force}"
    if (images := tonight.images) is not None:
        what = f"{images.path} {images.options} --to {to} --reason TEXT"
    command = f"`taugrid baseline accept {what}`"
    return f"{command} makes tonight the measure of later nights"


class BeforeAndAfter(NamedTuple):
    """A cell of the night with its images 0 to n - 1 on both sides; None where they are gone."""

    label: str
    baseline: ImageBatch | None
    tonight: ImageBatch | None


def _strips_of_the_worst(
    night: Night, tonight: Snapshot, baseline: Snapshot, comparison: BaselineComparison
) -> dict[str, str]:
    """Label -> path from the summary, of the pictures of the worst cells that are undecided or worse."""
    before = {cell.cell: cell for cell in baseline.cells}
    now = {cell.cell: cell for cell in tonight.cells}
    pairs = [
        BeforeAndAfter(cell.label, before[cell.baseline_cell].load_first(), now[cell.cell].load_first())
        for cell in sorted(comparison.cells, key=worst_first)[:MAX_STRIPS]
        if cell.result.rank <= Verdict.UNDECIDED.rank
        and any(metric.value is not None for metric in tests(cell).values())  # it has not failed
    ]
    files = strips(pairs, night.strips, night.storage)
    return {label: path.relative_to(night.folder).as_posix() for label, path in files.items()}


def strips(pairs: Sequence[BeforeAndAfter], folder: Path, storage: Storage) -> dict[str, Path]:
    """Write a PNG for each of the first `MAX_STRIPS` cells that have images, and remove all others from the folder.

    A picture has two rows: the first `IMAGES` images of the baseline, and tonight's of the same indices. If one side
    lacks them, its row says so. Returns the cell's label -> the file.
    """
    sides = {pair.label: (_pixels(pair.baseline), _pixels(pair.tonight)) for pair in pairs}
    shown = [(label, both) for label, both in sides.items() if any(side is not None for side in both)][:MAX_STRIPS]
    written: dict[str, Path] = {}
    if shown:
        with storage.local_folder(folder) as local:
            for label, both in shown:
                name = f"{_file_name(label)}.png"
                before_and_after(*both, local / name)
                written[label] = folder / name
    for path in storage.list(folder, "*.png"):
        if path not in written.values():
            storage.delete(path)
    return written


def _pixels(images: ImageBatch | None) -> ImageBatch | None:
    """The first `IMAGES` images, (n, C, H, W), as (n, H, W, C) for the picture."""
    return None if images is None or not len(images) else images[:IMAGES].transpose(0, 2, 3, 1)


def _file_name(label: str) -> str:
    """The label as a file name. If characters had to be replaced, a hash is added to keep names distinct."""
    plain = label.replace(" ", "-")
    name = name_of([plain])
    return name if name == plain else f"{name}-{identity({'label': label})}"
