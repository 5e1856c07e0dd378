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
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import Snapshot, planned_snapshot, snapshot_of_opened
from taugrid.orchestrator.baseline.verdict import exit_of
from taugrid.orchestrator.nightly.before.checks import check_growth, check_same_night, check_standard_error
from taugrid.orchestrator.nightly.canary import canaries_in, folder_of, impossible, points
from taugrid.orchestrator.nightly.judging import Looks, Terms, judge_night
from taugrid.orchestrator.nightly.loadable import config_of
from taugrid.orchestrator.nightly.outcome import as_verdict
from taugrid.orchestrator.nightly.places import CANARY, History, Night, open_history
from taugrid.orchestrator.nightly.removal import remove_old_images
from taugrid.orchestrator.nightly.second_look import SecondLook, Unscorable
from taugrid.orchestrator.nightly.write import is_current, write_history, write_night
from taugrid.orchestrator.opened import open_to_run
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.extension import orphans_in_words
from taugrid.orchestrator.rundir.lease import sole_driver
from taugrid.orchestrator.session import Outcome, Session
from taugrid.storage import write_sealed
from taugrid.words import counted, with_urls

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
        return exit_of(self.verdict["result"], self.verdict["missing"], self.verdict.get("not_judged", ()))


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
        run = Session(opened, request.address, progress)
        outcome = run.do(STAGES, request.break_lock)
        verdict = _judge(request, opened, night, baseline, outcome, progress)
        write_night(night, verdict)
        if not verdict["missing"]:
            write_sealed(night.verdict_file, verdict, night.storage)
            write_history(history)
            remove_old_images(history, request.keep_images, progress.say)
        return NightOutcome(night, verdict, again=False)


def _open_night(request: NightRequest, history: History, progress: Progress) -> tuple[Run, Night]:
    """Tonight's run: the named one, or an unfinished one of the same cells, or a new one under today's date."""

    def opened_in(night: Night) -> Run:
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
    opened: Run,
    night: Night,
    baseline: Snapshot | None,
    outcome: Outcome,
    progress: Progress,
) -> dict[str, Any]:
    """The verdict as plain data: what verdict.json holds."""
    failed = {name: reason for name, reason in outcome.missing.items() if name in outcome.lasting}
    missing = {name: reason for name, reason in outcome.missing.items() if name not in failed}
    tonight = snapshot_of_opened(opened, failed)
    found: BaselineComparison | None = None
    if tonight.cells and baseline is not None:
        again = _Again(request, opened.config, night, progress, missing)
        second = SecondLook(opened.config, night.id, tonight, again.both)
        looks = Looks(second, night.fresh, night.grown, request.trust_code)
        found = judge_night(tonight, baseline, request.terms, looks, again.canaries(tonight, baseline))
        missing |= found.missing
    return as_verdict(night, opened, tonight, baseline, found, missing)


@dataclass(frozen=True)
class _Again:
    """Samples cells again, for canaries and second looks."""

    request: NightRequest
    config: Config
    """Tonight's."""
    night: Night
    progress: Progress
    missing: dict[str, str]
    """What could not be finished, and still can, is added to it."""

    def both(self, config: Config, folder: Path) -> tuple[Run, Unscorable] | None:
        """`SampleBoth`."""
        cells = counted(len(config.grid) // 2, "cell")
        self.progress.say(f"second look: {cells} with a fresh seed, of tonight's network and the baseline's")
        before = len(self.missing)
        done = self._run(config, folder, WITHOUT_TRAINING)
        return done if len(self.missing) == before else None

    def canaries(self, tonight: Snapshot, baseline: Snapshot) -> Canaries:
        """The first batch of each cell of the baseline that tonight has with new weights."""
        pairs = [pair for pair in matched(tonight, baseline).pairs if not pair[0].network.is_same(pair[1].network)]
        gone = impossible(pairs, self.request.trust_code)
        cells = [old for _, old in pairs if old.cell not in gone]
        if not cells:
            return lambda old: gone.get(old.cell, not_sampled(old))
        self.progress.say(f"canary: one batch of {counted(len(cells), 'cell')}, of the baseline's network")
        grid = points(cells)
        again, failed = self._run(config_of(self.config, CANARY, grid), folder_of(self.night, grid), ("sample",))
        sampled = canaries_in(again, tonight, failed)
        return lambda old: gone[old.cell] if old.cell in gone else sampled(old)

    def _run(self, config: Config, folder: Path, stages: Sequence[str]) -> tuple[Run, Unscorable]:
        again = _opened_from(config, folder, self.request)
        outcome = Session(again, self.request.address, self.progress).do(stages)
        failed = {name: why for name, why in outcome.missing.items() if name in outcome.lasting}
        lacking = outcome.missing.keys() - failed.keys()
        self.missing.update({f"{folder.name}/{name}": outcome.missing[name] for name in sorted(lacking)})
        return again, failed


def _opened_from(config: Config, folder: Path, request: NightRequest) -> Run:
    """A second look's run. Its custom code is tonight's, which ran already, with files of weights that are trusted."""
    with TemporaryDirectory() as place:
        path = Path(place) / CONFIG_NAME
        path.write_text(dumps(config.model_dump(mode="json")))
        return open_to_run(str(path), (), Night.named(folder), request.address, trust_code=True)
