"""What all sections share: immutability, validation that names every mistake in one line, and common types."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taugrid.config.mistakes import explain
from taugrid.errors import UserError

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A section of the config: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as a `cls`; `UserError` with one line that names every mistake."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, cls, values)}") from None
