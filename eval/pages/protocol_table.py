"""How the cells of a run were measured: in a line, and as rows of a table."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from taugrid.eval.tables.entries import scored_as
from taugrid.protocol import ProtocolFields, shortened
from taugrid.registry.extractors import INCEPTION

MOST_VALUES = 4
"""Values of a field that its row names. The rest are counted; quality.json has all of them."""
LONGEST_LIST = 4
"""Numbers of a list that are written out."""


def protocol_line(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> str:
    """N, the reference and the extractor, and that published FIDs have another extractor if they do."""
    spelled = (protocols.get(name, {}) for name in frame["protocol"])
    names = {protocol["extractor"]["name"] for protocol in spelled if "extractor" in protocol}
    is_other = bool(names) and INCEPTION not in names
    return scored_as(frame, protocols) + (", not Inception: not comparable with published FIDs" if is_other else "")


def protocol_rows(protocols: Mapping[str, ProtocolFields]) -> list[tuple[str, tuple[str, ...]]]:
    """Each field in dotted form and its different values, such as ("versions.torch", ("2.9.1",))."""
    values: dict[str, dict[str, None]] = {}
    for protocol in protocols.values():
        for name, value in _flat(protocol):
            values.setdefault(name, {})[_shown(value)] = None
    return [(name, _cut(tuple(found))) for name, found in values.items()]


def _cut(values: tuple[str, ...]) -> tuple[str, ...]:
    more = len(values) - MOST_VALUES
    return values if more <= 0 else (*values[:MOST_VALUES], f"{more} more")


def _flat(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"{value[0]}, {value[1]}, …, {value[-1]} ({len(value)} values)"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return shortened(value) if isinstance(value, str) else json.dumps(value)
