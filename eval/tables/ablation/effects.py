"""Effects: by how much a metric changes if one key of the grid has a different value than its base, all else equal.

Each effect is a mean of paired differences between cells that agree in every other key, in S, eta and seeds: over all
cells, for each S, and cell by cell. With replicates, an interval over trainings comes from Student's t over their
seeds, for every metric. Trainings that are sampled with one seed share its noise, which their spread misses: intervals
include it where the metric has an error over sampling, others are conditional on this sampling seed. The error over
sampling comes from the samples' influences (alike.py).

Two samplers are compared at equal network evaluations if they have some in common, else at equal S. A key that one of
them ignores, such as eta, has the base value in the other's cells.
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

from taugrid.eval.tables.ablation.alike import sampling_error, shared_sampling_error
from taugrid.eval.tables.ablation.replicates import SEEDS, UNITS, varying_seeds
from taugrid.eval.tables.ablation.seeds import holm, mean_over_seeds, two_sided
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.entries import Z_95
from taugrid.eval.tables.long_form import EXACT, FID, in_grid_order
from taugrid.eval.tables.pivots import (
    EVALUATIONS,
    IGNORABLE,
    OPTIONS,
    OTHERS,
    SYMBOLS,
    labelled,
    prepared,
    settings_in,
    short_columns,
)
from taugrid.eval.tables.quality import QualityTable
from taugrid.eval.tables.rows import Row
from taugrid.registry.metrics import MetricColumn

EVERYWHERE, EACH_S, EACH_CELL = "all", "S", "cell"
SCOPES = {EVERYWHERE: "averaged over all cells", EACH_S: "averaged at each S", EACH_CELL: "cell by cell"}
"""Scope -> its title. A metric's comparisons in a scope are one family of Holm's correction."""


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
    def is_conditional_on_seed(self) -> bool:
        """Whether the interval leaves out noise that the replicates share: it holds for this sampling seed only."""
        return self.replicates > 1 and self.se_shared is None


KEY_SEPARATOR = " & "
"""Joins keys, or values, that always change together."""


class _Pair(NamedTuple):
    block: tuple[str, ...]
    """All settings besides the ablated key and the seeds."""
    seeds: tuple[Hashable, ...]
    base: Row
    other: Row

    @property
    def cells(self) -> tuple[str, str]:
        return self.base["cell"], self.other["cell"]


_Place = tuple[tuple[str, ...], tuple[Hashable, ...]]
"""A block and seeds."""


class _Grid(NamedTuple):
    rows: Sequence[Row]
    labels: pd.DataFrame
    """A row for each of `rows`: all settings, eta as 0.0 or σ̂; what a sampler ignores is empty."""
    seeds: Sequence[str]
    """The seeds that vary."""
    seed_values: Sequence[tuple[Hashable, ...]]
    """For each of `rows`, its values of `seeds`."""
    varying: Sequence[str]
    """The settings that vary, in the grid's order."""
    length: str = "steps"
    """The column whose values are the labels of S: its own or, between samplers, network evaluations."""
    equal: str = ""
    """What is equal in the cells of a pair of samplers, where readers can't know it."""
    ignored: Set[str] = frozenset()
    """Keys that the base's sampler ignores: its cells stand beside any value of them."""


IGNORED = ("eta", *IGNORABLE)
"""Keys that some samplers ignore."""
OF_SAMPLERS = ("sampler", OPTIONS)
"""They are one key where both vary: options belong to a sampler."""
COMPARABLE = ("num_samples", "protocol")
"""Cells that differ in one of these can't be compared."""
ON_REQUEST = ("steps", "eta")


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
            if "metric" in row:  # earlier files have FID alone, in other columns
                texts = {key: str(row[key]) for key in ("base", "value")}
                values: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Effect)}  # some are newer
                by_name[row["metric"]].append(Effect(**values | texts))
        return cls({metric: by_name[metric.name] for metric in metrics if metric.name in by_name})

    @cached_property
    def every(self) -> list[Effect]:
        return [effect for of_metric in self.by_metric.values() for effect in of_metric]

    @cached_property
    def names(self) -> dict[str, str]:
        """The short names of the keys."""
        return short_key_names(self.every)

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
    if not scored:
        return []
    grid = _grid(scored, evidence)
    by_scope: dict[str, list[Effect]] = defaultdict(list)
    for keys in ablated(grid.labels[list(grid.varying)], base):
        labels = _joined(grid.labels, keys)
        values = list(dict.fromkeys(labels))
        base_label = _base_label(grid, keys, labels, base)
        for value in values:
            if value and value != base_label:
                found = _between_samplers(grid, labels, (base_label, value), base) if "sampler" in keys else grid
                pairs, unpaired = _pairs(found, keys, labels, base_label, value)
                for scope, settings, part in _scopes(pairs, found, keys):
                    unpaired_seeds = {seed for pair in part for seed in unpaired[pair.block]}
                    effect = _effect(part, grid.seeds, unpaired_seeds, evidence.of(metric.name), metric)
                    named = replace(effect, scope=scope, key=KEY_SEPARATOR.join(keys), base=base_label, value=value)
                    by_scope[scope].append(replace(named, settings=settings))
    return [effect for scope in SCOPES for effect in _corrected(by_scope[scope])]


