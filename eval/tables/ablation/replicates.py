"""Replicates: cells that differ only in a seed. Tables show their mean, and the spread between them.

`train.seed` makes trainings, `seed` makes samplings of one training. If both vary, a training counts with the mean of
its samplings, and the spread is that between trainings.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from taugrid.eval.tables.ablation.seeds import level_against_best, mean_over_seeds
from taugrid.eval.tables.long_form import axes, score_columns
from taugrid.grids.axes import SEEDS, TRAINING, UNITS
from taugrid.protocol import ProtocolFields, comparability_key


class Replicate(NamedTuple):
    cell: str
    seeds: tuple[Hashable, ...]
    """The values of the seeds that vary."""


class Averaged(NamedTuple):
    """A table in long form without seeds: a row for each group of replicates, under the id of the first."""

    frame: pd.DataFrame
    """Columns of scores have means over replicates, and their errors are standard errors of these means. Without
    replicates, both are unchanged."""
    errors: pd.DataFrame
    """Standard errors of the means: a row for each id, a column for each score. Empty without replicates."""
    spreads: pd.DataFrame
    """Standard deviations between replicates, as `errors`."""
    members: Mapping[str, tuple[Replicate, ...]]
    """Id -> its replicates; none of a setting without scores."""
    over: str
    """The seed key that `errors` are over; empty without replicates."""

    @property
    def most(self) -> int:
        """The largest number of distinct values of `over` in a group."""
        return max(map(self.count, self.members), default=0)

    def count(self, cell: str) -> int:
        """The number of distinct values of `over` in the group of `cell`."""
        return len({member.seeds[0] for member in self.members[cell]})

    @property
    def fewer(self) -> dict[str, int]:
        """Id -> its count, for groups with fewer replicates than the largest."""
        counts = {cell: self.count(cell) for cell in self.members} if self.over else {}
        return {cell: count for cell, count in counts.items() if 0 < count < self.most}

    @property
    def shares_noise(self) -> bool:
        """Whether trainings of some group were sampled with the same seed, so that their noise is not independent."""
        if self.over != TRAINING:
            return False
        groups = [{member.seeds for member in members} for members in self.members.values()]
        return any(len({seeds[1:] for seeds in group}) < len(group) for group in groups)

    def caption(self) -> str:
        """Explains a value and the numbers after it; empty without replicates."""
        if not self.over:
            return ""
        unit = UNITS[self.over]
        uneven = ", or of n where it says so" if self.fewer else ""
        single = f" A single {unit} has no ±, and no difference from it is tested." if 1 in self.fewer.values() else ""
        shared = " The noise of the sampling seed that they share is not in it." if self.shares_noise else ""
        return (
            f"Each value is the mean of {self.most} {unit}s ({self.over}){uneven}, ± its standard error, that is, the "
            f"standard deviation between {unit}s (in brackets) over the square root of their number.{shared}{single}"
        )


def varying_seeds(frame: pd.DataFrame) -> list[str]:
    """The seeds that have several values."""
    return [seed for seed in SEEDS if seed in frame and frame[seed].nunique(dropna=False) > 1]


def averaged(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields] = {}) -> Averaged:
    """`frame` with the means of replicates in their place; rows stay in the order of each group's first.

    Replicates share every setting and their comparability key.
    """
    seeds = varying_seeds(frame)
    plain = frame.drop(columns=[seed for seed in SEEDS if seed in frame])
    if not seeds:
        single = {cell: (Replicate(cell, ()),) for cell in frame["cell"]}
        return Averaged(plain, pd.DataFrame(), pd.DataFrame(), single, "")
    groups = _groups(frame, protocols)
    scores = [column for column in score_columns() if column.name in frame]
    firsts, errors, spreads, members = [], {}, {}, {}
    for place in groups:
        group = frame.loc[place]
        cell = group["cell"].iloc[0]
        scored = group[group[[column.name for column in scores]].notna().any(axis=1)]
        members[cell] = tuple(
            Replicate(str(row["cell"]), tuple(row[seed] for seed in seeds)) for _, row in scored.iterrows()
        )
        first = plain.loc[place[0]].copy()
        by_score = {column.name: mean_over_seeds(_values(group, column.name, seeds)) for column in scores}
        for column in scores:
            first[column.name] = by_score[column.name].mean
            if column.error is not None and column.error in frame:
                first[column.error] = by_score[column.name].se
        errors[cell] = {name: value.se for name, value in by_score.items()}
        spreads[cell] = {name: value.sd for name, value in by_score.items()}
        firsts.append(first)
    means = pd.DataFrame(firsts).reset_index(drop=True).astype(plain.dtypes.to_dict())
    return Averaged(
        means, pd.DataFrame.from_dict(errors, "index"), pd.DataFrame.from_dict(spreads, "index"), members, seeds[0]
    )


def alike_over_seeds(
    best: Sequence[Replicate],
    others: Mapping[str, Sequence[Replicate]],
    values: Mapping[str, float | None],
    shared: Callable[[list[list[tuple[str, str]]]], float] = lambda parts: 0.0,
) -> set[str]:
    """The settings, of `others`, whose difference from the best of their column chance among the seeds explains.

    The test is Student's t paired by seed, 95 % jointly for all settings that are as good as the best. `values` are the
    scores by cell; `shared`, called with the pairs of cells of each seed, returns the standard error of the noise that
    all seeds share.
    """
    parts = {name: _by_first_seed(best, members, values) for name, members in others.items()}
    tested = {name: pairs for name, pairs in parts.items() if len(pairs) > 1}
    if not tested:
        return set()
    level = level_against_best(len(tested) + 1, max(map(len, tested.values())))
    alike = set()
    for name, pairs in tested.items():
        differences = [np.mean([float(values[b] or 0) - float(values[a] or 0) for a, b in part]) for part in pairs]
        if mean_over_seeds(np.array(differences), shared(pairs)).p >= level:
            alike.add(name)
    return alike


def _by_first_seed(
    first: Sequence[Replicate], second: Sequence[Replicate], values: Mapping[str, float | None]
) -> list[list[tuple[str, str]]]:
    """The pairs of scored cells with the same seeds, for each value of their first seed."""
    cells = {member.seeds: member.cell for member in first}
    pairs: dict[Hashable, list[tuple[str, str]]] = defaultdict(list)
    for member in second:
        pair = (cells.get(member.seeds, ""), member.cell)
        scores = [values.get(cell) for cell in pair]
        if all(score is not None and math.isfinite(score) for score in scores):
            pairs[member.seeds[0]].append(pair)
    return list(pairs.values())


def _groups(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> list[list[int]]:
    """The places in the frame of each group's rows."""
    settings = [name for name in axes(frame.columns) if name not in SEEDS]
    settings += ["sampler", "spacing", "clip", "num_samples", "sigma", "eta", "steps"]
    if TRAINING not in varying_seeds(frame):
        settings.append("model")
    keys = {name: comparability_key(protocol) for name, protocol in protocols.items()}
    keyed = frame[settings].assign(protocol=frame["protocol"].map(lambda name: keys.get(name, "")))
    return [list(part.index) for _, part in keyed.groupby([*settings, "protocol"], sort=False, dropna=False)]


def _values(group: pd.DataFrame, column: str, seeds: list[str]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """A score of each value of the first seed that has one, averaged over the other; NaN if there is none."""
    by_seed = group.groupby(seeds[0], sort=False)[column].mean().dropna()
    return np.array(by_seed if len(by_seed) else [math.nan], dtype=np.float64)
