"""Settings of the metrics, as plain data that travels to workers and stands in protocols."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricSettings:
    """Which metrics, and how; defaults are torch-fidelity's."""

    metrics: tuple[str, ...] = ("fid", "isc", "kid")
    seed: int = 2020
    isc_splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    prc_neighborhood: int = 3

    def as_dict(self) -> dict[str, Any]:
        """The fields of a protocol: the metrics, and those settings that they use."""
        fields: dict[str, Any] = {"metrics": sorted(self.metrics), "seed": self.seed}
        if "isc" in self.metrics:
            fields["isc_splits"] = self.isc_splits
        if "kid" in self.metrics:
            fields |= {"kid_subsets": self.kid_subsets, "kid_subset_size": self.kid_subset_size}
        if "prc" in self.metrics:
            fields["prc_neighborhood"] = self.prc_neighborhood
        return fields
