"""The rule of the gate: one verdict for a night of many cells, and one for each cell.

For each cell, T = (difference - margin) / se, where the difference is the new FID minus the baseline's and se is its
paired standard error. A cell is *worse* if T is above the night's critical value, *not worse* if the upper end of its
interval is below the margin, and else *undecided*: too few samples to tell. If no cell has changed by more than its
margin, the probability that any is called worse is at most alpha, whatever the number of cells.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scipy.stats import norm

from taugrid.eval.gate.critical import DRAWS, correlation, critical_value
from taugrid.eval.metrics.frechet import standard_error
from taugrid.eval.metrics.statistics import Array

ALPHA = 0.01
"""False alarms: the share of nights without a change beyond the margin in which some cell is called worse."""

MARGIN = 0.02
"""The margin as a share of the baseline's FID. New weights are never exactly equal to the old ones, and the paired
error shrinks with the change, so without a margin a change without consequence would raise an alarm."""

SCREENING = 0.10
"""The level at which a night's usual seeds screen cells for a second look with a fresh seed."""

POWER = 0.80
"""The probability of being called worse at the change that `detectable` gives."""

CellVerdict = Literal["worse", "not worse", "undecided"]


@dataclass(frozen=True, eq=False)
class Change:
    """What is known of one cell's change from the baseline."""

    name: str
    difference: float
    """The new FID minus the baseline's."""
    margin: float
    """In FID: what may be lost without anyone's caring."""
    influence: Array
    """(N,): how far each sample moves the difference, phi_new - phi_baseline, in the order of the indices."""
    block: Hashable
    """Equal for cells whose sample n has the same noise."""


class CellJudgement(NamedTuple):
    """The verdict on one cell."""

    name: str
    verdict: CellVerdict
    difference: float
    se: float
    margin: float
    t: float
    upper: float
    """The upper end of the interval: the true change is below it with a probability of 1 - alpha, for all cells at
    once."""
    detectable: float
    """The smallest true change that would have been called worse with a probability of `POWER`."""


class NightJudgement(NamedTuple):
    """The verdicts on all cells of a night."""

    cells: tuple[CellJudgement, ...]
    critical: float
    """The value that T has to exceed; NaN without cells."""
    alpha: float

    @property
    def worse(self) -> list[CellJudgement]:
        """The cells that got worse."""
        return [cell for cell in self.cells if cell.verdict == "worse"]

    @property
    def undecided(self) -> list[CellJudgement]:
        """The cells of which nothing can be said at this N."""
        return [cell for cell in self.cells if cell.verdict == "undecided"]


def judge(changes: Sequence[Change], alpha: float = ALPHA, draws: int = DRAWS) -> NightJudgement:
    """The verdicts on `changes`, with at most `alpha` false alarms for all of them together.

    Cells with the same samples on both sides must not be among them: nothing about them is random. `draws` is how many
    nights `critical_value` simulates.

    Raises:
        ValueError: if a cell's influences do not vary.
    """
    if not changes:
        return NightJudgement((), float("nan"), alpha)
    found = correlation([change.influence for change in changes], [change.block for change in changes])
    critical = critical_value(found, alpha, draws)
    return NightJudgement(tuple(_judged(change, critical) for change in changes), critical, alpha)


def screen(changes: Sequence[Change], alpha: float = ALPHA, draws: int = DRAWS) -> NightJudgement:
    """The first of two stages, by a night's usual seeds: the cells that are `worse` get a look with a fresh seed.

    The usual seeds are the same every night, so an unlucky block of noise would raise the same false alarm every night.
    A fresh seed's verdict, at alpha over these cells, has at most alpha false alarms whatever the block: it is
    independent of the screening. The level is `SCREENING`, or alpha where that is larger.
    """
    return judge(changes, max(SCREENING, alpha), draws)


def _judged(change: Change, critical: float) -> CellJudgement:
    se = standard_error(change.influence)
    t = (change.difference - change.margin) / se
    verdict: CellVerdict = "worse" if t > critical else "not worse" if t < -critical else "undecided"
    detectable = change.margin + (critical + float(norm.ppf(POWER))) * se
    upper = change.difference + critical * se
    return CellJudgement(change.name, verdict, change.difference, se, change.margin, t, upper, detectable)
