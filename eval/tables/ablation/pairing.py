"""Pairs of cells that agree in all but one key of the grid, for its effects.

Two samplers are compared at equal network evaluations if they have some in common, else at equal S. A key that one of
them ignores, such as eta, has the base value in the other's cells.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from taugrid.eval.tables.ablation.seeds import varying_seeds
from taugrid.eval.tables.labels import (
    IGNORABLE,
    OPTIONS,
    OTHERS,
    SYMBOLS,
    labelled,
    prepared,
    settings_in,
    short_columns,
)
from taugrid.eval.tables.long_form import Row, in_grid_order
from taugrid.grids.axes import EVALUATIONS, SEEDS
from taugrid.protocol import ProtocolFields

EVERYWHERE, EACH_S, EACH_CELL = "all", "S", "cell"
SCOPES = {EVERYWHERE: "averaged over all cells", EACH_S: "averaged at each S", EACH_CELL: "cell by cell"}
"""Scope -> its title. A metric's comparisons in a scope are one family of Holm's correction."""
KEY_SEPARATOR = " & "
"""Joins keys, or values, that always change together."""


class PairOfCells(NamedTuple):
    """Two cells that differ in the ablated key alone."""

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


class Contrast(NamedTuple):
    """A value of an ablated key beside its base, in some cells."""

    scope: str
    keys: tuple[str, ...]
    """The ablated key, or keys that always change together."""
    base: str
    value: str
    settings: str
    """The other settings of the cells; empty if they are all, unless it must be said what is equal in them."""
    pairs: list[PairOfCells]
    seeds: Sequence[str]
    """The seeds that vary."""
    unpaired: Set[Hashable]
    """Values of the first of them that have unpaired cells."""


def contrasts(
    rows: Sequence[Row], protocols: Mapping[str, ProtocolFields], base: Mapping[str, Any]
) -> Iterator[Contrast]:
    """Those of every ablated key, in the grid's order; keys and values without a pair are left out.

    `base` has the base value of grid keys; for other keys it is the first value of the grid. S and eta are ablated only
    if they are in `base`.
    """
    if not rows:
        return
    grid = _grid(rows, protocols)
    for keys in ablated(grid.labels[list(grid.varying)], base):
        labels = _joined(grid.labels, keys)
        base_label = _base_label(grid, keys, labels, base)
        for value in dict.fromkeys(labels):
            if value and value != base_label:
                found = _between_samplers(grid, labels, (base_label, value), base) if "sampler" in keys else grid
                pairs, unpaired = _pairs(found, keys, labels, base_label, value)
                for scope, settings, part in _scopes(pairs, found, keys):
                    seeds = {seed for pair in part for seed in unpaired[pair.block]}
                    yield Contrast(scope, keys, base_label, value, settings, part, grid.seeds, seeds)


def _grid(rows: Sequence[Row], protocols: Mapping[str, ProtocolFields]) -> _Grid:
    frame = prepared(in_grid_order(rows), protocols)
    names = [name for name in settings_in(list(frame.columns)) if name not in SEEDS] + [*ON_REQUEST, *COMPARABLE]
    labels = pd.DataFrame({name: labelled(frame, name, beside=OTHERS).map(str) for name in names})
    seeds = varying_seeds(frame)
    seed_values = [tuple(values) for _, *values in frame[seeds].itertuples()]  # pandas 3.0.0 has none without an index
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
) -> tuple[list[PairOfCells], dict[tuple[str, ...], set[Hashable]]]:
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
    pairs = [PairOfCells(*place, bases[beside(place)], row) for place, row in others.items() if beside(place) in bases]
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
