"""Effects: by how much a metric changes if one key of the grid has a different value than its base, all else equal.

Each is a mean of paired differences: over all cells, for each S, and cell by cell. Two samplers are compared at equal
network evaluations if they have some in common, else at equal S.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from taugrid.eval.tables.alike import sampling_error, shared_sampling_error
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.labels import IGNORABLE, OPTIONS, SYMBOLS, labelled, prepared, settings_in, short_columns
from taugrid.eval.tables.long_form import EXACT, FID, Row, as_csv, in_grid_order, series, with_notes, write_files
from taugrid.eval.tables.quality import QualityTable
from taugrid.eval.tables.seeds import LEVEL, holm, mean_over_seeds, two_sided, varying_seeds
from taugrid.eval.tables.table import MISSING, Z_95, write_number
from taugrid.grids import EVALUATIONS, SEEDS, UNITS
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted, markdown_table

EVERYWHERE, EACH_S, EACH_CELL = "all", "S", "cell"
SCOPES = {EVERYWHERE: "averaged over all cells", EACH_S: "averaged at each S", EACH_CELL: "cell by cell"}
"""Scope -> its title. A metric's comparisons in a scope are one family of Holm's correction."""
KEY_SEPARATOR = " & "
IGNORED = ("eta", *IGNORABLE)  # by some samplers
FLOATS = frozenset({"mean_base", "mean_value", "effect", "se_sampling", "se_shared", "low", "high", "p", "p_holm"})

ABOUT = (
    "Each effect is the metric with a value of a key minus the metric with its base value, all else equal: the mean of "
    "paired differences between cells that agree in every other key, in S, η and seeds. p is two-sided; p (Holm) is "
    f"corrected for all comparisons of its table, and an effect is bold if that is below {LEVEL}."
)
INTERVAL_EXPLANATION = {
    "training": "The interval is of 95 % over trainings, by Student's t over their n seeds. Where trainings share the "
    "noise of a sampling seed, which their spread misses, it includes that if ± is known. ±, where a metric has it, is "
    "one standard error of sampling alone, for these networks.",
    "sampling seed": "The interval is of 95 % over n sampling seeds, by Student's t, for these networks: it says "
    "nothing about other trainings. ±, where a metric has it, is one standard error of sampling, from the samples' "
    "influences.",
    "sampling": "The interval is of 95 % over sampling alone, for these networks: one training of each can't tell "
    "whether other trainings would show the same. Several values of `train.seed`, scored for both, can, and give an "
    "interval to every metric.",
}
CONDITIONAL_ON_SEED = ", given this sampling seed"
"""The suffix for results over trainings with one sampling seed, whose shared noise is unknown."""


class PairOfCells(NamedTuple):
    """Two cells that differ in the ablated key alone; `block` has all other settings, without the seeds."""

    block: tuple[str, ...]
    seeds: tuple[Hashable, ...]
    base: Row
    other: Row

    @property
    def cells(self) -> tuple[str, str]:
        return self.base["cell"], self.other["cell"]


class _Grid(NamedTuple):
    rows: Sequence[Row]
    labels: pd.DataFrame  # a row for each of `rows`: all settings, eta as 0.0 or σ̂; what a sampler ignores is empty
    seeds: Sequence[str]  # the seeds that vary
    seed_values: Sequence[tuple[Hashable, ...]]
    varying: Sequence[str]  # the settings that vary, in the grid's order
    length: str = "steps"
    """The column whose values are the labels of S: its own or, between samplers, network evaluations."""
    equal: str = ""  # what is equal in the cells of a pair of samplers, where readers can't know it
    ignored: Set[str] = frozenset()  # keys that the base's sampler ignores: its cells stand beside any value of them


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
        """Whether the interval leaves out noise that the replicates share."""
        return self.replicates > 1 and self.se_shared is None


@dataclass(frozen=True)
class Effects:
    by_metric: Mapping[MetricColumn, Sequence[Effect]]
    """Those on FID, and on every metric for which they have intervals."""

    @classmethod
    def of(cls, table: QualityTable, base: Mapping[str, Any] = {}) -> "Effects":
        """The effects in a table whose rows all have scores; `base` as for `effects`."""
        by_metric = dict[MetricColumn, Sequence[Effect]]()
        for metric in table.metrics if table.rows else []:
            found = effects(table.rows, table.evidence, base, metric) if metric.name != EXACT else []
            if found and (metric == FID or any(effect.low is not None for effect in found)):
                by_metric[metric] = found
        return cls(by_metric)

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
        return [ABOUT, *dict.fromkeys(INTERVAL_EXPLANATION[effect.over] for effect in self.every)]

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
    scored, by_scope = [row for row in rows if row.get(metric.name) is not None], defaultdict[str, list[Effect]](list)
    if not scored:
        return []
    grid, own = _grid(scored, evidence.protocols, metric), evidence.of(metric.name)
    for keys in _ablated(grid.labels[list(grid.varying)], base):
        labels = [KEY_SEPARATOR.join(filter(None, its)) for its in grid.labels[list(keys)].itertuples(index=False)]
        first = _base_label(grid, keys, labels, base)
        for value in [label for label in dict.fromkeys(labels) if label not in ("", first)]:
            found = _between_samplers(grid, labels, (first, value), base) if "sampler" in keys else grid
            pairs, unpaired = _pairs(found, keys, labels, first, value)
            for scope, settings, part in _scopes(pairs, found, keys):
                kept, note = _balanced(part, grid.seeds, {seed for pair in part for seed in unpaired[pair.block]})
                numbers, key = _numbers(kept, grid.seeds, own, metric), KEY_SEPARATOR.join(keys)
                effect = Effect(scope=scope, key=key, base=first, value=value, settings=settings, note=note, **numbers)
                by_scope[scope].append(effect)
    corrected: list[Effect] = []
    for scope in SCOPES:
        adjusted = holm(np.array([math.nan if effect.p is None else effect.p for effect in by_scope[scope]]))
        for effect, p in zip(by_scope[scope], adjusted, strict=True):
            corrected.append(effect if math.isnan(p) else replace(effect, p_holm=float(p)))
    return corrected


def _grid(rows: Sequence[Row], protocols: Mapping[str, ProtocolFields], metric: MetricColumn) -> _Grid:
    frame = prepared(in_grid_order(rows), protocols, (metric.name,))
    names = [name for name in settings_in(list(frame.columns)) if name not in SEEDS] + ["steps", "eta"]
    columns = [*names, "num_samples", "protocol"]  # cells that differ in the last two can't be compared
    labels = pd.DataFrame({name: labelled(frame, name, beside=["sampler"]).map(str) for name in columns})
    seeds = varying_seeds(frame)
    seed_values = [tuple(values) for _, *values in frame[seeds].itertuples()]  # pandas 3.0.0 has none without an index
    if OPTIONS in labels and labels["sampler"].nunique() == 1:
        labels[OPTIONS] = labels[OPTIONS].replace("", "defaults")
    distinct = {name: set(labels[name]) - ({""} if name in IGNORED else set()) for name in names}
    return _Grid(rows, labels, seeds, seed_values, [name for name, values in distinct.items() if len(values) > 1])


def _ablated(labels: pd.DataFrame, base: Collection[str]) -> list[tuple[str, ...]]:
    """The ablated settings, in groups that always change together, as zipped keys do."""
    groups: list[tuple[str, ...]] = []
    for name in map(str, labels):
        if name in ("steps", "eta") and name not in base:
            continue
        for place, keys in enumerate(groups):
            both, counts = [name, keys[0]], {labels[name].nunique(), labels[keys[0]].nunique()}
            if counts == {len(labels.drop_duplicates(both))} or set(both) == {"sampler", OPTIONS}:
                groups[place] = (*keys, name)
                break
        else:
            groups.append((name,))
    return groups


def _base_label(grid: _Grid, keys: Sequence[str], labels: Sequence[str], base: Mapping[str, Any]) -> str:
    """The value that others are compared with: the first that agrees with `base`."""
    for label, row in zip(labels, grid.rows, strict=True):
        values = {**row, **({"eta": "sigma_hat"} if row["sigma"] == "sigma_hat" else {})}
        if all(key not in base or values[key] == base[key] for key in keys):
            return label
    return ""  # no cell with the base value is scored


def _between_samplers(grid: _Grid, labels: Sequence[str], values: tuple[str, str], base: Mapping[str, Any]) -> _Grid:
    """`grid` with labels that two samplers' cells share: what one ignores, such as eta, is as in the other's base."""
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
    either, length = of_base | of_value, "steps"
    if None in counts or all(s == n for s, n, its in zip(steps, counts, either, strict=True) if its):
        pass  # S says it
    elif not sides[0] & sides[1]:
        costs = [sum((n or 0) / s for s, n, its in zip(steps, counts, of_side, strict=True) if its) / of_side.sum()
                 for of_side in (of_base, of_value)]  # fmt: skip
        equal.insert(0, f"equal S and {costs[1] / costs[0]:.2g} times the evaluations")
    else:
        changed["steps"], length = list(map(str, counts)), EVALUATIONS
        equal.insert(0, "equal evaluations")
    return grid._replace(labels=changed, ignored=ignored, length=length, equal=", ".join(equal))


def _pairs(
    grid: _Grid, keys: Sequence[str], labels: Sequence[str], base: str, value: str
) -> tuple[list[PairOfCells], dict[tuple[str, ...], set[Hashable]]]:
    """Pairs of cells with `base` and `value` that agree in all else; and by block, the seeds of unpaired cells."""
    shared = grid.labels.drop(columns=list(keys))
    blocks = [tuple(block) for block in shared.itertuples(index=False)]
    cells = list(zip(blocks, grid.seed_values, labels, grid.rows, strict=True))
    bases, others = ({cell[:2]: cell[3] for cell in cells if cell[2] == which} for which in (base, value))
    pairs, unpaired, left = list[PairOfCells](), defaultdict[tuple[str, ...], set[Hashable]](set), set(bases)
    for (block, seeds), row in others.items():
        texts = zip(shared, block, strict=True)
        beside = tuple("" if name in grid.ignored else text for name, text in texts), seeds
        left.discard(beside)
        if beside in bases:
            pairs.append(PairOfCells(block, seeds, bases[beside], row))
        else:
            unpaired[block] |= set(seeds[:1])
    for block, seeds in left:
        unpaired[block] |= set(seeds[:1])
    return pairs, unpaired


def _scopes(
    pairs: Sequence[PairOfCells], grid: _Grid, keys: Sequence[str]
) -> Iterator[tuple[str, str, list[PairOfCells]]]:
    """The scope, settings and pairs of each effect. A scope that would repeat the one before is left out."""
    length, symbol = grid.length, SYMBOLS[grid.length]
    lengths = sorted({pair.base[length] for pair in pairs}) if "steps" not in keys else []
    blocks = list(dict.fromkeys(pair.block for pair in pairs))
    if pairs:
        yield EVERYWHERE, grid.equal, list(pairs)
    for number in lengths if len(lengths) > 1 else ():
        yield EACH_S, f"{symbol}={number}", [pair for pair in pairs if pair.base[length] == number]
    if len(blocks) > max(1, len(lengths)):
        columns = [name for name in grid.labels if name not in keys]
        others = [name for name in grid.varying if name not in keys]
        names = {**short_columns(others), "eta": "eta", "steps": symbol}
        for block in blocks:
            values = dict(zip(columns, block, strict=True))
            settings = " ".join(f"{names[name]}={values[name]}" for name in others if values[name])
            yield EACH_CELL, settings, [pair for pair in pairs if pair.block == block]


def _numbers(
    pairs: Sequence[PairOfCells], seeds: Sequence[str], evidence: Evidence, metric: MetricColumn
) -> dict[str, Any]:
    """The mean difference of the pairs with its errors, as fields of `Effect`."""
    by_seed: dict[Hashable, list[PairOfCells]] = defaultdict(list)
    for pair in pairs:
        by_seed[pair.seeds[0] if seeds else None].append(pair)
    parts = list(by_seed.values())
    differences = np.array([np.mean([pair.other[metric.name] - pair.base[metric.name] for pair in p]) for p in parts])
    error, shared = sampling_error([pair.cells for pair in pairs], evidence), None
    if len(parts) > 1:
        shared = shared_sampling_error([[pair.cells for pair in part] for part in parts], evidence)
    over_seeds = mean_over_seeds(differences, shared or 0.0)
    mean = float(over_seeds.mean)
    over, half, p = "sampling", error and Z_95 * error, two_sided(mean / error) if error else None
    if len(differences) > 1:
        over, half = UNITS[seeds[0]], float(over_seeds.half_width)
        p = None if math.isnan(over_seeds.p) else float(over_seeds.p)
    return {
        "mean_base": float(np.mean([pair.base[metric.name] for pair in pairs])),
        "mean_value": float(np.mean([pair.other[metric.name] for pair in pairs])),
        "effect": mean,
        "se_sampling": error,
        "se_shared": shared,
        "replicates": len(differences),
        "over": over,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "p": p,
        "pairs": len(pairs),
    }


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
    whole = [seed for seed, count in counts.items() if count == fullest]
    whole = whole or [max(counts, key=lambda seed: counts[seed].total())]
    texts = {str(seed) for seed in (*counts, *unpaired) if seed not in whole}
    left_out = sorted(texts, key=lambda seed: (len(seed), seed))  # by number: 2 before 10
    note = f"without {seeds[0]} {', '.join(left_out)}: not all its cells are scored" if left_out else ""
    return [pair for pair in pairs if pair.seeds[0] in whole], note


def write_effects(effects: Effects, folder: Path) -> None:
    """Write effects.{csv,md} into `folder`. Numbers in effects.csv are not scaled."""
    rows = [{"metric": metric.name} | asdict(effect) for metric, its in effects.by_metric.items() for effect in its]
    names = ["metric", *(field.name for field in fields(Effect))]
    frame = pd.DataFrame({name: series([row[name] for row in rows], name in FLOATS) for name in names})
    write_files(folder, "effects", csv=as_csv(frame), md=effects_markdown(effects))


def effects_markdown(effects: Effects) -> str:
    """A section for each metric, and a table for each scope with the number of its comparisons."""
    blocks = ["# Effects", *effects.about]
    for metric in effects.by_metric:
        blocks.append(f"## {metric.heading}")
        for title, heads, rows, significant in effect_tables(effects, metric):
            at = heads.index("effect")
            for row, is_bold in zip(rows, significant, strict=True):
                row[at] = f"**{row[at]}**" if is_bold else row[at]
            blocks += [f"### {title[0].upper()}{title[1:]}", markdown_table(heads, "l" * at + "rrrrr", rows)]
    return with_notes("\n\n".join(blocks) + "\n", sorted(effects.notes))


def effect_tables(
    effects: Effects, metric: MetricColumn
) -> Iterator[tuple[str, list[str], list[list[str]], list[bool]]]:
    """Title, headings, rows of text, and which rows are significant, of each scope of a metric."""
    for scope, title in SCOPES.items():
        if in_scope := [effect for effect in effects.by_metric.get(metric, ()) if effect.scope == scope]:
            where = ["where"] if any(effect.settings for effect in in_scope) else []
            given = CONDITIONAL_ON_SEED if any(effect.is_conditional_on_seed for effect in in_scope) else ""
            rows = [
                [
                    *(effects.names[effect.key], effect.value, effect.base, *([effect.settings] if where else [])),
                    *_texts(effect, metric.scale),
                ]
                for effect in in_scope
            ]
            heads = ["key", "value", "base", *where, "effect", f"95 % interval{given}", "n", "p", "p (Holm)"]
            comparisons = counted(len(in_scope), "comparison")
            yield f"{title} ({comparisons})", heads, rows, [effect.is_significant for effect in in_scope]


def _texts(effect: Effect, scale: float) -> list[str]:
    """The effect with its sign and its error of sampling, its interval, n, p, and p after Holm's correction."""

    def of_p(value: float | None) -> str:
        if value is None:
            return MISSING
        return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"

    interval, error = MISSING, math.nan
    if effect.low is not None and effect.high is not None:
        error = scale * (effect.high - effect.low) / 4  # about one standard error, which decides on digits
        interval = " to ".join(write_number(scale * end, error)[0] for end in (effect.low, effect.high))
    if effect.se_sampling is None:
        value, plus_minus = write_number(scale * effect.effect, error)[0], ""
    else:
        value, plus_minus = write_number(scale * effect.effect, scale * effect.se_sampling)
    signed = f"{'+' if effect.effect > 0 else ''}{value} {plus_minus}".rstrip()
    return [signed, interval, str(effect.replicates), of_p(effect.p), of_p(effect.p_holm)]
