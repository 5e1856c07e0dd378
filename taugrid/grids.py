"""Grids: their points, the names of what stands at a point, how a user selects points, and what tables make of keys.

diffusion.schedule: [linear, cosine]
steps: [10, 100, 1000]
zip: {train.steps: [1000, 2000], train.learning_rate: [2.0e-3, 1.0e-3]}
exclude: [{schedule: cosine, steps: 1000}]

The points are the product of the keys, with keys that vary together (`zip`) and points left out (`exclude`).
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from taugrid.errors import UserError
from taugrid.words import listed
from taugrid.yaml_text import from_yaml

TRAINING, SAMPLING = "train.seed", "seed"
SEEDS = (TRAINING, SAMPLING)  # the grid keys that make replicates and not settings
UNITS = {TRAINING: "training", SAMPLING: "sampling seed"}  # key -> the name of a replicate

EVALUATIONS = "network_evaluations"

NOT_AXES = frozenset({"model", "num_samples", "protocol", *SEEDS})
"""Settings along which cells are never neighbours: ids and seeds have no order, and other N or protocols can't be
compared."""


class Layout(NamedTuple):
    """Which columns of quality.csv make a table's rows and columns. Others that vary split it into separate tables."""

    rows: tuple[str, ...] = ()  # empty: everything that varies, and eta at the end
    columns: str = "steps"
    x: str = "steps"  # the horizontal axis of figures: steps, evaluations or seconds
    metrics: tuple[str, ...] = ()  # of several that could decide, the first does; empty: in the order of tables


USUAL = Layout()  # rows of settings and eta, columns of S


# Names, such as "schedule=cosine · S=50 eta=0"

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
        """The name of a cell within its model. S is always shown, and so is eta, unless its sampler has none. A value
        None means that the cell's sampler ignores the key, {} that its options are the defaults."""
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
    if _PLAIN.fullmatch(text):
        return text
    if '"' not in text:
        return f'"{text}"'
    doubled = text.replace("'", "''")  # as in YAML
    return f"'{doubled}'"


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


# Points

ZIP, EXCLUDE = "zip", "exclude"
Grid = Mapping[str, list[Any]]  # as `normalised` leaves it: `zip` is a list of such mappings, `exclude` of points


