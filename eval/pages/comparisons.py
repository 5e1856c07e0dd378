"""Comparisons of cells for a page: differences of FID, effects of the grid's keys, protocols."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.eval.tables.ablation.effects import Effects, effect_tables
from taugrid.eval.tables.differences import about, compared, difference_texts, differences_of, notes_of, with_short_keys
from taugrid.eval.tables.long_form import Row
from taugrid.eval.tables.quality import QualityTable
from taugrid.protocol import ProtocolFields, dotted, shortened
from taugrid.registry.extractors import INCEPTION
from taugrid.registry.metrics import MetricColumn

MAX_DIFFERENCES = 400
"""Rows of the table of differences. The rest are in tables/differences.csv."""
MAX_EFFECTS = 100
"""Rows of a table of effects. The rest are in tables/effects.csv."""
MAX_VALUES = 4
"""Values of a protocol's field that its row names. The rest are counted; quality.json has all of them."""
MAX_LIST_LENGTH = 4
"""Numbers of a list that are written out."""


def differences(rows: Sequence[Row], first: MetricColumn) -> dict[str, Any]:
    """The differences of each metric as text, `first` before the others, and notes; `rows` are of differences.csv."""
    found: list[dict[str, Any]] = []
    for metric in compared(rows, first):
        groups: dict[str, list[tuple[str, ...]]] = {}
        of_metric = differences_of(rows, metric)
        for row in with_short_keys(of_metric[:MAX_DIFFERENCES]):
            along = {"steps": "S", "": "other pairs"}.get(row["along"], row["along"])
            heading = ": ".join(filter(None, [f"Along {along}", row["settings"]]))
            groups.setdefault(heading, []).append(difference_texts(row))
        left_out = max(0, len(of_metric) - MAX_DIFFERENCES)
        found.append({
            "metric": metric, "about": "" if found else about(metric), "groups": groups, "left_out": left_out
        })  # fmt: skip
    return {"metrics": found, "notes": notes_of(rows)}


def effects(rows: Sequence[Row], metrics: Sequence[MetricColumn]) -> dict[str, Any] | None:
    """The effects on each metric as text, with an explanation; None without `rows`, those of effects.csv."""
    found = Effects.read(rows, metrics)
    if not found.every:
        return None
    tables = [
        {
            "heading": f"{metric.heading}: {table.title}",
            "heads": table.heads,
            "at": table.at,
            "rows": list(zip(table.rows, table.significant, strict=True))[:MAX_EFFECTS],
            "left_out": max(0, len(table.rows) - MAX_EFFECTS),
        }
        for metric in found.by_metric
        for table in effect_tables(found, metric)
    ]
    explained = [line.replace("`", "") for line in found.about]
    return {"about": explained, "notes": found.notes, "tables": tables}


def protocol_line(quality: QualityTable) -> str:
    """N, the reference and the extractor, whether published FIDs have a different one, and which metric decides."""
    spelled = (quality.protocols.get(name, {}) for name in quality.frame["protocol"])
    names = {protocol["extractor"]["name"] for protocol in spelled if "extractor" in protocol}
    is_other = bool(names) and INCEPTION not in names
    about = quality.scored_as + (", not Inception: not comparable with published FIDs" if is_other else "")
    return "; ".join(filter(None, [about, quality.about_judge]))


def protocol_rows(protocols: Mapping[str, ProtocolFields]) -> list[tuple[str, tuple[str, ...]]]:
    """Each field in dotted form and its distinct values, such as ("versions.torch", ("2.9.1",))."""
    values: dict[str, dict[str, None]] = {}
    for protocol in protocols.values():
        for name, value in dotted(protocol):
            values.setdefault(name, {})[_shown(value)] = None
    return [
        (name, (*list(distinct)[:MAX_VALUES], *([f"{more} more"] if (more := len(distinct) - MAX_VALUES) > 0 else [])))
        for name, distinct in values.items()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > MAX_LIST_LENGTH:
        return f"{value[0]}, {value[1]}, …, {value[-1]} ({len(value)} values)"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return shortened(value) if isinstance(value, str) else json.dumps(value)
