"""The verdict of a night, from canaries and one or two statistical tests (stages).

The first compares tonight's scores with the baseline's recorded ones. The second, the *second look*, samples both
networks again with today's code, so a fault in that code would cancel: it takes place only if no canary shows one, and
it does not count if it contradicts the first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taugrid.config import Config, validate
from taugrid.config.load import CONFIG_NAME
from taugrid.errors import UserError
from taugrid.eval.gate.rule import BEYOND_CHANCE, Change, is_denied, judge, screen
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.eval.metrics.statistics import standard_error
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import Canaries, Check, batch_of, check_scorer, sampling_key
from taugrid.orchestrator.baseline.compared import BaselineComparison, CellComparison, GateSettings
from taugrid.orchestrator.baseline.comparison import (
    changes_of,
    compare_snapshots,
    tests_in_words,
    why_not_judged,
    with_judgement,
)
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import Network, Snapshot, SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.dispatch.cluster import Connection
from taugrid.orchestrator.nightly.places import CANARY, Night
from taugrid.orchestrator.opened import open_existing, open_to_run
from taugrid.orchestrator.plan.trust import Code, require_trusted
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.session import Session
from taugrid.registry.metrics import COLUMNS
from taugrid.words import counted, with_urls
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import read_checkpoint, weights_file, weights_sha256

Pair = tuple[SnapshotCell, SnapshotCell]  # (new, baseline)
UNFINISHED_LOOK = "its second look is unfinished"


class DoesNotCount(Exception):
    """A second look that does not count, and why."""


def fresh_seed(night: str, look: str, seed: int) -> int:
    """A seed below 2^32 of a look (`fresh` or `grown`): another one each night, and the same when a night resumes."""
    return int(json_sha256({"night": night, "look": look, "seed": seed})[:8], 16)


def alpha_of_a_look(gate: GateSettings, grow_to: int | None) -> float:
    """Each look at fresh samples can raise a false alarm, so they share alpha."""
    return gate.alpha if grow_to is None else gate.alpha / 2


def judge_night(
    baseline: Snapshot, gate: GateSettings, grow_to: int | None, resampler: "Resampler"
) -> BaselineComparison:
    """Compare tonight's cells with the baseline's, with a second look at those that the usual seeds single out.
    Undecided cells are sampled again with N = `grow_to`, unless that is None. The cells of an unfinished second look
    are undecided. Raises `UserError` if the runs can't be compared."""
    comparison = compare_snapshots(resampler.tonight, baseline, gate, resampler.canaries(baseline))
    pairs = {pair[0].name: pair for pair in matched(resampler.tonight, baseline).pairs}
    judged = {cell.name: pairs[cell.name] for cell in comparison.cells if cell.judged}
    if not judged:
        return comparison
    states = {"changed": "has changed", "unknown": "could not be checked"}
    reasons = [f"the {name} {states[check.result]} ({check.reason})"
               for name, check in comparison.checks.items() if check.result != "clean"]  # fmt: skip
    reason = next(iter(reasons), None) or why_no_second_look(list(judged.values()), resampler.trust_code)
    if reason is not None:
        return replace(comparison, rule=f"{comparison.rule}; no second stage, because {reason}")
    cells = [replace(cell, grows=cell.name in judged and not judged[cell.name][0].labels_are_rows)
             for cell in comparison.cells]  # fmt: skip
    found = screen([change for cell in cells if cell.name in judged
                    for change in changes_of(*judged[cell.name], cell)], gate.alpha)  # fmt: skip
    chosen = [judged[name] for name in dict.fromkeys(cell.name for cell in found.worse)]
    share = f"{len(chosen)} of {tests_in_words(found)} at {found.alpha:g} (T > {found.critical:.2f})"
    rule = f"two stages: the usual seeds single out {share}"
    screened = replace(
        comparison, cells=tuple(cells), rule=rule, critical=found.critical, usual_critical=found.critical
    )
    alpha = alpha_of_a_look(gate, grow_to)
    if chosen:
        them = "it" if len(chosen) == 1 else "them"
        stage = f"the verdict is that of a fresh seed at alpha = {alpha:g} over {them}"
        try:
            screened = resampler.second_look(screened, chosen, "fresh", None, alpha, stage)
            if (reason := contradiction(comparison, screened)) is not None:
                raise DoesNotCount(reason)
        except DoesNotCount as error:
            return replace(comparison, rule=f"{comparison.rule}; the second stage does not count, because {error}")
    if grow_to is None or any(cell.note == UNFINISHED_LOOK for cell in screened.cells):
        return screened
    small = [cell.name for cell in screened.cells if cell.grows and cell.result is Verdict.UNDECIDED]
    small = [name for name in small if judged[name][0].num_samples < grow_to]
    if not small:
        return replace(screened, rule=f"{screened.rule}; no undecided cell to grow")
    stage = f"{counted(len(small), 'undecided cell')} grown to N = {grow_to} at alpha = {alpha:g}"
    try:
        return resampler.second_look(screened, [judged[name] for name in small], "grown", grow_to, alpha, stage)
    except DoesNotCount as error:
        return replace(screened, rule=f"{screened.rule}; the grown cells do not count, because {error}")


