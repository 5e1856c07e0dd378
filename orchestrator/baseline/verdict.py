"""The verdicts on a cell, and which of them are regressions: one list for exit codes, pages, junit and the history."""

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What a comparison with a baseline says of a cell, worst first. A night's verdict is the worst of its cells'."""

    CHANGED_SAMPLER = "changed sampler"
    """Today's code makes other images with the baseline's network, on the same device and software."""
    CHANGED_SCORER = "changed scorer"
    """Today's code gives other scores for the same images."""
    CHANGED_PIXELS = "changed pixels"
    """The same weights make other images, on the same device and software."""
    COLLAPSED = "collapsed"
    """The images no longer vary, the network returns NaN, or a metric can't be computed for them."""
    WORSE = "worse"
    UNDECIDED = "undecided"
    NOT_JUDGED = "not judged"
    NOT_WORSE = "not worse"
    IDENTICAL = "identical"

    @classmethod
    def _missing_(cls, value: object) -> "Verdict | None":
        """Verdicts of earlier versions."""
        return cls.NOT_JUDGED if value == "no standard error" else None

    @property
    def is_regression(self) -> bool:
        """Whether a night with such a cell is red: something got worse, or changed that must not."""
        return self in REGRESSIONS


REGRESSIONS = frozenset(list(Verdict)[:5])
"""The first five."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of `verdicts`; a run without cells has nothing to complain of."""
    found = set(verdicts)
    return next((verdict for verdict in Verdict if verdict in found), Verdict.IDENTICAL)
