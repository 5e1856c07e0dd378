"""The verdict of a night: by two stages where the baseline's weights can still be sampled, else by one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from taugrid.eval.gate.rule import SCREENING, NightJudgement, judge, screened
from taugrid.orchestrator.baseline.comparison import (
    BaselineComparison,
    change_of,
    compare_snapshots,
    with_judgement,
    worst,
)
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import Snapshot
from taugrid.orchestrator.nightly.second_look import Pair, SecondLook, why_not
from taugrid.words import counted


class Terms(NamedTuple):
    """What a night is judged by."""

    margin: float
    """As a share of the baseline's FID."""
    alpha: float
    grow_to: int | None
    """The N to which undecided cells are grown; None: they are not."""


def judge_night(
    new: Snapshot, baseline: Snapshot, terms: Terms, second: SecondLook, fresh: Path, grown: Path
) -> BaselineComparison:
    """Compare tonight's cells with the baseline's, and look again at what the usual seeds single out.

    Args:
        new: tonight's run.
        baseline: what it is compared with.
        terms: margin, alpha, and the N to grow to.
        second: how cells are sampled again.
        fresh: the run directory of cells that were screened.
        grown: that of cells that were grown.

    Raises:
        UserError: if the runs can't be compared.
        taugrid.orchestrator.nightly.second_look.Unfinished: if cells of a second look could not be finished.
    """
    found = compare_snapshots(new, baseline, terms.margin, terms.alpha)
    pairs = {pair[0].name: pair for pair in matched(new, baseline).pairs}
    judged = {cell.name: pairs[cell.name] for cell in found.cells if cell.t is not None}
    if not judged:
        return found
    reason = why_not(list(judged.values()))
    if reason is not None:
        grow = "; --grow-to has no effect for the same reason" if terms.grow_to else ""
        return replace(found, rule=f"{found.rule}; no second stage, because {reason}{grow}")
    looks = 1 if terms.grow_to is None else 2
    alpha = terms.alpha / looks
    names = screened([change_of(*pair, terms.margin) for pair in judged.values()])
    rule = f"two stages: the usual seeds single out {counted(len(names), 'cell')} of {len(judged)} at {SCREENING:g}"
    if names:
        chosen = [judged[name] for name in names]
        confirmed = judge(second.changes(chosen, "fresh", fresh, terms.margin, None), alpha)
        found = _with(found, confirmed, "fresh")
        rule += f"; the verdict is that of a fresh seed at alpha = {alpha:g} over {'them' if len(names) > 1 else 'it'}"
    if terms.grow_to is not None:
        found, told = _grow(found, judged, terms, alpha, second, grown)
        rule += told
    return replace(found, rule=rule)


def _grow(
    found: BaselineComparison,
    judged: dict[str, Pair],
    terms: Terms,
    alpha: float,
    second: SecondLook,
    folder: Path,
) -> tuple[BaselineComparison, str]:
    """Look once more at the undecided cells, with more samples of both networks."""
    assert terms.grow_to is not None
    open_cells: Sequence[Pair] = [
        judged[cell.name]
        for cell in found.cells
        if cell.name in judged and cell.result == "undecided" and judged[cell.name][0].num_samples < terms.grow_to
    ]
    if not open_cells:
        return found, "; no undecided cell to grow"
    grown = judge(second.changes(open_cells, "grown", folder, terms.margin, terms.grow_to), alpha)
    count = counted(len(open_cells), "undecided cell")
    return _with(
        found, grown, "grown"
    ), f"; {count} grown to N = {terms.grow_to} with a fresh seed, at alpha = {alpha:g}"


def _with(found: BaselineComparison, judgement: NightJudgement, seeds: str) -> BaselineComparison:
    cells = with_judgement(found.cells, judgement, seeds)
    return replace(
        found, cells=tuple(cells), result=worst([cell.result for cell in cells]), critical=judgement.critical
    )
