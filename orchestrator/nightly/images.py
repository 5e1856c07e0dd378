"""A night of images that another server made: scored in this process, and judged in one stage against a baseline.

There is nothing to continue: a night that was interrupted has left no files but the features in the user's cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taugrid.errors import UserError
from taugrid.eval.sources import open_images
from taugrid.orchestrator.baseline.compared import GateSettings
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.images import NOT_OURS, ImagesRequest, snapshot_of_images
from taugrid.orchestrator.baseline.snapshot import Snapshot
from taugrid.orchestrator.external import user_errors_of
from taugrid.orchestrator.nightly.night import NightResult, baseline_of, complete, today, written
from taugrid.orchestrator.nightly.outcome import as_verdict
from taugrid.orchestrator.nightly.places import Night, open_history
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.lease import sole_driver


@dataclass(frozen=True)
class ImagesNightRequest:
    samples: str
    """Tonight's images: a folder, .npz or Parquet."""
    scoring: Mapping[str, Any]
    """The fields of `ImagesRequest` that were given; the others are the baseline's."""
    history: str
    baseline: str | None
    """A baseline file of images; None: baseline.json in the history, if there is one."""
    night: str | None
    """The id of the night; None: the date."""
    gate: Mapping[str, Any]
    """The fields of `GateSettings` but for the metrics."""
    break_lock: bool
    trust_code: bool


def run_night_of_images(request: ImagesNightRequest, progress: Progress) -> NightResult:
    """Score tonight's images, judge them, and add the night to the history; a complete night is left unchanged.

    Raises:
        UserError: if images, reference, weights or settings can't be used, or the night's id is that of another night.
    """
    history = open_history(request.history)
    with sole_driver(history, request.break_lock, progress.say):
        night = history.night(request.night or today())
        if (verdict := night.verdict) is not None:
            _require_same_images(request, night, verdict, progress)
            return complete(history, night, verdict, progress)
        if night.storage.exists(night.run / "config.json"):
            raise UserError(f"night {night.id} has a run, which CONFIG finishes; give --id NAME for another night")
        baseline = baseline_of(request.baseline, history)
        scoring, settings = _settings(request, baseline)
        tonight = snapshot_of_images(request.samples, scoring, progress, "--samples")
        comparison = None
        if baseline is not None:
            comparison = compare_snapshots(tonight, baseline, settings, lambda old: NOT_OURS)
        return written(history, night, as_verdict(night, tonight, baseline, comparison, {}))


def _settings(request: ImagesNightRequest, baseline: Snapshot | None) -> tuple[ImagesRequest, GateSettings]:
    """How images are scored and judged: as is asked for, and else as those of the baseline were."""
    if baseline is not None:
        scoring = ImagesRequest.of_baseline(baseline, request.trust_code, **request.scoring)
    elif "reference" in request.scoring:
        scoring = ImagesRequest(**request.scoring, trust_code=request.trust_code)
    else:
        raise UserError(
            "--reference is missing, and there is no baseline that has one; give what the images are scored against"
        )
    return scoring, scoring.gate(**request.gate)


def _require_same_images(
    request: ImagesNightRequest, night: Night, verdict: Mapping[str, Any], progress: Progress
) -> None:
    """Raise `UserError` if a complete night is of other images, or of a run."""
    with user_errors_of((), lambda name: f"--{name}", progress):
        judged = verdict.get("images", {}).get("sha256")
        if judged != open_images(request.samples).sha256:
            raise UserError(f"night {night.id} is complete, but not of these images; give --id NAME for another night")
