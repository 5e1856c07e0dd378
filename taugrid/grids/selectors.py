"""Selects points of a grid by what a user writes, such as `steps=50,schedule=cosine`.

A name as `names` makes it ("schedule=cosine · S=50 eta=0") is a selector too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from taugrid.errors import UserError
from taugrid.grids.names import SHOWN, plain_text, value_text

MAX_NAMED = 6
"""How many values or names a message lists."""

AS_IN_TABLES = {"σ̂": "sigma_hat", "η": "eta"}
"""How tables print a value and a key, and how a config writes it."""

_CONDITION = re.compile(
    r"""(?P<key>[\w.]+)\s*=\s*(?P<value>"[^"]*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|[^\s,·"'\[\]{}]+)(?:[\s,·]+|$)"""
)


class Condition(NamedTuple):
    """A key, as it was written, and the value that it must have."""

    key: str
    value: str


def is_selector(text: str) -> bool:
    return "=" in text


def parse(text: str) -> list[Condition]:
    """The conditions in a selector; `UserError` if it is none."""
    found, place = [], 0
    text = text.strip()
    while place < len(text):
        match = _CONDITION.match(text, place)
        if match is None:
            raise UserError(
                f"{text!r} can't be read from {text[place:]!r} on; write key=value,key=value, as in "
                "steps=50,schedule=cosine, and values with spaces or commas in quotes"
            )
        found.append(Condition(match["key"], _unquoted(match["value"])))
        place = match.end()
    return found


def key_of(name: str, short: Mapping[str, str]) -> str | None:
    """The grid key that `name` means: the key itself, its short form, or S and N; None if there is none.

    Args:
        name: as a user writes it.
        short: key -> its short form (`names.short_keys`), for every key that can be meant.
    """
    name = AS_IN_TABLES.get(name, name)
    if name in short:
        return name
    by_short = {**{end: key for key, end in short.items()}, **{shown: key for key, shown in SHOWN.items()}}
    key = by_short.get(name)
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
        return _number(wanted) == value
    return wanted in (plain_text(value), _unquoted(value_text(value))) or _from_yaml(wanted) == value


def chosen(text: str, points: Sequence[Mapping[str, Any]], short: Mapping[str, str]) -> list[int]:
    """The places in `points` that a selector fits.

    Args:
        text: the selector.
        points: key -> value of each.
        short: as in `key_of`.

    Raises:
        UserError: if it can't be read, names an unknown key, or fits nothing; it says which values there are.
    """
    left = list(range(len(points)))
    for name, wanted in parse(text):
        key = key_of(name, short)
        options = [point.get("sampler_options") or {} for point in points]  # tables write each as a key
        if key is None and not any(name in its for its in options):
            keys = _listed(short.values())
            raise UserError(f"{text!r}: there is no key {name!r} in this grid; its keys are {keys}")
        found = [its.get(name) for its in options] if key is None else [point.get(key) for point in points]
        before, left = left, [place for place in left if fits(found[place], wanted)]
        if not left:
            values = dict.fromkeys(value_text(found[place]) for place in before)
            others = (
                k for k in short if k.endswith(f".{name}") and any(fits(points[p].get(k), wanted) for p in before)
            )
            hint = f"; did you mean {other}={wanted}?" if (other := next(others, None)) else ""
            raise UserError(f"{text!r} fits no cell: there, {name} is {_listed(values)}, not {wanted}{hint}")
    return left


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:MAX_NAMED]) + (", ..." if len(listed) > MAX_NAMED else "")


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _from_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
