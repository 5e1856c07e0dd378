"""Compares a run with a baseline: the situation of each cell, and the verdict on all of them.

There are three situations. *Same weights and setup*: every image must be the same, pixel by pixel. *Same weights,
other software or device*: images may be off by a little, and the FID's paired difference is judged. *New weights*: the
paired difference is judged, and the sampler and the scorer are checked separately (`canaries`).
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from taugrid.errors import UserError
from taugrid.eval.gate.rule import CellJudgement, Change, NightJudgement, Scored, judge
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.eval.metrics.frechet import NOTHING_VARIES
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.entries import ROUNDING
from taugrid.orchestrator.baseline.canaries import Check, Sampled, check_sampler, check_scorer, sampled_again
from taugrid.orchestrator.baseline.compared import (
    DEFAULT_GATE,
    BaselineComparison,
    CellComparison,
    GateSettings,
    Situation,
)
from taugrid.orchestrator.baseline.matching import changed_code, changed_versions, labels, matched
from taugrid.orchestrator.baseline.pixels import PixelDistance, distance
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell
from taugrid.orchestrator.baseline.text import other_metrics
from taugrid.orchestrator.work.scorer import differs, tolerance
from taugrid.words import counted

METRIC_SETTINGS = ("seed", "isc_splits", "kid_subsets", "kid_subset_size", "prc_neighborhood", "mind_projections")
"""Fields of a protocol that metrics other than FID depend on."""

REPEATS = 0.9
"""Images repeat if the share of distinct ones is below this share of the baseline's."""

NO_MARGIN = (
    "margin 0: new weights are never exactly equal, and the paired error shrinks with the change, so differences "
    "without consequence are called worse"
)

Canaries = Callable[[SnapshotCell], Sampled | Check]
"""Called with a cell of the baseline: its first batch, sampled with today's code, or why there is none."""


def not_sampled(cell: SnapshotCell) -> Check:
    """The `Canaries` of a comparison that has none."""
    return Check("unknown", "no night has sampled the baseline's network with this code")


def compare_snapshots(
    new: Snapshot, baseline: Snapshot, gate: GateSettings = DEFAULT_GATE, canaries: Canaries = not_sampled
) -> BaselineComparison:
    """Judge the cells that both sides have by one test of the usual seeds, and check sampler and scorer.

    `canaries` is called for cells with new weights. Raises `UserError` as `matched` does.
    """
    pairs, only_new, only_baseline = matched(new, baseline)
    scorer = check_scorer(new, baseline)
    label_of = labels(new.cells)
    cells = [replace(_compare_cell(*pair, gate.margin), label=label_of[pair[0].cell]) for pair in pairs]
    judged = [pair for pair, cell in zip(pairs, cells, strict=True) if cell.is_judged]
    judgement = judge([change_of(*pair, gate.margin) for pair in judged], gate.alpha)
    cells = with_judgement(cells, judgement)
    cells = [_checked(cell, *pair, scorer, canaries) for cell, pair in zip(cells, pairs, strict=True)]
    if scorer.result == "unknown" and all(_scores_agree(*pair) for pair in pairs):
        scorer = Check("clean")
    critical = None if math.isnan(judgement.critical) else judgement.critical
    return BaselineComparison(
        directory=new.source,
        baseline=baseline.source,
        result=worst(cell.result for cell in cells),
        cells=tuple(cells),
        only_new=tuple(only_new),
        only_baseline=tuple(only_baseline),
        unmatched=_labels_by_name(baseline.cells, only_baseline) | _labels_by_name(new.cells, only_new),
        environment_differences=(
            *dict.fromkeys(difference for pair in pairs for difference in _environment_differences(*pair)),
            *changed_versions(pairs),
        ),
        notes=(*((NO_MARGIN,) if gate.margin == 0 else ()), *changed_code(new, baseline)),
        alpha=gate.alpha,
        margin=gate.margin,
        critical=critical,
        usual_critical=critical,
        rule=_rule(judgement, gate.alpha),
        scorer_check=scorer,
        gate=gate,
    )


def _labels_by_name(cells: Sequence[SnapshotCell], names: Collection[str]) -> dict[str, str]:
    label_of = labels(cells)
    return {cell.name: label_of[cell.cell] for cell in cells if cell.name in names}


def _rule(judgement: NightJudgement, alpha: float) -> str:
    if not judgement.cells:
        return f"one stage at alpha = {alpha:g}: there is no cell to judge"
    judged = counted(len(judgement.cells), "cell")
    return f"one stage: the usual seeds at alpha = {alpha:g} over {judged} ({threshold(judgement.critical)})"


