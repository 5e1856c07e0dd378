"""Effects: by how much a metric changes if one key of the grid has another value than its base, all else equal.

Each effect averages paired differences: cells that agree in every other key, in S, eta and seeds. It is given over all
of them, for each S, and cell by cell. With replicates, an interval over trainings comes from Student's t over their
seeds, for every metric. Trainings that are sampled with one seed share its noise, which their spread misses: FID's
intervals include it, those of other metrics are given this sampling seed. The error over sampling comes from the
samples' influences (alike.py); only FID has it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from operator import or_
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from taugrid.eval.tables.ablation.alike import sampling_error, share_noise, shared_sampling_error
from taugrid.eval.tables.ablation.replicates import SEEDS, UNITS, varying_seeds
from taugrid.eval.tables.ablation.seeds import holm, mean_over_seeds, two_sided
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.entries import Z_95
from taugrid.eval.tables.long_form import EXACT, FID, axes, in_grid_order
from taugrid.eval.tables.pivots import OTHERS, labelled, prepared, short_columns
from taugrid.eval.tables.quality import QualityTable
from taugrid.eval.tables.rows import Row
from taugrid.registry.metrics import MetricColumn

EVERYWHERE, EACH_S, EACH_CELL = "all", "S", "cell"
SCOPES = {EVERYWHERE: "averaged over all cells", EACH_S: "averaged at each S", EACH_CELL: "cell by cell"}
"""What an effect is about. A metric's comparisons in a scope are a family: Holm's correction counts them together."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A row of effects.csv, besides its metric."""

    scope: str = EVERYWHERE
    key: str = ""
    """The key that differs, as quality.csv has it; keys that always change together are joined by `KEY_SEPARATOR`."""
    base: str = ""
    value: str = ""
    settings: str = ""
    """What else the cells have; empty if averaged over all."""
    mean_base: float
    """Of the metric, in cells with `base`."""
    mean_value: float
    effect: float
    """mean_value - mean_base."""
    se_sampling: float | None
    """Over sampling alone: of drawing these samples of these networks. None for metrics other than FID."""
    replicates: int
    """Trainings, or sampling seeds, that the interval is over; 1: over sampling alone."""
    over: str
    """`training`, `sampling seed` or `sampling`: what `low`, `high` and `p` are about."""
    low: float | None
    """95 % interval."""
    high: float | None
    p: float | None
    p_holm: float | None = None
    """`p`, corrected for the number of comparisons of the scope."""
    pairs: int
    """Paired differences that were averaged."""
    note: str = ""
    se_shared: float | None = None
    """The standard error of the sampling noise that all replicates share, which the interval includes. 0 if each has
    noise of its own; None if it is unknown, as for metrics other than FID, or without replicates."""

    @property
    def given_noise(self) -> bool:
        """Whether its interval misses the noise that the replicates share: it is about this sampling seed alone."""
        return self.replicates > 1 and self.se_shared is None


KEY_SEPARATOR = " & "
"""Between keys, or values, that always change together."""


class _Pair(NamedTuple):
    block: tuple[str, ...]
    """All settings besides the key and the seeds."""
    seeds: tuple[Hashable, ...]
    base: Row
    other: Row

    @property
    def cells(self) -> tuple[str, str]:
        return self.base["cell"], self.other["cell"]


class _Grid(NamedTuple):
    rows: Sequence[Row]
    labels: pd.DataFrame
    """A row for each of `rows`: all settings, eta as 0.0 or σ̂."""
    seeds: Sequence[str]
    """The seeds that vary."""
    by_seed: Sequence[tuple[Hashable, ...]]
    """Each row's values of them."""
    varying: Sequence[str]
    """The settings that vary, in the grid's order."""


COMPARABLE = ("num_samples", "protocol")
"""What must agree for a comparison to mean anything."""
ON_REQUEST = ("steps", "eta")


@dataclass(frozen=True)
class Effects:
    """The effects on every metric of which they are known with an interval, and those on FID."""

    by_metric: Mapping[MetricColumn, Sequence[Effect]]

    @classmethod
    def of(cls, table: QualityTable, base: Mapping[str, Any] = {}) -> "Effects":
        """The effects in a table without rows for what has no scores; `base` as for `effects`."""
        metrics = [metric for metric in table.metrics if metric.name != EXACT] if table.rows else []
        found = {metric: effects(table.rows, table.evidence, base, metric) for metric in metrics}
        return cls({
            metric: its
            for metric, its in found.items()
            if its and (metric == FID or any(effect.low is not None for effect in its))
        })  # fmt: skip

    @classmethod
    def read(cls, rows: Sequence[Row], metrics: Sequence[MetricColumn]) -> "Effects":
        """The effects on `metrics` in rows of effects.csv with None for what is empty."""
        found: dict[str, list[Effect]] = defaultdict(list)
        for row in rows:
            if "metric" in row:  # earlier files have FID alone, in other columns
                texts = {key: str(row[key]) for key in ("base", "value")}
                its: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Effect)}  # some came later
                found[row["metric"]].append(Effect(**its | texts))
        return cls({metric: found[metric.name] for metric in metrics if metric.name in found})

    @cached_property
    def every(self) -> list[Effect]:
        return [effect for its in self.by_metric.values() for effect in its]

    @cached_property
    def names(self) -> dict[str, str]:
        """What people call the keys."""
        return short_key_names(self.every)

    @property
    def notes(self) -> list[str]:
        told = (f"{self.names[e.key]}={e.value} {e.settings}".rstrip() + f": {e.note}" for e in self.every if e.note)
        return list(dict.fromkeys(told))


