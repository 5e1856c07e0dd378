"""One night, from its run to its verdict. Called again, it continues where it stopped; a complete night stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from taugrid.api import STAGES
from taugrid.config import Config
from taugrid.config.load import CONFIG_NAME
from taugrid.errors import Exit
from taugrid.orchestrator.baseline.compared import BaselineComparison
from taugrid.orchestrator.baseline.comparison import Canaries, not_sampled
from taugrid.orchestrator.baseline.files import snapshot_of
from taugrid.orchestrator.baseline.matching import labels, matched
from taugrid.orchestrator.baseline.pixels import first_images
from taugrid.orchestrator.baseline.scorer import ScorerRecord, keep_record
from taugrid.orchestrator.baseline.snapshot import Snapshot, planned_snapshot, snapshot_of_opened
from taugrid.orchestrator.baseline.verdict import REGRESSIONS, Verdict
from taugrid.orchestrator.nightly.before.checks import check_growth, check_same_night, check_standard_error
from taugrid.orchestrator.nightly.canary import canaries_in, impossible, points
from taugrid.orchestrator.nightly.judging import Looks, Terms, judge_night
from taugrid.orchestrator.nightly.loadable import config_of
from taugrid.orchestrator.nightly.places import CANARY, History, Night, open_history
from taugrid.orchestrator.nightly.removal import remove_old_images
from taugrid.orchestrator.nightly.second_look import SecondLook
from taugrid.orchestrator.nightly.shown.strips import MOST_STRIPS, BeforeAndAfter, strips
from taugrid.orchestrator.nightly.write import is_current, write_history, write_night
from taugrid.orchestrator.opened import Opened, open_to_run
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.extension import orphans_in_words
from taugrid.orchestrator.rundir.lock import sole_driver
from taugrid.orchestrator.session import Outcome, Run
from taugrid.storage import write_sealed
from taugrid.words import counted, with_urls

UP_TO_UNDECIDED = list(Verdict).index(Verdict.UNDECIDED)
"""Pictures are of cells with such a verdict, or a worse one."""

WITHOUT_TRAINING = ("sample", "evaluate", "report")


@dataclass(frozen=True)
class NightRequest:
    """What `taugrid nightly` is asked to do."""

    config: str
    assignments: tuple[str, ...]
    history: str
    """A folder or a URL."""
    baseline: str | None
    """A baseline file or run directory; None: baseline.json in the history, if there is one."""
    night: str | None
    """Its id; None: an unfinished night's, or the date."""
    keep_images: int | None
    """The images of so many nights are kept; None: of all."""
    terms: Terms
    address: str
    break_lock: bool
    trust_code: bool


class NightOutcome(NamedTuple):
    """What became of a night."""

    night: Night
    verdict: dict[str, Any]
    again: bool
    """It was complete before: nothing was done."""

    @property
    def exit(self) -> Exit:
        """How the command ends."""
        if self.verdict["missing"]:
            return Exit.INCOMPLETE
        if self.verdict["result"] in REGRESSIONS:
            return Exit.REGRESSION
        return Exit.NOT_JUDGED if self.verdict.get("not_judged") else Exit.DONE


def run_night(request: NightRequest, progress: Progress) -> NightOutcome:
    """Run or resume a night, judge it, and add it to the history.

    Raises:
        UserError: if something must be changed first, such as an N that gives FID no standard error.
        RunFailed: if the run could not go on.
    """
    history = open_history(request.history)
    with sole_driver(history, request.break_lock, progress.say):
        opened, night = _open_night(request, history, progress)
        verdict = night.verdict
        if verdict is not None:
            check_same_night(opened, night, verdict)
            progress.say(f"night {night.id} is complete; nothing to do")
            if not is_current(history):  # a kill came after the verdict
                write_history(history)
            return NightOutcome(night, verdict, again=True)
        check_standard_error(opened)
        check_growth(request.terms.grow_to, opened)
        baseline = _baseline(request, history)
        if baseline is not None:
            matched(planned_snapshot(opened), baseline)  # refuse what can't be compared before anything is sampled
        run = Run(opened.config, opened.plan, opened.rundir, request.address, progress)
        outcome = run.do(STAGES, request.break_lock)
        verdict = _judge(request, opened, night, baseline, outcome, progress)
        if baseline is not None and verdict["comparison"] is not None:
            verdict["strips"] = _strips(night, opened, baseline, verdict)
            verdict["next"] = _next_command(night, opened, baseline, verdict)
        write_night(night, verdict)
        if not verdict["missing"]:
            write_sealed(night.verdict_file, verdict, night.storage)
            write_history(history)
            remove_old_images(history, request.keep_images, progress.say)
        return NightOutcome(night, verdict, again=False)


