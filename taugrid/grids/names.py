"""Readable names from the keys and values of a grid, such as "schedule=cosine · S=50 eta=0"."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKPOINT = "model.checkpoint"
CELL_KEYS = ("model.guide", "model.vae")  # how a network is sampled, not how it is made: in no model's id
PATHS = (CHECKPOINT, *CELL_KEYS)  # keys whose values are paths
SHOWN = {"steps": "S", "num_samples": "N"}  # keys that names write as the paper does
BETWEEN = " · "  # between the settings of a model and those of a cell
MAX_VALUE_LENGTH = 40  # a longer value is cut and gets digits of its hash: tau may have a thousand times
_PLAIN = re.compile(r"[^\s,=\"'\[\]{}·]+")  # text that needs no quotes, in a name as in a selector


@dataclass(frozen=True)
class Naming:
    """How the models and cells of one grid are named: by the keys that have several values, in the config's order."""

    keys: tuple[str, ...] = ()  # the keys that names show
    short: Mapping[str, str] = field(default_factory=dict)  # key -> its short form
    checkpoints: Mapping[str, str] = field(default_factory=dict)  # path -> its short form

    @classmethod
    def of(cls, points: Sequence[Mapping[str, Any]], reserved: Collection[str]) -> "Naming":
        """How to name the `points` of a grid, each with a value for every key; `reserved` as in `short_keys`."""
        keys = list(dict.fromkeys(key for point in points for key in point))
        every = (point.get(key) for key in PATHS for point in points)
        paths = dict.fromkeys(path for path in every if isinstance(path, str))
        names = dict(zip(paths, short_names(list(paths)), strict=True))
        return cls(_telling(points), short_keys(keys, reserved), names)

    def model(self, values: Mapping[str, Any]) -> str:
        """The name of a model with these `values` of the grid's keys; empty if it is the only one."""
        return " ".join(self.part(key, values[key]) for key in self.keys if of_model(key))

    def cell(self, values: Mapping[str, Any], steps: int, eta: float | str | None) -> str:
        """The name of a cell within its model. S is always shown, and so is eta, unless its sampler has none.

        A value None means that the cell's sampler ignores the key, {} that its options are the defaults.
        """
        shown = {"steps": steps} | ({} if eta is None else {"eta": eta})
        own = [key for key in self.keys if not of_model(key) and key not in ("steps", "eta")]
        shown |= {key: values[key] for key in own if values.get(key) not in (None, {})}
        return " ".join(self.part(key, value) for key, value in shown.items())

    def part(self, key: str, value: Any) -> str:
        return f"{SHOWN.get(key, self.short.get(key, key))}={self.value(key, value)}"

    def value(self, key: str, value: Any) -> str:
        """A value as text; a checkpoint by its short name."""
        return value_text(self.checkpoints.get(value, value) if key in PATHS else value)


def of_model(key: str) -> bool:
    """Whether a key of a grid makes another model, not only another cell of the same one."""
    return "." in key and key not in CELL_KEYS


def _telling(points: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The keys that vary, without those whose texts equal an earlier key's at all points: they add no information."""
    keys: dict[tuple[Any, ...], str] = {}
    for key in varying(points):
        values = tuple(point.get(key) for point in points)
        is_text = all(isinstance(value, str) for value in values)  # numbers may agree by chance
        keys.setdefault(values if is_text else (key,), key)
    return tuple(keys.values())


def varying(points: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The keys that do not have one and the same value at all `points`, in their order."""
    keys = dict.fromkeys(key for point in points for key in point)
    return tuple(key for key in keys if len({json.dumps(point.get(key), sort_keys=True) for point in points}) > 1)


def short_keys(keys: Iterable[str], reserved: Collection[str]) -> dict[str, str]:
    """Key -> its last component, or all of it where another key, or one of the `reserved`, ends in the same."""
    full = list(keys)
    last = {key: key.rpartition(".")[2] for key in full}
    ends = list(last.values())
    return {key: key if ends.count(end) > 1 or ("." in key and end in reserved) else end for key, end in last.items()}


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many parts before it as make all names different."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts), default=0)):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)


def value_text(value: Any) -> str:
    """A value in a name: numbers without a trailing ".0"; what has spaces, commas or brackets is quoted."""
    text = plain_text(value)
    if len(text) > MAX_VALUE_LENGTH:
        ends = f"{text[:12]}…{text[-12:]}"
        if isinstance(value, Mapping) and value.keys() == {"parquet", "column"}:
            ends = f"{value['column']} of {Path(value['parquet']).name}"
        text = f"{ends} {hashlib.sha256(text.encode()).hexdigest()[:6]}"
    quote = "'" if '"' in text else '"'
    return text if _PLAIN.fullmatch(text) else f"{quote}{text}{quote}"


def plain_text(value: Any) -> str:
    """A value as it is written in a config: text as it is, the rest as JSON, 0.0 as 0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def options_text(given: object, if_none: str = "") -> str:
    """Options of a sampler, a mapping or its JSON, such as "solver_order=3 use_karras_sigmas=true"."""
    options = json.loads(given) if isinstance(given, str) else given if isinstance(given, Mapping) else {}
    return " ".join(f"{key}={plain_text(value)}" for key, value in options.items()) or if_none


def in_yaml(value: Any) -> str:
    """A value as a config has it: null, not None; lists and mappings on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plain_text(inner)}" for key, inner in value.items()) + "}"
    return f"[{', '.join(map(plain_text, value))}]" if isinstance(value, list) else plain_text(value)