def short_key_names(found: Sequence[Effect]) -> dict[str, str]:
    """What people call the keys of effects."""
    short = short_columns(dict.fromkeys(key for effect in found for key in effect.key.split(KEY_SEPARATOR)))
    return {effect.key: KEY_SEPARATOR.join(short[key] for key in effect.key.split(KEY_SEPARATOR)) for effect in found}


def effects(
    rows: Sequence[Row], evidence: Evidence, base: Mapping[str, Any] = {}, metric: MetricColumn = FID
) -> list[Effect]:
    """The effects of every key that is ablated, in the grid's order; keys and values without a pair are left out.

    `base` has the base value of grid keys. Keys that it lacks have the first value of the grid. S and eta are ablated
    only if they are in it.
    """
    scored = [row for row in rows if row.get(metric.name) is not None]
    if not scored:
        return []
    grid = _grid(scored, evidence)
    by_scope: dict[str, list[Effect]] = defaultdict(list)
    for keys in ablated(grid.labels[list(grid.varying)], base):
        labels = _joined(grid.labels, keys)
        values = list(dict.fromkeys(labels))
        chosen = _base_label(grid, keys, labels, base)
        for value in values:
            if value != chosen:
                pairs, alone = _pairs(grid, keys, labels, chosen, value)
                for scope, settings, part in _scopes(pairs, grid, keys):
                    lone = {seed for pair in part for seed in alone[pair.block]}
                    effect = _effect(part, grid.seeds, lone, evidence, metric)
                    named = replace(effect, scope=scope, key=KEY_SEPARATOR.join(keys), base=chosen, value=value)
                    by_scope[scope].append(replace(named, settings=settings))
    return [effect for scope in SCOPES for effect in _corrected(by_scope[scope])]


def _grid(rows: Sequence[Row], evidence: Evidence) -> _Grid:
    frame = prepared(in_grid_order(rows), evidence.protocols)
    given = list(frame.columns)
    keys = sorted(set(axes(given)) - set(SEEDS), key=given.index)
    names = (*keys, *OTHERS, *ON_REQUEST, *COMPARABLE)
    labels = pd.DataFrame({name: labelled(frame, name).map(str) for name in names})
    seeds = varying_seeds(frame)
    by_seed = [tuple(its) for its in frame[seeds].itertuples(index=False)]
    return _Grid(rows, labels, seeds, by_seed, [name for name in names[:-2] if labels[name].nunique() > 1])


def ablated(labels: pd.DataFrame, base: Collection[str]) -> list[tuple[str, ...]]:
    """The settings whose effects are asked for; those that always change together, as zipped keys do, are one."""
    found: list[tuple[str, ...]] = []
    for name in map(str, labels):
        if name in ON_REQUEST and name not in base:
            continue
        for place, keys in enumerate(found):
            if len(labels.drop_duplicates([name, keys[0]])) == labels[name].nunique() == labels[keys[0]].nunique():
                found[place] = (*keys, name)
                break
        else:
            found.append((name,))
    return found


