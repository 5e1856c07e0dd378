"""Compares a run with a baseline: the situation of each cell, and the verdict on all of them.

There are three situations. *Same weights and setup*: every image must be the same, pixel by pixel. *Same weights,
other software or device*: images may be off by a little, and the paired differences of the metrics are judged. *New
weights*: the paired differences are judged, and the sampler and the scorer are checked separately (`canaries`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from taugrid.errors import UserError
from taugrid.eval.gate.rule import CellJudgement, Change, NightJudgement, judge, margin_of, size_of
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.eval.metrics.frechet import NOTHING_VARIES
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.table import ROUNDING
from taugrid.orchestrator.baseline.canaries import (
    NOT_OURS,
    NOT_SAMPLED,
    Canaries,
    Check,
    check_sampler,
    check_scorer,
    worst_check,
)
from taugrid.orchestrator.baseline.compared import (
    DEFAULT_GATE,
    DEFAULT_METRICS,
    BaselineComparison,
    CellComparison,
    GateSettings,
    MetricComparison,
    PixelDistance,
    Situation,
)
from taugrid.orchestrator.baseline.matching import changed_code, changed_versions, labels, matched
from taugrid.orchestrator.baseline.snapshot import MISSING_INFLUENCES, NO_ERROR, Snapshot, SnapshotCell
from taugrid.orchestrator.work.scorer import differs, tolerance
from taugrid.registry.metrics import COLUMNS, METRICS, MetricColumn, settings_of
from taugrid.words import counted, listed

REPEATS = 0.9  # images repeat if the share of distinct ones is below this share of the baseline's
MAX_NAMED = 3  # the number of cells, or of images, that a note on a metric names

UNCHANGED = "it is the baseline's, and every image has the same part in it"
"""Why the test can't judge a metric of other images, such as a precision of which all are precise on both sides."""

NO_MARGIN = (
    "margin 0: new weights are never exactly equal, and the paired error shrinks with the change, so differences "
    "without consequence are called worse"
)


def compare_snapshots(
    new: Snapshot,
    baseline: Snapshot,
    gate: GateSettings = DEFAULT_GATE,
    canaries: Mapping[str, SnapshotCell | Check] = {},
) -> BaselineComparison:
    """Judge the cells that both sides have by one test of the usual seeds, and check sampler and scorer. `canaries` is
    used for cells with new weights. Raises `UserError` as `matched` does."""
    pairs, only_new, only_baseline = matched(new, baseline)
    scorer, label_of = check_scorer(new, baseline), labels(new.cells)
    cells = [replace(_compare_cell(*pair, gate), label=label_of[pair[0].cell]) for pair in pairs]
    judged = [(pair, cell) for pair, cell in zip(pairs, cells, strict=True) if cell.is_judged]
    judgement = judge([change for pair, cell in judged for change in changes_of(*pair, cell)], gate.alpha)
    cells = with_judgement(cells, judgement)
    cells = [_checked(cell, *pair, scorer, canaries) for cell, pair in zip(cells, pairs, strict=True)]
    if scorer.result == "unknown" and all(_scores_agree(*pair) for pair in pairs):
        scorer = Check("clean")
    if judgement.cells:
        samples = "the usual seeds" if new.images is None else "these images"
        over = f"over {tests_in_words(judgement)} (T > {judgement.critical:.2f})"
        rule = f"one stage: {samples} at alpha = {gate.alpha:g} {over}"
    else:
        rule = f"one stage at alpha = {gate.alpha:g}: there is no cell to judge"
    unjudged: dict[str, list[str]] = {}
    for cell in cells:
        for name, reason in cell.unjudged.items() if cell.is_judged else ():
            unjudged.setdefault(f"{COLUMNS[name].title} is not judged: {reason}", []).append(cell.label or cell.name)
    notes = [*([NO_MARGIN] if gate.margin == 0 else []), *changed_code(new, baseline)]
    notes += [f"{said} ({listed(labels, MAX_NAMED)})" for said, labels in unjudged.items()]
    marks = dict.fromkeys(mark for pair in pairs for mark in _environment_differences(*pair))
    critical = judgement.critical if judgement.cells else None
    checks: dict[Literal["sampler", "scorer"], Check] = {"sampler": worst_check(cell.sampler for cell in cells)}
    return BaselineComparison(
        directory=new.source,
        baseline=baseline.source,
        result=worst(cell.result for cell in cells),
        cells=tuple(cells),
        only_new=tuple(only_new),
        only_baseline=tuple(only_baseline),
        unmatched=only_new | only_baseline,
        marks=(*marks, *changed_versions(pairs)),
        notes=tuple(notes),
        critical=critical,
        usual_critical=critical,
        rule=rule,
        checks=checks | {"scorer": scorer},
        gate=gate,
    )