def _grid(rows: Sequence[Row], evidence: Evidence) -> _Grid:
    frame = prepared(in_grid_order(rows), evidence.protocols)
    names = [name for name in settings_in(list(frame.columns)) if name not in SEEDS] + [*ON_REQUEST, *COMPARABLE]
    labels = pd.DataFrame({name: labelled(frame, name, beside=OTHERS).map(str) for name in names})
    seeds = varying_seeds(frame)
    seed_values = [tuple(values) for values in frame[seeds].itertuples(index=False)]
    if OPTIONS in labels and labels["sampler"].nunique() == 1:
        labels[OPTIONS] = labels[OPTIONS].replace("", "defaults")
    return _Grid(rows, labels, seeds, seed_values, [name for name in names[:-2] if _varies(labels, name)])


def _varies(labels: pd.DataFrame, name: str) -> bool:
    return len(set(labels[name]) - ({""} if name in IGNORED else set())) > 1


def ablated(labels: pd.DataFrame, base: Collection[str]) -> list[tuple[str, ...]]:
    """The ablated settings, in groups that always change together, as zipped keys do."""
    groups: list[tuple[str, ...]] = []
    for name in map(str, labels):
        if name in ON_REQUEST and name not in base:
            continue
        for place, keys in enumerate(groups):
            together = (
                len(labels.drop_duplicates([name, keys[0]])) == labels[name].nunique() == labels[keys[0]].nunique()
            )
            if together or {name, keys[0]} == set(OF_SAMPLERS):
                groups[place] = (*keys, name)
                break
        else:
            groups.append((name,))
    return groups


