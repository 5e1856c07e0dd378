"""The verdicts on a cell, which of them are regressions, and how small a loss a verdict can see.

One list for exit codes, pages, junit and the history.
"""

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from taugrid.errors import Exit


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


REGRESSIONS = frozenset(
    (Verdict.CHANGED_SAMPLER, Verdict.CHANGED_SCORER, Verdict.CHANGED_PIXELS, Verdict.COLLAPSED, Verdict.WORSE)
)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of `verdicts`; `IDENTICAL` if there are none."""
    found = set(verdicts)
    return next((verdict for verdict in Verdict if verdict in found), Verdict.IDENTICAL)


def exit_of(result: str, missing: Collection[str], not_judged: Collection[str]) -> Exit:
    """How a command ends: while something can still be finished so, else with a regression, else with what lacks."""
    if missing:
        return Exit.INCOMPLETE
    if result in REGRESSIONS:
        return Exit.REGRESSION
    return Exit.NOT_JUDGED if not_judged else Exit.DONE


class Sharpness(NamedTuple):
    """The smallest loss that would be called worse in 4 of 5 nights, as a share of the baseline's FID."""

    loss: float
    """In half of the judged cells."""
    cells: int
    """How many cells were judged."""

    @property
    def in_words(self) -> str:
        """Such as "would miss losses below 19 % (the median of 12 cells)"."""
        where = f" (the median of {self.cells:,} cells)" if self.cells > 1 else ""
        return f"would miss losses below {100 * self.loss:.2g} %{where}"

    def complaints(self, wanted: float, samples: int | None) -> list[str]:
        """What to say if losses of `wanted` are not seen in half of the cells, and at which N they would be."""
        if self.loss <= wanted:
            return []
        way_out = "no N sees that, within the margin" if samples is None else f"N = {samples:,} would do"
        return [f"--sharpness {wanted:g}: it {self.in_words}; {way_out}"]


def sharpness(losses: Sequence[float]) -> Sharpness | None:
    """The sharpness from the smallest loss of each judged cell."""
    return Sharpness(float(np.median(losses)), len(losses)) if losses else None