def contradiction(usual: BaselineComparison, fresh: BaselineComparison) -> str | None:
    """How a fresh seed contradicts the usual seeds, if the difference is significant; else None."""
    for cell, again in zip(usual.cells, fresh.cells, strict=True):
        if again.seeds == "usual" or again.note == UNFINISHED_LOOK:
            continue
        for name, one in cell.judged.items():
            other = again.judged.get(name)
            if other is not None and is_denied(one.regression(name), other.regression(name)):
                of_it = "" if name == "fid" else f" {COLUMNS[name].title}"
                return (
                    f"{cell.label}{of_it} changed by {one.difference:+.3g} ± {one.se:.2g} with the usual seeds and by "
                    f"{other.difference:+.3g} ± {other.se:.2g} with a fresh one, which is not chance: today's code "
                    "treats tonight's network differently than it treated the baseline's, although no canary shows it"
                )
    return None


@dataclass(frozen=True)
class Resampler:
    """Samples cells again in a night, for canaries and second looks."""

    config: Config  # tonight's
    night: Night
    ray: Connection  # tonight's, which all of its sessions share
    trust_code: bool  # a custom network may load weights that only the baseline names, not the user's config
    progress: Progress
    tonight: Snapshot
    missing: dict[str, str]  # cells that could not be finished this time are added to it: name -> reason

    def run(
        self, name: str, points: Sequence[Mapping[str, Any]], folder: Path, stages: Sequence[str]
    ) -> tuple[Run, Mapping[str, str], bool]:
        """Run tonight's config with the distinct `points` as its grid, in a folder of its own. Returns the run, the
        cells that can never be sampled or scored (name -> why), and whether all others are done."""
        values = self.config.model_dump(mode="json")
        grid = {json_sha256(point): {key: [value] for key, value in point.items()} for point in points}
        values |= {"name": f"{self.config.name}-{name}", "model": {}, "grid": list(grid.values()), "track": []}
        config = validate(Config, values, name)
        with TemporaryDirectory() as place:
            path = Path(place) / CONFIG_NAME
            path.write_text(dumps(config.model_dump(mode="json")))
            # Its custom code is trusted: tonight's run has loaded it already.
            run = open_to_run(str(path), (), with_urls(str(folder)), self.ray.address, trust_code=True)
        run = replace(run, configured=replace(run.configured, notes=()))  # on a grid that is not the user's
        outcome = Session(run, self.ray, self.progress).do(stages)
        failed = {name: reason for name, reason in outcome.missing.items() if name in outcome.permanent_failures}
        unfinished = sorted(outcome.missing.keys() - failed.keys())
        self.missing.update({f"{folder.name}/{name}": outcome.missing[name] for name in unfinished})
        return run, failed, not unfinished

    def canaries(self, baseline: Snapshot) -> Canaries:
        """The first batch of each cell of the baseline that tonight has with new weights."""
        pairs = [pair for pair in matched(self.tonight, baseline).pairs if not pair[0].network.is_same(pair[1].network)]
        unavailable, reasons = dict[str, SnapshotCell | Check](), dict[str, str | None]()
        for new, old in pairs:
            key = _key(old.network, old)
            if key not in reasons:
                reasons[key] = _other_code(new, old) or unloadable(old.network, old, self.trust_code)
            if (reason := reasons[key]) is not None:
                unavailable[old.cell] = Check("unknown", f"the baseline's network can't be sampled: {reason}")
        available = [pair for pair in pairs if pair[1].cell not in unavailable]
        if not available:
            return unavailable
        self.progress.say(f"canary: one batch of {counted(len(available), 'cell')}, of the baseline's network")
        # Of other files, tonight's are known to be there; they have the baseline's content, or nothing is compared.
        grid = [point_of(old, **new.files, num_samples=batch_of(old)) for new, old in available]
        # A folder of its own for each grid, since a baseline may be replaced meanwhile.
        folder = self.night.folder / f"{CANARY}-{json_sha256(grid)[:8]}"
        run, failed, _ = self.run(CANARY, grid, folder, ("sample",))
        return {**_canaries_in(run, self.tonight, [old for _, old in available], failed), **unavailable}

    def second_look(
        self,
        comparison: BaselineComparison,
        pairs: Sequence[Pair],
        look: str,
        num_samples: int | None,
        alpha: float,
        stage: str,
    ) -> BaselineComparison:
        """The comparison where `pairs` have the verdict of fresh samples; undecided if some could not be finished.
        `look` is `fresh` or `grown`, the name of its run directory; `num_samples` is as many as tonight if None;
        `stage` describes the test at `alpha`."""
        usual = {cell.name: cell for cell in comparison.cells}
        snapshot = self._sampled(pairs, look, num_samples)
        if snapshot is None:
            for new, _ in pairs:
                usual[new.name] = replace(usual[new.name], result=Verdict.UNDECIDED, note=UNFINISHED_LOOK)
            cells, rule, critical = list(usual.values()), f"{stage}, which is unfinished", comparison.critical
        else:
            changes, scored = list[Change](), {sampling_key(cell): cell for cell in snapshot.cells}
            for pair in pairs:
                new, old = (scored[sampling_key(cell, **self._settings(cell, look, num_samples))] for cell in pair)
                usual[pair[0].name], its_changes = _fresh(usual[pair[0].name], new, old, pair[1], look)
                changes += its_changes
            second = [usual[new.name] for new, _ in pairs]
            if not changes and not any(cell.result is Verdict.COLLAPSED for cell in second):
                raise DoesNotCount(second[0].note)
            judgement = judge(changes, alpha)
            judged = with_judgement(list(usual.values()), judgement, look)
            cells = [_with_kept_verdicts(cell) for cell in judged]
            rule = f"{stage} (T > {judgement.critical:.2f})" if judgement.cells else stage
            critical = judgement.critical if judgement.cells else comparison.critical
        result, rule = worst(cell.result for cell in cells), f"{comparison.rule}; {rule}"
        return replace(comparison, cells=tuple(cells), result=result, rule=rule, critical=critical)

    def _settings(self, cell: SnapshotCell, look: str, num_samples: int | None) -> dict[str, Any]:
        """The seed and the N of a cell in a look."""
        seed = fresh_seed(self.night.id, look, cell.settings["seed"])
        return {"seed": seed, "num_samples": num_samples or cell.num_samples}

    def _sampled(self, pairs: Sequence[Pair], look: str, num_samples: int | None) -> Snapshot | None:
        """The fresh samples of both networks, scored; None if they are unfinished."""
        points = [point_of(cell, **pair[0].files, **self._settings(cell, look, num_samples))
                  for pair in pairs for cell in pair]  # fmt: skip
        cells = counted(len({json_sha256(point) for point in points}) // 2, "cell")
        self.progress.say(f"second look: {cells} with a fresh seed, of tonight's network and the baseline's")
        folder = self.night.folder / look
        run, failed, is_complete = self.run(look, points, folder, ("sample", "evaluate", "report"))
        if not is_complete:
            return None
        snapshot = snapshot_of_opened(run, failed)
        if len(self.tonight.codes | snapshot.codes) > 1:
            raise DoesNotCount("taugrid's code has changed since tonight's cells were sampled")
        if (check := check_scorer(snapshot, self.tonight)).result == "changed":
            raise DoesNotCount(f"the scorer has changed since tonight's cells were scored ({check.reason})")
        return snapshot


def _fresh(
    cell: CellComparison, new: SnapshotCell, old: SnapshotCell, recorded: SnapshotCell, look: str
) -> tuple[CellComparison, list[Change]]:
    """A cell with fresh samples of both networks, before they are tested, and its changes. `cell` is its comparison by
    the usual seeds, whose metrics and margins are used; `recorded` is the baseline's cell, from which its network must
    not differ beyond chance. A metric that these samples can't judge keeps its verdict. If they can judge no metric, or
    not all metrics of a cell that grows, the cell keeps all of its numbers, and there is no change."""
    for name in cell.judging:
        column = COLUMNS[name]
        sampled = old.scored(name, unsure=True)
        if sampled is None:
            why = old.failed or old.reason or "it is not scored by it"
            raise DoesNotCount(f"the baseline's network has no {column.title} with an error for these samples ({why})")
        # The samples differ, so the values have independent errors. At a different N, their biases differ too.
        values = [float(side.metrics[name]) for side in (old, recorded)]
        errors = column.sampling_error or ""
        of_samples = old.metrics.get(errors, standard_error(sampled.influence))
        error = math.hypot(of_samples, recorded.metrics[errors])
        if old.num_samples == recorded.num_samples and abs(values[0] - values[1]) > BEYOND_CHANCE * error:
            raise DoesNotCount(
                f"the baseline's network has {column.title} {values[0]:.4g} with a fresh seed, where {values[1]:.4g} "
                "was recorded, which is no chance: today's code samples or scores it differently, although no canary "
                "shows it"
            )
    samples = "with a fresh seed" if look == "fresh" else "with more samples"
    if lacking := [name for name in cell.judging if new.scored(name, unsure=True) is None]:
        failed = new.failed or new.reason or f"{COLUMNS[lacking[0]].title} has no standard error"
        return replace(cell, result=Verdict.COLLAPSED, note=f"{samples}: {failed}"), []
    metrics, notes, judging = dict(cell.metrics), [cell.note], list[str]()
    for name in cell.judging:
        if (reason := why_not_judged(new, old, COLUMNS[name])) is not None:
            notes.append(f"{COLUMNS[name].title} can't be judged {samples} ({reason})")
            continue
        judging.append(name)
        # The margins stay shares of what the baseline recorded.
        metrics[name] = replace(metrics[name], judged=(float(new.metrics[name]), float(old.metrics[name])))
    note = "; ".join(filter(None, notes))
    if not judging or (look == "grown" and len(judging) < len(cell.judging)):
        return replace(cell, note=note), []
    judged = replace(cell, metrics=metrics, num_samples=new.num_samples, note=note)
    return judged, changes_of(new, old, replace(cell, judging=tuple(judging)))


def _with_kept_verdicts(cell: CellComparison) -> CellComparison:
    """A cell whose verdict is also that of the metrics that a second look could not judge."""
    verdicts = [metric.verdict for metric in cell.judged.values() if metric.verdict is not None]
    return replace(cell, result=worst([cell.result, *verdicts]))


def point_of(cell: SnapshotCell, **other: Any) -> dict[str, Any]:
    """The cell as a point of a grid, with `other` settings in place of some."""
    diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
    return {**cell.network.keys, **diffusion, **cell.settings, **other}


def _canaries_in(
    run: Run, tonight: Snapshot, cells: Sequence[SnapshotCell], failed: Mapping[str, str] = {}
) -> dict[str, SnapshotCell | Check]:
    """The canaries of `cells` in a run directory, which check the sampler of `tonight`; `failed` is as in `run`."""
    found = snapshot_of_opened(run, with_scores=False)
    by_key = {sampling_key(cell): cell for cell in found.cells}
    canaries: dict[str, SnapshotCell | Check] = {}
    for old in cells:
        again = by_key.get(sampling_key(old, num_samples=batch_of(old)))
        if again is None:
            canaries[old.cell] = Check("unknown", "the canary's images are missing")
        elif len(tonight.codes | found.codes) > 1:
            canaries[old.cell] = Check("unknown", "taugrid's code changed between the sessions of this night")
        elif again.name in failed:
            reason = f"the baseline's network fails with today's code: {failed[again.name]}"
            canaries[old.cell] = Check("changed", reason)
        else:
            canaries[old.cell] = again
    return canaries


def canaries_beside(run: Run, tonight: Snapshot, baseline: Snapshot) -> Canaries:
    """The canaries of the baseline's cells that a night left beside its run; other runs have none."""
    folder, storage = run.rundir.around
    canaries: dict[str, SnapshotCell | Check] = {}
    for path in storage.list(folder, f"{CANARY}-*/config.json"):
        found = _canaries_in(open_existing(with_urls(str(path.parent))), tonight, baseline.cells)
        for cell, again in found.items():  # the first that was sampled, else the first reason
            if cell not in canaries or (isinstance(again, SnapshotCell) and isinstance(canaries[cell], Check)):
                canaries[cell] = again
    return canaries


def why_no_second_look(pairs: Sequence[Pair], trust_code: bool) -> str | None:
    """The reason why a second look is impossible; None if both networks of every pair can still be sampled."""
    checked: set[str] = set()
    for new, old in pairs:
        if new.network.is_same(old.network):
            return "the weights are the baseline's, so a fresh seed would compare them with themselves"
        if (reason := _other_code(new, old)) is not None:
            return reason
    for new, old in pairs:
        for side, cell in (("tonight's", new), ("the baseline's", old)):
            key = _key(cell.network, new)
            if key not in checked and (reason := unloadable(cell.network, new, trust_code)) is not None:
                return f"{side} weights can't be sampled: {reason}"
            checked.add(key)
    return None


def _other_code(new: SnapshotCell, old: SnapshotCell) -> str | None:
    one, other = new.network, old.network
    is_same = (one.callable, one.source_sha256) == (other.callable, other.source_sha256)
    return None if is_same else "the custom network's code has changed, and the baseline's is gone"


def _key(network: Network, cell: SnapshotCell) -> str:
    return json_sha256([network.keys, network.weights_sha256, cell.settings["weights"]])


def unloadable(network: Network, cell: SnapshotCell, trust_code: bool) -> str | None:
    """The reason why a network can't be loaded with a cell's kind of weights, `ema` or `raw`; None if it can."""
    path = network.folder if network.callable is None else network.weights_file
    if path is None and network.callable is None:
        return "only a folder on a disk or a hub id can be loaded again, not an oracle or a run in a bucket"
    if path is None:
        return "the custom network has no file (model.weights), so its weights can't be identified"
    digest: str | None
    try:
        if network.callable is not None:
            digest = custom_process.weights_sha256(Path(path))
        else:
            checkpoint = read_checkpoint(path)
            folder = checkpoint.unet_folder if cell.settings["weights"] == "ema" else checkpoint.raw_folder
            digest = None if folder is None else weights_sha256(weights_file(Path(folder)))
        if digest != network.weights_sha256:
            return f"{path} holds different weights now"
        if network.callable is not None and not trust_code:
            # A baseline file may come from others, and a file of weights may be a pickle.
            require_trusted([Code("model.callable", network.callable, path)], Path(path))
    except UserError as error:
        return str(error)
    return None