def _joined(labels: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    return [KEY_SEPARATOR.join(values) for values in labels[list(keys)].itertuples(index=False)]


def _base_label(grid: _Grid, keys: Sequence[str], labels: Sequence[str], base: Mapping[str, Any]) -> str:
    """The value that others are compared with: the first that has what `base` asks for."""
    for label, row in zip(labels, grid.rows, strict=True):
        values = {**row, **({"eta": "sigma_hat"} if row["sigma"] == "sigma_hat" else {})}
        if all(key not in base or values[key] == base[key] for key in keys):
            return label
    return ""  # no cell with the base value is scored


def _pairs(
    grid: _Grid, keys: Sequence[str], labels: Sequence[str], base: str, value: str
) -> tuple[list[_Pair], dict[tuple[str, ...], set[Hashable]]]:
    """Cells with `value` and `base` that agree in everything else; and by block, the seeds of those left over."""
    blocks = [tuple(block) for block in grid.labels.drop(columns=list(keys)).itertuples(index=False)]
    cells = list(zip(blocks, grid.by_seed, labels, grid.rows, strict=True))
    bases, others = (
        {(block, seeds): row for block, seeds, label, row in cells if label == which} for which in (base, value)
    )
    alone: dict[tuple[str, ...], set[Hashable]] = defaultdict(set)
    for block, seeds in bases.keys() ^ others.keys():
        alone[block] |= set(seeds[:1])
    pairs = [_Pair(*place, bases[place], row) for place, row in others.items() if place in bases]
    return pairs, alone


def _scopes(pairs: Sequence[_Pair], grid: _Grid, keys: Sequence[str]) -> Iterator[tuple[str, str, list[_Pair]]]:
    """Scope, settings and pairs of each effect. A scope that would repeat the one before is left out."""
    lengths = sorted({pair.base["steps"] for pair in pairs}) if "steps" not in keys else []
    blocks = list(dict.fromkeys(pair.block for pair in pairs))
    if pairs:
        yield EVERYWHERE, "", list(pairs)
    if len(lengths) > 1:
        for steps in lengths:
            yield EACH_S, f"S={steps}", [pair for pair in pairs if pair.base["steps"] == steps]
    if len(blocks) > max(1, len(lengths)):
        columns = [name for name in grid.labels if name not in keys]
        others = [name for name in grid.varying if name not in keys]
        names = {**short_columns(others), "eta": "eta"}
        for block in blocks:
            its = dict(zip(columns, block, strict=True))
            settings = " ".join(f"{names[name]}={its[name]}" for name in others)
            yield EACH_CELL, settings, [pair for pair in pairs if pair.block == block]


def _effect(
    pairs: Sequence[_Pair], seeds: Sequence[str], alone: Set[Hashable], evidence: Evidence, metric: MetricColumn
) -> Effect:
    """The mean difference of some pairs with its errors; `seeds` vary, and `alone` are those with unpaired cells."""
    kept, note = _balanced(pairs, seeds, alone)
    by_seed: dict[Hashable, list[_Pair]] = defaultdict(list)
    for pair in kept:
        by_seed[pair.seeds[0] if seeds else None].append(pair)
    each = np.array([np.mean([pair.other[metric.name] - pair.base[metric.name] for pair in part])
                     for part in by_seed.values()])  # fmt: skip
    error = sampling_error([pair.cells for pair in kept], evidence) if metric == FID else None
    shared = None
    if len(each) > 1:
        parts = [[pair.cells for pair in part] for part in by_seed.values()]
        shared = shared_sampling_error(parts, evidence) if metric == FID or not share_noise(parts, evidence) else None
    found = mean_over_seeds(each, shared or 0.0)
    mean = float(found.mean)
    over, half, p = "sampling", error and Z_95 * error, two_sided(mean / error) if error else None
    if len(each) > 1:
        over, half, p = UNITS[seeds[0]], float(found.half_width), _finite(found.p)
    return Effect(
        mean_base=float(np.mean([pair.base[metric.name] for pair in kept])),
        mean_value=float(np.mean([pair.other[metric.name] for pair in kept])),
        effect=mean,
        se_sampling=error,
        se_shared=shared,
        replicates=len(each),
        over=over,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        p=p,
        pairs=len(kept),
        note=note,
    )


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _balanced(pairs: Sequence[_Pair], seeds: Sequence[str], alone: Set[Hashable]) -> tuple[list[_Pair], str]:
    """The pairs of the seeds that have all settings, so that each seed's mean is over the same; and a note if fewer."""
    if not seeds:
        return list(pairs), ""
    counts: dict[Hashable, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for pair in pairs:
        counts[pair.seeds[0]][pair.block] += 1  # samplings of this training
    fullest: Counter[tuple[str, ...]] = reduce(or_, counts.values(), Counter())
    most = max(its.total() for its in counts.values())
    whole = [seed for seed, its in counts.items() if its == fullest] or [
        next(seed for seed, its in counts.items() if its.total() == most)
    ]
    texts = {str(seed) for seed in (*counts, *alone) if seed not in whole}
    left_out = sorted(texts, key=lambda seed: (len(seed), seed))  # by number: 2 before 10
    note = f"without {seeds[0]} {', '.join(left_out)}: not all its cells are scored" if left_out else ""
    return [pair for pair in pairs if pair.seeds[0] in whole], note


def _corrected(found: Sequence[Effect]) -> list[Effect]:
    """The effects of one scope with Holm's correction."""
    p = np.array([math.nan if effect.p is None else effect.p for effect in found])
    return [replace(effect, p_holm=_finite(value)) for effect, value in zip(found, holm(p), strict=True)]
