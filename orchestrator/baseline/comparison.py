"""A run against a baseline: the situation of each cell, and the verdict on all of them.

Three situations are told apart. *Same weights and setup*: every image must be the same, pixel by pixel. *Same weights,
other software or device*: images may be off by a little, and the FID's paired difference is judged. *New weights*: the
paired difference alone is judged.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from taugrid.errors import UserError
from taugrid.eval.gate.rule import ALPHA, MARGIN, Change, NightJudgement, judge
from taugrid.orchestrator.baseline.labels import labels
from taugrid.orchestrator.baseline.matching import changed_versions, matched
from taugrid.orchestrator.baseline.others import other_metrics
from taugrid.orchestrator.baseline.pixels import PixelDistance, distance
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell
from taugrid.words import counted

Situation = Literal["same weights and setup", "same weights, other setup", "new weights"]
CellResult = Literal["changed pixels", "worse", "undecided", "not worse", "identical", "no standard error"]
"""Worst first."""

ROUNDING = 1e-9
"""A paired error below this share of the baseline cell's own error: both cells have the same samples."""

NO_MARGIN = (
    "margin 0: new weights are never exactly equal, and the paired error shrinks with the change, so differences "
    "without consequence are called worse"
)


@dataclass(frozen=True)
class Compared:
    """One cell beside the baseline's. Numbers are None where there is no standard error, or nothing to judge."""

    cell: str
    name: str
    baseline_cell: str
    situation: Situation
    result: CellResult
    fid: float
    baseline_fid: float
    difference: float
    margin: float
    se: float | None = None
    t: float | None = None
    upper: float | None = None
    """The upper end of the interval of the difference."""
    detectable: float | None = None
    """The smallest change that would have been called worse with a probability of 80 %."""
    seeds: str = "usual"
    """Which samples the difference is of: `usual`, or those of a second look, `fresh` or `grown`."""
    pixels: PixelDistance | None = None
    """Where the weights are the same."""
    note: str = ""
    others: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Metrics without a standard error: the new value, and the baseline's."""
    label: str = ""
    """Its settings, as the history has them (`labels`)."""


@dataclass(frozen=True)
class BaselineComparison:
    """A run against a baseline."""

    directory: str
    baseline: str
    result: CellResult
    """The worst of its cells'."""
    cells: tuple[Compared, ...]
    only_new: tuple[str, ...]
    only_baseline: tuple[str, ...]
    marks: tuple[str, ...]
    """Versions and devices that differ."""
    notes: tuple[str, ...]
    alpha: float
    margin: float
    """As a share of the baseline's FID."""
    critical: float | None
    """The value that T had to exceed in the last look; None if no cell was judged."""
    rule: str
    """In words, with the value of each look."""
    unmatched: Mapping[str, str] = field(default_factory=dict)
    """Name -> label of the cells that only one side has, as far as they are scored."""

    @property
    def is_regression(self) -> bool:
        """Whether something got worse or changed that must not."""
        return self.result in ("changed pixels", "worse")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {
            "cells": [asdict(cell) | {"pixels": cell.pixels and cell.pixels._asdict()} for cell in self.cells]
        }


def worst(results: Sequence[CellResult]) -> CellResult:
    """The first of the order in which `CellResult` lists them; a run without cells has nothing to complain of."""
    order: tuple[CellResult, ...] = CellResult.__args__  # type: ignore[attr-defined]
    return next((result for result in order if result in results), "identical")


def compare_snapshots(
    new: Snapshot, baseline: Snapshot, margin: float = MARGIN, alpha: float = ALPHA
) -> BaselineComparison:
    """Judge the cells of `new` that `baseline` has too, by the one-stage rule.

    Args:
        new: tonight's run.
        baseline: what it is compared with.
        margin: as a share of the baseline's FID.
        alpha: of the whole night.

    Raises:
        UserError: if no cell matches, or cells that match were measured in different ways.
    """
    pairs, only_new, only_baseline = matched(new, baseline)
    label_of = labels(new.cells)
    looked = [replace(_look(*pair, margin), label=label_of[pair[0].cell]) for pair in pairs]
    judgement = judge(
        [change_of(*pair, margin) for pair, found in zip(pairs, looked, strict=True) if _is_judged(found)], alpha
    )
    cells = with_judgement(looked, judgement)
    marks = dict.fromkeys(mark for pair in pairs for mark in _marks(*pair))
    return BaselineComparison(
        directory=new.place,
        baseline=baseline.place,
        result=worst([cell.result for cell in cells]),
        cells=tuple(cells),
        only_new=tuple(only_new),
        only_baseline=tuple(only_baseline),
        unmatched=_labels_by_name(baseline.cells, only_baseline) | _labels_by_name(new.cells, only_new),
        marks=(*marks, *changed_versions(pairs)),
        notes=(NO_MARGIN,) if margin == 0 else (),
        alpha=alpha,
        margin=margin,
        critical=None if math.isnan(judgement.critical) else judgement.critical,
        rule=_rule(judgement, alpha),
    )


