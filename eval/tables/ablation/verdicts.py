"""A sentence for each value of a key: what its replicates decide, or how many of them would."""

import math
from collections.abc import Iterator, Mapping, Sequence

from scipy import special

from taugrid.eval.tables.ablation.effects import EACH_CELL, EVERYWHERE, Effect
from taugrid.eval.tables.ablation.seeds import LEVEL, half_width
from taugrid.eval.tables.entries import write_number
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted

POWER = 0.80
"""The share of ablations in which the number of replicates that a verdict names would decide the effect as it is."""
GIVEN_NOISE = ", given this sampling seed"
"""Follows what is said of trainings whose shared noise is unknown."""
MOST = 100
"""Replicates up to which a verdict names how many would decide."""


def verdicts(found: Sequence[Effect], names: Mapping[str, str], metric: MetricColumn) -> Iterator[str]:
    """The sentences for the effects that are averaged over all cells.

    Args:
        found: all effects on `metric`.
        names: what people call the keys.
        metric: what they are effects on.
    """
    averages = [effect for effect in found if effect.scope == EVERYWHERE]
    comparisons = sum(effect.p is not None for effect in averages)
    for effect in averages:
        cells = [e for e in found if e.scope == EACH_CELL and (e.key, e.value) == (effect.key, effect.value)]
        signs = {e.low > 0 for e in cells if e.low is not None and e.high is not None and e.low * e.high > 0}
        mixed = "; its sign differs between cells" if len(signs) == 2 else ""
        yield f"{names[effect.key]}: {_verdict(effect, comparisons, metric)}{mixed}."


def _verdict(effect: Effect, comparisons: int, metric: MetricColumn) -> str:
    pair = f"{effect.value} from {effect.base}"
    if effect.p is None or effect.low is None or effect.high is None:
        return f"nothing can tell {pair}, because the effect has no error"
    better = "better" if (effect.effect > 0) == metric.higher_is_better else "worse"
    size = write_number(metric.scale * abs(effect.effect), metric.scale * (effect.high - effect.low) / 4)[0]
    finding = f"{effect.value} is {better} than {effect.base}, by {size} on average"
    is_certain = effect.p_holm is not None and effect.p_holm < LEVEL
    if effect.replicates == 1:
        alone = "one training of each can't decide for others"
        return f"{finding}, with these networks; {alone}" if is_certain else f"sampling can't tell {pair}; {alone}"
    replicates = counted(effect.replicates, effect.over)
    if is_certain:
        return f"{finding}; {replicates} decide it{GIVEN_NOISE * effect.given_noise}"
    return f"{replicates} can't tell {pair}; {_what_would(effect, comparisons)}"


def _what_would(effect: Effect, comparisons: int) -> str:
    needed = enough(effect, comparisons)
    if needed is not None:
        return f"about {needed} would"
    if effect.se_shared and not _decides(effect, comparisons, math.inf):
        return "no number would while they share a sampling seed: a larger N, or a seed for each, is needed"
    return f"more than {MOST} would be needed"


def enough(effect: Effect, comparisons: int) -> int | None:
    """How many replicates would decide the effect in `POWER` of ablations; None if more than `MOST`, or none would.

    The effect, the spread between replicates and the noise that they share are taken as they were measured, so the
    number is rough. `comparisons` are those of its family: the smallest of their p-values must be below LEVEL over it.
    """
    return next((n for n in range(effect.replicates + 1, MOST + 1) if _decides(effect, comparisons, n)), None)


def _decides(effect: Effect, comparisons: int, n: float) -> bool:
    """Whether `n` replicates would have an interval that leaves out 0 with the probability `POWER`."""
    half, shared = ((effect.high or 0.0) - (effect.low or 0.0)) / 2, effect.se_shared or 0.0
    own = math.sqrt(max(half**2 - (special.ndtri(LEVEL / 2) * shared) ** 2, 0.0))
    se = own / half_width(LEVEL, effect.replicates - 1, 1.0, 0.0) * math.sqrt(effect.replicates / n)
    width = half_width(LEVEL / comparisons, n - 1, se, shared)
    return bool(width + special.ndtri(POWER) * math.hypot(se, shared) <= abs(effect.effect))
