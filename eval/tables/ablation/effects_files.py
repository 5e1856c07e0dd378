"""The effects of a grid's keys as text: effects.csv and .md, with a verdict on each value of a key."""

import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy import special

from taugrid.eval.tables.ablation.effects import Effect, Effects
from taugrid.eval.tables.ablation.pairing import EACH_CELL, EVERYWHERE, KEY_SEPARATOR, SCOPES
from taugrid.eval.tables.ablation.seeds import LEVEL, half_width
from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.rows import as_csv, series, with_notes, write_files
from taugrid.grids.names import of_model
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted, markdown_table

FLOATS = frozenset({"mean_base", "mean_value", "effect", "se_sampling", "se_shared", "low", "high", "p", "p_holm"})

ABOUT = (
    "Each effect is the metric with a value of a key minus the metric with its base value, all else equal: the mean of "
    "paired differences between cells that agree in every other key, in S, eta and seeds. p is two-sided; p (Holm) is "
    f"corrected for all comparisons of its table, and an effect is bold if that is below {LEVEL}."
)
INTERVAL_EXPLANATION = {
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
WITH_OTHERS = {
    "FID's interval includes it": "an interval includes it",
    "±, which only FID at a large enough N has, is": "±, where a metric has it, is",
    "±, which only FID has, is": "±, where a metric has it, is",
    "metrics other than FID too": "every metric",
}
"""What the explanations say instead if FID is not the only metric with errors of sampling."""
POWER = 0.80
"""With the number of replicates that a verdict names, this share of ablations would reach significance if the effect is
as measured."""
CONDITIONAL_ON_SEED = ", given this sampling seed"
"""The suffix for results over trainings with one sampling seed, whose shared noise is unknown."""
MAX_REPLICATES_SUGGESTED = 100
"""If significance needs more replicates than this, a verdict gives no number."""


def write_effects(effects: Effects, folder: Path) -> None:
    """Write effects.{csv,md} into `folder`. Numbers in effects.csv are not scaled."""
    rows = [
        {"metric": metric.name} | asdict(effect)
        for metric, of_metric in effects.by_metric.items()
        for effect in of_metric
    ]
    names = ["metric", *(field.name for field in fields(Effect))]
    frame = pd.DataFrame({name: series([row[name] for row in rows], name in FLOATS) for name in names})
    write_files(folder, "effects", csv=as_csv(frame), md=effects_markdown(effects))


def about(effects: Effects) -> list[str]:
    lines = [ABOUT, *(INTERVAL_EXPLANATION[over] for over in dict.fromkeys(effect.over for effect in effects.every))]
    others = (effect for metric, found in effects.by_metric.items() if metric != FID for effect in found)
    if any(effect.se_sampling is not None for effect in others):
        for of_fid, of_any in WITH_OTHERS.items():
            lines = [line.replace(of_fid, of_any) for line in lines]
    return lines


def effects_markdown(effects: Effects) -> str:
    """A section for each metric, and a table for each scope with the number of its comparisons."""
    blocks = ["# Effects", *about(effects)]
    for metric in effects.by_metric:
        blocks += filter(None, [f"## {metric.heading}", "\n".join(f"- {line}" for line in verdicts(effects, metric))])
        for table in effect_tables(effects, metric):
            blocks += [f"### {table.title[0].upper()}{table.title[1:]}", _markdown(table)]
    return with_notes("\n\n".join(blocks) + "\n", sorted(effects.notes))


class EffectRow(NamedTuple):
    key: str
    value: str
    base: str
    settings: str
    effect: str
    """The effect with its sign, and its error of sampling."""
    interval: str
    replicates: str
    p: str
    p_holm: str
    is_significant: bool
    """Whether the corrected p is below `LEVEL`."""


class EffectTable(NamedTuple):
    """The effects on a metric in one scope, as text."""

    title: str
    """The scope, and the number of comparisons."""
    interval: str
    """The heading of the column of intervals."""
    has_settings: bool
    rows: list[EffectRow]


def effect_tables(effects: Effects, metric: MetricColumn) -> Iterator[EffectTable]:
    for scope, title in SCOPES.items():
        if in_scope := [effect for effect in effects.by_metric.get(metric, ()) if effect.scope == scope]:
            rows = [format_effect(effect, effects.names[effect.key], metric.scale) for effect in in_scope]
            has_settings = any(effect.settings for effect in in_scope)
            is_conditional = any(effect.is_conditional_on_seed for effect in in_scope)
            interval = f"95 % interval{CONDITIONAL_ON_SEED if is_conditional else ''}"
            yield EffectTable(f"{title} ({counted(len(in_scope), 'comparison')})", interval, has_settings, rows)


def _markdown(table: EffectTable) -> str:
    labels = ["key", "value", "base", *(["where"] if table.has_settings else [])]
    headings = [*labels, "effect", table.interval, "n", "p", "p (Holm)"]
    lines = []
    for row in table.rows:
        settings = [row.settings] if table.has_settings else []
        effect = f"**{row.effect}**" if row.is_significant else row.effect
        numbers = [effect, row.interval, row.replicates, row.p, row.p_holm]
        lines.append([row.key, row.value, row.base, *settings, *numbers])
    return markdown_table(headings, "l" * len(labels) + "rrrrr", lines)


def format_effect(effect: Effect, name: str, scale: float) -> EffectRow:
    """A row of effects.md. `name` is the short name of the effect's key, `scale` is the metric's."""
    interval, error = MISSING, _error(effect, scale)
    if effect.low is not None and effect.high is not None:
        interval = " to ".join(write_number(scale * end, error)[0] for end in (effect.low, effect.high))
    if effect.se_sampling is None:
        value, plus_minus = write_number(scale * effect.effect, error)[0], ""
    else:
        value, plus_minus = write_number(scale * effect.effect, scale * effect.se_sampling)
    return EffectRow(
        key=name,
        value=effect.value,
        base=effect.base,
        settings=effect.settings,
        effect=f"{'+' if effect.effect > 0 else ''}{value} {plus_minus}".rstrip(),
        interval=interval,
        replicates=str(effect.replicates),
        p=_p(effect.p),
        p_holm=_p(effect.p_holm),
        is_significant=effect.is_significant,
    )


def _error(effect: Effect, scale: float) -> float:
    """About one standard error, which decides on digits: an interval of 95 % is four wide. NaN without an interval."""
    return math.nan if effect.low is None or effect.high is None else scale * (effect.high - effect.low) / 4


def _p(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def verdicts(effects: Effects, metric: MetricColumn) -> Iterator[str]:
    """A sentence for each value of a key: a significant result, or the number of replicates that would give one.

    There is none on an effect without an error, unless it is 0.
    """
    of_metric = effects.by_metric.get(metric, ())
    averages = [effect for effect in of_metric if effect.scope == EVERYWHERE]
    comparisons = sum(effect.p is not None for effect in averages)
    for effect in averages:
        if effect.p is None and effect.effect != 0:
            continue
        cells = [e for e in of_metric if e.scope == EACH_CELL and (e.key, e.value) == (effect.key, effect.value)]
        signs = {e.low > 0 for e in cells if e.low is not None and e.high is not None and e.low * e.high > 0}
        mixed = "; its sign differs between cells" if len(signs) == 2 else ""
        at = f", at {effect.settings}" if effect.settings else ""
        yield f"{effects.names[effect.key]}{at}: {_verdict(effect, comparisons, metric)}{mixed}."


def _verdict(effect: Effect, comparisons: int, metric: MetricColumn) -> str:
    pair = f"{effect.value} from {effect.base}"
    if effect.p is None:  # the same images, as a rule
        return f"{effect.value} and {effect.base} give the same {metric.title}"
    better = "better" if (effect.effect > 0) == metric.higher_is_better else "worse"
    size = write_number(metric.scale * abs(effect.effect), _error(effect, metric.scale))[0]
    finding = f"{effect.value} is {better} than {effect.base}, by {size} on average"
    is_significant = effect.is_significant
    if effect.replicates == 1 and not any(map(of_model, effect.key.split(KEY_SEPARATOR))):  # of the same network
        return finding if is_significant else f"sampling can't tell {pair}"
    if effect.replicates == 1:
        alone = "one training of each can't decide for others"
        return f"{finding}, with these networks; {alone}" if is_significant else f"sampling can't tell {pair}; {alone}"
    replicates = counted(effect.replicates, effect.over)
    if is_significant:
        condition = CONDITIONAL_ON_SEED if effect.is_conditional_on_seed else ""
        return f"{finding}; {replicates} decide it{condition}"
    needed = replicates_needed(effect, comparisons)
    if needed is not None:
        return f"{replicates} can't tell {pair}; about {needed} would"
    if effect.se_shared and not _reaches_power(effect, comparisons, math.inf):
        advice = "no number would while they share a sampling seed: a larger N, or a seed for each, is needed"
    else:
        advice = f"more than {MAX_REPLICATES_SUGGESTED} would be needed"
    return f"{replicates} can't tell {pair}; {advice}"


def replicates_needed(effect: Effect, comparisons: int) -> int | None:
    """The number of replicates with which the effect is significant with probability `POWER`, if it is as measured.

    The spread between replicates and the noise that they share are also taken as measured, so the number is rough. It
    is None if `MAX_REPLICATES_SUGGESTED` are too few. `comparisons` is the size of the effect's family.
    """
    numbers = range(effect.replicates + 1, MAX_REPLICATES_SUGGESTED + 1)
    return next((n for n in numbers if _reaches_power(effect, comparisons, n)), None)


def _reaches_power(effect: Effect, comparisons: int, n: float) -> bool:
    """Whether the interval over `n` replicates excludes 0 with probability `POWER`.

    Its level is LEVEL / comparisons: the first step of Holm's procedure, which the smallest p-value must pass.
    """
    half, shared = ((effect.high or 0.0) - (effect.low or 0.0)) / 2, effect.se_shared or 0.0
    # half^2 = (t se)^2 + (z shared)^2, see `mean_over_seeds`; z^2 is the same for either tail.
    own = math.sqrt(max(half**2 - (special.ndtri(LEVEL / 2) * shared) ** 2, 0.0))
    se = own / half_width(LEVEL, effect.replicates - 1, 1.0, 0.0) * math.sqrt(effect.replicates / n)
    width = half_width(LEVEL / comparisons, n - 1, se, shared)
    return bool(width + special.ndtri(POWER) * math.hypot(se, shared) <= abs(effect.effect))
