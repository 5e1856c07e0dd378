"""Writes the effects of a grid's keys: effects.csv and effects.md, with a verdict for each value of a key."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from taugrid.eval.tables.ablation.effects import SCOPES, TOGETHER, Effect
from taugrid.eval.tables.ablation.seeds import LEVEL
from taugrid.eval.tables.ablation.verdicts import GIVEN_NOISE, verdicts
from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.eval.tables.pivots import short_columns
from taugrid.eval.tables.rows import series
from taugrid.registry.metrics import MetricColumn
from taugrid.storage import replacing
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


def write_effects(found: Mapping[MetricColumn, Sequence[Effect]], folder: Path) -> None:
    """Write effects.{csv,md} into `folder`, each whole or not at all. Numbers in effects.csv are not scaled."""
    rows = [{"metric": metric.name} | asdict(effect) for metric, its in found.items() for effect in its]
    names = ["metric", *(field.name for field in fields(Effect))]
    frame = pd.DataFrame({name: series([row[name] for row in rows], name in FLOATS) for name in names})
    contents = {"csv": frame.to_csv(index=False, lineterminator="\n"), "md": effects_markdown(found)}
    for suffix, text in contents.items():
        with replacing(folder / f"effects.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def effects_markdown(found: Mapping[MetricColumn, Sequence[Effect]]) -> str:
    """A section for each metric, and a table for each scope with the number of its comparisons."""
    every = [effect for its in found.values() for effect in its]
    names = short_keys_of(every)
    blocks = ["# Effects", ABOUT, *(OVER[over] for over in dict.fromkeys(effect.over for effect in every))]
    for metric, its in found.items():
        blocks += [f"## {metric.heading}", "\n".join(f"- {line}" for line in verdicts(its, names, metric))]
        blocks += _tables(its, names, metric.scale)
    notes = {f"{names[e.key]}={e.value} {e.settings}".rstrip() + f": {e.note}" for e in every if e.note}
    if notes:
        blocks += ["## Notes", "\n".join(f"- {note}" for note in sorted(notes))]
    return "\n\n".join(blocks) + "\n"


def _tables(found: Sequence[Effect], names: Mapping[str, str], scale: float) -> Iterator[str]:
    for scope, title in SCOPES.items():
        rows = [effect for effect in found if effect.scope == scope]
        if not rows:
            continue
        yield f"### {title[0].upper()}{title[1:]} ({counted(len(rows), 'comparison')})"
        has_settings = any(row.settings for row in rows)
        interval = interval_heading(rows)
        labels = ["key", "value", "base", *(["where"] if has_settings else [])]
        heads = [*labels, "effect", interval, "n", "p", "p (Holm)"]
        lines = (_line(row, names[row.key], has_settings, scale) for row in rows)
        yield markdown_table(heads, "l" * len(labels) + "rrrrr", lines)


def interval_heading(found: Sequence[Effect]) -> str:
    """The heading of the intervals of a table, which says what they miss."""
    return f"95 % interval{GIVEN_NOISE if any(effect.given_noise for effect in found) else ''}"


def short_keys_of(found: Sequence[Effect]) -> dict[str, str]:
    """What people call the keys of effects."""
    short = short_columns(dict.fromkeys(key for effect in found for key in effect.key.split(TOGETHER)))
    return {effect.key: TOGETHER.join(short[key] for key in effect.key.split(TOGETHER)) for effect in found}


def effects_from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Effect]]:
    """The effects by the names of their metrics, from rows of effects.csv with None for what is empty."""
    found: dict[str, list[Effect]] = {}
    for row in rows:
        if "metric" in row:  # earlier files have FID alone, in other columns
            texts = {key: str(row[key]) for key in ("base", "value")}
            its: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Effect)}  # se_shared came later
            found.setdefault(row["metric"], []).append(Effect(**its | texts))
    return found


def _line(row: Effect, name: str, has_settings: bool, scale: float) -> list[str]:
    said = said_effect(row, name, scale)
    effect = f"**{said.effect}**" if said.is_certain else said.effect
    texts = [said.key, said.value, said.base, *([said.settings] if has_settings else [])]
    return [*texts, effect, said.interval, said.replicates, said.p, said.p_holm]


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
    return (
        MISSING if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
    )
