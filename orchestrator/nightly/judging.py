"""The verdict of a night, from one or two statistical tests (stages).

The first stage compares tonight's scores with the baseline's recorded ones. The second, the *second look*, samples both
networks with fresh seeds, for the cells that the first singles out. It takes place only if sampler and scorer are
unchanged and both networks can still be sampled. It samples both networks with today's code, so a fault in that code
would cancel. Canaries detect most such faults; others show because the second stage contradicts the first. The fresh
seed follows from the night's id: it differs from night to night, and a resumed night has the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from taugrid.config import Config
from taugrid.eval.gate.rule import BEYOND_CHANCE, Change, is_denied, judge, screen
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import check_scorer, sampling_key_of
from taugrid.orchestrator.baseline.compared import BaselineComparison, CellComparison, GateSettings, gate_of
from taugrid.orchestrator.baseline.comparison import (
    Canaries,
    changes_of,
    compare_snapshots,
    tests_in_words,
    threshold,
    with_judgement,
)
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.nightly.resampling import Pair, Resampler, point_of, why_no_second_look
from taugrid.registry.metrics import COLUMNS, MetricColumn
from taugrid.words import counted

UNFINISHED_LOOK = "its second look is unfinished"


WITHOUT_TRAINING = ("sample", "evaluate", "report")


class Resampled(NamedTuple):
    """A cell with fresh samples in place of the usual ones."""

    name: str
    """The name of tonight's cell."""
    changes: Sequence[Change] = ()
    """The changes of its metrics, as the statistical test needs them."""
    values: Mapping[str, tuple[float, float]] = {}
    """Column -> the metric of tonight's network and of the baseline's."""
    num_samples: int = 0
    failed: str = ""
    """The failure of tonight's network with these samples; empty: there is none."""


class Look(NamedTuple):
    name: str
    """`fresh` or `grown`: the name of its run directory, on which the fresh seed depends."""
    num_samples: int | None
    """None: as many as tonight."""


def fresh_seed(night: str, look: str, seed: int) -> int:
    """A seed below 2^32 from the night's id, the look (`fresh` or `grown`) and the usual seed."""
    return int(json_sha256({"night": night, "look": look, "seed": seed})[:8], 16)


