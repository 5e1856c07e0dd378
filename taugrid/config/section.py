"""What all sections share: immutability, validation with one line for each mistake, and common types."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taugrid.errors import UserError

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A section of the config: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as a `cls`; `UserError` with one line per mistake, and a suggestion for an unknown key."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        mistakes: dict[str, list[str]] = {}
        for one in error.errors(include_url=False):
            key, text = _explain(cls, dict(one))
            mistakes.setdefault(key, []).append(text)
        lines = (f"{key} {' or '.join(dict.fromkeys(texts))}" for key, texts in mistakes.items())
        raise UserError(f"{where}: " + "; ".join(lines)) from None


def _explain(cls: type[BaseModel], error: dict[str, Any]) -> tuple[str, str]:
    """(key, what is wrong with it); the branches of a union give one each for the same key."""
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        parent: type[BaseModel] | None = cls
        for part in path[:-1]:
            parent = _section_of(parent, part)
        known = list(parent.model_fields) if parent else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {'.'.join(path)!r}", f"({hint})"
    if error["type"] == "missing":
        return ".".join(path), "is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    # A union reports each of its branches, named in the location after the field: the field is what people wrote.
    field = [part for part in path if part.replace("_", "").isalnum() and part not in {"float", "int", "str"}]
    given = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{'.'.join(field) or 'config'}:", f"{message}{given}"


def _section_of(parent: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    field = parent.model_fields.get(name) if parent else None
    if field is None:
        return None
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