def tests_in_words(judgement: NightJudgement) -> str:
    """The number of cells that a test judged, and of metrics if they are more than one."""
    metrics = [COLUMNS[name].title for name in dict.fromkeys(cell.metric for cell in judgement.cells)]
    cells = counted(len({cell.name for cell in judgement.cells}), "cell")
    return cells if len(metrics) == 1 else f"{cells} and {' and '.join(metrics)}"


def changes_of(new: SnapshotCell, old: SnapshotCell, cell: CellComparison) -> list[Change]:
    """The changes of a pair's metrics that the statistical test judges, under the name of `cell`."""
    changes = []
    for name in cell.judging:
        tonight, baseline = new.scored(name, unsure=True), old.scored(name)
        assert tonight is not None
        assert baseline is not None
        if new.seed_set != old.seed_set:  # external images, which have no names in common
            influences = independent(baseline.influence, tonight.influence)
            baseline = baseline._replace(influence=influences[0])
            tonight = tonight._replace(influence=influences[1])
        margin = cell.metrics[name].margin
        change = Change.between(cell.name, tonight, baseline, margin, new.seed_set, COLUMNS[name])
        changes.append(replace(change, only_worse=name not in new.influences))
    return changes


def independent(influence_a: Array, influence_b: Array) -> tuple[Array, Array]:
    """The influences of two independent sets on a joint sample of all their images. Each is 0 where the other's images
    are, and has the same standard error as before. So the difference has the error sqrt(se_a^2 + se_b^2), and several
    metrics of the same two sets have the correlations of their errors."""
    n = len(influence_a) + len(influence_b)
    a, b = (
        (influence - influence.mean()) * math.sqrt(n * (n - 1) / (len(influence) * (len(influence) - 1)))
        for influence in (influence_a, influence_b)
    )
    return np.concatenate([a, np.zeros(len(b))]), np.concatenate([np.zeros(len(a)), b])


def with_judgement(
    cells: Sequence[CellComparison], judgement: NightJudgement, seeds: str = "usual"
) -> list[CellComparison]:
    """The cells with the verdicts of `judgement`, by name; the others stay as they are."""
    judged: dict[str, list[CellJudgement]] = {}
    for cell in judgement.cells:
        judged.setdefault(cell.name, []).append(cell)
    return [_with_judgement(cell, judged[cell.name], seeds) if cell.name in judged else cell for cell in cells]


def _with_judgement(cell: CellComparison, judged: Sequence[CellJudgement], seeds: str) -> CellComparison:
    metrics, unjudged, verdicts, notes = dict(cell.metrics), dict(cell.unjudged), set(), [cell.note]
    for found in judged:
        name, column = found.metric, COLUMNS[found.metric]
        if found.verdict is Verdict.NOT_JUDGED:
            unjudged[name] = cell.unsure.get(name, NO_ERROR)
            metrics[name] = replace(metrics[name], verdict=None)
            continue
        verdicts.add(found.verdict)
        if name in cell.unsure and seeds == "usual":
            notes.append(f"{column.title}: {cell.unsure[name]}")
        metrics[name] = replace(
            metrics[name],
            difference=-found.difference if column.higher_is_better else found.difference,
            decisive=found.reach.samples_to_decide(cell.num_samples),
            **{key: getattr(found, key) for key in ("verdict", "se", "t", "upper", "detectable", "reach")},
        )
    if not verdicts:
        notes.append("; ".join(dict.fromkeys(unjudged.values())))
    result = worst(verdicts or [Verdict.NOT_JUDGED])
    note = "; ".join(filter(None, notes))
    return replace(cell, metrics=metrics, unjudged=unjudged, seeds=seeds, result=result, note=note)