@dataclass(frozen=True)
class SecondLook:
    resampler: Resampler
    tonight: Snapshot

    def changes(self, pairs: Sequence[tuple[CellComparison, Pair]], look: Look) -> list[Resampled] | str | None:
        """The changes with fresh samples of both networks; None if they are unfinished.

        Each pair comes with its comparison by the usual seeds, whose metrics and margins are used. Returns the reason
        if this look does not count: the baseline's network fails, or taugrid has changed since tonight's cells were
        sampled and scored.
        """
        points = [point_of(cell, **pair[0].files, **self._fresh(cell, look)) for _, pair in pairs for cell in pair]
        cells = counted(len({json_sha256(point) for point in points}) // 2, "cell")
        self.resampler.progress.say(f"second look: {cells} with a fresh seed, of tonight's network and the baseline's")
        resampling = self.resampler.run(look.name, points, self.resampler.night.folder / look.name, WITHOUT_TRAINING)
        if not resampling.is_complete:
            return None
        snapshot = snapshot_of_opened(resampling.run, resampling.failed)
        if len(self.tonight.codes | snapshot.codes) > 1:
            return "taugrid's code has changed since tonight's cells were sampled"
        if (check := check_scorer(snapshot, self.tonight)).result == "changed":
            return f"the scorer has changed since tonight's cells were scored ({check.reason})"
        scored = {sampling_key_of(cell): cell for cell in snapshot.cells}
        changes = []
        for usual, pair in pairs:
            new, old = (scored[sampling_key_of(cell, **self._fresh(cell, look))] for cell in pair)
            for name in usual.judging:
                if not old.scored(name):
                    what, why = COLUMNS[name].title, old.failed or old.reason or "it is not scored by it"
                    return f"the baseline's network has no {what} with an error for these samples ({why})"
                if (reason := _contradiction(old, pair[1], COLUMNS[name])) is not None:
                    return reason
            if lacking := [name for name in usual.judging if new.tested(name) is None]:
                failed = new.failed or new.reason or f"{COLUMNS[lacking[0]].title} has no standard error"
                changes.append(Resampled(usual.name, failed=failed))
                continue
            # The margins stay shares of what the baseline recorded.
            values = {name: (float(new.metrics[name]), float(old.metrics[name])) for name in usual.judging}
            changes.append(Resampled(usual.name, changes_of(new, old, usual), values, new.num_samples))
        return changes

    def _fresh(self, cell: SnapshotCell, look: Look) -> dict[str, Any]:
        """The seed and the N of a cell in this look."""
        seed = fresh_seed(self.resampler.night.id, look.name, cell.settings["seed"])
        return {"seed": seed, "num_samples": look.num_samples or cell.num_samples}


def _contradiction(again: SnapshotCell, recorded: SnapshotCell, column: MetricColumn) -> str | None:
    """How the baseline's network, sampled and scored today, differs from its record beyond chance; else None.

    The samples differ, so the values have independent errors. At a different N, their biases differ too: None then.
    """
    values = [float(cell.metrics[column.name]) for cell in (again, recorded)]
    error = math.hypot(*(float(cell.metrics[column.sampling_error or ""]) for cell in (again, recorded)))
    if again.num_samples != recorded.num_samples or abs(values[0] - values[1]) <= BEYOND_CHANCE * error:
        return None
    return (
        f"the baseline's network has {column.title} {values[0]:.4g} with a fresh seed, where {values[1]:.4g} was "
        "recorded, which is no chance: today's code samples or scores it differently, although no canary shows it"
    )


class Terms(NamedTuple):
    gate: GateSettings
    grow_to: int | None = None
    """The N with which undecided cells are sampled again; None: they are not."""

    def of(self, config: Config) -> "Terms":
        """These terms with the metrics and the floor of margins that a config names."""
        named = gate_of(config)
        gate = replace(self.gate, metrics=named.metrics, margin_floor=named.margin_floor)
        return self._replace(gate=gate)

    @property
    def alpha_of_a_look(self) -> float:
        """Each look at fresh samples can raise a false alarm, so they share alpha."""
        return self.gate.alpha if self.grow_to is None else self.gate.alpha / 2


def judge_night(
    new: Snapshot, baseline: Snapshot, terms: Terms, second: SecondLook, canaries: Canaries
) -> BaselineComparison:
    """Compare tonight's cells with the baseline's, with a second look at those that the usual seeds single out.

    The cells of an unfinished second look are undecided. Raises `UserError` if the runs can't be compared.
    """
    comparison = compare_snapshots(new, baseline, terms.gate, canaries)
    pairs = {pair[0].name: pair for pair in matched(new, baseline).pairs}
    judged = {cell.name: pairs[cell.name] for cell in comparison.cells if cell.judged}
    if not judged:
        return comparison
    reason = _why_one_stage(comparison, list(judged.values()), second.resampler.trust_code)
    if reason is not None:
        grow = "; --grow-to has no effect for the same reason" if terms.grow_to else ""
        return replace(comparison, rule=f"{comparison.rule}; no second stage, because {reason}{grow}")
    cells = (replace(cell, grows=cell.name in judged and not judged[cell.name][0].labels_are_rows)
             for cell in comparison.cells)  # fmt: skip
    screened, singled_out = _screened(replace(comparison, cells=tuple(cells)), judged, terms)
    if singled_out:
        them = "it" if len(singled_out) == 1 else "them"
        stage = f"the verdict is that of a fresh seed at alpha = {terms.alpha_of_a_look:g} over {them}"
        again = _second_look(screened, singled_out, Look("fresh", None), stage, terms, second)
        invalid = again if isinstance(again, str) else contradiction(comparison, again)
        if invalid is not None:
            return replace(comparison, rule=f"{comparison.rule}; the second stage does not count, because {invalid}")
        assert not isinstance(again, str)
        screened = again
    return _with_growth(screened, judged, terms, second)


def _why_one_stage(comparison: BaselineComparison, judged: Sequence[Pair], trust_code: bool) -> str | None:
    """The reason why there is no second stage; None if there can be one."""
    for name, check in comparison.checks.items():
        if check.result != "clean":
            state = "has changed" if check.result == "changed" else "could not be checked"
            return f"the {name} {state} ({check.reason})"
    return why_no_second_look(judged, trust_code)


def _screened(
    comparison: BaselineComparison, judged: Mapping[str, Pair], terms: Terms
) -> tuple[BaselineComparison, list[Pair]]:
    """The comparison with the first stage in its `rule`, and the cells that the usual seeds single out."""
    cells = [cell for cell in comparison.cells if cell.name in judged]
    judgement = screen([change for cell in cells for change in changes_of(*judged[cell.name], cell)], terms.gate.alpha)
    chosen = [judged[name] for name in dict.fromkeys(cell.name for cell in judgement.worse)]
    share = f"{len(chosen)} of {tests_in_words(judgement)}"
    critical = judgement.critical
    rule = f"two stages: the usual seeds single out {share} at {judgement.alpha:g} ({threshold(critical)})"
    return replace(comparison, rule=rule, critical=critical, usual_critical=critical), chosen


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


def _with_growth(
    comparison: BaselineComparison, judged: Mapping[str, Pair], terms: Terms, second: SecondLook
) -> BaselineComparison:
    """The comparison after undecided cells were sampled again with more images, if --grow-to asks for it."""
    if terms.grow_to is None or any(cell.note == UNFINISHED_LOOK for cell in comparison.cells):
        return comparison
    small = [cell.name for cell in comparison.cells if cell.grows and cell.result is Verdict.UNDECIDED]
    small = [name for name in small if judged[name][0].num_samples < terms.grow_to]
    if not small:
        return replace(comparison, rule=f"{comparison.rule}; no undecided cell to grow")
    stage = f"{counted(len(small), 'undecided cell')} grown to N = {terms.grow_to} at alpha = {terms.alpha_of_a_look:g}"
    again = _second_look(
        comparison, [judged[name] for name in small], Look("grown", terms.grow_to), stage, terms, second
    )
    if isinstance(again, str):
        return replace(comparison, rule=f"{comparison.rule}; the grown cells do not count, because {again}")
    return again


def _second_look(
    comparison: BaselineComparison, pairs: Sequence[Pair], look: Look, stage: str, terms: Terms, second: SecondLook
) -> BaselineComparison | str:
    """The comparison where `pairs` have the verdict of fresh samples; undecided if some could not be finished.

    `stage` describes the test. Returns the reason if the look does not count.
    """
    of_cells = {cell.name: cell for cell in comparison.cells}
    resampled = second.changes([(of_cells[pair[0].name], pair) for pair in pairs], look)
    if isinstance(resampled, str):
        return resampled
    if resampled is None:
        names = {new.name for new, _ in pairs}
        cells = [
            replace(cell, result=Verdict.UNDECIDED, note=UNFINISHED_LOOK) if cell.name in names else cell
            for cell in comparison.cells
        ]
        rule = f"{comparison.rule}; {stage}, which is unfinished"
    else:
        judgement = judge([change for cell in resampled for change in cell.changes], terms.alpha_of_a_look)
        by_name = {cell.name: cell for cell in resampled}
        cells = [_with_fresh_samples(cell, by_name.get(cell.name), look) for cell in comparison.cells]
        cells = with_judgement(cells, judgement, look.name)
        rule = f"{comparison.rule}; {stage} ({threshold(judgement.critical)})"
        comparison = replace(comparison, critical=judgement.critical if judgement.cells else comparison.critical)
    return replace(comparison, cells=tuple(cells), result=worst(cell.result for cell in cells), rule=rule)


def _with_fresh_samples(cell: CellComparison, again: Resampled | None, look: Look) -> CellComparison:
    """The cell with its fresh samples, before they are tested."""
    if again is None:
        return cell
    if again.failed:
        samples = "with a fresh seed" if look.name == "fresh" else "with more samples"
        return replace(cell, result=Verdict.COLLAPSED, note=f"{samples}: {again.failed}")
    judged = {name: replace(cell.metrics[name], judged=values) for name, values in again.values.items()}
    return replace(cell, metrics={**cell.metrics, **judged}, num_samples=again.num_samples)
