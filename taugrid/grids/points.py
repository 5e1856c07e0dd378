"""The points of a grid: the product of its keys, with keys that vary together (`zip`) and points left out (`exclude`).

diffusion.schedule: [linear, cosine]
steps: [10, 100, 1000]
zip: {train.steps: [1000, 2000], train.learning_rate: [2.0e-3, 1.0e-3]}
exclude: [{schedule: cosine, steps: 1000}]
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from taugrid.errors import UserError
from taugrid.grids.names import in_yaml, plain_text, short_keys
from taugrid.grids.selectors import fits, key_of

ZIP, EXCLUDE = "zip", "exclude"
Grid = Mapping[str, list[Any]]
"""One mapping of a grid, as `normalised` leaves it: `zip` is a list of mappings like it, `exclude` one of points."""


def normalised(mapping: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A mapping of a grid in which `zip` and `exclude` are lists.

    Raises:
        ValueError: if a key has no list of values, or `zip` or `exclude` is not made of mappings.
    """
    normal = {key: _mappings(key, values) if key in (ZIP, EXCLUDE) else values for key, values in mapping.items()}
    _require_lists(normal)
    return normal


def _mappings(key: str, values: Any) -> list[Mapping[str, Any]]:
    listed = [values] if isinstance(values, Mapping) else values
    if not isinstance(listed, list) or not listed or not all(isinstance(each, Mapping) and each for each in listed):
        example = "{train.steps: [100, 200], steps: [10, 20]}" if key == ZIP else "[{schedule: cosine, steps: 1000}]"
        raise ValueError(f"{key} must be a mapping or a list of them, as in {key}: {example}")
    for zipped in listed if key == ZIP else ():
        _require_lists(zipped)
    return listed


def _require_lists(mapping: Mapping[str, Any]) -> None:
    for key, values in mapping.items():
        if not isinstance(values, list) or not values:
            example = values if values and not isinstance(values, dict) else "value"
            raise ValueError(f"{key} must be a list with at least one value, as in {key}: [{example}]")


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
    """The points of one mapping, in the order of its keys; the last varies fastest.

    `reserved` as in `names.short_keys`.

    Raises:
        UserError: if zipped keys differ in their numbers of values, a key is named twice, an exclusion fits nothing, or
            nothing is left.
    """
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
            axes.append(_zipped(keys))
    return itertools.product(*axes)


def _zipped(keys: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    lengths = {key: len(values) for key, values in keys.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {count}" for key, count in lengths.items())
        raise UserError(f"grid.{ZIP}: its keys must have equally many values: {counts}")
    return [dict(zip(keys, values, strict=True)) for values in zip(*keys.values(), strict=True)]


def _excluded(mapping: Grid, every: list[dict[str, Any]], reserved: Collection[str]) -> set[int]:
    by_key = values_by_key(mapping)
    short = short_keys(by_key, reserved)
    excluded: set[int] = set()
    for exclusion in mapping.get(EXCLUDE, []):
        conditions = {}
        for name, wanted in exclusion.items():
            if (key := key_of(str(name), short)) is None:
                raise UserError(
                    f"grid.{EXCLUDE}: {in_yaml(exclusion)} names {name}, which this grid does not have (its keys: "
                    f"{', '.join(by_key)})"
                )
            conditions[key] = wanted
        fitting = {
            place
            for place, point in enumerate(every)
            if all(fits(point[key], wanted) for key, wanted in conditions.items())
        }
        if not fitting:
            available = "; ".join(f"{key} is {', '.join(map(plain_text, by_key[key]))}" for key in conditions)
            raise UserError(f"grid.{EXCLUDE}: {in_yaml(exclusion)} fits no point ({available}); correct or remove it")
        excluded |= fitting
    return excluded