def _checked(
    cell: CellComparison, new: SnapshotCell, old: SnapshotCell, scorer: Check, canaries: Canaries
) -> CellComparison:
    """The cell with its check of the sampler, and with the verdict that follows from both checks."""
    if cell.result is Verdict.CHANGED_PIXELS:
        return replace(cell, sampler=Check("changed", "its images changed"))
    again: SnapshotCell | Check = new
    if cell.situation == "new weights":
        again = NOT_OURS if old.images is not None else canaries.get(old.cell, NOT_SAMPLED)
    check = again if isinstance(again, Check) else check_sampler(old, again)
    verdicts, notes = {cell.result}, [cell.note]
    if check.result == "changed":
        verdicts.add(Verdict.CHANGED_SAMPLER)
        notes.append(check.reason)
    if scorer.result == "changed":
        verdicts.add(Verdict.CHANGED_SCORER)
    return replace(cell, sampler=check, result=worst(verdicts), note="; ".join(filter(None, notes)))


def judged_columns(new: SnapshotCell, old: SnapshotCell, gate: GateSettings) -> list[MetricColumn]:
    """The metrics that judge a cell: those that `gate` names, else the first default one with a standard error. `new`
    may be unscored or failed: then what the baseline has decides. So it does of a metric that is `unsure`. Raises
    `UserError` if none of them is on both sides."""
    named = DEFAULT_METRICS if gate.metrics is None else gate.metrics
    columns = [column for name in named for column in METRICS[name].columns if column.sampling_error]
    if gate.metrics is None:
        sides = [old, *([new] if new.metrics else [])]
        with_error = [column for column in columns if all(column.sampling_error in side.metrics or
                      (side is new and column.name in new.unsure) for side in sides)]  # fmt: skip
        with_value = [column for column in columns if all(column.name in side.metrics for side in sides)]
        columns = [*with_error, *with_value, *columns][:1]
    if not any(column.name in old.metrics and (new.failed or column.name in new.metrics) for column in columns):
        titles = " or ".join(column.title for column in columns)
        names = " or ".join(name for name, metric in METRICS.items() if set(metric.columns) & set(columns))
        raise UserError(f"{new.name} has no {titles} on both sides; evaluate.metrics must name {names}")
    return columns


def _compare_cell(new: SnapshotCell, old: SnapshotCell, gate: GateSettings) -> CellComparison:
    """Compare a pair before the statistical test: the cells that it will judge are undecided."""
    columns = judged_columns(new, old, gate)
    same_setup = not new.setup.differences(old.setup) and new.network.source_sha256 == old.network.source_sha256
    situation: Situation = "same weights and setup" if same_setup else "same weights, other setup"
    if not new.network.is_same(old.network):
        situation = "new weights"
    pixels = None if situation == "new weights" or new.failed else pixel_distance(new, old)
    unjudged = {column.name: reason for column in columns if (reason := why_not_judged(new, old, column)) is not None}
    judging = tuple(column.name for column in columns if column.name not in unjudged)
    result, note = _before_judgement(new, old, situation, pixels, unjudged if not judging else {})
    wanted, missing = {column.name for column in columns}, ""
    lacking = [name for name, side in (("its", new), ("the baseline's", old)) if wanted & set(side.lacking)]
    if lacking and result in (Verdict.UNDECIDED, Verdict.NOT_JUDGED):
        missing = f"{' and '.join(lacking)} {MISSING_INFLUENCES.removeprefix('its ')}"
        result, note = Verdict.NOT_JUDGED, missing if result is Verdict.UNDECIDED else note
    shown = dict.fromkeys(("fid", *(column.name for column in columns)))
    metrics = {name: found for name in shown if (found := _metric(new, old, name, gate)) is not None}
    if result is Verdict.IDENTICAL:
        metrics = {name: replace(metric, se=0.0) for name, metric in metrics.items()}
    others = [name for name in COLUMNS if name != "fid" and (name in new.metrics or name in old.metrics)]
    return CellComparison(
        cell=new.cell,
        name=new.name,
        baseline_cell=old.cell,
        situation=situation,
        result=result,
        metrics=metrics,
        judging=judging,
        unjudged=unjudged,
        unsure={name: _why_unsure(new, name) for name in judging if name not in new.influences},
        pixels=pixels,
        note=note,
        num_samples=new.num_samples,
        others={name: (new.metrics.get(name), old.metrics.get(name)) for name in others},
        missing=missing,
    )


