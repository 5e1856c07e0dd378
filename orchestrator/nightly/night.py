"""One night, from its run to its verdict. Called again, it continues; a complete night is left unchanged.

A night has four steps: check, run, judge (with canaries, and a second look at cells with suspicious scores), write. A
night of images that another server made has their scores in place of a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from taugrid.api import STAGES
from taugrid.errors import UserError
from taugrid.eval.sources import open_images
from taugrid.orchestrator.baseline.compared import GateSettings
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import snapshot_of
from taugrid.orchestrator.baseline.images import NOT_OURS, request_of, snapshot_of_images
from taugrid.orchestrator.baseline.snapshot import ImagesRequest, Snapshot, planned_snapshot, snapshot_of_opened
from taugrid.orchestrator.baseline.verdict import NightVerdict
from taugrid.orchestrator.dispatch.cluster import Connection
from taugrid.orchestrator.external import user_errors_of
from taugrid.orchestrator.nightly.before import check_comparable, check_grow_to, check_same_night, check_standard_error
from taugrid.orchestrator.nightly.judging import SecondLook, Terms, judge_night
from taugrid.orchestrator.nightly.outcome import verdict_of
from taugrid.orchestrator.nightly.places import History, Night, open_history
from taugrid.orchestrator.nightly.resampling import Resampler
from taugrid.orchestrator.nightly.write import is_current, remove_images, without_newest, write_history, write_night
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
    history: str
    """A folder or a URL."""
    baseline: str | None
    """A baseline file or run directory; None: baseline.json in the history, if there is one."""
    night: str | None
    """The id of the night; None: that of an unfinished night, or the date."""
    gate: GateSettings
    """What the command line asked for: without metrics, which the config or the baseline names."""
    break_lock: bool
    trust_code: bool


@dataclass(frozen=True, kw_only=True)
class RunRequest(NightRequest):
    """A night that samples."""

    config: str
    assignments: tuple[str, ...]
    keep_images: int | None
    """The number of nights whose images are kept; None: all."""
    grow_to: int | None
    """`Terms.grow_to`."""
    address: str


@dataclass(frozen=True, kw_only=True)
class ImagesNightRequest(NightRequest):
    """A night of images that another server made."""

    samples: str
    """A folder, .npz or Parquet."""
    scoring: Mapping[str, Any]
    """The fields of `ImagesRequest` that were given; the others are the baseline's."""


class NightResult(NamedTuple):
    night: Night
    verdict: NightVerdict


def run_night(request: RunRequest, progress: Progress) -> NightResult:
    """Run or resume a night, judge it, and add it to the history.

    Raises:
        UserError: if something must be changed first, such as an N that gives no metric a standard error.
        RunFailed: if the run could not go on.
    """
    history = open_history(request.history)
    with sole_driver(history, request.break_lock, progress.say), Connection(request.address) as ray:
        run, night = _open_night(request, history, progress)
        if (verdict := night.verdict) is not None:
            check_same_night(run, night, verdict)
            return _complete(history, night, verdict, progress)
        _require_extension(run, night)
        terms = Terms(request.gate, request.grow_to).of(run.config)
        check_standard_error(run)
        check_grow_to(terms.grow_to, run)
        baseline = _baseline_of(request.baseline, history)
        if baseline is not None:
            check_comparable(planned_snapshot(run), baseline, run)  # before anything is sampled
        outcome = Session(run, ray, progress).do(STAGES, request.break_lock)
        failed = {name: reason for name, reason in outcome.missing.items() if name in outcome.permanent_failures}
        missing = {name: reason for name, reason in outcome.missing.items() if name not in failed}
        tonight, comparison = snapshot_of_opened(run, failed), None
        if tonight.cells and baseline is not None:
            resampler = Resampler(run.config, night, ray, request.trust_code, progress, missing)
            canaries = resampler.canaries(tonight, baseline)
            comparison = judge_night(tonight, baseline, terms, SecondLook(resampler, tonight), canaries)
            missing |= comparison.missing
        verdict = verdict_of(night, tonight, baseline, comparison, missing)
        result = _written(history, night, verdict)
        if not verdict.missing and request.keep_images is not None:
            remove_images(without_newest(history.complete_nights(), request.keep_images), progress.say)
        return result


