"""The verdicts on a cell, which of them are regressions, and the exit code that follows."""

from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Final

from taugrid.errors import Exit


class Verdict(StrEnum):
    """A comparison's verdict on a cell, worst first. The verdict on a night is the worst of its cells' verdicts."""

    CHANGED_SAMPLER = "changed sampler"  # today's code makes other images with the baseline's network
    CHANGED_SCORER = "changed scorer"  # today's code gives different scores for the same images
    CHANGED_PIXELS = "changed pixels"  # the same weights, device and software make different images
    COLLAPSED = "collapsed"  # the images no longer vary, the network returns NaN, or a metric can't be computed
    WORSE = "worse"
    UNDECIDED = "undecided"
    NOT_JUDGED = "not judged"
    NOT_WORSE = "not worse"
    BETTER = "better"  # by more than the margin, as surely as worse is worse
    IDENTICAL = "identical"

    @property
    def is_regression(self) -> bool:
        """Whether a night with such a cell is red: something got worse, or changed that must not."""
        return self in REGRESSIONS

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Verdict).index(self)


REGRESSIONS = frozenset(
    (Verdict.CHANGED_SAMPLER, Verdict.CHANGED_SCORER, Verdict.CHANGED_PIXELS, Verdict.COLLAPSED, Verdict.WORSE)
)

# The results of a night without a verdict: there is no baseline, no cell is scored, it was interrupted, or another
# version of taugrid judged or began it.
NO_BASELINE: Final = "no baseline"
INCOMPLETE: Final = "incomplete"
UNFINISHED: Final = "unfinished"
UNREADABLE: Final = "unreadable"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of `verdicts`; `IDENTICAL` if there are none."""
    return min(map(Verdict, verdicts), key=lambda verdict: verdict.rank, default=Verdict.IDENTICAL)


def exit_of(result: str, missing: Collection[str], not_judged: Collection[str]) -> Exit:
    """How a command ends: incomplete while something can still be finished, else a regression, else not judged."""
    if missing:
        return Exit.INCOMPLETE
    if result in REGRESSIONS:
        return Exit.REGRESSION
    return Exit.NOT_JUDGED if not_judged else Exit.DONE