def _metric(new: SnapshotCell, old: SnapshotCell, name: str, gate: GateSettings) -> MetricComparison | None:
    """A metric before the test; None if a side lacks it."""
    if name not in old.metrics or (new.failed is None and name not in new.metrics):
        return None
    base, scored = float(old.metrics[name]), old.scored(name)
    size = size_of(scored) if scored else abs(base)
    margin = margin_of(scored, gate.margin, COLUMNS[name], gate.margin_floor) if scored else gate.margin * size
    value = None if new.failed else float(new.metrics[name])
    return MetricComparison(value, base, size, None if value is None else value - base, margin)


def _environment_differences(new: SnapshotCell, old: SnapshotCell) -> list[str]:
    if (new.failed is not None and not new.setup.versions) or new.images is not None:
        return []  # it has no images, or who made them is not known
    differences = [f"sampled with {difference}" for difference in new.setup.differences(old.setup)]
    if new.network.is_same(old.network) and new.network.source_sha256 != old.network.source_sha256:
        differences.append("the custom network's code differs")
    return differences


def pixel_distance(new: SnapshotCell, old: SnapshotCell) -> PixelDistance | None:
    """The distance of the images of a pair; None if the hashes of one side are gone."""
    after, before = new.load_digests(), old.load_digests()
    if after is None or before is None or len(after) != len(before):
        return None
    differs = after != before
    differing = int(differs.sum())
    if not differing:
        return PixelDistance(len(after), 0, 0, 0.0)
    seen, largest, means = 0, 0, list[float]()
    for is_other, image, earlier in zip(differs, new.load_images(), old.load_images(), strict=False):
        seen += 1
        if is_other:
            distance = np.abs(image.astype(np.int16) - earlier.astype(np.int16))
            largest = max(largest, int(distance.max()))
            means.append(distance.mean())
    if seen < len(after):  # some images of one side are gone
        return PixelDistance(len(after), differing, None, None)
    return PixelDistance(len(after), differing, largest, float(np.mean(means)))


def _why_unsure(new: SnapshotCell, column: str) -> str:
    """Why a metric has no standard error, and which images move it most."""
    influence = new.unsure[column]
    furthest = np.argsort(-np.abs(influence - influence.mean()))[:MAX_NAMED]
    names = ", ".join(new.names[image] if new.names else str(image) for image in furthest)
    why = new.reasons.get(column, NO_ERROR)
    return f"its value alone has no standard error ({why}), unlike the baseline's; look at images such as {names}"


def why_not_judged(new: SnapshotCell, old: SnapshotCell, column: MetricColumn) -> str | None:
    """The reason why a metric of a cell can't be judged; None if it can."""
    name = column.name
    for called, side in (("this run", new), ("the baseline", old)):
        if name not in side.metrics:
            return f"{called} was not scored by it"
        unsure = side is new and name in new.unsure and new.num_samples >= old.num_samples
        if not side.scored(name) and not unsure:
            return MISSING_INFLUENCES if name in side.lacking else side.reasons.get(name, NO_ERROR)
    if changed := _changed_settings(new, old, name):
        return f"its settings are not the baseline's ({', '.join(changed)})"
    if new.num_samples != old.num_samples and not column.unbiased:
        return f"its bias depends on N, of which A has {old.num_samples:,} and B {new.num_samples:,}"
    tonight, baseline = new.scored(name, unsure=True), old.scored(name)
    assert tonight is not None
    assert baseline is not None
    if new.seed_set == old.seed_set:
        spread = float((tonight.influence - baseline.influence).std())
    else:
        spread = float(max(tonight.influence.std(), baseline.influence.std()))
    if spread > ROUNDING * float(baseline.influence.std()):
        return None
    return UNCHANGED if math.isclose(tonight.value, baseline.value) else "its difference does not vary over the images"