def _open_night(request: NightRequest, history: History, progress: Progress) -> tuple[Opened, Night]:
    """Tonight's run: the named one, or an unfinished one of the same cells, or a new one under today's date."""

    def opened_in(night: Night) -> Opened:
        return open_to_run(
            request.config,
            request.assignments,
            night.named(night.run),
            request.address,
            trust_code=request.trust_code,
            same_checkpoints=True,
        )

    if request.night is not None:
        night = history.night(request.night)
        return opened_in(night), night
    today = datetime.now(UTC).date().isoformat()
    for night in history.unfinished_nights():
        if night.id == today:
            continue
        opened = opened_in(night)
        if orphans_in_words(opened.config, opened.plan, opened.rundir) is None:
            progress.say(f"night {night.id} was not finished; it is continued")
            return opened, night
        progress.say(
            f"night {night.id} was not finished and can't be: its checkpoint or config has changed since; remove "
            f"{night.named(night.folder)} to forget it"
        )
    night = history.night(today)
    return opened_in(night), night


def _baseline(request: NightRequest, history: History) -> Snapshot | None:
    if request.baseline is not None:
        return snapshot_of(request.baseline)
    if history.storage.exists(history.default_baseline):
        return snapshot_of(with_urls(str(history.default_baseline)))
    return None


def _judge(
    request: NightRequest,
    opened: Opened,
    night: Night,
    baseline: Snapshot | None,
    outcome: Outcome,
    progress: Progress,
) -> dict[str, Any]:
    """The verdict as plain data: what verdict.json holds."""
    failed = {name: reason for name, reason in outcome.missing.items() if name in outcome.lasting}
    missing = {name: reason for name, reason in outcome.missing.items() if name not in failed}
    tonight = snapshot_of_opened(opened, failed)
    if isinstance(scorer := tonight.find_scorer(), ScorerRecord):
        keep_record(opened, scorer)
    found: BaselineComparison | None = None
    if tonight.cells and baseline is not None:
        found = _compared(request, opened, night, tonight, baseline, missing, progress)
        missing |= found.missing
    named = labels(tonight.cells)
    return {
        "night": night.id,
        "name": opened.config.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "result": _result(found, baseline, bool(failed)),
        "missing": missing,
        "not_judged": [] if found is None else found.not_judged,
        "baseline": _baseline_in_words(baseline),
        "model": networks_of(tonight),
        "scores": [_score(cell, named[cell.cell]) for cell in tonight.cells],
        "comparison": None if found is None else found.as_dict(),
        "software": dict(tonight.software),
    }


def _result(found: BaselineComparison | None, baseline: Snapshot | None, has_failed: bool) -> str:
    if found is not None:
        return found.result
    if has_failed:
        return Verdict.COLLAPSED
    return "no baseline" if baseline is None else "incomplete"


