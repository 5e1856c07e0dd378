"""The verdict of a night, from one or two statistical tests (stages).

The first compares tonight's scores with the baseline's recorded ones. The second, the *second look*, samples both
networks again with today's code, so a fault in that code would cancel: it takes place only if no canary shows one, and
it does not count if it contradicts the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from taugrid.eval.gate.rule import BEYOND_CHANCE, Change, is_denied, judge, screen
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import Canaries, check_scorer, sampling_key
from taugrid.orchestrator.baseline.compared import BaselineComparison, CellComparison, GateSettings
from taugrid.orchestrator.baseline.comparison import changes_of, compare_snapshots, tests_in_words, with_judgement
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.nightly.resampling import Pair, Resampler, point_of, why_no_second_look
from taugrid.registry.metrics import COLUMNS
from taugrid.words import counted

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
    new: Snapshot,
    baseline: Snapshot,
    gate: GateSettings,
    grow_to: int | None,
    resampler: Resampler,
    canaries: Canaries,
) -> BaselineComparison:
    """Compare tonight's cells with the baseline's, with a second look at those that the usual seeds single out.

    Undecided cells are sampled again with N = `grow_to`, unless that is None. The cells of an unfinished second look
    are undecided. Raises `UserError` if the runs can't be compared.
    """
    comparison = compare_snapshots(new, baseline, gate, canaries)
    pairs = {pair[0].name: pair for pair in matched(new, baseline).pairs}
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
    looks = SecondLook(resampler, new, alpha_of_a_look(gate, grow_to))
    if chosen:
        them = "it" if len(chosen) == 1 else "them"
        stage = f"the verdict is that of a fresh seed at alpha = {looks.alpha:g} over {them}"
        try:
            screened = looks.judged(screened, chosen, "fresh", None, stage)
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
    stage = f"{counted(len(small), 'undecided cell')} grown to N = {grow_to} at alpha = {looks.alpha:g}"
    try:
        return looks.judged(screened, [judged[name] for name in small], "grown", grow_to, stage)
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
class SecondLook:
    """Samples both networks of cells again, and judges them at `alpha`."""

    resampler: Resampler
    tonight: Snapshot
    alpha: float

    def judged(
        self, comparison: BaselineComparison, pairs: Sequence[Pair], look: str, num_samples: int | None, stage: str
    ) -> BaselineComparison:
        """The comparison where `pairs` have the verdict of fresh samples; undecided if some could not be finished.

        `look` is `fresh` or `grown`, the name of its run directory; `num_samples` is as many as tonight if None;
        `stage` describes the test.
        """
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
            judgement = judge(changes, self.alpha)
            cells = with_judgement(list(usual.values()), judgement, look)
            rule = f"{stage} (T > {judgement.critical:.2f})"
            critical = judgement.critical if judgement.cells else comparison.critical
        result, rule = worst(cell.result for cell in cells), f"{comparison.rule}; {rule}"
        return replace(comparison, cells=tuple(cells), result=result, rule=rule, critical=critical)

    def _settings(self, cell: SnapshotCell, look: str, num_samples: int | None) -> dict[str, Any]:
        """The seed and the N of a cell in a look."""
        seed = fresh_seed(self.resampler.night.id, look, cell.settings["seed"])
        return {"seed": seed, "num_samples": num_samples or cell.num_samples}

    def _sampled(self, pairs: Sequence[Pair], look: str, num_samples: int | None) -> Snapshot | None:
        """The fresh samples of both networks, scored; None if they are unfinished."""
        points = [point_of(cell, **pair[0].files, **self._settings(cell, look, num_samples))
                  for pair in pairs for cell in pair]  # fmt: skip
        cells = counted(len({json_sha256(point) for point in points}) // 2, "cell")
        self.resampler.progress.say(f"second look: {cells} with a fresh seed, of tonight's network and the baseline's")
        folder = self.resampler.night.folder / look
        run, failed, is_complete = self.resampler.run(look, points, folder, ("sample", "evaluate", "report"))
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
    """A cell with fresh samples of both networks, before they are tested, and its changes.

    `cell` is its comparison by the usual seeds, whose metrics and margins are used; `recorded` is the baseline's cell,
    from which its network must not differ beyond chance.
    """
    for name in cell.judging:
        column = COLUMNS[name]
        if not old.scored(name):
            why = old.failed or old.reason or "it is not scored by it"
            raise DoesNotCount(f"the baseline's network has no {column.title} with an error for these samples ({why})")
        # The samples differ, so the values have independent errors. At a different N, their biases differ too.
        values = [float(side.metrics[name]) for side in (old, recorded)]
        error = math.hypot(*(float(side.metrics[column.sampling_error or ""]) for side in (old, recorded)))
        if old.num_samples == recorded.num_samples and abs(values[0] - values[1]) > BEYOND_CHANCE * error:
            raise DoesNotCount(
                f"the baseline's network has {column.title} {values[0]:.4g} with a fresh seed, where {values[1]:.4g} "
                "was recorded, which is no chance: today's code samples or scores it differently, although no canary "
                "shows it"
            )
    if lacking := [name for name in cell.judging if new.scored(name, unsure=True) is None]:
        failed = new.failed or new.reason or f"{COLUMNS[lacking[0]].title} has no standard error"
        samples = "with a fresh seed" if look == "fresh" else "with more samples"
        return replace(cell, result=Verdict.COLLAPSED, note=f"{samples}: {failed}"), []
    # The margins stay shares of what the baseline recorded.
    values_of = {name: (float(new.metrics[name]), float(old.metrics[name])) for name in cell.judging}
    metrics = {name: replace(cell.metrics[name], judged=values) for name, values in values_of.items()}
    judged = replace(cell, metrics={**cell.metrics, **metrics}, num_samples=new.num_samples)
    return judged, changes_of(new, old, cell)
