"""What a page says of cells compared with each other: differences of FID, and effects of the grid's keys."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taugrid.eval.tables.ablation.effects import SCOPES, Effect
from taugrid.eval.tables.ablation.effects_files import (
    ABOUT,
    OVER,
    SaidEffect,
    effects_from_rows,
    interval_heading,
    said_effect,
    short_keys_of,
)
from taugrid.eval.tables.ablation.verdicts import verdicts
from taugrid.eval.tables.differences_files import SaidDifference, said_difference, with_short_keys
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted

MOST_DIFFERENCES = 400
"""Rows of the table of differences. The rest are in tables/differences.csv."""
MOST_EFFECTS = 100
"""Rows of a table of effects. The rest are in tables/effects.csv."""


class EffectTable(NamedTuple):
    heading: str
    interval: str
    """The heading of the intervals."""
    has_settings: bool
    rows: list[SaidEffect]
    left_out: int


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The differences by direction, as people read them; `rows` are those of differences.csv."""
    groups: dict[str, list[SaidDifference]] = {}
    for row in with_short_keys(rows[:MOST_DIFFERENCES]):
        along = {"steps": "S", "": "other pairs"}.get(row["along"], row["along"])
        heading = ": ".join(filter(None, [f"Along {along}", row["settings"]]))
        groups.setdefault(heading, []).append(said_difference(row))
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    return {"groups": groups, "left_out": max(0, len(rows) - MOST_DIFFERENCES), "notes": notes}


def effects(rows: Sequence[Mapping[str, Any]], metrics: Sequence[MetricColumn]) -> dict[str, Any] | None:
    """The effects of each metric, as people read them, and what they mean; None without `rows`, of effects.csv."""
    found = effects_from_rows(rows)
    every = [effect for its in found.values() for effect in its]
    if not every:
        return None
    names = short_keys_of(every)
    tables = [table for metric in metrics for table in _effect_tables(found.get(metric.name, ()), metric, names)]
    about = [ABOUT, *(OVER[over] for over in dict.fromkeys(effect.over for effect in every))]
    notes = [f"{names[e.key]}={e.value} {e.settings}".rstrip() + f": {e.note}" for e in every if e.note]
    told = {metric.title: list(verdicts(found.get(metric.name, ()), names, metric)) for metric in metrics}
    return {"verdicts": told, "tables": tables, "about": about, "notes": list(dict.fromkeys(notes))}


def _effect_tables(found: Sequence[Effect], metric: MetricColumn, names: Mapping[str, str]) -> Iterator[EffectTable]:
    for scope, title in SCOPES.items():
        its = [effect for effect in found if effect.scope == scope]
        if its:
            heading = f"{metric.heading}: {title} ({counted(len(its), 'comparison')})"
            said = [said_effect(effect, names[effect.key], metric.scale) for effect in its[:MOST_EFFECTS]]
            has_settings, left_out = any(each.settings for each in said), max(0, len(its) - MOST_EFFECTS)
            yield EffectTable(heading, interval_heading(its), has_settings, said, left_out)
