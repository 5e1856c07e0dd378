"""The score on disk that a config requests, found without reading the reference's images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taugrid.config import Config, Data
from taugrid.errors import UserError
from taugrid.eval.metrics.score import feasible
from taugrid.eval.reference import Reference, open_reference
from taugrid.eval.reference_names import resolve_reference
from taugrid.eval.sources import ImageSet
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.scoring import Scoring, name_and_dimensions, per_sample
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.protocol import ProtocolFields
from taugrid.registry.extractors import ExtractorSpec
from taugrid.registry.metrics import MetricColumn
from taugrid.storage import read_json, read_sealed


@dataclass(frozen=True)
class RequestedScores:
    """The scores that a config requests, compared with protocols as they were recorded."""

    config: Config
    rundir: RunDir

    @cached_property
    def extractor(self) -> ExtractorSpec | None:
        """The config's extractor; None: it can't be described now, and only its name is known."""
        try:
            return self.rundir.extractor(self.config)
        except UserError:
            return None

    @cached_property
    def _before(self) -> Mapping[str, Any]:
        """The config that the directory was last used with."""
        before = read_json(self.rundir.config, self.rundir.storage)
        return before if isinstance(before, dict) else {}

    def score(self, cell: Cell, listing: Listing | None = None) -> dict[str, Any] | None:
        """The requested score; of several the newest, because a reference whose files have changed is not noticed.

        None: the cell has none.
        """
        scores = ((path, read_sealed(path, self.rundir.storage)) for path in self.rundir.scores_of(cell, listing))
        found = [(path, score) for path, score in scores if score and self._is_requested(score["protocol"], cell)]
        if len(found) < 2:
            return found[0][1] if found else None
        return max(found, key=lambda each: self.rundir.storage.stat(each[0]).modified)[1]

    def _is_requested(self, protocol: ProtocolFields, cell: Cell) -> bool:
        n = cell.settings.num_samples
        return (
            protocol["num_samples"] == n
            and self._is_its_extractor(protocol["extractor"])
            and self._is_its_reference(protocol["reference"])
            and not self.changed_metrics(protocol, n)
        )

    def changed_metrics(self, protocol: ProtocolFields, num_samples: int) -> dict[str, tuple[Any, Any]]:
        """Key of `evaluate` -> its recorded and its present value, where a protocol's metrics are others."""
        wanted = self.config.evaluate.metric_settings
        if self.extractor is None:
            requested: dict[str, Any] = {"seed": wanted.seed}
        else:
            num_reference = protocol["reference"]["num_images"]
            samples = per_sample(self.config.data, (protocol.get("conditions") or {}).get("classes"))
            requested = feasible(wanted, self.extractor, num_samples, num_reference, samples).settings.as_dict()
        return {key: (protocol[key], now) for key, now in requested.items() if protocol.get(key, now) != now}

    def reference(self, given: Data | str) -> Reference:
        """The reference of the scores as the last session recorded it; opened if it has no record."""
        recorded = self.rundir.read_provenance().get("reference")
        if isinstance(given, Data) and isinstance(recorded, dict) and self._is_its_reference(recorded):
            return Reference(ImageSet("dataset", given, recorded["num_images"], given.image_shape, recorded["sha256"]))
        return open_reference(given)

    def _is_its_extractor(self, recorded: Mapping[str, Any]) -> bool:
        if self.extractor is None:
            requested = name_and_dimensions(self.config)[0], self.config.evaluate.precision
            return (recorded["name"], recorded.get("precision", "float32")) == requested
        now = self.extractor.describe()
        keys = ("name", "weights_sha256", "source_sha256", "precision")
        return all(recorded.get(key) == now.get(key) for key in keys)

    def _is_its_reference(self, recorded: Mapping[str, Any]) -> bool:
        given = self.config.reference
        try:
            reference = resolve_reference(given).given if isinstance(given, str) else given
        except UserError:
            return False
        if not isinstance(reference, Data):
            return bool((self._before.get("evaluate") or {}).get("reference") == given)
        names = recorded.get("dataset"), recorded.get("split")
        shape = "x".join(map(str, reference.image_shape))
        if names != (reference.full_name, reference.split) or not str(recorded.get("preprocessing")).endswith(shape):
            return False
        size = reference.dataset.published_size(reference.split, reference.category)
        if size is None:
            return self._limit_before() == reference.limit
        return bool(recorded.get("num_images") == min(size, reference.limit or size))

    def _limit_before(self) -> int | None:
        reference = (self._before.get("evaluate") or {}).get("reference") or self._before.get("data") or {}
        limit: int | None = reference.get("limit") if isinstance(reference, Mapping) else None
        return limit


def score_on_disk(rundir: RunDir, cell: Cell, metric: MetricColumn, wanted: Scoring | RequestedScores) -> float | None:
    """A cell's score at its N, as tables show it; None if it has none.

    `wanted` is a `Scoring`, which has opened the reference, or what is known of it without that.
    """
    if isinstance(wanted, Scoring):
        score = read_sealed(rundir.score(cell, wanted.id(cell)), rundir.storage)
    else:
        score = wanted.score(cell)
    value = None if score is None else score["metrics"].get(metric.name)
    return None if value is None else float(value) * metric.scale
