"""Effects: by how much a metric changes if one key of the grid has a different value than its base, all else equal.

Each effect is a mean of paired differences between cells that agree in every other key, in S, eta and seeds: over all
cells, for each S, and cell by cell. With replicates, an interval over trainings comes from Student's t over their
seeds, for every metric. Trainings that are sampled with one seed share its noise, which their spread misses: intervals
include it where the metric has an error over sampling, others are conditional on this sampling seed. The error over
sampling comes from the samples' influences (alike.py).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from taugrid.eval.tables.ablation.alike import sampling_error, shared_sampling_error
from taugrid.eval.tables.ablation.pairing import EVERYWHERE, KEY_SEPARATOR, SCOPES, Contrast, PairOfCells, contrasts
from taugrid.eval.tables.ablation.seeds import LEVEL, holm, mean_over_seeds, two_sided
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.entries import MISSING, Z_95, write_number
from taugrid.eval.tables.labels import OPTIONS, short_columns
from taugrid.eval.tables.long_form import EXACT, FID, Row, as_csv, series, with_notes, write_files
from taugrid.eval.tables.quality import QualityTable
from taugrid.grids.axes import UNITS
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


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A row of effects.csv, besides its metric."""

    scope: str = EVERYWHERE
    key: str = ""
    """The ablated key, as in quality.csv; keys that always change together are joined by `KEY_SEPARATOR`."""
    base: str = ""
    value: str = ""
    settings: str = ""
    """The other settings of the cells; empty if averaged over all, unless it must be said what is equal in them."""
    mean_base: float
    """The mean of the metric in cells with `base`."""
    mean_value: float
    effect: float
    """mean_value - mean_base."""
    se_sampling: float | None
    """The standard error of drawing these samples of these networks; None if the metric has none."""
    replicates: int
    """The number of trainings, or sampling seeds, that the interval is over; 1: over sampling alone."""
    over: str
    """The source of variation of `low`, `high` and `p`: `training`, `sampling seed` or `sampling`."""
    low: float | None
    """The lower end of the 95 % interval."""
    high: float | None
    p: float | None
    p_holm: float | None = None
    """`p`, corrected for the number of comparisons of the scope."""
    pairs: int
    """The number of paired differences that were averaged."""
    note: str = ""
    se_shared: float | None = None
    """The standard error of the sampling noise that all replicates share, which the interval includes. 0 if each has
    noise of its own; None if it is unknown, as for metrics without `se_sampling`, or without replicates."""

    @property
    def is_significant(self) -> bool:
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def is_conditional_on_seed(self) -> bool:
        """Whether the interval leaves out noise that the replicates share: it holds for this sampling seed only."""
        return self.replicates > 1 and self.se_shared is None


@dataclass(frozen=True)
class Effects:
    """The effects on FID, and on every metric for which they have intervals."""

    by_metric: Mapping[MetricColumn, Sequence[Effect]]

    @classmethod
    def of(cls, table: QualityTable, base: Mapping[str, Any] = {}) -> "Effects":
        """The effects in a table whose rows all have scores; `base` as for `effects`."""
        metrics = [metric for metric in table.metrics if metric.name != EXACT] if table.rows else []
        by_metric = {metric: effects(table.rows, table.evidence, base, metric) for metric in metrics}
        return cls({
            metric: of_metric
            for metric, of_metric in by_metric.items()
            if of_metric and (metric == FID or any(effect.low is not None for effect in of_metric))
        })  # fmt: skip

    @classmethod
    def read(cls, rows: Sequence[Row], metrics: Sequence[MetricColumn]) -> "Effects":
        """The effects on `metrics` in rows of effects.csv, which have None for empty fields."""
        by_name: dict[str, list[Effect]] = defaultdict(list)
        for row in rows:
            values: dict[str, Any] = {field.name: row[field.name] for field in fields(Effect)}
            by_name[row["metric"]].append(Effect(**values | {key: str(row[key]) for key in ("base", "value")}))
        return cls({metric: by_name[metric.name] for metric in metrics if metric.name in by_name})

    @cached_property
    def every(self) -> list[Effect]:
        return [effect for of_metric in self.by_metric.values() for effect in of_metric]

    @cached_property
    def names(self) -> dict[str, str]:
        return short_key_names(self.every)

    @property
    def about(self) -> list[str]:
        return [ABOUT, *(INTERVAL_EXPLANATION[over] for over in dict.fromkeys(effect.over for effect in self.every))]

    @property
    def notes(self) -> list[str]:
        notes = (f"{self.names[e.key]}={e.value} {e.settings}".rstrip() + f": {e.note}" for e in self.every if e.note)
        return list(dict.fromkeys(notes))


