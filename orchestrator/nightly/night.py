"""One night, from its run to its verdict. Called again, it continues; a complete night is left unchanged.

A night has four steps: check, run, judge (with canaries, and a second look at cells with suspicious scores), write. A
night of external images has their scores in place of a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from taugrid.errors import UserError
from taugrid.eval.gate.verdict import INCOMPLETE, NO_BASELINE, REGRESSIONS, Verdict, worst
from taugrid.eval.nights import NightModel
from taugrid.eval.sources import open_images
from taugrid.orchestrator import STAGES
from taugrid.orchestrator.baseline.compared import (
    BaselineComparison,
    GateSettings,
    NightBaseline,
    NightScore,
    NightVerdict,
    gate_of,
)
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import snapshot_of
from taugrid.orchestrator.baseline.images import request_of, snapshot_of_images
from taugrid.orchestrator.baseline.matching import labels
from taugrid.orchestrator.baseline.snapshot import ImagesRequest, Snapshot, planned_snapshot, snapshot_of_opened
from taugrid.orchestrator.baseline.text import decisive
from taugrid.orchestrator.dispatch.cluster import Connection
from taugrid.orchestrator.external import user_errors_of
from taugrid.orchestrator.nightly.before import check_comparable, check_same_night, standard_error_problem
from taugrid.orchestrator.nightly.history import (
    remove_images,
    since_last_removal,
    without_newest,
    write_history,
)
from taugrid.orchestrator.nightly.judging import Resampler, judge_night
from taugrid.orchestrator.nightly.places import History, Night, open_history
from taugrid.orchestrator.nightly.summary import strips_of_the_worst, write_night
from taugrid.orchestrator.opened import open_to_run
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.extension import labels_begun, orphans_in_words
from taugrid.orchestrator.rundir.lease import sole_driver
from taugrid.orchestrator.session import Session
from taugrid.storage import write_sealed
from taugrid.words import with_urls


@dataclass(frozen=True, kw_only=True)
class NightRequest:
    """What `taugrid nightly` was asked for: a night of `samples` has no config, and the other way round."""

    history: str  # a folder or a URL
    baseline: str | None  # a file or run directory; None: baseline.json in the history, if there is one
    night: str | None  # its id; None: that of an unfinished night, or the date
    gate: GateSettings  # without metrics, which the config or the baseline names
    break_lock: bool
    trust_code: bool
    config: str = ""
    assignments: tuple[str, ...] = ()
    keep_images: int | None = None  # the number of nights whose images are kept; None: all
    grow_to: int | None = None  # the N with which undecided cells are sampled again; None: they are not
    address: str = "local"
    samples: str = ""  # a folder, .npz or Parquet
    # The fields of `ImagesRequest` that were given; the others are the baseline's.
    scoring: Mapping[str, Any] = field(default_factory=dict)


def run_night(request: NightRequest, progress: Progress) -> tuple[Night, NightVerdict]:
    """Run or resume a night, judge it, and add it to the history. Raises `UserError` if something must be changed
    first, such as an N that gives no metric a standard error, and `RunFailed` if the run could not go on."""
    history = open_history(request.history)
    with sole_driver(history, request.break_lock, progress.say), Connection(request.address) as ray:
        run, night = _open_night(request, history, progress)
        if (verdict := night.verdict) is not None:
            check_same_night(run, night, verdict)
            return _complete(history, night, verdict, progress)
        if (orphans := orphans_in_words(run.config, run.plan, run.rundir)) is not None:
            raise night.other(f"is not finished, and {orphans}")
        named = gate_of(run.config)
        gate = replace(request.gate, metrics=named.metrics, margin_floor=named.margin_floor)
        if (problem := standard_error_problem(run)) is not None:
            raise UserError(problem)
        baseline = _baseline_of(request.baseline, history)
        if baseline is not None:
            check_comparable(planned_snapshot(run), baseline, run)  # before anything is sampled
        outcome = Session(run, ray, progress).do(STAGES, request.break_lock)
        failed = {name: reason for name, reason in outcome.missing.items() if name in outcome.permanent_failures}
        missing = {name: reason for name, reason in outcome.missing.items() if name not in failed}
        tonight, comparison = snapshot_of_opened(run, failed), None
        if tonight.cells and baseline is not None:
            resampler = Resampler(run.config, night, ray, request.trust_code, progress, tonight, missing)
            comparison = judge_night(baseline, gate, request.grow_to, resampler)
            missing |= comparison.missing
        verdict = _written(night, tonight, baseline, comparison, missing)
        if verdict.missing:
            return night, verdict
        nights = write_history(history)
        if request.keep_images is not None:
            remove_images(since_last_removal(without_newest(nights, request.keep_images)), progress.say)
        return night, verdict


def run_night_of_images(request: NightRequest, progress: Progress) -> tuple[Night, NightVerdict]:
    """Score tonight's images in this process, judge them in one stage, and add the night to the history. A complete
    night is left unchanged. An interrupted one leaves nothing but features in the user's cache. Raises `UserError` if
    images, reference, weights or settings can't be used, or the night's id is that of another night."""
    history = open_history(request.history)
    with sole_driver(history, request.break_lock, progress.say):
        night = history.night(request.night or today())
        if (verdict := night.verdict) is not None:
            with user_errors_of(progress):
                sha256 = open_images(request.samples).sha256
            if verdict.images is None or verdict.images.sha256 != sha256:
                raise night.other("is complete, but not of these images")
            return _complete(history, night, verdict, progress)
        if night.storage.exists(night.run / "config.json"):
            raise night.other("has a run, which CONFIG finishes")
        baseline, scoring = _baseline_of(request.baseline, history), request.scoring
        if baseline is not None:
            images = request_of(baseline, request.trust_code, **scoring)
        elif "reference" in scoring:
            images = ImagesRequest(**scoring, trust_code=request.trust_code)
        else:
            raise UserError("--reference is missing; give what the images are scored against")
        tonight, comparison = snapshot_of_images(request.samples, images, progress, "--samples"), None
        if baseline is not None:
            comparison = compare_snapshots(tonight, baseline, replace(request.gate, metrics=images.metrics or None))
        verdict = _written(night, tonight, baseline, comparison, {})
        write_history(history)
        return night, verdict


def today() -> str:
    """The id of a night that has no other."""
    return datetime.now(UTC).date().isoformat()


def _complete(history: History, night: Night, verdict: NightVerdict, progress: Progress) -> tuple[Night, NightVerdict]:
    progress.say(f"night {night.id} is complete; nothing to do")
    write_history(history)  # maybe the process was killed after it had written the verdict
    return night, verdict


def _open_night(request: NightRequest, history: History, progress: Progress) -> tuple[Run, Night]:
    """Tonight's run: the named one, or an unfinished one of the same cells, or a new one under today's date."""

    def run_of(night: Night) -> Run:
        return open_to_run(
            request.config,
            request.assignments,
            night.run_name,
            request.address,
            trust_code=request.trust_code,
            same_checkpoints=True,
        )

    night = history.night(request.night or today())
    if request.night is None:
        for unfinished in history.read().unfinished:
            if unfinished.id == night.id:
                continue
            run = run_of(unfinished)
            cells = {cell.name for cell in run.plan.cells}  # all cells that the night began with, sampled or not
            if orphans_in_words(run.config, run.plan, run.rundir) is None and labels_begun(run.rundir).keys() <= cells:
                progress.say(f"night {unfinished.id} was not finished; it is continued")
                return run, unfinished
            progress.say(
                f"night {unfinished.id} was not finished and can't be: its checkpoint or config has changed since; "
                f"remove {with_urls(str(unfinished.folder))} to forget it"
            )
    return run_of(night), night


def _baseline_of(given: str | None, history: History) -> Snapshot | None:
    """The baseline that is `given`, or that of the history; None if there is none."""
    if given is None and history.storage.exists(history.default_baseline):
        given = with_urls(str(history.default_baseline))
    return None if given is None else snapshot_of(given)


def _written(
    night: Night,
    tonight: Snapshot,
    baseline: Snapshot | None,
    comparison: BaselineComparison | None,
    missing: Mapping[str, str],
) -> NightVerdict:
    """The verdict of a night, whose files are written: verdict.json too, if nothing is missing."""
    label_of = labels(tonight.cells)
    failed = {label_of[cell.cell]: cell.failed for cell in tonight.cells if cell.failed}
    result, strips, step, against = night_result(comparison, baseline, bool(failed)), None, None, None
    if baseline is not None:
        accepted = baseline.accepted
        against = NightBaseline(
            place=baseline.source,
            id=accepted.parquet_sha256 if accepted else None,
            accepted=accepted.accepted if accepted else None,
            reason=accepted.reason if accepted else None,
            model=_networks(baseline),
            git_commit=baseline.software.git_commit,
        )
    elif not failed and not missing:
        step = _acceptance(night, tonight, "FILE")
    if baseline is not None and comparison is not None:
        strips = strips_of_the_worst(night, tonight, baseline, comparison)
        step = _next(night, tonight, baseline, comparison, result, bool(failed))
    verdict = NightVerdict(
        night=night.id,
        name=tonight.name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        result=result,
        missing=dict(missing),
        failed=failed,
        not_judged=() if comparison is None or missing else tuple(comparison.not_judged),
        baseline=against,
        model=_networks(tonight),
        images=tonight.images,
        scores=tuple(
            NightScore(
                cell.cell,
                cell.name,
                label_of[cell.cell],
                dict(cell.settings),
                dict(cell.metrics),
                cell.network.weights_sha256,
            )
            for cell in tonight.cells
        ),
        comparison=comparison,
        software=tonight.software,
        next=step,
        strips=strips,
    )
    write_night(night, verdict)
    if not verdict.missing:
        write_sealed(night.verdict_file, verdict.as_dict(), night.storage)
    return verdict


def night_result(
    comparison: BaselineComparison | None, baseline: Snapshot | None, has_failed: bool
) -> Verdict | Literal["no baseline", "incomplete"]:
    """The worst verdict of all cells; a cell that failed has collapsed, also if the baseline does not have it."""
    results = [] if comparison is None else [comparison.result]
    if results or has_failed:
        return worst([*results, *([Verdict.COLLAPSED] if has_failed else [])])
    return NO_BASELINE if baseline is None else INCOMPLETE


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
    """The next step: sample more, or make tonight's network the baseline; empty if that would lose cells."""
    if result == Verdict.UNDECIDED:
        undecided = [cell for cell in comparison.cells if cell.result == Verdict.UNDECIDED]
        needed = [n for cell in undecided if (n := decisive(cell)) is not None]
        if any(cell.grows for cell in undecided):
            grow = f"--grow-to {max(needed, default='N')}"
            return f"to decide more, sample the undecided cells again with `{grow}`"
        return "to decide more, let baseline and nights have more images" if needed else ""
    if has_failed or comparison.only_baseline:
        return ""
    to = baseline.source if baseline.accepted else "FILE"
    if result in REGRESSIONS:
        return f"if the change is meant, {_acceptance(night, tonight, to, ' --force')}"
    return _acceptance(night, tonight, to)


def _acceptance(night: Night, tonight: Snapshot, to: str, force: str = "") -> str:
    what = f"{night.run_name} --to {to} --reason TEXT{force}"
    if (images := tonight.images) is not None:
        what = f"{images.path} {images.options} --to {to} --reason TEXT"
    return f"`taugrid baseline accept {what}` makes tonight the measure of later nights"
