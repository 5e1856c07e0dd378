"""The effects of a grid's keys as text: effects.csv and .md."""

import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from taugrid.eval.tables.ablation.effects import Effect, Effects
from taugrid.eval.tables.ablation.pairing import SCOPES
from taugrid.eval.tables.ablation.seeds import LEVEL
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
INTERVAL_EXPLANATION = {
    "training": "The interval is of 95 % over trainings, by Student's t over their n seeds: it says what other "
    "trainings would give. Trainings that are sampled with one seed share its noise, which their spread misses: an "
    "interval includes it where ± is known. ±, where a metric has it, is one standard error of sampling alone, for "
    "these networks.",
    "sampling seed": "The interval is of 95 % over n sampling seeds, by Student's t, for these networks: it says "
    "nothing about other trainings. ±, where a metric has it, is one standard error of sampling, from the samples' "
    "influences.",
    "sampling": "The interval is of 95 % over sampling alone, for these networks: one training of each can't tell "
    "whether other trainings would show the same. Several values of `train.seed`, scored for both, can, and give an "
    "interval to every metric.",
}
CONDITIONAL_ON_SEED = ", given this sampling seed"
"""The suffix for results over trainings with one sampling seed, whose shared noise is unknown."""


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
    return [ABOUT, *(INTERVAL_EXPLANATION[over] for over in dict.fromkeys(effect.over for effect in effects.every))]


def effects_markdown(effects: Effects) -> str:
    """A section for each metric, and a table for each scope with the number of its comparisons."""
    blocks = ["# Effects", *about(effects)]
    for metric in effects.by_metric:
        blocks.append(f"## {metric.heading}")
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