def normalised(mapping: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A mapping of a grid in which `zip` and `exclude` are lists; ValueError if a key has no list of values, or `zip`
    or `exclude` is not made of mappings."""
    normal = {key: _mappings(key, values) if key in (ZIP, EXCLUDE) else values for key, values in mapping.items()}
    for each in (normal, *normal.get(ZIP, ())):
        for key, values in each.items():
            if not isinstance(values, list) or not values:
                example = values if values and not isinstance(values, dict) else "value"
                raise ValueError(f"{key} must be a list with at least one value, as in {key}: [{example}]")
    return normal


def _mappings(key: str, values: Any) -> list[Mapping[str, Any]]:
    several = [values] if isinstance(values, Mapping) else values
    if not isinstance(several, list) or not several or not all(isinstance(each, Mapping) and each for each in several):
        example = "{train.steps: [100, 200], steps: [10, 20]}" if key == ZIP else "[{schedule: cosine, steps: 1000}]"
        raise ValueError(f"{key} must be a mapping or a list of them, as in {key}: {example}")
    return several


def values_by_key(mapping: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every key of a mapping, zipped ones too, with its values. The mapping need not be normalised."""
    by_key: dict[str, list[Any]] = {}
    for key, values in mapping.items():
        if key == ZIP:
            for inner in [values] if isinstance(values, Mapping) else values:
                by_key |= inner if isinstance(inner, Mapping) else {}
        elif key != EXCLUDE:
            by_key[key] = values
    return by_key


def with_values(mapping: Grid, change: Callable[[str, list[Any]], list[Any]]) -> dict[str, list[Any]]:
    """The mapping with the values of each key, zipped ones too, replaced by what `change` makes of key and values."""
    return {
        key: values
        if key == EXCLUDE
        else [with_values(inner, change) for inner in values]
        if key == ZIP
        else change(key, values)
        for key, values in mapping.items()
    }


def points(mapping: Grid, reserved: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The points of one mapping, in the order of its keys; the last varies fastest. `reserved` as in
    `short_keys`. `UserError` if zipped keys differ in their numbers of values, a key is named twice, an exclusion
    fits nothing, or nothing is left."""
    every = [dict(itertools.chain.from_iterable(point.items() for point in chosen)) for chosen in _product(mapping)]
    left_out = _excluded(mapping, every, reserved)
    if len(left_out) == len(every):
        raise UserError(f"grid.{EXCLUDE} leaves out every point; remove an exclusion")
    yield from (point for place, point in enumerate(every) if place not in left_out)


def _product(mapping: Grid) -> Iterator[tuple[dict[str, Any], ...]]:
    named: dict[str, None] = {}
    axes: list[list[dict[str, Any]]] = []
    for key, values in mapping.items():
        if key == EXCLUDE:
            continue
        together = values if key == ZIP else [{key: values}]
        for keys in together:
            if twice := [name for name in keys if name in named]:
                raise UserError(f"grid: {twice[0]} is named twice, once in {ZIP}; remove one of them")
            named |= dict.fromkeys(keys)
            lengths = {name: len(its) for name, its in keys.items()}
            if len(set(lengths.values())) > 1:
                counts = ", ".join(f"{name} has {count}" for name, count in lengths.items())
                raise UserError(f"grid.{ZIP}: its keys must have equally many values: {counts}")
            axes.append([dict(zip(keys, its, strict=True)) for its in zip(*keys.values(), strict=True)])
    return itertools.product(*axes)


def _excluded(mapping: Grid, every: list[dict[str, Any]], reserved: Collection[str]) -> set[int]:
    by_key = values_by_key(mapping)
    short = short_keys(by_key, reserved)
    excluded: set[int] = set()
    for exclusion in mapping.get(EXCLUDE, []):
        keys = {name: key_of(str(name), short) for name in exclusion}
        if unknown := [name for name, key in keys.items() if key is None]:
            raise UserError(
                f"grid.{EXCLUDE}: {in_yaml(exclusion)} names {unknown[0]}, which this grid does not have (its keys: "
                f"{', '.join(by_key)})"
            )
        wanted = {key: exclusion[name] for name, key in keys.items() if key is not None}
        fitting = {
            place for place, point in enumerate(every) if all(fits(point[key], value) for key, value in wanted.items())
        }
        if not fitting:
            available = "; ".join(f"{key} is {', '.join(map(plain_text, by_key[key]))}" for key in wanted)
            raise UserError(f"grid.{EXCLUDE}: {in_yaml(exclusion)} fits no point ({available}); correct or remove it")
        excluded |= fitting
    return excluded


# Selectors: `steps=50,schedule=cosine`, or a name as above ("schedule=cosine · S=50 eta=0")

MAX_NAMED = 6  # how many values or names a message lists

AS_IN_TABLES = {"σ̂": "sigma_hat", "η": "eta"}  # how tables print a value and a key, and how a config writes it

_CONDITION = re.compile(
    r"""(?P<key>[\w.]+)\s*=\s*(?P<value>"[^"]*"|'(?:[^']|'')*'|\[[^\]]*\]|\{[^}]*\}|[^\s,·"'\[\]{}]+)(?:[\s,·]+|$)"""
)


def is_selector(text: str) -> bool:
    return "=" in text


def parse(text: str) -> list[tuple[str, str]]:
    """The keys in a selector, as they are written, and the values that they must have; `UserError` if it is none."""
    found, place = [], 0
    text = text.strip()
    while place < len(text):
        match = _CONDITION.match(text, place)
        if match is None:
            raise UserError(
                f"{text!r} can't be read from {text[place:]!r} on; write key=value,key=value, as in "
                "steps=50,schedule=cosine, and values with spaces or commas in quotes"
            )
        found.append((match["key"], _unquoted(match["value"])))
        place = match.end()
    return found


def key_of(name: str, short: Mapping[str, str]) -> str | None:
    """The grid key that a user calls `name`: the key itself, its short form, or S and N; None if there is none.
    `short`: key -> its short form (`short_keys`), for every key that can be meant."""
    name = AS_IN_TABLES.get(name, name)
    by_name = {end: key for key, end in short.items()} | {shown: key for key, shown in SHOWN.items()}
    key = name if name in short else by_name.get(name)
    return key if key in short else None


def fits(value: Any, wanted: Any) -> bool:
    """Whether a key's value is the one that is wanted: as in a config, as text, or as the end of a path."""
    if not isinstance(wanted, str):
        return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)
    if isinstance(value, str):
        written = (wanted, AS_IN_TABLES.get(wanted), f"diffusers:{wanted}Scheduler")
        return value in written or ("/" in value and value.endswith(f"/{wanted}"))
    if isinstance(value, bool) or value is None:
        return wanted.lower() == plain_text(value)
    if isinstance(value, int | float):
        with suppress(ValueError):
            return float(wanted) == value
        return False
    return wanted in (plain_text(value), _unquoted(value_text(value))) or _from_yaml(wanted) == value


def chosen(text: str, points: Sequence[Mapping[str, Any]], short: Mapping[str, str]) -> list[int]:
    """The places in `points`, key -> value of each, that the selector `text` fits; `short` as in `key_of`. `UserError`
    if it can't be read, names an unknown key, or fits nothing; it says which values there are."""
    left = list(range(len(points)))
    options = [point.get("sampler_options") or {} for point in points]  # tables write each as a key
    for name, wanted in parse(text):
        key = key_of(name, short)
        if key is None and not any(name in its for its in options):
            keys = listed([*short.values()], MAX_NAMED)
            raise UserError(f"{text!r}: there is no key {name!r} in this grid; its keys are {keys}")
        found = [its.get(name) for its in options] if key is None else [point.get(key) for point in points]
        before, left = left, [place for place in left if fits(found[place], wanted)]
        if not left:
            values = listed(list(dict.fromkeys(value_text(found[place]) for place in before)), MAX_NAMED)
            raise UserError(f"{text!r} fits no cell: there, {name} is {values}, not {wanted}")
    return left


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        return text
    return text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]


def _from_yaml(text: str) -> Any:
    try:
        return from_yaml(text)
    except yaml.YAMLError:
        return None