def short_key_names(effects: Sequence[Effect]) -> dict[str, str]:
    """The key of each effect -> its short name. The options of a sampler go without saying."""
    keys = dict.fromkeys(effect.key for effect in effects)
    parts = {key: [part for part in key.split(KEY_SEPARATOR) if part != OPTIONS or part == key] for key in keys}
    short = short_columns(dict.fromkeys(part for split in parts.values() for part in split))
    return {key: KEY_SEPARATOR.join(short[part] for part in split) for key, split in parts.items()}


def effects(
    rows: Sequence[Row], evidence: Evidence, base: Mapping[str, Any] = {}, metric: MetricColumn = FID
) -> list[Effect]:
    """The effects of every ablated key, in the grid's order; keys and values without a pair are left out.

    `base` has the base value of grid keys; for other keys it is the first value of the grid. S and eta are ablated only
    if they are in `base`.
    """
    scored = [row for row in rows if row.get(metric.name) is not None]
    own = evidence.of(metric.name)
    by_scope: dict[str, list[Effect]] = defaultdict(list)
    for contrast in contrasts(scored, evidence.protocols, base):
        by_scope[contrast.scope].append(_effect(contrast, own, metric))
    corrected: list[Effect] = []
    for scope in SCOPES:
        adjusted = holm(np.array([math.nan if effect.p is None else effect.p for effect in by_scope[scope]]))
        corrected += [replace(e, p_holm=_finite(p)) for e, p in zip(by_scope[scope], adjusted, strict=True)]
    return corrected