def _joined(labels: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    return [KEY_SEPARATOR.join(filter(None, values)) for values in labels[list(keys)].itertuples(index=False)]


def _base_label(grid: _Grid, keys: Sequence[str], labels: Sequence[str], base: Mapping[str, Any]) -> str:
    """The value that others are compared with: the first that agrees with `base`."""
    for label, row in zip(labels, grid.rows, strict=True):
        values = {**row, **({"eta": "sigma_hat"} if row["sigma"] == "sigma_hat" else {})}
        if all(key not in base or values[key] == base[key] for key in keys):
            return label
    return ""  # no cell with the base value is scored


def _between_samplers(grid: _Grid, labels: Sequence[str], values: tuple[str, str], base: Mapping[str, Any]) -> _Grid:
    """`grid` with labels that two samplers' cells share: `values` are the base's label and the other one."""
    changed = grid.labels.copy()
    of_base, of_value = (np.array([label == which for label in labels]) for which in values)
    ignored = {name for name in IGNORED if (changed.loc[of_base, name] == "").all()}
    usual = grid._replace(rows=[row for row, its in zip(grid.rows, of_base, strict=True) if its])
    one, each = [], []
    for name in IGNORED:
        given = list(changed.loc[of_base, name])
        if (changed.loc[of_value, name] == "").all() and name not in ignored:
            changed.loc[of_value, name] = _base_label(usual, [name], given, {"eta": 0.0} | dict(base)) or given[0]
            one += [f"{name}={changed.loc[of_value, name].iloc[0]}"] if len(set(given)) > 1 else []
        elif len(set(given) & set(changed.loc[of_value, name])) > 1:
            each.append(f"each {name}")
    equal = [*([f"the base's {' '.join(one)}"] if one else []), *each]
    steps, counts = [row["steps"] for row in grid.rows], [row.get(EVALUATIONS) for row in grid.rows]
    sides = [{count for count, its in zip(counts, of_side, strict=True) if its} for of_side in (of_base, of_value)]
    either = of_base | of_value
    if None in counts or all(s == n for s, n, its in zip(steps, counts, either, strict=True) if its):
        return grid._replace(labels=changed, ignored=ignored, equal=", ".join(equal))
    if not sides[0] & sides[1]:
        costs = [sum((n or 0) / s for s, n, its in zip(steps, counts, of_side, strict=True) if its) / of_side.sum()
                 for of_side in (of_base, of_value)]  # fmt: skip
        equal.insert(0, f"equal S and {costs[1] / costs[0]:.2g} times the evaluations")
        return grid._replace(labels=changed, ignored=ignored, equal=", ".join(equal))
    changed["steps"] = list(map(str, counts))
    named = ", ".join(["equal evaluations", *equal])
    return grid._replace(labels=changed, ignored=ignored, length=EVALUATIONS, equal=named)


def _pairs(
    grid: _Grid, keys: Sequence[str], labels: Sequence[str], base: str, value: str
) -> tuple[list[_Pair], dict[tuple[str, ...], set[Hashable]]]:
    """Pairs of cells with `base` and `value` that agree in all else; and by block, the seeds of unpaired cells."""
    shared = grid.labels.drop(columns=list(keys))
    blocks = [tuple(block) for block in shared.itertuples(index=False)]
    cells = list(zip(blocks, grid.seed_values, labels, grid.rows, strict=True))
    bases, others = (
        {(block, seeds): row for block, seeds, label, row in cells if label == which} for which in (base, value)
    )

    def beside(place: _Place) -> _Place:
        texts = zip(shared, place[0], strict=True)
        return tuple("" if name in grid.ignored else text for name, text in texts), place[1]

    unpaired: dict[tuple[str, ...], set[Hashable]] = defaultdict(set)
    for block, seeds in [p for p in others if beside(p) not in bases] + list(bases.keys() - set(map(beside, others))):
        unpaired[block] |= set(seeds[:1])
    pairs = [_Pair(*place, bases[beside(place)], row) for place, row in others.items() if beside(place) in bases]
    return pairs, unpaired


def _scopes(pairs: Sequence[_Pair], grid: _Grid, keys: Sequence[str]) -> Iterator[tuple[str, str, list[_Pair]]]:
    """The scope, settings and pairs of each effect. A scope that would repeat the one before is left out."""
    length, symbol = grid.length, SYMBOLS[grid.length]
    lengths = sorted({pair.base[length] for pair in pairs}) if "steps" not in keys else []
    blocks = list(dict.fromkeys(pair.block for pair in pairs))
    if pairs:
        yield EVERYWHERE, grid.equal, list(pairs)
    if len(lengths) > 1:
        for number in lengths:
            yield EACH_S, f"{symbol}={number}", [pair for pair in pairs if pair.base[length] == number]
    if len(blocks) > max(1, len(lengths)):
        columns = [name for name in grid.labels if name not in keys]
        others = [name for name in grid.varying if name not in keys]
        names = {**short_columns(others), "eta": "eta", "steps": symbol}
        for block in blocks:
            values = dict(zip(columns, block, strict=True))
            settings = " ".join(f"{names[name]}={values[name]}" for name in others if values[name])
            yield EACH_CELL, settings, [pair for pair in pairs if pair.block == block]


def _effect(
    pairs: Sequence[_Pair], seeds: Sequence[str], unpaired: Set[Hashable], evidence: Evidence, metric: MetricColumn
) -> Effect:
    """The mean difference of some pairs with its errors.

    `seeds` are the seeds that vary, `unpaired` those values of the first of them that have unpaired cells.
    """
    kept, note = _balanced(pairs, seeds, unpaired)
    by_seed: dict[Hashable, list[_Pair]] = defaultdict(list)
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


def _balanced(pairs: Sequence[_Pair], seeds: Sequence[str], unpaired: Set[Hashable]) -> tuple[list[_Pair], str]:
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


def _corrected(effects: Sequence[Effect]) -> list[Effect]:
    """The effects of one scope with Holm's correction."""
    p = np.array([math.nan if effect.p is None else effect.p for effect in effects])
    return [replace(effect, p_holm=_finite(value)) for effect, value in zip(effects, holm(p), strict=True)]
