"""What all sections share: immutability, common types, and validation that says in one line what is wrong."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taugrid.errors import UserError
from taugrid.words import did_you_mean
from taugrid.yaml_text import EXPONENT

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0)]


def absolute_path(path: str) -> str:
    """The path as it means the same everywhere: Ray's workers, and later commands, run in other folders."""
    expanded = Path(path)
    with suppress(RuntimeError):  # ~user, of whom this machine does not know
        expanded = expanded.expanduser()
    return str(expanded.absolute())


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """A validator of texts that must be one of `names`, two at least."""

    def known(name: str) -> str:
        if name not in names:
            raise ValueError(f"must be {either(names)}")
        return name

    return known


class Section(BaseModel):
    """A section of the config: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    later_keys: ClassVar[Mapping[str, Any]] = {}
    """Keys that were added after the first version. Their defaults mean what files without them mean."""

    @property
    def recorded(self) -> dict[str, Any]:
        """The section for files and hashes: without `later_keys` at their defaults, so that old hashes stay valid."""
        values: dict[str, Any] = self.model_dump(mode="json")
        later = self.later_keys
        return {key: value for key, value in values.items() if key not in later or value != later[key]}


S = TypeVar("S", bound=Section)


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as a `cls`; `UserError` with one line that names every mistake."""
    try:
        validated = cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, cls)}") from None
    for keys, value, kind in _mistaken_for_numbers(values, validated):
        raise UserError(f"{where}: {'.'.join(keys)}: must be {kind}, not {_shown(value)}")
    return validated


Keys = tuple[str, ...]


def _mistaken_for_numbers(given: Any, made: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any, str]]:
    """The keys and values of texts and booleans that pydantic made numbers of, or booleans of anything else."""
    if isinstance(given, Mapping) and isinstance(made, Section):
        for key, value in given.items():
            yield from _mistaken_for_numbers(value, getattr(made, key, None), (*keys, key))
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for value, one in zip(given, made, strict=False):
            yield from _mistaken_for_numbers(value, one, keys)
    elif isinstance(made, int | float):
        is_text = isinstance(given, str) and not EXPONENT.match(given)
        if is_text or isinstance(given, bool) != isinstance(made, bool):
            yield keys, given, "true or false" if isinstance(made, bool) else "a number"


def explain(error: ValidationError, cls: type[Section]) -> str:
    """All mistakes, joined by semicolons: each key with what pydantic or a validator says of it, and its value."""
    messages: dict[Keys, str] = {}
    for mistake in error.errors(include_url=False):
        keys, section = _walk(mistake["loc"], cls)
        if mistake["type"] == "extra_forbidden":
            keys, known = (*keys, str(mistake["loc"][-1])), list(section.model_fields if section else ())
            hint = did_you_mean(keys[-1], known, f"known keys: {', '.join(known)}")
            messages[keys] = f"unknown key {'.'.join(keys)!r} ({hint})"
            continue
        text = mistake["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
        if mistake["type"] == "model_type":  # pydantic names the class
            text = "must be a mapping"
        given = f", not {_shown(mistake['input'])}" if text.startswith(("must be ", "String should ")) else ""
        if keys in messages:  # another branch of a union
            text = f"{messages[keys].removesuffix(given)}, or {text.removeprefix('must be ')}"
        else:
            text = ": ".join(filter(None, (".".join(keys), text)))
        messages[keys] = f"{text}{given}"
    # A section that is one branch of a union: its keys say what is wrong, not that it could have been something else.
    inner = {keys[:length] for keys in messages for length in range(len(keys))}
    return "; ".join(text for keys, text in messages.items() if keys not in inner)


def _walk(location: Sequence[str | int], cls: type[Section]) -> tuple[Keys, type[Section] | None]:
    """The keys and numbers of list items in a location, which also names branches of unions; the last key's section."""
    keys: list[str] = []
    section: type[Section] | None = cls
    for part in location:
        if isinstance(part, int):
            keys.append(str(part))
        elif section is not None and part in section.model_fields:
            keys.append(part)
            section = _section_in(section.model_fields[part].annotation)
    return tuple(keys), section


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a type is, or has as a branch; None if it has none."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as YAML writes them
    return repr(value)


def either(words: Iterable[str]) -> str:
    """Words of which one is meant: a, b or c."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