def _effect(contrast: Contrast, evidence: Evidence, metric: MetricColumn) -> Effect:
    """The mean difference of the contrast's pairs with its errors."""
    seeds = contrast.seeds
    kept, note = _balanced(contrast.pairs, seeds, contrast.unpaired)
    by_seed: dict[Hashable, list[PairOfCells]] = defaultdict(list)
    for pair in kept:
        by_seed[pair.seeds[0] if seeds else None].append(pair)
    differences = np.array([np.mean([pair.other[metric.name] - pair.base[metric.name] for pair in part])
                            for part in by_seed.values()])  # fmt: skip
    error, shared = sampling_error([pair.cells for pair in kept], evidence), None
    if len(differences) > 1:
        shared = shared_sampling_error([[pair.cells for pair in part] for part in by_seed.values()], evidence)
    over_seeds = mean_over_seeds(differences, shared or 0.0)
    mean = float(over_seeds.mean)
    over, half, p = "sampling", error and Z_95 * error, two_sided(mean / error) if error else None
    if len(differences) > 1:
        over, half, p = UNITS[seeds[0]], float(over_seeds.half_width), _finite(over_seeds.p)
    return Effect(
        scope=contrast.scope,
        key=KEY_SEPARATOR.join(contrast.keys),
        base=contrast.base,
        value=contrast.value,
        settings=contrast.settings,
        mean_base=float(np.mean([pair.base[metric.name] for pair in kept])),
        mean_value=float(np.mean([pair.other[metric.name] for pair in kept])),
        effect=mean,
        se_sampling=error,
        se_shared=shared,
        replicates=len(differences),
        over=over,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        p=p,
        pairs=len(kept),
        note=note,
    )


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _balanced(
    pairs: Sequence[PairOfCells], seeds: Sequence[str], unpaired: Set[Hashable]
) -> tuple[list[PairOfCells], str]:
    """The pairs of the seeds that have all settings, so that all means are over the same; and a note on other seeds."""
    if not seeds:
        return list(pairs), ""
    counts: dict[Hashable, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for pair in pairs:
        counts[pair.seeds[0]][pair.block] += 1  # samplings of this training
    fullest: Counter[tuple[str, ...]] = reduce(or_, counts.values(), Counter())
    most = max(count.total() for count in counts.values())
    whole = [seed for seed, count in counts.items() if count == fullest] or [
        next(seed for seed, count in counts.items() if count.total() == most)
    ]
    texts = {str(seed) for seed in (*counts, *unpaired) if seed not in whole}
    left_out = sorted(texts, key=lambda seed: (len(seed), seed))  # by number: 2 before 10
    note = f"without {seeds[0]} {', '.join(left_out)}: not all its cells are scored" if left_out else ""
    return [pair for pair in pairs if pair.seeds[0] in whole], note


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


class EffectTable(NamedTuple):
    """The effects on a metric in one scope, as text."""

    title: str
    """The scope, and the number of comparisons."""
    heads: list[str]
    rows: list[list[str]]
    significant: list[bool]
    """Of each row: whether its corrected p is below `LEVEL`."""

    @property
    def at(self) -> int:
        """The column of effects, behind those of labels."""
        return self.heads.index("effect")


def effects_markdown(effects: Effects) -> str:
    """A section for each metric, and a table for each scope with the number of its comparisons."""
    blocks = ["# Effects", *effects.about]
    for metric in effects.by_metric:
        blocks.append(f"## {metric.heading}")
        for table in effect_tables(effects, metric):
            lines = [
                [f"**{text}**" if is_bold and i == table.at else text for i, text in enumerate(row)]
                for row, is_bold in zip(table.rows, table.significant, strict=True)
            ]
            body = markdown_table(table.heads, "l" * table.at + "rrrrr", lines)
            blocks += [f"### {table.title[0].upper()}{table.title[1:]}", body]
    return with_notes("\n\n".join(blocks) + "\n", sorted(effects.notes))


def effect_tables(effects: Effects, metric: MetricColumn) -> Iterator[EffectTable]:
    for scope, title in SCOPES.items():
        if in_scope := [effect for effect in effects.by_metric.get(metric, ()) if effect.scope == scope]:
            has_settings = any(effect.settings for effect in in_scope)
            is_conditional = any(effect.is_conditional_on_seed for effect in in_scope)
            interval = f"95 % interval{CONDITIONAL_ON_SEED if is_conditional else ''}"
            labels = ["key", "value", "base", *(["where"] if has_settings else [])]
            rows = [
                [
                    *(effects.names[effect.key], effect.value, effect.base),
                    *([effect.settings] if has_settings else []),
                    *_numbers(effect, metric.scale),
                ]
                for effect in in_scope
            ]
            yield EffectTable(
                f"{title} ({counted(len(in_scope), 'comparison')})",
                [*labels, "effect", interval, "n", "p", "p (Holm)"],
                rows,
                [effect.is_significant for effect in in_scope],
            )


def _numbers(effect: Effect, scale: float) -> list[str]:
    """The effect with its sign and its error of sampling, its interval, n, p, and p after Holm's correction."""
    interval, error = MISSING, math.nan
    if effect.low is not None and effect.high is not None:
        error = scale * (effect.high - effect.low) / 4  # about one standard error, which decides on digits
        interval = " to ".join(write_number(scale * end, error)[0] for end in (effect.low, effect.high))
    if effect.se_sampling is None:
        value, plus_minus = write_number(scale * effect.effect, error)[0], ""
    else:
        value, plus_minus = write_number(scale * effect.effect, scale * effect.se_sampling)
    signed = f"{'+' if effect.effect > 0 else ''}{value} {plus_minus}".rstrip()
    return [signed, interval, str(effect.replicates), _p(effect.p), _p(effect.p_holm)]


def _p(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
