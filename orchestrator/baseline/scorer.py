"""The canary of the scorer: what it gives for the reference itself, which no new network can change.

It is the features of the first reference images, and the scores of even images against odd ones, of the reference's
first part (`eval.sources.part_bounds`): a few thousand images, which takes seconds. A night leaves it as scorer.json
beside its run, and a baseline file holds it.
"""

import base64
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from taugrid.errors import DamagedFile, UserError
from taugrid.eval.metrics.reference_statistics import of_features, read_all
from taugrid.eval.metrics.score import feasible, score
from taugrid.orchestrator.opened import Opened
from taugrid.registry.metrics import MetricSettings
from taugrid.storage import read_sealed, write_sealed

FILE = "scorer.json"

FEATURES = 64
"""Reference images whose features are kept."""

EQUAL = 1e-9
"""Relative tolerance for the same versions, devices and threads: rounding differs by far less."""

ALIKE = 1e-3
"""Relative tolerance for others: kernels and libraries differ by far less, and a fault of 1 % by far more."""

OURS = "taugrid"


@dataclass(frozen=True)
class ScoredWith:
    """What a score depends on besides images, reference and settings."""

    places: tuple[str, ...]
    """Devices and threads that extracted and scored."""
    versions: Mapping[str, str]
    """Of the software, without taugrid: its own version never counts as other software."""

    @classmethod
    def of(cls, places: Iterable[str], protocol: Mapping[str, Any]) -> "ScoredWith":
        """From the places and the protocol of a score."""
        versions = protocol.get("versions") or {}
        return cls(tuple(sorted(places)), {name: value for name, value in versions.items() if name != OURS})

    @classmethod
    def read(cls, value: Mapping[str, Any] | None) -> "ScoredWith | None":
        """From JSON; None stays None."""
        return None if value is None else cls(tuple(value["places"]), value["versions"])


def tolerance(one: ScoredWith | None, other: ScoredWith | None) -> float:
    """How far two scores of the same features may be apart, relatively."""
    known = one is not None and len(one.places) == 1 and "unknown" not in one.places[0]
    return EQUAL if known and one == other else ALIKE


@dataclass(frozen=True, eq=False)
class ScorerRecord:
    """What a scorer gave for a reference."""

    reference: str
    """SHA-256 of the reference."""
    extractor: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Of the metrics."""
    made_with: ScoredWith
    features: NDArray[np.float32]
    """(n, d), of its first images."""
    scores: Mapping[str, float]
    """Of its even images against its odd ones."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        coded = base64.b64encode(self.features.astype("<f4").tobytes()).decode()
        shape = list(self.features.shape)
        return {**{name: getattr(self, name) for name in ("reference", "extractor", "settings", "scores")},
                "made_with": asdict(self.made_with), "shape": shape, "features": coded}  # fmt: skip

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "ScorerRecord":
        """What `as_dict` gave."""
        features = np.frombuffer(base64.b64decode(value["features"]), "<f4").reshape(value["shape"])
        made_with = ScoredWith.read(value["made_with"])
        assert made_with is not None
        given = {name: value[name] for name in ("reference", "extractor", "settings", "scores")}
        return cls(**given, made_with=made_with, features=features)


def changes(new: ScorerRecord, old: ScorerRecord) -> list[str]:
    """How the scorer of `new` differs from that of `old`, beyond rounding; empty if it does not.

    Both must be of the same reference and extractor.
    """
    allowed, found = tolerance(new.made_with, old.made_with), []
    scale = float(np.abs(old.features).max())
    if new.features.shape != old.features.shape:
        return ["the features of the reference have another shape"]
    apart = float(np.abs(new.features.astype(np.float64) - old.features).max())
    if apart > allowed * scale:
        found.append(f"the features of the first {len(old.features)} reference images differ by up to {apart:.3g}")
    same = new.settings == old.settings
    for name in old.scores.keys() & new.scores.keys() if same else {"fid"} & old.scores.keys() & new.scores.keys():
        if differs(new.scores[name], old.scores[name], allowed):
            found.append(f"{name} of the reference's halves is {new.scores[name]:.6g}, it was {old.scores[name]:.6g}")
    return sorted(found)


def differs(new: float, old: float, allowed: float) -> bool:
    """Whether two scores are further apart than `allowed`, relatively to the larger one."""
    return abs(new - old) > allowed * max(abs(new), abs(old), ALIKE)


def kept_record(opened: Opened, protocols: Sequence[Mapping[str, Any]], places: Iterable[str]) -> ScorerRecord | str:
    """The record that a night left beside its run or, without one, a new one; a text says why there is none.

    Args:
        opened: the run.
        protocols: of its scores.
        places: the devices and threads that extracted the features of the reference.
    """
    rundir = opened.rundir
    found = read_sealed(rundir.root.parent / FILE, rundir.storage)
    if found is not None:
        return ScorerRecord.read(found)
    if not protocols:
        return "no cell is scored"
    try:
        return _record(opened, protocols[0], places)
    except (UserError, FileNotFoundError, DamagedFile) as error:
        return f"the features of the reference are not at hand ({error})"


def keep_record(opened: Opened, record: ScorerRecord) -> None:
    """Write scorer.json beside the run of a night."""
    write_sealed(opened.rundir.root.parent / FILE, record.as_dict(), opened.rundir.storage)


def _record(opened: Opened, protocol: Mapping[str, Any], places: Iterable[str]) -> ScorerRecord | str:
    rundir, reference = opened.rundir, protocol["reference"]
    count = reference.get("num_images")
    spec = rundir.extractor(opened.config)
    folder = rundir.extractor_folder(spec)
    if count is None or not rundir.storage.exists(rundir.reference_part(folder, reference["sha256"], 0)):
        known = "only a mean and a covariance" if count is None else "no features"
        return f"{known} of the reference can be read"
    features = np.concatenate(list(read_all([rundir.reference_part(folder, reference["sha256"], 0)], rundir.storage)))
    wanted = opened.config.evaluate.metric_settings
    from_features = tuple(metric.name for metric in wanted.chosen if not metric.needs_logits)
    half = len(features) // 2
    settings = feasible(replace(wanted, metrics=from_features), spec, half, half).settings
    with threadpool_limits(1):  # so that a machine with other cores gives the same
        versions = protocol.get("versions", {}) | {"cpu": _cpu()}
        scores = _halves(features, settings)
    made_with = ScoredWith.of(places, {"versions": versions})
    used = json.loads(json.dumps(settings.as_dict()))
    return ScorerRecord(reference["sha256"], protocol["extractor"], used, made_with, features[:FEATURES], scores)


def _halves(features: NDArray[np.float32], settings: MetricSettings) -> dict[str, float]:
    """The scores of the even rows against the odd ones."""
    half = len(features) // 2
    even, odd = features[: 2 * half : 2], features[1 : 2 * half : 2]
    reference = of_features(lambda: iter((odd,)), half, None, "", lambda: odd)
    return score(lambda: iter((even,)), None, half, reference, settings).values


def _cpu() -> str:
    """The kind of processor for which NumPy's linear algebra chose its code: another rounds differently."""
    kinds = {str(found["architecture"]) for found in threadpool_info() if "architecture" in found}
    return " ".join((platform.machine(), *sorted(kinds)))