def _labels_by_name(cells: Sequence[SnapshotCell], names: Collection[str]) -> dict[str, str]:
    label_of = labels(cells)
    return {cell.name: label_of[cell.cell] for cell in cells if cell.name in names}


def _rule(judgement: NightJudgement, alpha: float) -> str:
    if not judgement.cells:
        return f"one stage at alpha = {alpha:g}: no cell is left to judge"
    judged = counted(len(judgement.cells), "cell")
    return f"one stage: the usual seeds at alpha = {alpha:g} over {judged} ({threshold(judgement.critical)})"


def threshold(critical: float) -> str:
    """What T has to exceed, for the rule in words."""
    return f"T > {critical:.2f}"


def change_of(new: SnapshotCell, old: SnapshotCell, margin: float) -> Change:
    """What the rule needs of a pair that has influences on both sides."""
    assert new.influence is not None
    assert old.influence is not None
    base = float(old.metrics["fid"])
    return Change(new.name, float(new.metrics["fid"]) - base, margin * base, new.influence - old.influence, new.block)


def with_judgement(cells: Sequence[Compared], judgement: NightJudgement, seeds: str = "usual") -> list[Compared]:
    """The cells with the verdicts of `judgement`, by name; the others stay as they are."""
    by_name = {found.name: found for found in judgement.cells}
    return [_judged(cell, by_name, seeds) for cell in cells]


def _judged(cell: Compared, by_name: dict[str, Any], seeds: str) -> Compared:
    found = by_name.get(cell.name)
    if found is None:
        return cell
    numbers = {"se": found.se, "t": found.t, "upper": found.upper, "detectable": found.detectable, "seeds": seeds}
    return Compared(**{**cell.__dict__, **numbers, "difference": found.difference, "result": found.verdict})


def _is_judged(cell: Compared) -> bool:
    return cell.result == "undecided"


def _situation(new: SnapshotCell, old: SnapshotCell) -> Situation:
    if not new.network.is_same(old.network):
        return "new weights"
    same = not new.setup.differences(old.setup) and new.network.source_sha256 == old.network.source_sha256
    return "same weights and setup" if same else "same weights, other setup"


def _marks(new: SnapshotCell, old: SnapshotCell) -> list[str]:
    marks = [f"sampled with {text}" for text in new.setup.differences(old.setup)]
    if new.network.is_same(old.network) and new.network.source_sha256 != old.network.source_sha256:
        marks.append("the custom network's code differs")
    return marks


def _look(new: SnapshotCell, old: SnapshotCell, margin: float) -> Compared:
    """A pair before the rule has judged it: "undecided" is what remains to be judged."""
    if "fid" not in new.metrics or "fid" not in old.metrics:
        raise UserError(f"{new.name} has no FID on both sides; evaluate.metrics must name fid")
    situation = _situation(new, old)
    pixels = None if situation == "new weights" else _pixels(new, old)
    result, note = _before_judgement(new, old, situation, pixels)
    fid, base = float(new.metrics["fid"]), float(old.metrics["fid"])
    return Compared(
        cell=new.cell,
        name=new.name,
        baseline_cell=old.cell,
        situation=situation,
        result=result,
        fid=fid,
        baseline_fid=base,
        difference=fid - base,
        margin=margin * base,
        se=0.0 if result == "identical" else None,
        pixels=pixels,
        note="; ".join(filter(None, [note, *_gone(new, old)])),
        others=other_metrics(new.metrics, old.metrics),
    )


def _gone(new: SnapshotCell, old: SnapshotCell) -> list[str]:
    """Whose images are lacking, so that its score can't be checked."""
    sides = (("this run", new), ("the baseline", old))
    return [f"{whose} lacks images that it was scored on" for whose, side in sides if side.lacks_images]


def _before_judgement(
    new: SnapshotCell, old: SnapshotCell, situation: Situation, pixels: PixelDistance | None
) -> tuple[CellResult, str]:
    if pixels is not None and pixels.differing == 0:
        return "identical", ""
    if situation == "same weights and setup" and pixels is not None:
        return "changed pixels", "same weights, software, device and threads, but other images"
    for side in (new, old):
        if side.influence is None:
            return "no standard error", side.reason or "no influences are known"
    if new.block != old.block:
        return "no standard error", "the runs share no noise (their seeds differ)"
    assert new.influence is not None
    assert old.influence is not None
    if float((new.influence - old.influence).std()) <= ROUNDING * float(old.influence.std()):
        return "identical", "both have the same features"
    unknown = situation != "new weights" and pixels is None
    return "undecided", "the images could not be compared: those of one side are gone" if unknown else ""


def _pixels(new: SnapshotCell, old: SnapshotCell) -> PixelDistance | None:
    mine, theirs = new.find_digests(), old.find_digests()
    if mine is None or theirs is None or len(mine) != len(theirs):
        return None
    differing = np.flatnonzero(mine != theirs)
    if not len(differing):
        return distance(differing, len(mine), None, None)
    return distance(differing, len(mine), new.find_images(), old.find_images())