def run_night_of_images(request: ImagesNightRequest, progress: Progress) -> NightResult:
    """Score tonight's images in this process, judge them in one stage, and add the night to the history.

    A complete night is left unchanged. An interrupted one leaves nothing but features in the user's cache.

    Raises:
        UserError: if images, reference, weights or settings can't be used, or the night's id is that of another night.
    """
    history = open_history(request.history)
    with sole_driver(history, request.break_lock, progress.say):
        night = history.night(request.night or today())
        if (verdict := night.verdict) is not None:
            with user_errors_of(progress):
                sha256 = open_images(request.samples).sha256
            if verdict.images is None or verdict.images.sha256 != sha256:
                raise UserError(
                    f"night {night.id} is complete, but not of these images; give --id NAME for another night"
                )
            return _complete(history, night, verdict, progress)
        if night.storage.exists(night.run / "config.json"):
            raise UserError(f"night {night.id} has a run, which CONFIG finishes; give --id NAME for another night")
        baseline = _baseline_of(request.baseline, history)
        if baseline is not None:
            scoring = request_of(baseline, request.trust_code, **request.scoring)
        elif "reference" in request.scoring:
            scoring = ImagesRequest(**request.scoring, trust_code=request.trust_code)
        else:
            raise UserError(
                "--reference is missing, and there is no baseline that has one; give what the images are scored against"
            )
        tonight, comparison = snapshot_of_images(request.samples, scoring, progress, "--samples"), None
        if baseline is not None:
            gate = replace(request.gate, metrics=scoring.metrics or None)
            comparison = compare_snapshots(tonight, baseline, gate, lambda old: NOT_OURS)
        return _written(history, night, verdict_of(night, tonight, baseline, comparison, {}))


def _complete(history: History, night: Night, verdict: NightVerdict, progress: Progress) -> NightResult:
    """The result of a night that has its verdict."""
    progress.say(f"night {night.id} is complete; nothing to do")
    if not is_current(history):  # the process was killed after the verdict was written
        write_history(history)
    return NightResult(night, verdict)


def _written(history: History, night: Night, verdict: NightVerdict) -> NightResult:
    """The result of a night whose files are written and, if nothing is missing, those of its history."""
    write_night(night, verdict)
    if not verdict.missing:
        write_sealed(night.verdict_file, verdict.as_dict(), night.storage)
        write_history(history)
    return NightResult(night, verdict)


def today() -> str:
    """The id of a night that has no other."""
    return datetime.now(UTC).date().isoformat()


def _open_night(request: RunRequest, history: History, progress: Progress) -> tuple[Run, Night]:
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

    if request.night is not None:
        night = history.night(request.night)
        return run_of(night), night
    for night in history.unfinished_nights():
        if night.id == today():
            continue
        run = run_of(night)
        if _is_same_night(run):
            progress.say(f"night {night.id} was not finished; it is continued")
            return run, night
        progress.say(
            f"night {night.id} was not finished and can't be: its checkpoint or config has changed since; remove "
            f"{with_urls(str(night.folder))} to forget it"
        )
    night = history.night(today())
    return run_of(night), night


def _is_same_night(run: Run) -> bool:
    """Whether the plan has all cells that the night began with, sampled or not."""
    if orphans_in_words(run.config, run.plan, run.rundir) is not None:
        return False
    return labels_begun(run.rundir).keys() <= {cell.name for cell in run.plan.cells}


def _require_extension(run: Run, night: Night) -> None:
    """Raise `UserError` if the night has images of cells that are not in the plan."""
    if (orphans := orphans_in_words(run.config, run.plan, run.rundir)) is not None:
        raise UserError(
            f"night {night.id} is not finished, and {orphans}; undo that, or give --id NAME for another night"
        )


def _baseline_of(given: str | None, history: History) -> Snapshot | None:
    """The baseline that is `given`, or that of the history; None if there is none."""
    if given is not None:
        return snapshot_of(given)
    if history.storage.exists(history.default_baseline):
        return snapshot_of(with_urls(str(history.default_baseline)))
    return None
