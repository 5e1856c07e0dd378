"""`gate`: what nights and comparisons with a baseline are judged by."""

from typing import Annotated

from pydantic import AfterValidator, Field

from taugrid.config.section import Section, one_of
from taugrid.registry.metrics import METRICS

JUDGING = tuple(name for name, metric in METRICS.items() if any(column.sampling_error for column in metric.columns))
"""The metrics that can have a standard error of sampling."""


JudgingMetric = Annotated[str, AfterValidator(one_of(JUDGING)), Field(json_schema_extra={"enum": list(JUDGING)})]


class Gate(Section):
    """What `taugrid nightly` and `compare DIR BASELINE` judge. Changes no cell and no score."""

    metrics: Annotated[list[JudgingMetric], Field(min_length=1)] | None = None
    """A cell is worse if one of these is worse, as in [fid, kid]; null: fid where it has a standard error, else kid."""

    margin_floor: Annotated[float, Field(ge=0)] = 0.15
    """The smallest margin of kid and cmmd, in standard errors of the baseline. Their values may be near 0, where a
    share means nothing."""
