"""The arguments and results of the functions that compute metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.statistics import Array, Features, Stream
from taugrid.registry.metrics import MetricSettings


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """The samples of one cell and the reference, as far as the requested metrics need them."""

    num_samples: int
    features: Stream
    """The samples' features, N of them."""
    held: Features | None
    """(N, d): the same in memory, if a requested metric needs all of them at once."""
    logits: Stream | None
    """The samples' logits; None if the extractor has none."""
    reference: ReferenceStatistics | None
    """None: no requested metric needs it."""
    settings: MetricSettings
    columns: Mapping[str, Array] = field(default_factory=dict)
    """Name -> (N,) float64: the columns of the sample files that the requested metrics name."""

    @property
    def compared_with(self) -> ReferenceStatistics:
        """`reference`, for metrics that need it."""
        assert self.reference is not None
        return self.reference

    @property
    def all_features(self) -> Features:
        """`held`, for metrics that need it."""
        assert self.held is not None
        return self.held


class MetricResult(NamedTuple):
    values: dict[str, float]
    """Column of a table -> number."""
    influence: Array | None = None
    """(N,): how far each sample moves FID, for paired differences; None if FID has no standard error."""
    notes: tuple[str, ...] = ()
    """Why a number is missing."""
