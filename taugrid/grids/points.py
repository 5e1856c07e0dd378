"""The points of a grid: the product of its keys, with keys that vary together (`zip`) and points left out (`exclude`).

diffusion.schedule: [linear, cosine]
steps: [10, 100, 1000]
zip: {train.steps: [1000, 2000], train.learning_rate: [2.0e-3, 1.0e-3]}
exclude: [{schedule: cosine, steps: 1000}]

And how a user selects some of them.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from taugrid.errors import UserError
from taugrid.grids.names import SHOWN, in_yaml, plain_text, short_keys, value_text
from taugrid.words import listed

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
    `names.short_keys`. `UserError` if zipped keys differ in their numbers of values, a key is named twice, an exclusion
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


# Selectors: `steps=50,schedule=cosine`, or a name as `names` makes it ("schedule=cosine · S=50 eta=0")

MAX_NAMED = 6  # how many values or names a message lists

AS_IN_TABLES = {"σ̂": "sigma_hat", "η": "eta"}  # how tables print a value and a key, and how a config writes it

_CONDITION = re.compile(
    r"""(?P<key>[\w.]+)\s*=\s*(?P<value>"[^"]*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|[^\s,·"'\[\]{}]+)(?:[\s,·]+|$)"""
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

    `short`: key -> its short form (`names.short_keys`), for every key that can be meant.
    """
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
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _from_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