def threshold(critical: float) -> str:
    return f"T > {critical:.2f}"


def change_of(new: SnapshotCell, old: SnapshotCell, margin: float) -> Change:
    """The change of a pair with influences on both sides, as the statistical test needs it."""
    assert new.influence is not None
    assert old.influence is not None
    trainings = [Scored(float(old.metrics["fid"]), old.influence), *old.trainings]
    tonight = Scored(float(new.metrics["fid"]), new.influence)
    return Change.between(new.name, tonight, trainings, margin * old.fid, new.seed_set)


def with_judgement(
    cells: Sequence[CellComparison], judgement: NightJudgement, seeds: str = "usual"
) -> list[CellComparison]:
    """The cells with the verdicts of `judgement`, by name; the others stay as they are."""
    judged = {cell.name: cell for cell in judgement.cells}
    return [_with_judgement(cell, judged[cell.name], seeds) if cell.name in judged else cell for cell in cells]


def _with_judgement(cell: CellComparison, judged: CellJudgement, seeds: str) -> CellComparison:
    return replace(
        cell,
        difference=judged.difference,
        se=judged.se,
        t=judged.t,
        upper=judged.upper,
        detectable=judged.detectable,
        reach=judged.reach,
        seeds=seeds,
        result=judged.verdict,
    )


def _checked(
    cell: CellComparison, new: SnapshotCell, old: SnapshotCell, scorer: Check, canaries: Canaries
) -> CellComparison:
    """The cell with its check of the sampler, and with the verdict that follows from both checks."""
    again = canaries(old) if cell.situation == "new weights" else sampled_again(new)
    check = again if isinstance(again, Check) else check_sampler(old, again)
    if cell.result is Verdict.CHANGED_PIXELS:
        return replace(cell, sampler_check=Check("changed", "its images changed"))
    verdicts, notes = {cell.result}, [cell.note]
    if check.result == "changed":
        verdicts.add(Verdict.CHANGED_SAMPLER)
        notes.append(check.reason)
    if scorer.result == "changed":
        verdicts.add(Verdict.CHANGED_SCORER)
    return replace(cell, sampler_check=check, result=worst(verdicts), note="; ".join(filter(None, notes)))


def _compare_cell(new: SnapshotCell, old: SnapshotCell, margin: float) -> CellComparison:
    """Compare a pair before the statistical test: the cells that it will judge are undecided."""
    if "fid" not in old.metrics or ("fid" not in new.metrics and new.failed is None):
        raise UserError(f"{new.name} has no FID on both sides; evaluate.metrics must name fid")
    situation, base = _situation(new, old), old.fid
    pixels = None if situation == "new weights" or new.failed else _pixels(new, old)
    result, note = _before_judgement(new, old, situation, pixels)
    fid = None if new.failed else float(new.metrics["fid"])
    sides = (("this run", new), ("the baseline", old))
    gone = [f"{name} lacks images that it was scored on" for name, side in sides if side.lacks_images]
    return CellComparison(
        cell=new.cell,
        name=new.name,
        baseline_cell=old.cell,
        situation=situation,
        result=result,
        fid=fid,
        baseline_fid=base,
        difference=None if fid is None else fid - base,
        margin=margin * base,
        se=0.0 if result is Verdict.IDENTICAL else None,
        pixels=pixels,
        note="; ".join(filter(None, [note, *gone])),
        num_samples=new.num_samples,
        others=other_metrics(new.metrics, old.metrics),
        missing_inputs=_missing_influences(new, old) if result is Verdict.NOT_JUDGED else "",
    )


def _situation(new: SnapshotCell, old: SnapshotCell) -> Situation:
    if not new.network.is_same(old.network):
        return "new weights"
    same = not new.setup.differences(old.setup) and new.network.source_sha256 == old.network.source_sha256
    return "same weights and setup" if same else "same weights, other setup"


def _environment_differences(new: SnapshotCell, old: SnapshotCell) -> list[str]:
    if new.failed is not None and not new.setup.versions:
        return []  # it has no images
    differences = [f"sampled with {difference}" for difference in new.setup.differences(old.setup)]
    if new.network.is_same(old.network) and new.network.source_sha256 != old.network.source_sha256:
        differences.append("the custom network's code differs")
    return differences


def _pixels(new: SnapshotCell, old: SnapshotCell) -> PixelDistance | None:
    after, before = new.load_digests(), old.load_digests()
    if after is None or before is None or len(after) != len(before):
        return None
    differing = np.flatnonzero(after != before)
    images = (new.load_images(), old.load_images()) if len(differing) else (None, None)
    return distance(differing, len(after), *images)


