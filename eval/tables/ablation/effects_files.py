"""The effects of a grid's keys as people read them: effects.csv and .md, with a verdict for each value of a key."""

import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy import special

from taugrid.eval.tables.ablation.effects import EACH_CELL, EVERYWHERE, SCOPES, Effect, Effects
from taugrid.eval.tables.ablation.seeds import LEVEL, half_width
from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.eval.tables.rows import as_csv, series, with_notes, write_files
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted, markdown_table

FLOATS = frozenset({"mean_base", "mean_value", "effect", "se_sampling", "se_shared", "low", "high", "p", "p_holm"})

ABOUT = (
    "Each effect is the metric with a value of a key minus the metric with its base value, all else equal: the mean of "
    "paired differences between cells that agree in every other key, in S, eta and seeds. p is two-sided; p (Holm) is "
    f"corrected for all comparisons of its table, and an effect is bold if that is below {LEVEL}."
)
OVER = {
    "training": "The interval is of 95 % over trainings, by Student's t over their n seeds: it says what other "
    "trainings would give. Trainings that are sampled with one seed share its noise, which their spread misses: FID's "
    "interval includes it where ± is known. ±, which only FID at a large enough N has, is one standard error of "
    "sampling alone, for these networks.",
    "sampling seed": "The interval is of 95 % over n sampling seeds, by Student's t, for these networks: it says "
    "nothing about other trainings. ±, which only FID has, is one standard error of sampling, from the samples' "
    "influences.",
    "sampling": "The interval is of 95 % over sampling alone, for these networks: one training of each can't tell "
    "whether other trainings would show the same. Several values of `train.seed`, scored for both, can, and give an "
    "interval to metrics other than FID too.",
}
POWER = 0.80
"""The share of ablations in which the number of replicates that a verdict names would decide the effect as it is."""
GIVEN_NOISE = ", given this sampling seed"
"""Follows what is said of trainings whose shared noise is unknown."""
MOST = 100
"""Replicates up to which a verdict names how many would decide."""


def write_effects(found: Effects, folder: Path) -> None:
    """Write effects.{csv,md} into `folder`. Numbers in effects.csv are not scaled."""
    rows = [{"metric": metric.name} | asdict(effect) for metric, its in found.by_metric.items() for effect in its]
    names = ["metric", *(field.name for field in fields(Effect))]
    frame = pd.DataFrame({name: series([row[name] for row in rows], name in FLOATS) for name in names})
    write_files(folder, "effects", csv=as_csv(frame), md=effects_markdown(found))


def about(found: Effects) -> list[str]:
    """What the numbers are."""
    return [ABOUT, *(OVER[over] for over in dict.fromkeys(effect.over for effect in found.every))]


def effects_markdown(found: Effects) -> str:
    """A section for each metric, and a table for each scope with the number of its comparisons."""
    blocks = ["# Effects", *about(found)]
    for metric in found.by_metric:
        blocks += [f"## {metric.heading}", "\n".join(f"- {line}" for line in verdicts(found, metric))]
        for table in effect_tables(found, metric):
            blocks += [f"### {table.title[0].upper()}{table.title[1:]}", _markdown(table)]
    return with_notes("\n\n".join(blocks) + "\n", sorted(found.notes))


class SaidEffect(NamedTuple):
    """An effect as people read it."""

    key: str
    value: str
    base: str
    settings: str
    effect: str
    """With its sign and its error of sampling."""
    interval: str
    replicates: str
    p: str
    p_holm: str
    is_certain: bool
    """Whether it is there by the corrected p."""


class EffectTable(NamedTuple):
    """The effects on a metric in one scope, as people read them."""

    title: str
    """The scope, and the number of comparisons."""
    interval: str
    """The heading of the intervals, which says what they miss."""
    has_settings: bool
    rows: list[SaidEffect]


def effect_tables(found: Effects, metric: MetricColumn) -> Iterator[EffectTable]:
    for scope, title in SCOPES.items():
        if its := [effect for effect in found.by_metric.get(metric, ()) if effect.scope == scope]:
            said = [said_effect(effect, found.names[effect.key], metric.scale) for effect in its]
            has_settings = any(effect.settings for effect in its)
            interval = f"95 % interval{GIVEN_NOISE if any(effect.given_noise for effect in its) else ''}"
            yield EffectTable(f"{title} ({counted(len(its), 'comparison')})", interval, has_settings, said)


def _markdown(table: EffectTable) -> str:
    labels = ["key", "value", "base", *(["where"] if table.has_settings else [])]
    heads = [*labels, "effect", table.interval, "n", "p", "p (Holm)"]
    lines = []
    for row in table.rows:
        settings = [row.settings] if table.has_settings else []
        effect = f"**{row.effect}**" if row.is_certain else row.effect
        lines.append([row.key, row.value, row.base, *settings, effect, *row[5:-1]])
    return markdown_table(heads, "l" * len(labels) + "rrrrr", lines)


def said_effect(row: Effect, name: str, scale: float) -> SaidEffect:
    """The parts of a line of effects.md. `name` is what people call its key, `scale` is the metric's."""
    is_certain = row.p_holm is not None and row.p_holm < LEVEL
    interval, width = MISSING, math.nan
    if row.low is not None and row.high is not None:
        ends, width = (scale * row.low, scale * row.high), scale * (row.high - row.low)
        interval = " to ".join(write_number(end, width / 4)[0] for end in ends)
    if row.se_sampling is None:
        value, error = write_number(scale * row.effect, width / 4)[0], ""
    else:
        value, error = write_number(scale * row.effect, scale * row.se_sampling)
    effect = f"{'+' if row.effect > 0 else ''}{value} {error}".rstrip()
    numbers = (effect, interval, str(row.replicates), _p(row.p), _p(row.p_holm))
    return SaidEffect(name, row.value, row.base, row.settings, *numbers, is_certain)


def _p(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def verdicts(effects: Effects, metric: MetricColumn) -> Iterator[str]:
    """A sentence for each value of a key: what its replicates decide, or how many of them would."""
    found = effects.by_metric.get(metric, ())
    averages = [effect for effect in found if effect.scope == EVERYWHERE]
    comparisons = sum(effect.p is not None for effect in averages)
    for effect in averages:
        cells = [e for e in found if e.scope == EACH_CELL and (e.key, e.value) == (effect.key, effect.value)]
        signs = {e.low > 0 for e in cells if e.low is not None and e.high is not None and e.low * e.high > 0}
        mixed = "; its sign differs between cells" if len(signs) == 2 else ""
        yield f"{effects.names[effect.key]}: {_verdict(effect, comparisons, metric)}{mixed}."


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