def _compared(
    request: NightRequest,
    opened: Opened,
    night: Night,
    tonight: Snapshot,
    baseline: Snapshot,
    missing: dict[str, str],
    progress: Progress,
) -> BaselineComparison:
    """The comparison, after canaries and second looks; what they could not finish is added to `missing`."""

    def run_again(config: Config, folder: Path, stages: Sequence[str]) -> tuple[Opened, Outcome]:
        again = _opened_from(config, folder, request)
        outcome = Run(again.config, again.plan, again.rundir, request.address, progress).do(stages)
        lacking = {name: why for name, why in outcome.missing.items() if name not in outcome.lasting}
        missing.update({f"{folder.name}/{name}": reason for name, reason in lacking.items()})
        return again, outcome

    def sample_both(config: Config, folder: Path) -> Opened | None:
        cells = counted(len(config.grid) // 2, "cell")
        progress.say(f"second look: {cells} with a fresh seed, of tonight's network and the baseline's")
        again, outcome = run_again(config, folder, WITHOUT_TRAINING)
        return None if outcome.missing else again

    def canaries() -> Canaries:
        pairs = [pair for pair in matched(tonight, baseline).pairs if not pair[0].network.is_same(pair[1].network)]
        gone = impossible(pairs, request.trust_code)
        cells = [old for _, old in pairs if old.cell not in gone]
        if not cells:
            return lambda old: gone.get(old.cell, not_sampled(old))
        progress.say(f"canary: one batch of {counted(len(cells), 'cell')}, of the baseline's network")
        again, outcome = run_again(config_of(opened.config, CANARY, points(cells)), night.canary, ("sample",))
        failed = {name: why for name, why in outcome.missing.items() if name in outcome.lasting}
        sampled = canaries_in(again, failed)
        return lambda old: gone[old.cell] if old.cell in gone else sampled(old)

    looks = Looks(SecondLook(opened.config, night.id, sample_both), night.fresh, night.grown, request.trust_code)
    return judge_night(tonight, baseline, request.terms, looks, canaries())


def _score(cell: Any, label: str) -> dict[str, Any]:
    """A scored cell, for the history."""
    return {
        "cell": cell.cell,
        "name": cell.name,
        "label": label,
        "settings": dict(cell.settings),
        "metrics": dict(cell.metrics),
        "weights_sha256": cell.network.weights_sha256,
    }


def _strips(night: Night, opened: Opened, baseline: Snapshot, verdict: dict[str, Any]) -> dict[str, str]:
    """Label -> file, seen from the summary: pictures of the worst cells that are undecided, or worse than that."""
    order = list(Verdict)
    judged = [cell for cell in verdict["comparison"]["cells"] if order.index(cell["result"]) <= UP_TO_UNDECIDED]
    judged.sort(key=lambda cell: (order.index(cell["result"]), -(cell["t"] or 0)))
    before = {cell.cell: cell for cell in baseline.cells}
    now = {cell.id: cell for cell in opened.plan.cells}
    pairs = [
        BeforeAndAfter(
            cell["label"], before[cell["baseline_cell"]].find_first(), first_images(opened.rundir, now[cell["cell"]])
        )
        for cell in judged[:MOST_STRIPS]
    ]
    files = strips(pairs, night.strips, night.storage)
    return {label: path.relative_to(night.folder).as_posix() for label, path in files.items()}


def _next_command(night: Night, opened: Opened, baseline: Snapshot, verdict: dict[str, Any]) -> str:
    """What to type next: to look closer at a night that is not green, or to make it the baseline."""
    run, force = night.named(night.run), " --force" if verdict["result"] in REGRESSIONS else ""
    accept = f"`taugrid baseline accept {run} --to {baseline.place} --reason TEXT{force}`"
    file = baseline.place if baseline.accepted else "FILE"
    accept = accept.replace(baseline.place, file)
    if verdict["result"] == Verdict.UNDECIDED:
        n = 4 * min(cell.settings.num_samples for cell in opened.plan.cells)
        return f"decide more with another night: add `--id NAME --grow-to {n}`"
    if force:
        return f"if the change is meant: {accept}"
    return f"if tonight's network is to be the measure of later nights: {accept}"


def _baseline_in_words(baseline: Snapshot | None) -> dict[str, Any] | None:
    if baseline is None:
        return None
    accepted = baseline.accepted or {}
    return {
        "place": baseline.place,
        "id": accepted.get("parquet_sha256"),
        "accepted": accepted.get("accepted"),
        "reason": accepted.get("reason"),
        "model": networks_of(baseline),
        "git_commit": baseline.software.get("git_commit"),
    }


def networks_of(snapshot: Snapshot) -> list[dict[str, str | None]]:
    """The networks of a run, each once: where its weights are or were, and their SHA-256."""
    found: dict[str | None, dict[str, str | None]] = {}
    for network in (cell.network for cell in snapshot.cells):
        place = network.folder or network.weights_file or network.callable
        found[network.weights_sha256] = {"checkpoint": place, "weights_sha256": network.weights_sha256}
    return list(found.values())


def _opened_from(config: Config, folder: Path, request: NightRequest) -> Opened:
    """A second look's run. Its custom code is tonight's, which ran already, with files of weights that are trusted."""
    with TemporaryDirectory() as place:
        path = Path(place) / CONFIG_NAME
        path.write_text(dumps(config.model_dump(mode="json")))
        return open_to_run(str(path), (), Night.named(folder), request.address, trust_code=True)