def _missing_influences(new: SnapshotCell, old: SnapshotCell) -> str:
    """A message that names the sides whose influences must be computed again; empty if there are none."""
    sides = [name for name, side in (("its", new), ("the baseline's", old)) if side.lacks_influence]
    return f"{' and '.join(sides)} influences are missing or damaged; `taugrid evaluate` computes them" if sides else ""


def _before_judgement(
    new: SnapshotCell, old: SnapshotCell, situation: Situation, pixels: PixelDistance | None
) -> tuple[Verdict, str]:
    """The verdict before the statistical test, and a note on it."""
    if new.failed is not None:
        return Verdict.COLLAPSED, new.failed
    if pixels is not None and pixels.differing == 0:
        return _same_samples(new, old, "")
    if situation == "same weights and setup" and pixels is not None:
        return Verdict.CHANGED_PIXELS, "same weights, software, device and threads, but other images"
    if new.influence is None and old.influence is not None and (reason := _collapse(new, old)) is not None:
        return Verdict.COLLAPSED, reason
    for side in (new, old):
        if side.influence is None:
            return Verdict.NOT_JUDGED, side.reason or "no influences are known"
    if new.seed_set != old.seed_set:
        return Verdict.NOT_JUDGED, "the runs share no noise (their seeds differ)"
    assert new.influence is not None
    assert old.influence is not None
    # A paired error that is rounding beside the baseline's own: both cells have the same samples.
    if float((new.influence - old.influence).std()) <= ROUNDING * float(old.influence.std()):
        return _same_samples(new, old, "both have the same features")
    shares = _distinct(new.influence), _distinct(old.influence)
    if shares[0] < REPEATS * shares[1]:
        return Verdict.COLLAPSED, f"images repeat; {_distinct_images(*shares)}"
    unknown = situation != "new weights" and pixels is None
    return Verdict.UNDECIDED, "the images could not be compared: those of one side are gone" if unknown else ""


def _same_samples(new: SnapshotCell, old: SnapshotCell, note: str) -> tuple[Verdict, str]:
    """The verdict on the same samples, which must have the same scores."""
    if metrics := _differing_metrics(new, old):
        changes = (f"{name} {old.metrics[name]:.6g} -> {new.metrics[name]:.6g}" for name in metrics)
        return Verdict.CHANGED_SCORER, f"the same images have other scores: {', '.join(changes)}"
    return Verdict.IDENTICAL, note


def _scores_agree(new: SnapshotCell, old: SnapshotCell) -> bool:
    """Whether the same pixels have the same scores, which checks the scorer as well as a canary does."""
    after, before = new.load_digests(), old.load_digests()
    same = after is not None and before is not None and np.array_equal(after, before)
    return same and not _differing_metrics(new, old)


def _differing_metrics(new: SnapshotCell, old: SnapshotCell) -> list[str]:
    """The names of the metrics whose values for the same images differ by more than rounding."""
    allowed = tolerance(new.scored_with, old.scored_with)
    same_settings = all(new.protocol.get(key) == old.protocol.get(key) for key in METRIC_SETTINGS)
    names = new.metrics.keys() & old.metrics.keys() if same_settings else {"fid"}
    return sorted(name for name in names if differs(new.metrics[name], old.metrics[name], allowed))


def _collapse(new: SnapshotCell, old: SnapshotCell) -> str | None:
    """The way in which the images vary less than the baseline's, if that is why FID has no standard error; else None.

    Both have the same N. So either no feature varies any more, or more do than before, which is not a collapse unless
    images repeat.
    """
    if new.lacks_influence:
        return None
    digests = (side.load_digests() for side in (new, old))
    shares = [None if hashes is None else len(np.unique(hashes)) / len(hashes) for hashes in digests]
    repeats = shares[0] is not None and shares[1] is not None and shares[0] < shares[1]
    if new.reason != NOTHING_VARIES and not repeats:
        return None
    return f"{new.reason}; {_distinct_images(*shares)}"


def _distinct_images(share: float | None, before: float | None) -> str:
    percent = "unknown" if share is None else f"{100 * share:.3g} %"
    return f"distinct images: {percent}" + ("" if before is None else f" (the baseline: {100 * before:.3g} %)")


def _distinct(influence: Array) -> float:
    """The share of distinct images, by their influences, which are compared to a millionth of their spread."""
    return len(np.unique(np.round(influence / influence.std(), 6))) / len(influence)
