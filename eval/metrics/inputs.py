"""What the function that computes a metric takes and returns."""

from dataclasses import dataclass
from typing import NamedTuple

from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.metrics.streams import Features, Stream
from taugrid.registry.metrics import MetricSettings


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """The samples of one cell and the reference, as far as the metrics that are asked for need them."""

    num_samples: int
    features: Stream
    """Of the samples: N of them."""
    held: Features | None
    """(N, d): the same in memory, where a metric that is asked for needs all of them at once."""
    logits: Stream | None
    """Of the samples; None where the extractor has none."""
    reference: ReferenceStatistics
    settings: MetricSettings

    @property
    def all_features(self) -> Features:
        """`held`, for metrics that need it."""
        assert self.held is not None
        return self.held


class MetricResult(NamedTuple):
    """What was computed."""

    values: dict[str, float]
    """Column of a table -> number."""
    influence: Array | None = None
    """(N,): how far each sample moves FID, for paired differences; None where FID has no standard error."""
    notes: tuple[str, ...] = ()
    """Why a number is missing."""
