"""The verdict of a night.

It has two stages where sampler and scorer are the baseline's and both networks can still be sampled; else it is that of
one stage, against the baseline's recorded scores. A second stage samples both networks with today's code, so a fault of
that code would cancel. Canaries see most such faults; others show because the second stage denies the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from taugrid.eval.gate.rule import is_denied, judge, screen
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.orchestrator.baseline.compared import BaselineComparison, Compared, GateSettings
from taugrid.orchestrator.baseline.comparison import Canaries, change_of, compare_snapshots, threshold, with_judgement
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import Snapshot
from taugrid.orchestrator.nightly.again import Pair, why_not
from taugrid.orchestrator.nightly.second_look import Look, Resampled, SecondLook
from taugrid.words import counted

OF_A_RECIPE = "the baseline is a recipe: fresh seeds of sampling would not change how its trainings differ"

UNFINISHED_LOOK = "its second look is unfinished"


class Terms(NamedTuple):
    gate: GateSettings
    grow_to: int | None = None
    """The N to which undecided cells are grown; None: they are not."""

    @property
    def alpha_of_a_look(self) -> float:
        """Each look at fresh samples can raise a false alarm, so they share alpha."""
        return self.gate.alpha if self.grow_to is None else self.gate.alpha / 2


def judge_night(
    new: Snapshot, baseline: Snapshot, terms: Terms, second: SecondLook, canaries: Canaries
) -> BaselineComparison:
    """Compare tonight's cells with the baseline's, and look again at those that the usual seeds single out.

    If a second look could not be finished, its cells are undecided. Raises `UserError` if the runs can't be compared.
    """
    found = compare_snapshots(new, baseline, terms.gate, canaries)
    pairs = {pair[0].name: pair for pair in matched(new, baseline).pairs}
    judged = {cell.name: pairs[cell.name] for cell in found.cells if cell.t is not None}
    if not judged:
        return found
    reason = _why_one_stage(found, list(judged.values()), second.again.trust_code)
    if reason is not None:
        grow = "; --grow-to has no effect for the same reason" if terms.grow_to else ""
        return replace(found, rule=f"{found.rule}; no second stage, because {reason}{grow}")
    screened, singled_out = _screened(found, judged, terms)
    if singled_out:
        them = "it" if len(singled_out) == 1 else "them"
        told = f"the verdict is that of a fresh seed at alpha = {terms.alpha_of_a_look:g} over {them}"
        again = _look_again(screened, singled_out, Look("fresh", None), told, terms, second)
        void = again if isinstance(again, str) else _contradicted(found, again)
        if void is not None:
            return replace(found, rule=f"{found.rule}; the second stage does not count, because {void}")
        assert not isinstance(again, str)
        screened = again
    return _grown(screened, judged, terms, second)


def _why_one_stage(found: BaselineComparison, judged: Sequence[Pair], trust_code: bool) -> str | None:
    """Why there is no second stage; None if today's code can be trusted to sample both networks, and they are here."""
    for what, check in (("sampler", found.sampler), ("scorer", found.scorer)):
        if check.result != "clean":
            state = "has changed" if check.result == "changed" else "could not be checked"
            return f"the {what} {state} ({check.reason})"
    return OF_A_RECIPE if any(old.trainings for _, old in judged) else why_not(judged, trust_code)


def _screened(
    found: BaselineComparison, judged: Mapping[str, Pair], terms: Terms
) -> tuple[BaselineComparison, list[Pair]]:
    """The comparison with the first stage told, and the cells that the usual seeds single out."""
    judgement = screen([change_of(*pair, terms.gate.margin) for pair in judged.values()], terms.gate.alpha)
    chosen = [judged[cell.name] for cell in judgement.worse]
    share = f"{len(chosen)} of {counted(len(judged), 'cell')}"
    critical = judgement.critical
    told = f"two stages: the usual seeds single out {share} at {judgement.alpha:g} ({threshold(critical)})"
    return replace(found, rule=told, critical=critical, usual_critical=critical), chosen


def _contradicted(usual: BaselineComparison, fresh: BaselineComparison) -> str | None:
    """How a fresh seed denies what the usual seeds show, if that is beyond chance; else None."""
    for cell, again in zip(usual.cells, fresh.cells, strict=True):
        if again.seeds == "usual" or again.note == UNFINISHED_LOOK:
            continue
        assert cell.difference is not None
        assert again.difference is not None
        assert cell.se is not None
        assert again.se is not None
        if is_denied((cell.difference, cell.se), (again.difference, again.se)):
            return (
                f"{cell.label} changed by {cell.difference:+.3g} ± {cell.se:.2g} with the usual seeds and by "
                f"{again.difference:+.3g} ± {again.se:.2g} with a fresh one, which is no chance: today's code treats "
                "tonight's network differently than it treated the baseline's, although no canary shows it"
            )
    return None


def _grown(
    found: BaselineComparison, judged: Mapping[str, Pair], terms: Terms, second: SecondLook
) -> BaselineComparison:
    """The comparison after undecided cells were sampled again with more images, if --grow-to asks for it."""
    if terms.grow_to is None or any(cell.note == UNFINISHED_LOOK for cell in found.cells):
        return found
    small = [cell.name for cell in found.cells if cell.name in judged and cell.result is Verdict.UNDECIDED]
    small = [name for name in small if judged[name][0].num_samples < terms.grow_to]
    if not small:
        return replace(found, rule=f"{found.rule}; no undecided cell to grow")
    told = f"{counted(len(small), 'undecided cell')} grown to N = {terms.grow_to} at alpha = {terms.alpha_of_a_look:g}"
    again = _look_again(found, [judged[name] for name in small], Look("grown", terms.grow_to), told, terms, second)
    if isinstance(again, str):
        return replace(found, rule=f"{found.rule}; the grown cells do not count, because {again}")
    return again


def _look_again(
    found: BaselineComparison, pairs: Sequence[Pair], look: Look, told: str, terms: Terms, second: SecondLook
) -> BaselineComparison | str:
    """Give `pairs` the verdict of fresh samples in place of their own; undecided if some could not be finished.

    A text says why the look does not count.
    """
    seen = second.changes(pairs, look, terms.gate.margin)
    if isinstance(seen, str):
        return seen
    if seen is None:
        names = {new.name for new, _ in pairs}
        cells = [_unfinished(cell) if cell.name in names else cell for cell in found.cells]
        rule = f"{found.rule}; {told}, which is unfinished"
    else:
        judgement = judge([one.change for one in seen if one.change is not None], terms.alpha_of_a_look)
        by_name = {one.name: one for one in seen}
        cells = [_seen_again(cell, by_name.get(cell.name), look) for cell in found.cells]
        cells = with_judgement(cells, judgement, look.name)
        rule = f"{found.rule}; {told} ({threshold(judgement.critical)})"
        found = replace(found, critical=judgement.critical if judgement.cells else found.critical)
    return replace(found, cells=tuple(cells), result=worst(cell.result for cell in cells), rule=rule)


def _unfinished(cell: Compared) -> Compared:
    return replace(cell, result=Verdict.UNDECIDED, note=UNFINISHED_LOOK)


def _seen_again(cell: Compared, again: Resampled | None, look: Look) -> Compared:
    """The cell with its fresh samples before the rule has judged them."""
    if again is None:
        return cell
    if again.change is None:
        how = "with a fresh seed" if look.name == "fresh" else "with more samples"
        return replace(cell, result=Verdict.COLLAPSED, note=f"{how}: {again.failed}")
    return replace(cell, judged_fids=again.fids, num_samples=again.num_samples)