def _before_judgement(
    new: SnapshotCell,
    old: SnapshotCell,
    situation: Situation,
    pixels: PixelDistance | None,
    unjudged: Mapping[str, str],
) -> tuple[Verdict, str]:
    """The verdict before the statistical test, and a note on it; `unjudged` is why no metric can be judged."""
    is_paired = new.seed_set == old.seed_set
    if new.failed is not None:
        return Verdict.COLLAPSED, new.failed
    if pixels is not None and pixels.differing == 0:
        return _same_samples(new, old, "")
    if is_paired and _have_same_images(new, old):
        return _same_samples(new, old, "both have the same images")
    if situation == "same weights and setup" and pixels is not None:
        return Verdict.CHANGED_PIXELS, "same weights, software, device and threads, but other images"
    if (reason := _collapse(new, old)) is not None:
        return Verdict.COLLAPSED, reason
    if not is_paired and not unjudged and new.images is None:
        return Verdict.NOT_JUDGED, "the runs share no noise (their seeds differ)"
    if unjudged:
        reasons = list(dict.fromkeys(unjudged.values()))
        if len(reasons) == 1:
            return Verdict.NOT_WORSE if reasons == [UNCHANGED] else Verdict.NOT_JUDGED, reasons[0]
        return Verdict.NOT_JUDGED, "; ".join(f"{COLUMNS[name].title}: {reason}" for name, reason in unjudged.items())
    if not is_paired:
        return Verdict.UNDECIDED, "unpaired: the images' names are not the baseline's"
    unknown = situation != "new weights" and pixels is None
    return Verdict.UNDECIDED, "the images could not be compared: those of one side are gone" if unknown else ""


def _same_samples(new: SnapshotCell, old: SnapshotCell, note: str) -> tuple[Verdict, str]:
    """The verdict on the same samples, which must have the same scores."""
    if metrics := _differing_metrics(new, old):
        changes = (f"{name} {old.metrics[name]:.6g} -> {new.metrics[name]:.6g}" for name in metrics)
        return Verdict.CHANGED_SCORER, f"the same images have other scores: {', '.join(changes)}"
    return Verdict.IDENTICAL, note


def _have_same_images(new: SnapshotCell, old: SnapshotCell) -> bool:
    """Whether all images are the same, pixel by pixel; False, too, if the hashes of one side are gone."""
    after, before = new.load_digests(), old.load_digests()
    return after is not None and before is not None and np.array_equal(after, before)


def _scores_agree(new: SnapshotCell, old: SnapshotCell) -> bool:
    """Whether the same pixels have the same scores, which checks the scorer as well as a canary does."""
    return _have_same_images(new, old) and not _differing_metrics(new, old)


def _differing_metrics(new: SnapshotCell, old: SnapshotCell) -> list[str]:
    """The names of the metrics whose values for the same images differ by more than rounding."""
    allowed = tolerance(new.scored_with, old.scored_with)
    names = (name for name in new.metrics.keys() & old.metrics.keys() if not _changed_settings(new, old, name))
    return sorted(name for name in names if differs(new.metrics[name], old.metrics[name], allowed))


def _changed_settings(new: SnapshotCell, old: SnapshotCell, name: str) -> list[str]:
    """The settings in which both sides differ, of those that the metric with the column `name` depends on."""
    return [key for key in settings_of((name,)) if new.protocol.get(key) != old.protocol.get(key)]


def _collapse(new: SnapshotCell, old: SnapshotCell) -> str | None:
    """The way in which the images vary less than the baseline's; None if they don't. They repeat, or FID's error is
    gone because no feature varies any more. It is gone, too, if more features vary than before, and KID's may be gone
    by chance: neither is a collapse. Of unpaired cells, only those that have lost an error may have collapsed."""
    gone = (name for name in old.influences.keys() - new.influences.keys() if name in new.reasons)
    distances = [name for name in gone if name not in new.lacking and not COLUMNS[name].higher_is_better]
    if not distances and new.seed_set != old.seed_set:
        return None
    digests = (side.load_digests() for side in (new, old))
    shares = [None if hashes is None else len(np.unique(hashes)) / len(hashes) for hashes in digests]
    repeats = shares[0] is not None and shares[1] is not None and shares[0] < REPEATS * shares[1]
    if distances and new.reason == NOTHING_VARIES:
        said = NOTHING_VARIES
    elif repeats:
        said = new.reasons[min(distances, key=list(COLUMNS).index)] if distances else "images repeat"
    else:
        return None
    return f"{said}; {_distinct_images(*shares)}"


def _distinct_images(share: float | None, before: float | None) -> str:
    percent = "unknown" if share is None else f"{100 * share:.3g} %"
    return f"distinct images: {percent}" + ("" if before is None else f" (the baseline: {100 * before:.3g} %)")
